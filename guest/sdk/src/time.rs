//! Timers for guests of the streams contract: [`sleep`] and [`timeout`].

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::streams::ErrorCode;

/// The bindings of `wasi:clocks` 0.3: only the function that this module calls.
#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        inline: "
            package inet:guest;

            world timers {
                import wasi:clocks/monotonic-clock@0.3.0;
            }

            package wasi:clocks@0.3.0 {
                interface monotonic-clock {
                    wait-for: async func(how-long: u64);
                }
            }
        ",
        generate_all,
    });
}

/// Waits for a duration.
///
/// The host runs the other tasks of the instance meanwhile. In contrast, [`std::thread::sleep`]
/// keeps the whole instance waiting.
///
/// # Cancel safety
///
/// Dropping the future cancels the timer.
pub async fn sleep(duration: Duration) {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    bindings::wasi::clocks::monotonic_clock::wait_for(nanoseconds).await;
}

/// The error of [`timeout`]: the time has passed.
///
/// The operator `?` turns it into [`ErrorCode::TimedOut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time has passed")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for ErrorCode {
    fn from(_: Elapsed) -> Self {
        Self::TimedOut
    }
}

/// Waits for a future, but at most for a duration.
///
/// If both are ready at once, the future wins.
///
/// # Errors
///
/// Returns [`Elapsed`] if the future is not ready in time. The future is then dropped. A read that
/// is dropped loses the bytes that it has read, so end the connection after a read that timed out.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut timer) = (pin!(future), pin!(sleep(duration)));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        timer.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
