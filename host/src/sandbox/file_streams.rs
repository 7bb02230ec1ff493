//! Bounds on the bytes that streams of files in WASI 0.2 keep in the host.
//!
//! An input stream keeps the bytes that it has read until the guest takes them. An output stream
//! keeps the bytes of a write until a thread has written them. With WASI's own streams, each handle
//! of a guest could keep 64 KiB in this way, or as much as the guest passes in one call.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsResult, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};

use super::files::{TYPES, for_guest};
use super::state::State;

const READ: &str = "[method]descriptor.read-via-stream";
const WRITE: &str = "[method]descriptor.write-via-stream";
const APPEND: &str = "[method]descriptor.append-via-stream";

/// Bytes that each stream may keep. WASI's own stream reads as many if a guest waits for bytes
/// before it asks for any.
const SMALL: usize = 4 << 10;

/// Bytes that one of WASI's streams reads or permits to write at once.
const LARGE: usize = 64 << 10;

/// Streams of one instance that may keep [`LARGE`] bytes at once.
const MAX_LARGE: usize = 16;

/// Counts the streams of one instance that may keep [`LARGE`] bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct LargeStreams(Arc<AtomicUsize>);

impl LargeStreams {
    /// Counts one more, unless that is too many.
    fn begin(&self) -> Option<Large> {
        let fits = |count: usize| (count < MAX_LARGE).then_some(count + 1);
        self.0.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(Large(Arc::clone(&self.0)))
    }
}

/// The right of one stream to keep [`LARGE`] bytes.
#[derive(Debug)]
struct Large(Arc<AtomicUsize>);

impl Drop for Large {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// An input stream of a file, which reads few bytes ahead while many others keep theirs.
struct Reader {
    wasi: DynInputStream,
    streams: LargeStreams,
    /// WASI's stream has begun to read, or has read.
    has_begun: bool,
    /// Bytes that were read and that the guest has not taken yet.
    read: Bytes,
    /// Held while WASI's stream or `read` may have more than [`SMALL`] bytes.
    large: Option<Large>,
}

impl Reader {
    fn new(wasi: DynInputStream, streams: LargeStreams) -> Self {
        Self {
            wasi,
            streams,
            has_begun: false,
            read: Bytes::new(),
            large: None,
        }
    }

    /// Bytes to read when the guest asks for `size`.
    fn begin(&mut self, size: usize) -> usize {
        if size > SMALL {
            self.large = self.streams.begin();
        }
        size.min(if self.large.is_some() { LARGE } else { SMALL })
    }
}

#[async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.read.is_empty() {
            if size == 0 {
                return self.wasi.read(0);
            }
            // All that it has read.
            let count = if self.has_begun { LARGE } else { self.begin(size) };
            let read = self.wasi.read(count);
            self.has_begun = matches!(&read, Ok(bytes) if bytes.is_empty());
            if self.has_begun {
                return read;
            }
            self.read = read.inspect_err(|_| self.large = None)?;
        }
        let taken = self.read.split_to(size.min(self.read.len()));
        if self.read.is_empty() {
            self.large = None;
        }
        Ok(taken)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.has_begun {
            self.wasi.ready().await;
        } else if self.read.is_empty() {
            // This keeps nothing.
            return self.wasi.blocking_read(size).await;
        }
        self.read(size)
    }

    async fn cancel(&mut self) {
        self.wasi.cancel().await;
    }
}

#[async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        if self.read.is_empty() {
            self.has_begun = true;
            self.wasi.ready().await;
        }
    }
}

/// An output stream of a file. A write of more bytes than `check-write` has permitted traps, and
/// while many other streams write, it permits few bytes.
struct Writer {
    wasi: DynOutputStream,
    streams: LargeStreams,
    /// Bytes that the guest may write before it asks again.
    permit: usize,
    /// Held for the permit, and while so many bytes are being written.
    large: Option<Large>,
}

impl Writer {
    fn new(wasi: DynOutputStream, streams: LargeStreams) -> Self {
        Self {
            wasi,
            streams,
            permit: 0,
            large: None,
        }
    }

    /// Notes that nothing is being written.
    fn has_written(&mut self) {
        if self.permit == 0 {
            self.large = None;
        }
    }
}

#[async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // As many need no permit.
        if bytes.len() > self.permit.max(SMALL) {
            return Err(StreamError::trap("write exceeds what check-write permitted"));
        }
        self.permit = 0;
        if bytes.len() > SMALL {
            return self.wasi.write(bytes);
        }
        self.large = None;
        // They may be a part of what another stream has read, and would keep all of it.
        self.wasi.write(Bytes::copy_from_slice(&bytes))
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.permit = match self.wasi.check_write() {
            // It is writing.
            Ok(0) => 0,
            Ok(most) => {
                self.large = self.large.take().or_else(|| self.streams.begin());
                most.min(if self.large.is_some() { LARGE } else { SMALL })
            }
            Err(error) => {
                self.permit = 0;
                self.large = None;
                return Err(error);
            }
        };
        Ok(self.permit)
    }

    /// Is followed by a write that the guest waits for, if by any.
    async fn write_ready(&mut self) -> StreamResult<usize> {
        let permit = self.wasi.write_ready().await;
        self.has_written();
        permit
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        let written = self.wasi.blocking_write_and_flush(bytes).await;
        self.has_written();
        written
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.wasi.flush()
    }

    async fn cancel(&mut self) {
        self.wasi.cancel().await;
    }
}

#[async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        self.wasi.ready().await;
        self.has_written();
    }
}

/// Has guests use streams of files by functions in place of WASI's.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(READ, |mut store: Store<'_>, (file, offset): At| {
        let opened = p2::HostDescriptor::read_via_stream(&mut store.data_mut().filesystem(), file, offset);
        bound(store, opened, |wasi, streams| {
            Box::new(Reader::new(wasi, streams))
        })
    })?;
    types.func_wrap(WRITE, |mut store: Store<'_>, (file, offset): At| {
        let opened = p2::HostDescriptor::write_via_stream(&mut store.data_mut().filesystem(), file, offset);
        bound(store, opened, |wasi, streams| {
            Box::new(Writer::new(wasi, streams))
        })
    })?;
    types.func_wrap(
        APPEND,
        |mut store: Store<'_>, (file,): (Resource<Descriptor>,)| {
            let opened = p2::HostDescriptor::append_via_stream(&mut store.data_mut().filesystem(), file);
            bound(store, opened, |wasi, streams| {
                Box::new(Writer::new(wasi, streams))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

type Store<'a> = StoreContextMut<'a, State>;

type At = (Resource<Descriptor>, p2::Filesize);

/// Replaces a stream that WASI has opened by the one that `bounds` makes of it.
fn bound<T: Send + 'static>(
    mut store: Store<'_>,
    opened: FsResult<Resource<T>>,
    bounds: impl FnOnce(T, LargeStreams) -> T,
) -> wasmtime::Result<(Result<Resource<T>, p2::ErrorCode>,)> {
    let state = store.data_mut();
    let opened = for_guest(&mut state.filesystem(), opened)?;
    Ok((match opened {
        Ok(opened) => Ok(state.bound_stream(opened, bounds)?),
        Err(error) => Err(error),
    },))
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::mem::replace;

    use super::*;

    /// Bytes of the file of the streams below.
    const FILE: usize = 200_000;

    /// An input stream as WASI's own, of a file that is [`FILE`] bytes long.
    struct Input {
        at: usize,
        state: Reads,
    }

    enum Reads {
        Idle,
        Begun(usize),
        Read(Bytes),
        Closed,
    }

    fn input() -> DynInputStream {
        Box::new(Input {
            at: 0,
            state: Reads::Idle,
        })
    }

    /// The bytes of the file from `at` on.
    fn bytes(at: usize, count: usize) -> Bytes {
        (at..FILE.min(at + count)).map(|at| (at % 251) as u8).collect()
    }

    #[async_trait]
    impl InputStream for Input {
        fn read(&mut self, size: usize) -> StreamResult<Bytes> {
            match &mut self.state {
                Reads::Idle if size > 0 => self.state = Reads::Begun(size),
                Reads::Read(bytes) => {
                    let taken = bytes.split_to(size.min(bytes.len()));
                    self.at += taken.len();
                    if bytes.is_empty() {
                        self.state = Reads::Idle;
                    }
                    return Ok(taken);
                }
                Reads::Idle | Reads::Begun(_) => {}
                Reads::Closed => return Err(StreamError::Closed),
            }
            Ok(Bytes::new())
        }
    }

    #[async_trait]
    impl Pollable for Input {
        async fn ready(&mut self) {
            let size = match self.state {
                Reads::Idle => SMALL,
                Reads::Begun(size) => size,
                Reads::Read(_) | Reads::Closed => return,
            };
            let bytes = bytes(self.at, size);
            self.state = if bytes.is_empty() {
                Reads::Closed
            } else {
                Reads::Read(bytes)
            };
        }
    }

    /// An output stream as WASI's own, which has written when it was waited for.
    struct Output {
        writing: bool,
    }

    #[async_trait]
    impl OutputStream for Output {
        fn write(&mut self, _: Bytes) -> StreamResult<()> {
            self.writing = true;
            Ok(())
        }

        fn flush(&mut self) -> StreamResult<()> {
            Ok(())
        }

        fn check_write(&mut self) -> StreamResult<usize> {
            Ok(if self.writing { 0 } else { LARGE })
        }
    }

    #[async_trait]
    impl Pollable for Output {
        async fn ready(&mut self) {
            self.writing = false;
        }
    }

    fn outputs(count: usize, streams: &LargeStreams) -> Vec<Writer> {
        let output = || Box::new(Output { writing: false });
        (0..count)
            .map(|_| Writer::new(output(), streams.clone()))
            .collect()
    }

    /// Bytes that a stream keeps.
    async fn kept(reader: &mut Reader) -> usize {
        reader.ready().await;
        // One of them is taken.
        reader.read(1).unwrap();
        1 + reader.read.len()
    }

    #[tokio::test]
    async fn few_streams_read_far_ahead() {
        let streams = LargeStreams::default();
        let mut readers: Vec<_> = (0..MAX_LARGE + 9)
            .map(|_| Reader::new(input(), streams.clone()))
            .collect();
        for (number, reader) in readers.iter_mut().enumerate() {
            assert!(reader.read(usize::MAX).unwrap().is_empty());
            let most = if number < MAX_LARGE { LARGE } else { SMALL };
            assert_eq!(kept(reader).await, most);
        }
        // One that has had all of it taken leaves its right to another.
        assert_eq!(readers[0].read(LARGE).unwrap().len(), LARGE - 1);
        let last = readers.last_mut().unwrap();
        assert_eq!(last.read(SMALL).unwrap().len(), SMALL - 1);
        assert!(last.read(LARGE).unwrap().is_empty());
        assert_eq!(kept(last).await, LARGE);
        drop(readers);
        assert_eq!(streams.0.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn bytes_are_read_in_order_and_whole_in_every_way() {
        let streams = LargeStreams::default();
        for others in [0, MAX_LARGE] {
            let _others: Vec<_> = (0..others).map(|_| streams.begin().unwrap()).collect();
            for way in 0..4 {
                let mut reader = Reader::new(input(), streams.clone());
                let mut read = Vec::new();
                for turn in 0.. {
                    let size = [0, 1, 3000, SMALL, SMALL + 1, 9000, LARGE, usize::MAX][turn % 8];
                    let taken = match (way + turn / 8) % 4 {
                        0 => reader.read(size),
                        1 => {
                            reader.ready().await;
                            reader.read(size)
                        }
                        2 if size > 0 => reader.blocking_read(size).await,
                        _ => {
                            let _ = reader.read(size).map(|taken| read.extend(taken));
                            reader.ready().await;
                            reader.read(size)
                        }
                    };
                    match taken {
                        Ok(taken) => read.extend(taken),
                        Err(StreamError::Closed) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(read == bytes(0, FILE), "way {way} with {others} others");
            }
        }
        assert_eq!(streams.0.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn few_streams_are_permitted_to_write_much() {
        let streams = LargeStreams::default();
        let mut writers = outputs(MAX_LARGE + 2, &streams);
        for (number, writer) in writers.iter_mut().enumerate() {
            let permit = if number < MAX_LARGE { LARGE } else { SMALL };
            assert_eq!(writer.check_write().unwrap(), permit);
            // A second call permits as many.
            assert_eq!(writer.check_write().unwrap(), permit);
            writer.ready().await;
            writer.write(vec![7; permit].into()).unwrap();
            assert_eq!(writer.check_write().unwrap(), 0);
        }
        // Bytes that were written count no more.
        writers[0].ready().await;
        assert_eq!(writers[MAX_LARGE].check_write().unwrap(), 0);
        writers[MAX_LARGE].ready().await;
        assert_eq!(writers[MAX_LARGE].check_write().unwrap(), LARGE);
        // Neither does a permit of which little was used.
        writers[MAX_LARGE].write(vec![7; SMALL].into()).unwrap();
        writers[0].write_zeroes(LARGE).unwrap();
        drop(writers);
        assert_eq!(streams.0.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_write_above_its_permit_traps() {
        let streams = LargeStreams::default();
        let mut writer = outputs(1, &streams).remove(0);
        let traps = |written| matches!(written, Err(StreamError::Trap(_)));
        assert!(traps(writer.write(vec![7; SMALL + 1].into())));
        assert_eq!(writer.check_write().unwrap(), LARGE);
        assert!(traps(writer.write(vec![7; LARGE + 1].into())));
        writer.write(vec![7; LARGE].into()).unwrap();
        writer.ready().await;
        // The permit has been used.
        assert!(traps(writer.write(vec![7; LARGE].into())));
        writer.write(vec![7; SMALL].into()).unwrap();
    }

    #[test]
    fn a_small_write_does_not_keep_what_it_is_a_part_of() {
        struct Kept(Bytes);

        #[async_trait]
        impl OutputStream for Kept {
            fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
                drop(replace(&mut self.0, bytes));
                Ok(())
            }

            fn flush(&mut self) -> StreamResult<()> {
                Ok(())
            }

            fn check_write(&mut self) -> StreamResult<usize> {
                Ok(LARGE)
            }
        }

        #[async_trait]
        impl Pollable for Kept {
            async fn ready(&mut self) {
                ready(()).await;
            }
        }

        let whole = Bytes::from(vec![7; LARGE]);
        let mut writer = Writer::new(Box::new(Kept(Bytes::new())), LargeStreams::default());
        writer.write(whole.slice(..1)).unwrap();
        assert!(whole.is_unique());
    }
}
