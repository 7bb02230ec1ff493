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
