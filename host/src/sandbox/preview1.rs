//! WASI preview 1 in calls of bounded length.
//!
//! A module may pass as much as its memory holds in one call. Wasmtime's functions would take all
//! of it at once: other connections would wait for the thread, and what goes to a file would be
//! copied.

use wasmtime::{AsContextMut as _, Caller, Linker};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as wasi;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wiggle::GuestMemory;

use super::paths;
use super::readdir::Readdir;
use super::state::State;

/// The module that these functions are imported from.
pub(super) const MODULE: &str = "wasi_snapshot_preview1";

/// Buffers in one call, as in Linux (`IOV_MAX`).
const MAX_VECTORS: i32 = 1024;

/// Events that one call can wait for: each takes time and two handles for as long as the call
/// lasts.
const MAX_SUBSCRIPTIONS: i32 = 1024;

/// Bytes of one buffer that are read or written before others have their turn.
const PIECE: u32 = 64 << 10;

/// Error numbers of WASI preview 1.
const INVALID: i32 = 28;
const FAULT: i32 = 21;
/// Too many files are open in the system, as far as the guest can tell.
const TOO_MANY_FILES: i32 = 41;

/// The number of a call that has succeeded.
const SUCCESS: i32 = 0;

/// Bytes of a buffer's description: its address and its length.
const VECTOR: u32 = 8;

/// Adds all functions of WASI preview 1.
///
/// # Errors
///
/// Something of it is there already.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, State::preview1)?;
    linker.allow_shadowing(true);
    // That of wasmtime traps for a status of 126 or more.
    linker.func_wrap(MODULE, "proc_exit", |status: i32| -> wasmtime::Result<()> {
        Err(wasmtime::format_err!(I32Exit(status)))
    })?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, State>, (subscriptions, events, count, size): (i32, i32, i32, i32)| {
            Box::new(async move {
                if !(0..=MAX_SUBSCRIPTIONS).contains(&count) {
                    return Ok(INVALID);
                }
                let (mut memory, context) = parts(&mut caller)?;
                wasi::poll_oneoff(context, &mut memory, subscriptions, events, count, size).await
            })
        },
    )?;
    for (at_position, at_offset, kind) in [
        ("fd_read", "fd_pread", Kind::Read),
        ("fd_write", "fd_pwrite", Kind::Write),
    ] {
        linker.func_wrap_async(
            MODULE,
            at_position,
            move |mut caller: Caller<'_, State>, (fd, vectors, count, size): (i32, i32, i32, i32)| {
                let offset = None;
                let transfer = Transfer {
                    kind,
                    fd,
                    offset,
                    size,
                };
                Box::new(async move { transfer.run(&mut caller, vectors, count).await })
            },
        )?;
        linker.func_wrap_async(
            MODULE,
            at_offset,
            move |mut caller: Caller<'_, State>,
                  (fd, vectors, count, offset, size): (i32, i32, i32, i64, i32)| {
                let offset = Some(offset);
                let transfer = Transfer {
                    kind,
                    fd,
                    offset,
                    size,
                };
                Box::new(async move { transfer.run(&mut caller, vectors, count).await })
            },
        )?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Has modules open no more files than they may, and list directories in pieces, by functions in
/// place of WASI's.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn bound_files(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async(
        MODULE,
        "path_open",
        |mut caller: Caller<'_, State>,
         (dir, dir_flags, path, length, open_flags, rights, inheriting, flags, opened): OpenParams| {
            Box::new(async move {
                if let Some(errno) = paths::refused(&mut caller, path, length)? {
                    return Ok(errno);
                }
                let state = caller.data_mut();
                // Without room, WASI would close the file on this thread.
                if !state.has_room_in_preview1() {
                    return Ok(TOO_MANY_FILES);
                }
                let Some(files) = state.open_files() else {
                    return Ok(TOO_MANY_FILES);
                };
                let Some(counts) = files.opens().await else {
                    return Ok(TOO_MANY_FILES);
                };
                let (mut memory, context) = parts(&mut caller)?;
                let ended = wasi::path_open(
                    context,
                    &mut memory,
                    dir,
                    dir_flags,
                    path,
                    length,
                    open_flags,
                    rights,
                    inheriting,
                    flags,
                    opened,
                )
                .await;
                // A call that fails may have opened the file all the same.
                caller.data_mut().has_opened_file_by_preview1(counts);
                ended
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_readdir",
        |mut caller: Caller<'_, State>, (fd, buffer, len, cookie, size): (i32, i32, i32, i64, i32)| {
            let call = Readdir {
                fd,
                buffer,
                len,
                cookie,
                size,
            };
            Box::new(async move { call.run(&mut caller).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_close",
        |mut caller: Caller<'_, State>, (fd,): (i32,)| {
            Box::new(async move {
                let (mut memory, context) = parts(&mut caller)?;
                let ended = wasi::fd_close(context, &mut memory, fd).await;
                caller.data_mut().has_closed_file();
                ended
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_renumber",
        |mut caller: Caller<'_, State>, (from, to): (i32, i32)| {
            Box::new(async move {
                let (mut memory, context) = parts(&mut caller)?;
                let ended = wasi::fd_renumber(context, &mut memory, from, to).await;
                caller.data_mut().has_closed_file();
                ended
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The parameters of `path_open`.
type OpenParams = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

/// The memory of the module that calls, and what WASI keeps for it.
pub(super) fn parts<'a>(
    caller: &'a mut Caller<'_, State>,
) -> wasmtime::Result<(GuestMemory<'a>, &'a mut WasiP1Ctx)> {
    let memory = memory(caller)?;
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (memory, state) = memory.data_and_store_mut(caller);
    let context = state.preview1();
    wasi::WasiSnapshotPreview1::set_hostcall_fuel(context, fuel);
    Ok((GuestMemory::Unshared(memory), context))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// A call that reads or writes.
#[derive(Clone, Copy)]
struct Transfer {
    kind: Kind,
    fd: i32,
    /// Where in a file, if not at its position.
    offset: Option<i64>,
    /// Where in memory the number of bytes goes.
    size: i32,
}

/// A buffer in the memory of a module.
#[derive(Clone, Copy)]
struct Vector {
    /// Where its description is.
    at: u32,
    buffer: u32,
    len: u32,
}

impl Transfer {
    /// Transfers the first buffer that is not empty. Only one that is larger than a piece is not
    /// left to wasmtime.
    async fn run(self, caller: &mut Caller<'_, State>, vectors: i32, count: i32) -> wasmtime::Result<i32> {
        match first(caller, vectors, count)? {
            Ok(Some(large)) if large.len > PIECE => match self.kind {
                Kind::Read => self.read(caller, large).await,
                Kind::Write => self.write(caller, large).await,
            },
            Ok(_) => self.call(caller, vectors, count).await,
            Err(errno) => Ok(errno),
        }
    }

    /// Reads one piece.
    async fn read(self, caller: &mut Caller<'_, State>, whole: Vector) -> wasmtime::Result<i32> {
        let piece = Vector { len: PIECE, ..whole };
        match self.call_with(caller, piece, whole).await? {
            Ok(passed) => store(caller, self.size, passed),
            Err(errno) => Ok(errno),
        }
    }

    /// Writes piece by piece. Ends early where a piece is not written whole, or fails behind
    /// others.
    async fn write(mut self, caller: &mut Caller<'_, State>, whole: Vector) -> wasmtime::Result<i32> {
        let mut written = 0;
        loop {
            let piece = Vector {
                buffer: whole.buffer.wrapping_add(written),
                len: PIECE.min(whole.len - written),
                ..whole
            };
            let passed = match self.call_with(caller, piece, whole).await? {
                Ok(passed) => passed,
                Err(errno) if written == 0 => return Ok(errno),
                Err(_) => 0,
            };
            written += passed;
            self.offset = self.offset.map(|offset| offset.wrapping_add(passed.into()));
            if passed < piece.len || written == whole.len {
                return store(caller, self.size, written);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Transfers `piece` of the buffer `whole`, and returns the number of bytes, or of the error.
    ///
    /// A call takes buffers by descriptions in the memory of the module. So the description of the
    /// buffer is that of the piece during the call. Nothing else runs in the instance meanwhile.
    async fn call_with(
        self,
        caller: &mut Caller<'_, State>,
        piece: Vector,
        whole: Vector,
    ) -> wasmtime::Result<Result<u32, i32>> {
        describe(caller, piece)?;
        let ended = match self.call(caller, piece.at.cast_signed(), 1).await {
            // The module may have the number of bytes written over the description.
            Ok(SUCCESS) => load(caller, self.size.cast_unsigned()).map(|passed| Ok(passed.min(piece.len))),
            Ok(errno) => Ok(Err(errno)),
            Err(error) => Err(error),
        };
        describe(caller, whole)?;
        ended
    }

    async fn call(self, caller: &mut Caller<'_, State>, vectors: i32, count: i32) -> wasmtime::Result<i32> {
        let Self {
            kind,
            fd,
            offset,
            size,
        } = self;
        let (mut memory, context) = parts(caller)?;
        let memory = &mut memory;
        match (kind, offset) {
            (Kind::Read, None) => wasi::fd_read(context, memory, fd, vectors, count, size).await,
            (Kind::Read, Some(offset)) => {
                wasi::fd_pread(context, memory, fd, vectors, count, offset, size).await
            }
            (Kind::Write, None) => wasi::fd_write(context, memory, fd, vectors, count, size).await,
            (Kind::Write, Some(offset)) => {
                wasi::fd_pwrite(context, memory, fd, vectors, count, offset, size).await
            }
        }
    }
}

/// Finds the first buffer that is not empty. The inner error is the number of an error of WASI.
fn first(
    caller: &mut Caller<'_, State>,
    vectors: i32,
    count: i32,
) -> wasmtime::Result<Result<Option<Vector>, i32>> {
    if !(0..=MAX_VECTORS).contains(&count) {
        return Ok(Err(INVALID));
    }
    for number in 0..count.cast_unsigned() {
        let Some(at) = vectors.cast_unsigned().checked_add(number * VECTOR) else {
            return Ok(Err(FAULT));
        };
        // A description outside of the memory is an error of the call itself.
        let (Ok(buffer), Ok(len)) = (load(caller, at), load(caller, at.saturating_add(4))) else {
            return Ok(Ok(None));
        };
        if len > 0 {
            return Ok(Ok(Some(Vector { at, buffer, len })));
        }
    }
    Ok(Ok(None))
}

/// The memory of the module that calls.
pub(super) fn memory(caller: &mut Caller<'_, State>) -> wasmtime::Result<wasmtime::Memory> {
    let memory = caller
        .get_export("memory")
        .and_then(wasmtime::Extern::into_memory);
    memory.ok_or_else(|| wasmtime::format_err!("the module exports no memory"))
}

fn load(caller: &mut Caller<'_, State>, at: u32) -> wasmtime::Result<u32> {
    let mut bytes = [0; 4];
    memory(caller)?.read(caller, at as usize, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Describes a buffer in the memory of the module.
fn describe(caller: &mut Caller<'_, State>, vector: Vector) -> wasmtime::Result<()> {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&vector.buffer.to_le_bytes());
    bytes[4..].copy_from_slice(&vector.len.to_le_bytes());
    memory(caller)?.write(caller, vector.at as usize, &bytes)?;
    Ok(())
}

/// Tells the module how many bytes have passed.
pub(super) fn store(caller: &mut Caller<'_, State>, at: i32, passed: u32) -> wasmtime::Result<i32> {
    memory(caller)?.write(caller, at.cast_unsigned() as usize, &passed.to_le_bytes())?;
    Ok(SUCCESS)
}
