//! WASI for guests that never wait: what may wait for others is done at once, or is a trap.
//!
//! Of what such a guest can have, nothing has to be waited for: its standard input has ended, what it writes goes to the log, and
//! it has no files. So each call of the host that may wait is polled a few times at most.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::p2::bindings::io::poll as polls;
use wasmtime_wasi::p2::bindings::io::streams as waiting;
use wasmtime_wasi::p2::bindings::sync::io::poll::{self, Pollable};
use wasmtime_wasi::p2::bindings::sync::io::streams::{self, InputStream, OutputStream};
use wasmtime_wasi::p2::{StreamError, StreamResult};

use super::state::State;

/// The handles of a guest that never waits.
struct NeverWaits<'a>(&'a mut ResourceTable);

impl HasData for NeverWaits<'static> {
    type Data<'a> = NeverWaits<'a>;
}

/// Adds all of WASI 0.2.
///
/// # Errors
///
/// Something of it is there already.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    // Which would wait on the thread, where tokio does not let anybody wait.
    linker.allow_shadowing(true);
    poll::add_to_linker::<_, NeverWaits<'static>>(linker, |state: &mut State| NeverWaits(state.ctx().table))?;
    streams::add_to_linker::<_, NeverWaits<'static>>(linker, |state: &mut State| {
        NeverWaits(state.ctx().table)
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Polls of a call of the host. One that writes to standard error yields after each 16 KiB, and one
/// call writes less.
const POLLS: u32 = 8;

/// Returns the output of `future`, which may yield but not wait. Nobody has a turn meanwhile: the
/// guest is interrupted when its slice is over.
///
/// # Errors
///
/// It waits.
fn at_once<T>(future: impl Future<Output = T>) -> wasmtime::Result<T> {
    let mut future = pin!(future);
    for _ in 0..POLLS {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Ok(output);
        }
    }
    Err(wasmtime::format_err!(
        "the guest waits in a host call, although none of its imports can wait"
    ))
}

fn stream_at_once<T>(future: impl Future<Output = StreamResult<T>>) -> StreamResult<T> {
    at_once(future).map_err(StreamError::Trap)?
}

impl poll::Host for NeverWaits<'_> {
    fn poll(&mut self, pollables: Vec<Resource<Pollable>>) -> wasmtime::Result<Vec<u32>> {
        at_once(polls::Host::poll(self.0, pollables))?
    }
}

impl poll::HostPollable for NeverWaits<'_> {
    fn ready(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<bool> {
        at_once(polls::HostPollable::ready(self.0, pollable))?
    }

    fn block(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<()> {
        at_once(polls::HostPollable::block(self.0, pollable))?
    }

    fn drop(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<()> {
        polls::HostPollable::drop(self.0, pollable)
    }
}

impl streams::Host for NeverWaits<'_> {
    fn convert_stream_error(&mut self, error: StreamError) -> wasmtime::Result<streams::StreamError> {
        waiting::Host::convert_stream_error(self.0, error).map(Into::into)
    }
}

impl streams::HostInputStream for NeverWaits<'_> {
    fn read(&mut self, stream: Resource<InputStream>, length: u64) -> StreamResult<Vec<u8>> {
        waiting::HostInputStream::read(self.0, stream, length)
    }

    fn blocking_read(&mut self, stream: Resource<InputStream>, length: u64) -> StreamResult<Vec<u8>> {
        stream_at_once(waiting::HostInputStream::blocking_read(self.0, stream, length))
    }

    fn skip(&mut self, stream: Resource<InputStream>, length: u64) -> StreamResult<u64> {
        waiting::HostInputStream::skip(self.0, stream, length)
    }

    fn blocking_skip(&mut self, stream: Resource<InputStream>, length: u64) -> StreamResult<u64> {
        stream_at_once(waiting::HostInputStream::blocking_skip(self.0, stream, length))
    }

    fn subscribe(&mut self, stream: Resource<InputStream>) -> wasmtime::Result<Resource<Pollable>> {
        waiting::HostInputStream::subscribe(self.0, stream)
    }

    fn drop(&mut self, stream: Resource<InputStream>) -> wasmtime::Result<()> {
        at_once(waiting::HostInputStream::drop(self.0, stream))?
    }
}

impl streams::HostOutputStream for NeverWaits<'_> {
    fn check_write(&mut self, stream: Resource<OutputStream>) -> StreamResult<u64> {
        waiting::HostOutputStream::check_write(self.0, stream)
    }

    fn write(&mut self, stream: Resource<OutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        waiting::HostOutputStream::write(self.0, stream, bytes)
    }

    fn blocking_write_and_flush(
        &mut self,
        stream: Resource<OutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        stream_at_once(waiting::HostOutputStream::blocking_write_and_flush(
            self.0, stream, bytes,
        ))
    }

    fn flush(&mut self, stream: Resource<OutputStream>) -> StreamResult<()> {
        waiting::HostOutputStream::flush(self.0, stream)
    }

    fn blocking_flush(&mut self, stream: Resource<OutputStream>) -> StreamResult<()> {
        stream_at_once(waiting::HostOutputStream::blocking_flush(self.0, stream))
    }

    fn subscribe(&mut self, stream: Resource<OutputStream>) -> wasmtime::Result<Resource<Pollable>> {
        waiting::HostOutputStream::subscribe(self.0, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<OutputStream>, length: u64) -> StreamResult<()> {
        waiting::HostOutputStream::write_zeroes(self.0, stream, length)
    }

    fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<OutputStream>,
        length: u64,
    ) -> StreamResult<()> {
        stream_at_once(waiting::HostOutputStream::blocking_write_zeroes_and_flush(
            self.0, stream, length,
        ))
    }

    fn splice(
        &mut self,
        to: Resource<OutputStream>,
        from: Resource<InputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        waiting::HostOutputStream::splice(self.0, to, from, length)
    }

    fn blocking_splice(
        &mut self,
        to: Resource<OutputStream>,
        from: Resource<InputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        stream_at_once(waiting::HostOutputStream::blocking_splice(
            self.0, to, from, length,
        ))
    }

    fn drop(&mut self, stream: Resource<OutputStream>) -> wasmtime::Result<()> {
        at_once(waiting::HostOutputStream::drop(self.0, stream))?
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::yield_now;

    use super::*;

    #[test]
    fn what_would_wait_is_a_trap() {
        assert_eq!(at_once(ready(7)).unwrap(), 7);
        // As at the end of each 16 KiB of standard error.
        at_once(yield_now()).unwrap();
        let error = at_once(pending::<()>()).unwrap_err();
        assert!(error.to_string().contains("the guest waits"), "{error}");
    }
}
