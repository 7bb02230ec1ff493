//! Answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::task::yield_now;

/// Items of a list that are made in one piece, which takes a tenth of a millisecond.
const PIECE: usize = 64;

/// The body of an answer: all of it, or what comes as time goes by.
pub(super) type Body = Either<Full<Bytes>, StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

pub(super) type Answer = Response<Body>;

/// An answer of one piece.
pub(super) fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with(status, content_type, Either::Left(Full::new(body.into())))
}

/// Lines of text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    whole(status, "text/plain; charset=utf-8", text)
}

/// A value.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // What is shown consists of nothing that JSON does not have.
    let body = serde_json::to_vec(value).unwrap_or_default();
    whole(status, "application/json", body)
}

/// Returns an object with a list of this name. Other tasks of the thread run while it is made.
pub(super) async fn json_list<T: Serialize>(name: &str, items: impl Iterator<Item = T>) -> Answer {
    let mut body = format!("{{\"{name}\":[").into_bytes();
    for (at, item) in items.enumerate() {
        if at > 0 {
            body.push(b',');
        }
        if at % PIECE == PIECE - 1 {
            yield_now().await;
        }
        body.extend(serde_json::to_vec(&item).unwrap_or_default());
    }
    body.extend(b"]}");
    whole(StatusCode::OK, "application/json", body)
}

/// Why a request is not done.
pub(super) fn refused(status: StatusCode, error: &str) -> Answer {
    #[derive(Serialize)]
    struct Refused<'a> {
        error: &'a str,
    }
    json(status, &Refused { error })
}

/// What comes as time goes by, as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
pub(super) fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Answer {
    let frames = events.map(|event| Ok(Frame::data(event))).boxed();
    with(
        StatusCode::OK,
        "text/event-stream",
        Either::Right(StreamBody::new(frames)),
    )
}

/// The same answer, with one more header.
pub(super) fn and(mut answer: Answer, name: HeaderName, value: &str) -> Answer {
    // All values are made here, of visible characters.
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
    answer
}

fn with(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn a_long_list_is_made_in_pieces() {
        let mut list = pin!(json_list("numbers", 0..200));
        let mut context = Context::from_waker(Waker::noop());
        let pieces = (0..).find_map(|polls| match list.as_mut().poll(&mut context) {
            Poll::Ready(answer) => Some((polls, answer)),
            Poll::Pending => None,
        });
        let (pauses, answer) = pieces.unwrap();
        assert_eq!(pauses, 200 / PIECE);
        let mut body = pin!(answer.into_body().collect());
        let Poll::Ready(Ok(body)) = body.as_mut().poll(&mut context) else {
            panic!("the body is there");
        };
        let expected = serde_json::json!({ "numbers": (0..200).collect::<Vec<_>>() });
        let value: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(value, expected);
    }
}
