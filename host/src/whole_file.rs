//! Reads and writes whole files whose paths the operator gives.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process;

use bytesize::ByteSize;
use rustix::fs::{Access, OFlags, access, fcntl_getfl, fcntl_setfl};

use crate::file_id::FileId;
use crate::system::{check_names_file, directory_of, is_writable};

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
        let error = format!("the file is larger than {}", ByteSize(limit));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(contents)
}

/// Writes what `content` gives to a file, whole or not at all. Returns the number of bytes.
///
/// A temporary file in the same directory takes the bytes, and then the name. A file that exists is
/// replaced, and keeps its mode. A path that is no file, such as `/dev/stdout`, is written to as it
/// is.
///
/// # Errors
///
/// The file cannot be written, or `content` fails. A file that exists stays as it is.
pub(crate) fn write(
    path: &Path,
    content: impl FnOnce(&mut Output) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let before = fs::metadata(path).ok();
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        return fill(File::options().write(true).open(path)?, content).map(|(_, size)| size);
    }
    // A link stays, and its target is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let part = directory_of(&path).join(format!(".wasm-inetd-{}.part", process::id()));
    let _ = fs::remove_file(&part);
    let written = File::create_new(&part)
        .map_err(anyhow::Error::from)
        .and_then(|file| fill(file, content))
        .and_then(|(file, size)| {
            if let Some(before) = before {
                file.set_permissions(before.permissions())?;
            }
            // Some file systems report a full disk only now.
            file.sync_all()?;
            fs::rename(&part, &path)?;
            Ok(size)
        });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// A file that is being written, with the number of bytes. A pipe has no size of its own.
pub(crate) struct Output {
    file: BufWriter<File>,
    written: u64,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes what `content` gives. Returns the file, and the number of bytes.
fn fill(file: File, content: impl FnOnce(&mut Output) -> anyhow::Result<()>) -> anyhow::Result<(File, u64)> {
    let mut output = Output {
        file: BufWriter::new(file),
        written: 0,
    };
    content(&mut output)?;
    let file = output.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((file, output.written))
}

/// Returns whether a path leads to standard output, as `/dev/stdout` and `/dev/fd/1` do.
pub(crate) fn is_stdout(path: &Path) -> bool {
    let (Ok(file), Ok(stdout)) = (fs::metadata(path), rustix::fs::fstat(io::stdout())) else {
        return false;
    };
    FileId::from(&file) == FileId::from(&stdout)
}

/// Checks whether [`write()`] could write a file. Leaves a file that exists as it is, and creates
/// none.
///
/// # Errors
///
/// The path is a directory, or the user of this process may not write there.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    let dir = |path: &Path| is_writable(directory_of(path));
    match fs::metadata(path) {
        Ok(file) if file.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(file) => {
            access(path, Access::WRITE_OK)?;
            if file.is_file() {
                dir(&path.canonicalize()?)?;
            }
        }
        Err(_) => {
            check_names_file(path)?;
            dir(path)?;
        }
    }
    Ok(())
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
    fn a_file_is_replaced_whole_or_stays() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = std::env::temp_dir().join(format!("wasm-inetd-write-{}", process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("links")).unwrap();
        let (file, link) = (dir.join("file"), dir.join("links/link"));
        fs::write(&file, "before").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("../file", &link).unwrap();
        let failed = write(&link, |output| {
            output.write_all(b"half")?;
            Err(anyhow::anyhow!("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read_to_string(&file).unwrap(), "before");
        assert_eq!(
            write(&link, |output| Ok(output.write_all(b"all of it")?)).unwrap(),
            9
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "all of it");
        assert!(link.is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        write(&dir.join("new"), |output| Ok(output.write_all(b"new")?)).unwrap();
        let left: usize = [&dir, &dir.join("links")]
            .map(|dir| fs::read_dir(dir).unwrap().count())
            .iter()
            .sum();
        assert_eq!(left, 4, "no temporary file is left");
        write(Path::new("/dev/null"), |output| Ok(output.write_all(b"gone")?)).unwrap();
        fs::remove_dir_all(&dir).unwrap();
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
