//! The token that who changes anything has to know.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::iter;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::hex;
use crate::config::Setting;
use crate::encoding::{UTF8_MARK, other_than_utf8};
use crate::file_work::{FileWork, READ};
use crate::guarded::{self, Owner};
use crate::system::directory_of;
use crate::values::{MIN_TOKEN, named_secret};

/// Bytes that the file of a token has at most.
const MAX: u64 = 4096;

/// Bytes of a token that is made here.
const BYTES: usize = 32;

/// A token, by its digest: digests are compared in a time that says nothing of the token.
pub(crate) struct Token([u8; 32]);

impl Token {
    /// Reads the token in the file at `path`, which is made with a fresh one if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be read or made, others than its owner may read it, or it is too short.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        match Self::read(path)? {
            Some(token) => Ok(token),
            None => {
                check_directories(path)?;
                Self::make(path).with_context(|| format!("cannot create the token file {}", named(path)))
            }
        }
    }

    /// Reads the token in the file at `path`; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// It cannot be read, belongs to another user, others than its owner may read it, or it is too
    /// short.
    pub(super) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let reading = || format!("cannot read the token file {}", named(path));
        // A named pipe is opened without waiting for a writer, and refused below.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(reading)?,
        };
        check_directories(path)?;
        let metadata = file.metadata().with_context(reading)?;
        if !metadata.is_file() {
            bail!(
                "`{}` is not a file; expected the path of a token file, which the host creates if it \
                 is missing",
                path.display()
            );
        }
        if !guarded::is_trusted(metadata.uid()) {
            bail!(
                "the token file `{0}` belongs to the user with the number {1}; expected the user who runs \
                 the host, or root; change its owner with chown, or remove it",
                path.display(),
                metadata.uid()
            );
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            bail!(
                "the token file `{0}` is accessible to other users (mode {mode:04o}); restrict it \
                 with chmod 600 {0}",
                path.display()
            );
        }
        let mut contents = Vec::new();
        file.take(MAX + 1)
            .read_to_end(&mut contents)
            .with_context(reading)?;
        let begins_with_mark = contents.starts_with(UTF8_MARK);
        let with_mark = begins_with_mark.then_some("UTF-8 with a byte-order mark");
        if let Some(encoding) = other_than_utf8(&contents).or(with_mark) {
            bail!(
                "the token in `{}` is encoded as {encoding}; save the file as ASCII text, without a \
                 byte-order mark",
                path.display()
            );
        }
        let text = String::from_utf8(contents).unwrap_or_default();
        let token = text.trim();
        if text.len() as u64 > MAX
            || token.len() < MIN_TOKEN
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            bail!(
                "the token in `{}` is not valid: expected {MIN_TOKEN} to {MAX} visible ASCII characters; \
                 without the file, the host creates one with a random token",
                path.display()
            );
        }
        Ok(Some(Self::of(token)))
    }

    fn make(path: &Path) -> anyhow::Result<Self> {
        let token = random::<BYTES>()?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        if let Err(error) = writeln!(file, "{token}") {
            // An empty file would keep every later start from creating a token.
            let _ = fs::remove_file(path);
            return Err(error.into());
        }
        Ok(Self::of(&token))
    }

    fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether `token` is this one.
    fn is(&self, token: &str) -> bool {
        Self::of(token).0 == self.0
    }
}

/// Checks the directory of the file at `path`. If the file is a link, checks the directory of its
/// target too.
///
/// # Errors
///
/// Another user could put another file in its place, such as one of root with a known content.
pub(crate) fn check_directories(path: &Path) -> anyhow::Result<()> {
    let target = path.canonicalize().ok();
    for path in iter::once(path).chain(target.as_deref()) {
        if let Err(error) = guarded::check(directory_of(path), Owner::HostOrRoot) {
            bail!(
                "another user could replace the token file {}: {error}",
                named(path)
            );
        }
    }
    Ok(())
}

/// Names the file of a token, as [`named_secret`] does.
pub(crate) fn named(path: &Path) -> String {
    named_secret(path, Setting::of("admin.token"))
}

/// The token that the host accepts, which its file replaces when it is read again.
#[derive(Clone, Debug)]
pub(crate) struct CurrentToken {
    path: Arc<Path>,
    current: Arc<ArcSwap<Token>>,
    /// Locked while the file is read, so that the last read decides which token is accepted.
    files: Arc<Mutex<FileWork>>,
    /// Locked by the one task that waits for the others to have read the file.
    next: Arc<Mutex<()>>,
}

impl CurrentToken {
    /// Loads the token in the file at `path`, as [`Token::load`] does.
    ///
    /// # Errors
    ///
    /// The token cannot be loaded.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.into(),
            current: Arc::new(ArcSwap::from_pointee(Token::load(path)?)),
            files: Arc::default(),
            next: Arc::default(),
        })
    }

    /// Loads the token again, and accepts no other from then on. If the file cannot be used, the
    /// previous token stays in use, and the log gives the reason.
    ///
    /// Returns at once if another call has yet to begin: that one reads what this one would. So a
    /// file that hangs keeps two calls waiting, however many there are.
    pub(crate) async fn reload(&self) {
        let Ok(next) = self.next.try_lock() else {
            return;
        };
        let mut files = self.files.lock().await;
        drop(next);
        let path = Arc::clone(&self.path);
        let error = match files.run(READ, move || Token::load(&path)).await {
            Ok(Ok(token)) => return self.replace(token),
            Ok(Err(error)) => format!("{error:#}"),
            // The path is no secret, since the file was read at the start.
            Err(error) => format!("reading the token file `{}` {error}", self.path.display()),
        };
        warn!("{error}; the previous admin token stays in use");
    }

    fn replace(&self, token: Token) {
        if self.current.swap(Arc::new(token)).0 != self.current.load().0 {
            info!("the admin token has changed; the previous one is no longer accepted");
        }
    }

    /// Whether `token` is this one.
    pub(super) fn is(&self, token: &str) -> bool {
        self.current.load().is(token)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// So many random bytes as hexadecimal digits, which nobody can guess.
///
/// # Errors
///
/// The system has none.
pub(super) fn random<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system provides no random numbers"))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::file_work::NotDone;
    use crate::logging::captured::Log;

    fn place(name: &str) -> std::path::PathBuf {
        let place = std::env::temp_dir().join(format!("token-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&place);
        place
    }

    #[test]
    fn a_token_that_is_not_there_is_made_for_its_owner_alone() {
        let path = place("made");
        let made = Token::load(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim().len(), 2 * BYTES);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(made.is(text.trim()));
        assert!(!made.is(&text.trim()[1..]));
        assert!(
            Token::load(&path).unwrap().is(text.trim()),
            "the second time it is read"
        );
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn two_reloads_wait_for_a_file_that_hangs_and_do_not_look_for_it() {
        let path = place("hangs").join("token");
        let dir = path.parent().unwrap();
        fs::create_dir_all(dir).unwrap();
        let token = CurrentToken::load(&path).unwrap();
        // From now on, whoever looks for it finds no such directory.
        fs::remove_dir_all(dir).unwrap();
        let (log, _log) = Log::start();
        let (end, hangs) = mpsc::channel::<()>();
        let late = token.files.lock().await.run(READ, move || hangs.recv()).await;
        assert!(matches!(late, Err(NotDone::Late(_))), "{late:?}");
        let mut reloads = [(); 3].map(|()| Box::pin(token.reload()));
        let ended = reloads.each_mut().map(|reload| reload.now_or_never().is_some());
        assert_eq!(ended, [false, false, true]);
        let [first, second, _] = reloads;
        tokio::join!(first, second);
        assert_eq!(
            log.lines_with(&format!("reading the token file `{}` took", path.display())),
            2
        );
        drop(end);
    }

    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let path = place("open");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Token::load(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        let error = Token::load(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(
            error.contains("is not a file") && !error.contains("chmod"),
            "{error}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Token::load(&path).unwrap().is("0123456789abcdef"));
        for short in ["", "0123456789abcde", "0123456789 abcdef"] {
            std::fs::write(&path, short).unwrap();
            assert!(Token::load(&path).is_err(), "{short:?}");
        }
        for (content, encoding) in [
            (
                &b"\xff\xfes\x003\0c\0r\x003\0t\0s\x003\0c\0r\x003\0t\0"[..],
                "UTF-16",
            ),
            (
                b"\xef\xbb\xbfs3cr3ts3cr3ts3cr3t\n",
                "UTF-8 with a byte-order mark",
            ),
            (b"s3cr3ts3cr3ts3cr3t\xfc\n", "Latin-1"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = format!("{:#}", Token::load(&path).unwrap_err());
            assert!(
                error.contains(&format!("is encoded as {encoding}"))
                    && error.contains("save the file as ASCII"),
                "{error}"
            );
            assert!(!error.contains("s3cr3t"), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
