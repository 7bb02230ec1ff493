//! Bounds on the names in the paths of guests.
//!
//! WASI has the kernel look up a path. Where the kernel cannot, or others renamed files meanwhile,
//! WASI does so itself, name by name, and keeps each directory on the way open. The number of names
//! bounds these descriptors, which count for no guest.

use wasmtime::component::{Linker, Resource};
use wasmtime::{AsContextMut as _, Caller, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as wasi;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;

use super::files::{TYPES, for_guest};
use super::preview1::{MODULE, memory, parts};
use super::state::State;
use crate::config::{MAX_NAMES, MAX_NAMES_OF_LINK};

/// The number of an error of WASI preview 1.
const NAME_TOO_LONG: i32 = 37;

/// Whether a path has too many names.
pub(super) fn is_long(path: &str) -> bool {
    exceeds(path.as_bytes(), MAX_NAMES)
}

/// Whether the target of a symbolic link has too many names.
pub(super) fn is_long_target(target: &str) -> bool {
    exceeds(target.as_bytes(), MAX_NAMES_OF_LINK)
}

fn exceeds(path: &[u8], max: usize) -> bool {
    path.split(|&byte| byte == b'/')
        .filter(|name| !matches!(**name, [] | [b'.'] | [b'.', b'.']))
        .nth(max)
        .is_some()
}

/// Has a function of WASI 0.2 refuse long paths.
macro_rules! bound {
    ($types:ident, $name:literal, $call:ident($($param:ident: $of:ty),*), $($is_long:ident($path:ident)),*) => {
        $types.func_wrap_async(
            $name,
            |mut store: StoreContextMut<'_, State>,
             (descriptor, $($param),*): (Resource<Descriptor>, $($of),*)| {
                Box::new(async move {
                    if $($is_long(&$path))||* {
                        return Ok((Err(p2::ErrorCode::NameTooLong),));
                    }
                    let mut wasi = store.data_mut().filesystem();
                    let ended = p2::HostDescriptor::$call(&mut wasi, descriptor, $($param),*).await;
                    Ok((for_guest(&mut wasi, ended)?,))
                })
            },
        )?;
    };
}

/// Has functions of WASI 0.2 refuse long paths. `files.rs` has the function that opens files, and
/// `file_calls.rs` has the functions of WASI 0.3.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Flags = p2::PathFlags;
    type Time = p2::NewTimestamp;
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    bound!(
        types,
        "[method]descriptor.create-directory-at",
        create_directory_at(path: String),
        is_long(path)
    );
    bound!(types, "[method]descriptor.stat-at", stat_at(flags: Flags, path: String), is_long(path));
    bound!(
        types,
        "[method]descriptor.set-times-at",
        set_times_at(flags: Flags, path: String, accessed: Time, modified: Time),
        is_long(path)
    );
    bound!(
        types,
        "[method]descriptor.link-at",
        link_at(flags: Flags, path: String, new: Resource<Descriptor>, new_path: String),
        is_long(path),
        is_long(new_path)
    );
    bound!(types, "[method]descriptor.readlink-at", readlink_at(path: String), is_long(path));
    bound!(
        types,
        "[method]descriptor.remove-directory-at",
        remove_directory_at(path: String),
        is_long(path)
    );
    bound!(
        types,
        "[method]descriptor.rename-at",
        rename_at(path: String, new: Resource<Descriptor>, new_path: String),
        is_long(path),
        is_long(new_path)
    );
    bound!(
        types,
        "[method]descriptor.symlink-at",
        symlink_at(target: String, path: String),
        is_long_target(target),
        is_long(path)
    );
    bound!(types, "[method]descriptor.unlink-file-at", unlink_file_at(path: String), is_long(path));
    bound!(
        types,
        "[method]descriptor.metadata-hash-at",
        metadata_hash_at(flags: Flags, path: String),
        is_long(path)
    );
    linker.allow_shadowing(false);
    Ok(())
}

/// Whether a path in the memory of a module has more than `max` names. WASI itself refuses one
/// outside of the memory, and one that is too long for a call.
fn exceeds_in(caller: &mut Caller<'_, State>, at: i32, len: i32, max: usize) -> wasmtime::Result<bool> {
    let (at, len) = (at.cast_unsigned() as usize, len.cast_unsigned() as usize);
    let most = caller.as_context_mut().hostcall_fuel();
    let memory = memory(caller)?.data(&*caller);
    let path = at.checked_add(len).and_then(|end| memory.get(at..end));
    Ok(path.is_some_and(|path| path.len() <= most && exceeds(path, max)))
}

/// Returns the number of an error if a path in the memory of a module has too many names.
pub(super) fn refused(caller: &mut Caller<'_, State>, at: i32, len: i32) -> wasmtime::Result<Option<i32>> {
    Ok(exceeds_in(caller, at, len, MAX_NAMES)?.then_some(NAME_TOO_LONG))
}

/// Has a function of WASI preview 1 refuse long paths.
macro_rules! bound_of_module {
    ($linker:ident, $call:ident($($param:ident: $of:ty),*), $($at:ident, $len:ident, $max:expr),*) => {
        $linker.func_wrap_async(
            MODULE,
            stringify!($call),
            |mut caller: Caller<'_, State>, ($($param),*): ($($of),*)| {
                Box::new(async move {
                    if $(exceeds_in(&mut caller, $at, $len, $max)?)||* {
                        return Ok(NAME_TOO_LONG);
                    }
                    let (mut memory, context) = parts(&mut caller)?;
                    wasi::$call(context, &mut memory, $($param),*).await
                })
            },
        )?;
    };
}

/// Has functions of WASI preview 1 refuse long paths. `preview1.rs` has the one that opens files.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker_of_module(linker: &mut wasmtime::Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    bound_of_module!(linker, path_create_directory(dir: i32, path: i32, len: i32), path, len, MAX_NAMES);
    bound_of_module!(
        linker,
        path_filestat_get(dir: i32, flags: i32, path: i32, len: i32, stat: i32),
        path, len, MAX_NAMES
    );
    bound_of_module!(
        linker,
        path_filestat_set_times(
            dir: i32, flags: i32, path: i32, len: i32, accessed: i64, modified: i64, which: i32
        ),
        path, len, MAX_NAMES
    );
    bound_of_module!(
        linker,
        path_link(dir: i32, flags: i32, path: i32, len: i32, new: i32, new_path: i32, new_len: i32),
        path, len, MAX_NAMES,
        new_path, new_len, MAX_NAMES
    );
    bound_of_module!(
        linker,
        path_readlink(dir: i32, path: i32, len: i32, buffer: i32, size: i32, used: i32),
        path, len, MAX_NAMES
    );
    bound_of_module!(linker, path_remove_directory(dir: i32, path: i32, len: i32), path, len, MAX_NAMES);
    bound_of_module!(
        linker,
        path_rename(dir: i32, path: i32, len: i32, new: i32, new_path: i32, new_len: i32),
        path, len, MAX_NAMES,
        new_path, new_len, MAX_NAMES
    );
    bound_of_module!(
        linker,
        path_symlink(target: i32, target_len: i32, dir: i32, path: i32, len: i32),
        target, target_len, MAX_NAMES_OF_LINK,
        path, len, MAX_NAMES
    );
    bound_of_module!(linker, path_unlink_file(dir: i32, path: i32, len: i32), path, len, MAX_NAMES);
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_that_open_a_directory() {
        assert!(!is_long(""));
        assert!(!is_long(&"a/".repeat(MAX_NAMES)));
        assert!(!is_long(&"a/.././/".repeat(MAX_NAMES)));
        assert!(!is_long(&"./../".repeat(1000)));
        assert!(!is_long(&"x".repeat(100_000)));
        assert!(is_long(&"a/".repeat(MAX_NAMES + 1)));
        assert!(is_long(&format!("{}..", "/.a".repeat(MAX_NAMES + 1))));
        assert!(!is_long_target(&"...//".repeat(MAX_NAMES_OF_LINK)));
        assert!(is_long_target(&format!(
            "../{}",
            "a/".repeat(MAX_NAMES_OF_LINK + 1)
        )));
    }
}
