//! Values as text, as flags and the configuration file have them. Each comes with what was expected, where it is refused.

mod address;

use std::env;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use crate::base64;
use crate::config::{CacheDir, CompileMemory, GrantedDir, Mode, Rate, Ratio, Setting, cores};
use crate::system::directory_of;
pub(crate) use address::{
    SOCKET_PATH, address, admin_address, endpoint, network, resolve, show_address, too_long,
};

/// What there is none of where a value is `off`.
pub(crate) const OFF: &str = "off";

/// Far more connections than any machine accepts in a second.
pub(crate) const MAX_RATE: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// Far more connections than any machine has descriptors for.
pub(crate) const MAX_CONNECTIONS: usize = 1_000_000_000;

/// Far more threads than any machine has cores.
pub(crate) const MAX_THREADS: usize = 1024;

/// The highest number of a user or a group. For chown(2), the next one means to change nothing.
pub(crate) const MAX_OWNER: u32 = u32::MAX - 1;

/// What the kernel's own limit on a backlog can be set to.
pub(crate) const MAX_BACKLOG: u32 = 65_535;

/// Bytes of memory without which a compiler does not start.
pub(crate) const MIN_COMPILE_MEMORY: u64 = 64 << 20;

/// Bytes that a buffer of the kernel's may have.
pub(crate) const BUFFER: RangeInclusive<u64> = 4 << 10..=1 << 30;

/// Bytes that the memory of an instance may have at least: a page of WebAssembly.
pub(crate) const MIN_MEMORY: u64 = 64 << 10;

/// Bytes that the memory of an instance may have at most.
pub(crate) const MAX_SIZE: u64 = 4 << 30;

/// How long the kernel may wait before it asks for a silent peer.
pub(crate) const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(32767);

/// How long a slice may be.
pub(crate) const SLICE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

/// The shortest limit on the time of a call.
pub(crate) const MIN_CALL: Duration = Duration::from_millis(1);

/// Parses a whole number. The standard library takes a sign too.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    is_digits(text).then(|| text.parse().ok()).flatten()
}

/// Reads `what`, a whole number in a range, from a variable of the environment of the host. Returns
/// `None` if the variable is not set.
pub(crate) fn number_in_environment(
    name: &str,
    what: &str,
    range: RangeInclusive<u64>,
) -> Result<Option<u64>, String> {
    let Some(text) = env::var_os(name) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let number = number(&text).filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| {
        format!(
            "the environment variable {name} is {}: expected {what} from {} to {}; unset it",
            quoted(&text, "other text"),
            range.start(),
            range.end(),
        )
    })
}

/// Checks whether a text consists of decimal digits.
fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

/// Parses a number of bytes. The library takes a sign too, and a point that no digit follows.
fn byte_size(text: &str) -> Option<ByteSize> {
    let point = text.split_once('.').map(|(_, rest)| rest);
    let odd =
        text.starts_with('+') || point.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    if odd { None } else { text.parse().ok() }
}

/// A part of all.
pub(crate) fn ratio(text: &str) -> Result<Ratio, String> {
    let digits = text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let ratio = digits.then(|| text.parse().ok()).flatten().and_then(Ratio::new);
    ratio.ok_or_else(|| "expected a number from 0 to 1, such as 0.01".to_owned())
}

/// The mode of a socket of the file system, in octal digits.
pub(crate) fn mode(text: &str) -> Result<Mode, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && text.bytes().all(|digit| digit.is_ascii_digit()) => Ok(Mode(mode)),
        _ => Err("expected an octal file mode, such as 0660".to_owned()),
    }
}

/// Who is to own a file: not yet looked up.
pub(crate) fn owner(text: &str) -> Result<String, String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let fine = group != Some("")
        && !group.is_some_and(|group| group.contains(':'))
        && !(user.is_empty() && group.is_none());
    if !fine {
        return Err("expected USER, USER:GROUP or :GROUP, as names or numbers".to_owned());
    }
    let fits = |name: &str| !is_digits(name) || number(name).is_some_and(|number: u32| number <= MAX_OWNER);
    if fits(user) && group.is_none_or(fits) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected USER, USER:GROUP or :GROUP, with numbers of at most {MAX_OWNER}"
        ))
    }
}

/// Instances that connections share.
pub(crate) fn instances(text: &str) -> Result<NonZeroUsize, String> {
    if text == "cores" {
        return Ok(cores());
    }
    number(text)
        .filter(|instances: &NonZeroUsize| instances.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}, or `cores`"))
}

/// A number of connections.
pub(crate) fn connections(text: &str) -> Result<NonZeroUsize, String> {
    match number(text) {
        Some(0) => Err("no connection could be served; expected a number above zero".to_owned()),
        Some(count) if count <= MAX_CONNECTIONS => Ok(NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)),
        _ => Err(format!(
            "expected a whole number from 1 to {MAX_CONNECTIONS}, such as 1024"
        )),
    }
}

/// Connections that wait to be accepted.
pub(crate) fn backlog(text: &str) -> Result<u32, String> {
    number(text)
        .filter(|backlog| (1..=MAX_BACKLOG).contains(backlog))
        .ok_or_else(|| format!("expected a number from 1 to {MAX_BACKLOG}"))
}

/// A directory for compiled components, which there has to be.
pub(crate) fn cache_to_fill(text: &str) -> Result<CacheDir, String> {
    match cache(text)? {
        CacheDir::Off => Err("there is nothing to fill; expected a directory".to_owned()),
        cache => Ok(cache),
    }
}

/// Memory for a compiler.
pub(crate) fn compile_memory(text: &str) -> Result<CompileMemory, String> {
    if text == OFF {
        return Ok(CompileMemory::Off);
    }
    let size = byte_size(text).map(|size| size.as_u64());
    let size = size.filter(|size| *size >= MIN_COMPILE_MEMORY);
    size.map(CompileMemory::AtMost)
        .ok_or_else(|| "expected a size of at least 64MiB, such as 1GiB, or `off`".to_owned())
}

/// A time above zero.
pub(crate) fn deadline(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a time above zero".to_owned()),
        time => Ok(time),
    }
}

/// How long the kernel waits before it asks for a silent peer: it counts in seconds.
pub(crate) fn keepalive(text: &str) -> Result<Option<Duration>, String> {
    if text == OFF {
        return Ok(None);
    }
    match any_duration(text)?.filter(|time| KEEPALIVE.contains(time)) {
        None => Err("expected a time from 1s to 32767s, or `off`".to_owned()),
        time => Ok(time),
    }
}

/// The size of a buffer of the kernel's; `off` leaves it to the kernel.
pub(crate) fn buffer(text: &str) -> Result<Option<usize>, String> {
    match bytes(text)? {
        None => Ok(None),
        Some(size) => usize::try_from(size)
            .ok()
            .filter(|_| BUFFER.contains(&size))
            .map(Some)
            .ok_or_else(|| "expected a size from 4KiB to 1GiB, or `off` for the default".to_owned()),
    }
}

/// A protocol that is agreed upon by ALPN (RFC 7301, section 3.1).
pub(crate) fn protocol(text: &str) -> Result<String, String> {
    // Programs receive it in a variable of the environment.
    if (1..=255).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("expected a protocol name of 1 to 255 bytes, without control characters".to_owned())
    }
}

/// The name of a service or a listener, for the log and for guests.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&text.len()) && text.chars().all(letter) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, `-`, `_` or `.`".to_owned())
    }
}

/// Checks that neither the content of a file nor a URL with credentials was given in place of a path.
/// Messages show paths, and must not show a key or a password.
pub(crate) fn path(path: &Path) -> Result<(), String> {
    let text = path.to_string_lossy();
    if is_key(&text) {
        Err("expected a path, not the content of a file".to_owned())
    } else if is_secret_url(&text) {
        Err("expected the path of a file or directory, not a URL".to_owned())
    } else {
        Ok(())
    }
}

/// The same, for files with secrets and for paths in the output: the path has no line break either.
pub(crate) fn path_in_one_line(file: &Path) -> Result<(), String> {
    if is_content(&file.to_string_lossy()) {
        Err("expected a path in one line, not the content of a file".to_owned())
    } else {
        path(file)
    }
}

/// What is wrong with a value in place of which a secret may have been given.
pub(crate) const NO_FILE: &str = "no file has this name; expected the path of a file that contains the \
     secret, not the secret itself; write the secret to a file, and start the path of a file in the same \
     directory with `./`";

/// What is wrong with a value in place of which a URL may have been given, with its password.
const URL: &str = "it has a `/`, `@`, `?`, `#` or `=` and may be a URL with a password; expected \
     HOST:PORT, such as 192.0.2.7:5432 or [2001:db8::7]:5432";

/// Checks whether messages must not show a value that was refused with this `reason`.
pub(crate) fn hides_value(value: &str, reason: &str) -> bool {
    reason == NO_FILE || may_be_secret(value)
}

/// Checks whether a value may be or contain a secret. Messages that refuse a value do not show it
/// then, whatever the setting: operators give a value to the wrong flag, or in the wrong order.
pub(crate) fn may_be_secret(text: &str) -> bool {
    is_content(text) || has_credentials(text) || has_token(text)
}

/// Checks whether a text contains a URL with credentials or parameters, or credentials before a
/// host.
fn has_credentials(text: &str) -> bool {
    let user = text.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
    is_secret_url(text) || user.is_some_and(|(_, password)| !password.is_empty())
}

/// Checks whether a text contains a URL with credentials or parameters.
fn is_secret_url(text: &str) -> bool {
    let rest = text.split_once("://").map(|(_, rest)| rest);
    rest.is_some_and(|rest| rest.contains(['@', '?']))
}

/// Characters that the part of a token has at least in which letters and digits are mixed.
const MIN_MIXED: usize = 8;

/// Checks whether a text contains what looks like a token: at least [`MIN_TOKEN`] characters of
/// base64 or hexadecimal digits, with a part that is no word. Names of hosts and files consist of
/// words.
fn has_token(text: &str) -> bool {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "+/-_=~".contains(c);
    let mut runs = text.split(|c| !is_token(c)).filter(|run| run.len() >= MIN_TOKEN);
    runs.any(|run| run.split(|c: char| !c.is_ascii_alphanumeric()).any(is_mixed))
}

/// Checks whether a text of ASCII letters and digits is long, and neither a word nor a short number.
fn is_mixed(text: &str) -> bool {
    let has = |is: fn(&char) -> bool| text.chars().any(|c| is(&c));
    let digits = has(char::is_ascii_digit);
    let letters = has(char::is_ascii_alphabetic);
    // A capital within a word.
    let capitals = text.chars().skip(1).any(|c| c.is_ascii_uppercase()) && has(char::is_ascii_lowercase);
    let is_number = digits && !letters && text.len() >= MIN_TOKEN;
    text.len() >= MIN_MIXED && (digits && letters || capitals) || is_number
}

/// Returns the value as a message quotes it, or `placeholder` if it may be a secret.
pub(crate) fn quoted(value: &str, placeholder: &str) -> String {
    if may_be_secret(value) {
        placeholder.to_owned()
    } else {
        format!("`{value}`")
    }
}

/// Characters that a token has at least.
pub(crate) const MIN_TOKEN: usize = 16;

/// What the names of files with secrets end in. Other names with a `.` may be tokens: those of JSON
/// (JWT) have two.
const SECRET_FILES: [&str; 5] = [".token", ".key", ".pem", ".secret", ".txt"];

/// Checks the path of a file that contains a secret, from `dir`. Messages show paths, so a value
/// that may be the secret itself is refused: no file has that name, it names no directory, does not
/// end as such files do, and is as long as a token. [`hides_secret`] covers those that name a
/// directory.
pub(crate) fn secret_file(file: &Path, dir: &Path) -> Result<(), String> {
    path_in_one_line(file)?;
    let text = file.to_string_lossy();
    // Base64 has `/` too, and may begin or end with it.
    let has_ending = SECRET_FILES.iter().any(|ending| text.ends_with(ending));
    let looks_like_path = text.trim_matches('/').contains('/') || has_ending || text.len() < MIN_TOKEN;
    if looks_like_path || dir.join(file).exists() {
        Ok(())
    } else {
        Err(NO_FILE.to_owned())
    }
}

/// Checks whether messages must not show the path of a file that contains a secret. If neither the
/// file nor its directory exists, the value may be the secret itself: half of all tokens in base64
/// contain a `/`.
fn hides_secret(file: &Path) -> bool {
    fs::symlink_metadata(file).is_err() && !directory_of(file).is_dir()
}

/// Names a file that contains a secret, as messages do. `setting` is the one that names it.
///
/// This looks for the file and its directory, which may hang. Threads that serve connections must
/// not call it.
pub(crate) fn named_secret(path: &Path, setting: Setting<'_>) -> String {
    if hides_secret(path) {
        format!(
            "of {setting} (not shown, since no such directory exists, and the value may be the secret \
             itself; expected the path of a file)"
        )
    } else {
        format!("`{}`", path.display())
    }
}

/// Checks whether a value is text of several lines, or a key. Messages do not show such a value.
pub(crate) fn is_content(text: &str) -> bool {
    text.contains('\n') || is_key(text)
}

/// Checks whether a value contains PEM, or DER in base64.
fn is_key(text: &str) -> bool {
    text.contains("-----BEGIN") || base64::runs(text.as_bytes()).any(base64::is_der)
}

/// Where compiled components are kept.
pub(crate) fn cache(text: &str) -> Result<CacheDir, String> {
    path(Path::new(text))?;
    match text {
        "" => Err("the path is empty; expected a directory, or `off`".to_owned()),
        OFF => Ok(CacheDir::Off),
        dir => Ok(CacheDir::At(PathBuf::from(dir))),
    }
}

/// The path of a component or a middleware.
pub(crate) fn component(file: &Path) -> Result<(), String> {
    let text = file.to_string_lossy();
    if text.is_empty() {
        return Err("the path is empty; expected the path of a component".to_owned());
    }
    match text.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Err(format!(
            "{} references are not supported; expected the path of a file; download the component first",
            quoted(&format!("{scheme}://"), "such")
        )),
        _ => path(file),
    }
}

/// Variables that the host sets for programs.
pub(crate) const HOST_VARIABLES: [&str; 13] = [
    "PROTO",
    "TCPLOCALIP",
    "TCPLOCALPORT",
    "TCPREMOTEIP",
    "TCPREMOTEPORT",
    "UNIXLOCALPATH",
    "UNIXREMOTEEGID",
    "UNIXREMOTEEUID",
    "UNIXREMOTEPID",
    "SSL_ALPN_PROTOCOL",
    "SSL_CLIENT_S_DN",
    "SSL_PROTOCOL",
    "SSL_TLS_SNI",
];

/// Returns the name of the variable in a text of the form `NAME=VALUE`, if it is a name that a shell
/// accepts and the value is not empty.
pub(crate) fn assigned(text: &str) -> Option<&str> {
    let (name, value) = text.split_once('=')?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = name.starts_with(|c: char| is_part(c) && !c.is_ascii_digit()) && name.chars().all(is_part);
    let is_variable = is_name && !value.trim_start_matches('=').is_empty();
    is_variable.then_some(name)
}

/// A variable that guests are granted.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if name.is_empty() {
        return Err("the name of the variable is empty; expected KEY=VALUE".to_owned());
    }
    variable_name(name)?;
    without_nul(value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Checks the name of a variable that guests are granted, as the services file has it.
pub(crate) fn variable_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("the name of the variable is empty; expected KEY = \"VALUE\"".to_owned())
    } else if name.contains('=') {
        // A value may follow, which is not shown.
        let start = name.split('=').next().unwrap_or_default();
        Err(format!(
            "the name of a variable that starts with `{start}` contains `=`; expected KEY = \"VALUE\""
        ))
    } else if HOST_VARIABLES.contains(&name) {
        Err(format!(
            "the host sets the variable `{name}` for each connection; choose another name"
        ))
    } else {
        without_nul(name)
    }
}

/// Checks a text that guests receive as a C string.
pub(crate) fn without_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        Err("a NUL byte would end the text for the guest; remove it".to_owned())
    } else {
        Ok(())
    }
}

/// A directory that guests are granted.
pub(crate) fn directory(text: &str) -> Result<GrantedDir, String> {
    let (host, guest) = text
        .split_once("::")
        .ok_or("expected HOST::GUEST or HOST::GUEST:rw, such as ./data::/data")?;
    if host.is_empty() {
        return Err("expected the path of a directory before `::`".to_owned());
    }
    path(Path::new(host))?;
    // A guest's path has no colon, so that a mistyped mode does not become a part of it.
    let (guest, writable) = match guest.split_once(':') {
        None => (guest, false),
        Some((guest, "ro")) => (guest, false),
        Some((guest, "rw")) => (guest, true),
        Some((_, "ro:rw" | "rw:ro" | "ro:ro" | "rw:rw")) => {
            return Err("`:ro` and `:rw` can be given once; remove one of the two".to_owned());
        }
        Some((_, mode)) if ["rw", "ro"].iter().any(|known| mode.eq_ignore_ascii_case(known)) => {
            return Err(format!(
                "`:{mode}` is written in lower case, as `:{}`",
                mode.to_ascii_lowercase()
            ));
        }
        Some((_, mode)) => {
            let found = quoted(&format!(":{mode}"), "other text");
            return Err(format!(
                "expected `:rw`, `:ro` or nothing after the path of the directory in the guest, not \
                 {found}; a path in the guest cannot contain `:`"
            ));
        }
    };
    if ["", "rw", "ro"].contains(&guest) {
        return Err("expected the path of the directory in the guest after `::`".to_owned());
    }
    if guest.split('/').any(|name| name == "..") {
        return Err("expected a path in the guest without `..`".to_owned());
    }
    without_nul(host).and_then(|()| without_nul(guest))?;
    Ok(GrantedDir {
        host: PathBuf::from(host),
        guest: guest.to_owned(),
        writable,
    })
}

pub(crate) fn destination(text: &str) -> Result<String, String> {
    // No name of a host has these, and a URL has. The value is not shown in any case.
    if text.contains(['/', '@', '?', '#', '=']) {
        return Err(URL.to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && number(port).is_some_and(|port: u16| port > 0) => {
            Ok(text.to_owned())
        }
        _ => Err("expected HOST:PORT, such as 192.0.2.7:5432 or [2001:db8::7]:5432".to_owned()),
    }
}

pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    number(text)
        .filter(|threads: &NonZeroUsize| threads.get() <= MAX_THREADS)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}"))
}

/// Seconds of a year, as units of time are read.
const YEAR: u64 = 31_557_600;

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    any_duration(text)?.ok_or_else(|| {
        if is_too_fine(text) {
            "the fraction of the time has too many digits; use a smaller unit, or whole nanoseconds"
                .to_owned()
        } else {
            format!("the time is too long; expected at most {}y", u64::MAX / YEAR)
        }
    })
}

/// Parses a time; `None` is one that is too long or too fine for the host.
fn any_duration(text: &str) -> Result<Option<Duration>, String> {
    match humantime::parse_duration(text) {
        Ok(time) => Ok(Some(time)),
        Err(humantime::DurationError::NumberOverflow) => Ok(None),
        Err(_) => Err("expected a number with a unit, such as 500ms, 30s or 5m".to_owned()),
    }
}

/// Checks whether a time fails only for its digits after the point, for which the library has the
/// same error as for a time that is too long.
fn is_too_fine(text: &str) -> bool {
    let mut is_whole = true;
    let whole = text.chars().filter(|c| {
        is_whole = *c != '.' && (is_whole || !c.is_ascii_digit());
        is_whole
    });
    humantime::parse_duration(&whole.collect::<String>()).is_ok()
}

pub(crate) fn timeout(text: &str) -> Result<Option<Duration>, String> {
    if text == OFF {
        return Ok(None);
    }
    match duration(text)? {
        Duration::ZERO => Err("expected a time above zero, or `off`".to_owned()),
        limit => Ok(Some(limit)),
    }
}

/// The time that a call may take, which the host measures in milliseconds.
pub(crate) fn call_time(text: &str) -> Result<Option<Duration>, String> {
    match timeout(text)? {
        Some(time) if time < MIN_CALL => Err("expected a time of at least 1ms, or `off`".to_owned()),
        time => Ok(time),
    }
}

pub(crate) fn slice(text: &str) -> Result<Duration, String> {
    any_duration(text)?
        .filter(|slice| SLICE.contains(slice))
        .ok_or_else(|| "expected a time from 1ms to 1s".to_owned())
}

pub(crate) fn bytes(text: &str) -> Result<Option<u64>, String> {
    if text == OFF {
        return Ok(None);
    }
    let expected = "expected a size above zero with a unit, such as 512KiB or 10GiB, or `off`";
    let size = byte_size(text).ok_or_else(|| expected.to_owned())?;
    match size.as_u64() {
        0 => Err(expected.to_owned()),
        size => Ok(Some(size)),
    }
}

pub(crate) fn count(text: &str) -> Result<Option<NonZeroUsize>, String> {
    if text == OFF {
        return Ok(None);
    }
    number(text)
        .filter(|count: &NonZeroUsize| count.get() <= MAX_CONNECTIONS)
        .map(Some)
        .ok_or_else(|| format!("expected a number from 1 to {MAX_CONNECTIONS}, or `off`"))
}

pub(crate) fn rate(text: &str) -> Result<Option<Rate>, String> {
    if text == OFF {
        return Ok(None);
    }
    let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => 0,
    };
    match number(count) {
        Some(connections) if seconds > 0 && connections <= MAX_RATE => Ok(Some(Rate {
            connections,
            per: Duration::from_secs(seconds),
        })),
        _ => Err(format!(
            "expected N, N/s, N/m or N/h with N from 1 to {MAX_RATE}, such as 100/s (N alone means \
             per second), or `off`"
        )),
    }
}

/// The memory of an instance.
pub(crate) fn memory(text: &str) -> Result<usize, String> {
    byte_size(text)
        .map(|size| size.as_u64())
        .filter(|size| (MIN_MEMORY..=MAX_SIZE).contains(size))
        .and_then(|size| usize::try_from(size).ok())
        .ok_or_else(|| "expected a size with a unit from 64KiB to 4GiB, such as 512KiB or 64MiB".to_owned())
}

/// What a service is called that was not given a name: after the file of its component.
pub(crate) fn name_of(component: Option<&Path>) -> String {
    let stem = component.map_or(Some("echo".as_ref()), Path::file_stem);
    stem.and_then(|stem| stem.to_str())
        .and_then(|stem| name(stem).ok())
        .unwrap_or_else(|| "service".to_owned())
}
