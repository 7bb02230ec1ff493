//! Files and directories of guests of WASI 0.3.

use wasmtime::AsContextMut as _;
use wasmtime::component::{Access, Accessor, HasData, Linker, Resource, StreamReader};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;
use wasmtime_wasi::p3::bindings::filesystem::types::HostDescriptorWithStore as WithStore;
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};

use super::file_threads::Call;
use super::files;
use super::listing::{self, Ended};
use super::paths::{is_long, is_long_target};
use super::state::State;

/// Has guests use files by functions in place of WASI's, which bound what they leave behind.
///
/// # Errors
///
/// The functions cannot be replaced.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p3::add_to_linker::<State, FileCalls>(linker, |state| state)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The functions of `wasi:filesystem/types`.
///
/// A guest can cancel a call at any time. wasmtime-wasi then leaves the operation, with its path,
/// in the queue for threads. So each call announces itself to [`FileThreads`], which counts
/// operations that were left there.
///
/// [`FileThreads`]: super::file_threads::FileThreads
struct FileCalls;

impl HasData for FileCalls {
    type Data<'a> = &'a mut State;
}

/// Access to WASI's own functions.
fn wasi<'a>(store: &'a mut Access<'_, State, FileCalls>) -> Access<'a, State, WasiFilesystem> {
    Access::<State, WasiFilesystem>::new(store.as_context_mut(), |state| state.filesystem())
}

/// Waits until a call may begin.
async fn begin(store: &Accessor<State, FileCalls>) -> Option<Call> {
    let threads = store.with(|mut access| access.get().file_threads())?;
    Some(threads.begin().await)
}

/// Calls WASI's own functions, and follows the calls until they end. A call fails if a path in
/// brackets is too long.
macro_rules! follow {
    ($($name:ident($($param:ident: $of:ty),*) $([$($is_long:ident($path:ident)),*])? -> $result:ty;)*) => {
        $(async fn $name(
            store: &Accessor<State, Self>,
            descriptor: Resource<Descriptor>,
            $($param: $of),*
        ) -> $result {
            $($(if $is_long(&$path) {
                return Err(p3::ErrorCode::NameTooLong.into());
            })*)?
            let call = begin(store).await;
            let wasi = store.with_getter::<WasiFilesystem>(State::filesystem);
            let result = <WasiFilesystem as WithStore<State>>::$name(&wasi, descriptor, $($param),*).await;
            Call::end(call);
            result
        })*
    };
}

impl WithStore<State> for FileCalls {
    // These start with nothing. What their streams move is bounded for each of them.
    fn read_via_stream(
        mut store: Access<'_, State, Self>,
        descriptor: Resource<Descriptor>,
        offset: p3::Filesize,
    ) -> wasmtime::Result<(StreamReader<u8>, Ended)> {
        WasiFilesystem::read_via_stream(wasi(&mut store), descriptor, offset)
    }

    fn write_via_stream(
        mut store: Access<'_, State, Self>,
        descriptor: Resource<Descriptor>,
        data: StreamReader<u8>,
        offset: p3::Filesize,
    ) -> wasmtime::Result<Ended> {
        WasiFilesystem::write_via_stream(wasi(&mut store), descriptor, data, offset)
    }

    fn append_via_stream(
        mut store: Access<'_, State, Self>,
        descriptor: Resource<Descriptor>,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<Ended> {
        WasiFilesystem::append_via_stream(wasi(&mut store), descriptor, data)
    }

    fn read_directory(
        mut store: Access<'_, State, Self>,
        descriptor: Resource<Descriptor>,
    ) -> wasmtime::Result<(StreamReader<p3::DirectoryEntry>, Ended)> {
        listing::read(store.as_context_mut(), &descriptor)
    }

    async fn open_at(
        store: &Accessor<State, Self>,
        dir: Resource<Descriptor>,
        path_flags: p3::PathFlags,
        path: String,
        open_flags: p3::OpenFlags,
        flags: p3::DescriptorFlags,
    ) -> FilesystemResult<Resource<Descriptor>> {
        let request = request(path_flags, path, open_flags, flags);
        let opening = store.with(|mut access| files::begin(access.get(), &dir, request));
        let opening = opening.map_err(FilesystemError::trap)?;
        let call = begin(store).await;
        let opened = opening.await;
        Call::end(call);
        let opened = opened.map_err(FilesystemError::trap)?.map_err(error_code)?;
        let pushed = store.with(|mut access| access.get().table().push(opened));
        pushed.map_err(FilesystemError::trap)
    }

    follow! {
        advise(offset: p3::Filesize, length: p3::Filesize, advice: p3::Advice) -> FilesystemResult<()>;
        sync_data() -> FilesystemResult<()>;
        get_flags() -> FilesystemResult<p3::DescriptorFlags>;
        get_type() -> FilesystemResult<p3::DescriptorType>;
        set_size(size: p3::Filesize) -> FilesystemResult<()>;
        set_times(accessed: p3::NewTimestamp, modified: p3::NewTimestamp) -> FilesystemResult<()>;
        sync() -> FilesystemResult<()>;
        create_directory_at(path: String) [is_long(path)] -> FilesystemResult<()>;
        stat() -> FilesystemResult<p3::DescriptorStat>;
        stat_at(flags: p3::PathFlags, path: String) [is_long(path)] -> FilesystemResult<p3::DescriptorStat>;
        set_times_at(
            flags: p3::PathFlags,
            path: String,
            accessed: p3::NewTimestamp,
            modified: p3::NewTimestamp
        ) [is_long(path)] -> FilesystemResult<()>;
        link_at(
            flags: p3::PathFlags,
            path: String,
            new: Resource<Descriptor>,
            new_path: String
        ) [is_long(path), is_long(new_path)] -> FilesystemResult<()>;
        readlink_at(path: String) [is_long(path)] -> FilesystemResult<String>;
        remove_directory_at(path: String) [is_long(path)] -> FilesystemResult<()>;
        rename_at(path: String, new: Resource<Descriptor>, new_path: String) [is_long(path), is_long(new_path)]
            -> FilesystemResult<()>;
        symlink_at(target: String, path: String) [is_long_target(target), is_long(path)]
            -> FilesystemResult<()>;
        unlink_file_at(path: String) [is_long(path)] -> FilesystemResult<()>;
        is_same_object(other: Resource<Descriptor>) -> wasmtime::Result<bool>;
        metadata_hash() -> FilesystemResult<p3::MetadataHashValue>;
        metadata_hash_at(flags: p3::PathFlags, path: String) [is_long(path)]
            -> FilesystemResult<p3::MetadataHashValue>;
    }
}

/// What a guest wants to open, in WASI 0.2.
fn request(
    path_flags: p3::PathFlags,
    path: String,
    open_flags: p3::OpenFlags,
    flags: p3::DescriptorFlags,
) -> files::Request {
    macro_rules! same {
        ($given:ident: $flags:ident { $($name:ident)* }) => {{
            let mut same = p2::$flags::empty();
            $(if $given.contains(p3::$flags::$name) {
                same |= p2::$flags::$name;
            })*
            same
        }};
    }
    files::Request {
        path_flags: same!(path_flags: PathFlags { SYMLINK_FOLLOW }),
        path,
        open_flags: same!(open_flags: OpenFlags { CREATE DIRECTORY EXCLUSIVE TRUNCATE }),
        flags: same!(flags: DescriptorFlags {
            READ WRITE FILE_INTEGRITY_SYNC DATA_INTEGRITY_SYNC REQUESTED_WRITE_SYNC MUTATE_DIRECTORY
        }),
    }
}

/// An error of WASI 0.2 in WASI 0.3.
fn error_code(error: p2::ErrorCode) -> p3::ErrorCode {
    macro_rules! same {
        ($($name:ident)*) => {
            match error {
                $(p2::ErrorCode::$name => p3::ErrorCode::$name,)*
                // There is no other for files.
                other => p3::ErrorCode::Other(Some(other.name().to_owned())),
            }
        };
    }
    same! {
        Access Already BadDescriptor Busy Deadlock Quota Exist FileTooLarge IllegalByteSequence InProgress
        Interrupted Invalid Io IsDirectory Loop TooManyLinks MessageSize NameTooLong NoDevice NoEntry NoLock
        InsufficientMemory InsufficientSpace NotDirectory NotEmpty NotRecoverable Unsupported NoTty
        NoSuchDevice Overflow NotPermitted Pipe ReadOnly InvalidSeek TextFileBusy CrossDevice
    }
}

impl p3::Host for State {
    fn convert_error_code(&mut self, error: FilesystemError) -> wasmtime::Result<p3::ErrorCode> {
        error.downcast()
    }
}

impl p3::HostDescriptor for State {
    fn drop(&mut self, descriptor: Resource<Descriptor>) -> wasmtime::Result<()> {
        p3::HostDescriptor::drop(&mut self.filesystem(), descriptor)?;
        self.has_closed_file();
        Ok(())
    }
}
