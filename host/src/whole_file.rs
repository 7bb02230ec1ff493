//! Reads whole files whose paths the operator gives.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Reads a file, or a pipe of the shell such as `/dev/fd/63`, of at most `limit` bytes.
///
/// # Errors
///
/// The file cannot be read, is larger than `limit`, or is a named pipe. A named pipe could keep the
/// host waiting for a writer without end.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // With this flag, opening a named pipe does not wait for a writer.
    let nonblocking = libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_fifo() {
        // The pipe of a shell has no path of its own.
        if fs::canonicalize(path).is_ok() {
            return Err(io::Error::other("it is a named pipe, not a file"));
        }
        let flags = fcntl_getfl(&file)?;
        fcntl_setfl(&file, flags.difference(OFlags::NONBLOCK))?;
    }
    let mut contents = Vec::new();
    // The file can be growing, or have no size.
    if metadata.len() <= limit {
        file.take(limit + 1).read_to_end(&mut contents)?;
    }
    if metadata.len().max(contents.len() as u64) > limit {
        return Err(io::Error::other(format!(
            "the file is larger than {}",
            ByteSize(limit)
        )));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{FileType, Mode};

    use super::*;

    #[test]
    fn a_named_pipe_is_refused_and_a_pipe_of_the_shell_is_read() {
        let path = std::env::temp_dir().join(format!("wasm-inetd-pipe-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let refused = read(&path, 10);
        fs::remove_file(&path).unwrap();
        assert_eq!(refused.unwrap_err().to_string(), "it is a named pipe, not a file");

        let (reader, mut writer) = io::pipe().unwrap();
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let path = Path::new(&path);
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| read(path, 10).unwrap());
            writer.write_all(b"ten bytes!").unwrap();
            drop(writer);
            assert_eq!(reads.join().unwrap(), b"ten bytes!");
        });
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        for (path, limit) in [
            ("/dev/zero", 1024),
            ("/proc/self/exe", 1024),
            ("/proc/self/stat", 2),
        ] {
            let error = read(Path::new(path), limit).unwrap_err().to_string();
            let expected = format!("the file is larger than {}", ByteSize(limit));
            assert_eq!(error, expected, "{path}");
        }
    }
}
