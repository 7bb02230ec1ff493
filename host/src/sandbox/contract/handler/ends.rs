//! The interface `ends`: how the inbound half ends behind a middleware that changes its bytes.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{FutureConsumer, FutureProducer, FutureReader, Linker, Source};

use super::halves::HalfEnd;
use crate::bindings::service::inet::service::types::ErrorCode;
use crate::sandbox::extent::MAX_PARTS_WITH_STACKS;
use crate::sandbox::state::State;

/// The name of the interface.
const INTERFACE: &str = "inet:service/ends@0.1.0";

/// Ends of one connection that are forwarded at the same time: one for each part that can keep a
/// stack. The guest needs no handle for them, so nothing else bounds them.
const MAX_FORWARDED: usize = MAX_PARTS_WITH_STACKS as usize;

/// Ends of inbound halves that middlewares have yet to tell, or the parts behind them to hear.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Ends {
    /// Two for each end that is forwarded: one until it is told, and one until it is heard.
    open: AtomicUsize,
    /// The end that the host itself tells the part nearest the peer, while that part has not
    /// dropped its future.
    own: AtomicUsize,
    refusal: OnceLock<ErrorCode>,
    /// For the task that drives the connection.
    changed: AtomicWaker,
}

impl Ends {
    /// Waits until every part has heard how its inbound half ended.
    pub(super) async fn heard(&self) {
        self.none_left(|ends| ends.open.load(Acquire)).await;
    }

    /// Waits until every part has heard it, and the part nearest the peer too.
    pub(super) async fn heard_by_all(&self) {
        self.none_left(|ends| ends.open.load(Acquire) + ends.own.load(Acquire))
            .await;
    }

    /// Waits until `count` returns zero.
    async fn none_left(&self, count: impl Fn(&Self) -> usize) {
        poll_fn(|cx| {
            self.changed.register(cx.waker());
            match count(self) {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }

    /// Waits until a middleware has refused what the peer sent, while `counts` holds.
    pub(super) async fn refused(&self, counts: impl Fn() -> bool) -> ErrorCode {
        poll_fn(|cx| {
            self.changed.register(cx.waker());
            match self.refusal() {
                Some(code) if counts() => Poll::Ready(code),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Counts one more end that is forwarded. Returns two marks: one until the end is told, and one
    /// until it is heard. Returns `None` if there are too many.
    fn forward(self: &Arc<Self>) -> Option<[Open; 2]> {
        // Only the task that drives the connection adds some.
        let fits = self.open.load(Relaxed) <= 2 * (MAX_FORWARDED - 1);
        fits.then(|| [Open::new(self), Open::new(self)])
    }

    /// The error code by which a middleware has refused what the peer sent, if one has.
    pub(super) fn refusal(&self) -> Option<ErrorCode> {
        self.refusal.get().copied()
    }
}

/// An end that is not told or heard yet. Dropping it says that it is.
struct Open {
    ends: Arc<Ends>,
    /// The counter of such ends.
    count: fn(&Ends) -> &AtomicUsize,
}

impl Open {
    /// An end that a middleware tells.
    fn new(ends: &Arc<Ends>) -> Self {
        Self::counted(ends, |ends| &ends.open)
    }

    fn counted(ends: &Arc<Ends>, count: fn(&Ends) -> &AtomicUsize) -> Self {
        count(ends).fetch_add(1, Relaxed);
        Self {
            ends: Arc::clone(ends),
            count,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if (self.count)(&self.ends).fetch_sub(1, AcqRel) == 1 {
            self.ends.changed.wake();
        }
    }
}

/// Lets guests call the interface.
///
/// # Errors
///
/// The linker has it already.
pub(in crate::sandbox) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance(INTERFACE)?.func_wrap(
        "forward",
        |mut store: StoreContextMut<'_, State>, (connection, end): (u64, FutureReader<HalfEnd>)| {
            let Some(ends) = store.data().ends_of(connection) else {
                wasmtime::bail!(
                    "`forward` was called for connection {connection}, which this guest is not handling"
                );
            };
            let Some([tell, hear]) = ends.forward() else {
                wasmtime::bail!(
                    "`forward` was called for connection {connection} while {MAX_FORWARDED} of its \
                     ends were forwarded"
                );
            };
            let (teller, how) = oneshot::channel();
            let told = Told {
                teller: Some((teller, tell)),
            };
            end.pipe(&mut store, told)?;
            let heard = FutureReader::new(&mut store, Heard { how, _open: hear })?;
            Ok((heard,))
        },
    )
}

/// Takes the value of the future that a middleware resolves.
struct Told {
    /// `None` once it has.
    teller: Option<(oneshot::Sender<HalfEnd>, Open)>,
}

impl Told {
    fn tell(&mut self, how: HalfEnd) {
        if let Some((teller, open)) = self.teller.take() {
            if let Err(code) = how {
                let _ = open.ends.refusal.set(code);
                open.ends.changed.wake();
            }
            // A part that has dropped the future does not want to know.
            let _ = teller.send(how);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(Err(ErrorCode::InternalError));
    }
}

impl FutureConsumer<State> for Told {
    type Item = HalfEnd;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        store: StoreContextMut<'_, State>,
        mut source: Source<'_, Self::Item>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut value = None;
        source.read(store, &mut value)?;
        if let Some(how) = value {
            self.tell(how);
        }
        Poll::Ready(Ok(()))
    }
}

/// Resolves the future that a part reads.
pub(super) struct Heard {
    how: oneshot::Receiver<HalfEnd>,
    /// Until the part has dropped its future: a value that was produced may not have reached it.
    _open: Open,
}

impl Heard {
    /// For the part nearest the peer, which the host tells.
    pub(super) fn by_host(ends: &Arc<Ends>, how: oneshot::Receiver<HalfEnd>) -> Self {
        Self {
            how,
            _open: Open::counted(ends, |ends| &ends.own),
        }
    }
}

impl FutureProducer<State> for Heard {
    type Item = HalfEnd;

    fn poll_produce(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _store: StoreContextMut<'_, State>,
        finish: bool,
    ) -> Poll<wasmtime::Result<Option<HalfEnd>>> {
        Poll::Ready(Ok(match Pin::new(&mut self.how).poll(cx) {
            Poll::Ready(how) => Some(how.unwrap_or(Err(ErrorCode::InternalError))),
            Poll::Pending if finish => None,
            Poll::Pending => return Poll::Pending,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn ends_are_heard_when_the_last_is_told_and_dropped() {
        let ends = Arc::new(Ends::default());
        ends.heard().await;
        let (first, second) = (Open::new(&ends), Open::new(&ends));
        drop(first);
        let hearing = Arc::clone(&ends);
        let hearing = tokio::spawn(async move { hearing.heard().await });
        tokio::task::yield_now().await;
        assert!(!hearing.is_finished());
        drop(second);
        timeout(Duration::from_secs(10), hearing).await.unwrap().unwrap();
    }

    #[test]
    fn few_are_forwarded_at_the_same_time() {
        let ends = Arc::new(Ends::default());
        let mut forwarded: Vec<_> = (0..MAX_FORWARDED).map(|_| ends.forward().unwrap()).collect();
        assert!(ends.forward().is_none());
        let [told, heard] = forwarded.pop().unwrap();
        drop(told);
        assert!(ends.forward().is_none(), "nobody has heard it yet");
        drop(heard);
        assert!(ends.forward().is_some());
    }

    #[tokio::test]
    async fn a_refusal_is_what_the_first_middleware_says_or_that_it_says_nothing() {
        for (said, expected) in [
            (Some(Ok(())), None),
            (
                Some(Err(ErrorCode::ProtocolError)),
                Some(ErrorCode::ProtocolError),
            ),
            (None, Some(ErrorCode::InternalError)),
        ] {
            let ends = Arc::new(Ends::default());
            let (teller, mut how) = oneshot::channel();
            let mut told = Told {
                teller: Some((teller, Open::new(&ends))),
            };
            if let Some(said) = said {
                told.tell(said);
            }
            drop(told);
            assert_eq!(ends.refusal(), expected);
            assert_eq!(how.try_recv(), Ok(expected.map_or(Ok(()), Err)));
            ends.heard().await;
        }
    }
}
