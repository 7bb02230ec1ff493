//! A host process, and clients for it.
//!
//! Nothing here sleeps for a guess: what is waited for is a line of the log, bytes, or the end of a process, and
//! every wait has a deadline far beyond the time that it should take.

pub mod http;
pub mod lines;
pub mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// Far longer than anything here takes, on a machine that does much else.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// The program under test.
pub const HOST: &str = env!("CARGO_BIN_EXE_wasm-inetd");

static GUESTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let target_dir = guest_builder::target_dir(Path::new(HOST)).unwrap();
    guest_builder::build_all(guest_builder::workspace(), &target_dir).unwrap();
    target_dir.join("guests")
});

/// The program under test, to be run. It keeps compiled components beside itself.
pub fn command() -> Command {
    with_cache(Command::new(HOST))
}

/// The same for a command that runs it.
pub fn with_cache(mut command: Command) -> Command {
    let target_dir = guest_builder::target_dir(Path::new(HOST)).unwrap();
    command.env("XDG_CACHE_HOME", target_dir.join("test-cache"));
    command
}

/// Compiles a large component into the cache of the tests, which takes minutes in a dev build.
///
/// A host that starts bounds this time, and on a busy machine the test would fail. `wasm-inetd
/// compile` does not bound it.
pub fn compile_ahead(component: &Path) {
    // One compilation uses all cores, and tests share components.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = command().arg("compile").arg(component).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The component of a guest, which is built when it is not up to date.
pub fn guest(name: &str) -> PathBuf {
    let path = GUESTS.join(name).with_extension("wasm");
    assert!(path.is_file(), "there is no guest {name}");
    path
}

/// The component of a guest of the sessions contract that is written as text, `guest/hostile/NAME/NAME.wat`.
pub fn text_guest(name: &str) -> PathBuf {
    let workspace = guest_builder::workspace();
    let text = workspace.join(format!("guest/hostile/{name}/{name}.wat"));
    let component = guest_of(wat::parse_file(text).unwrap(), "session-service");
    file(&format!("{name}.wasm"), component)
}

/// Makes a component for a world of the contracts from a core module.
pub fn guest_of(module: Vec<u8>, world: &str) -> Vec<u8> {
    component_of(&guest_builder::workspace().join("wit"), world, |_, _| module)
}

/// Makes a component for a world in a directory of WIT from the core module that `module` makes for it.
pub fn component_of(
    wit_dir: &Path,
    world: &str,
    module: impl FnOnce(&wit_parser::Resolve, wit_parser::WorldId) -> Vec<u8>,
) -> Vec<u8> {
    let mut wit = wit_parser::Resolve::default();
    let (package, _) = wit.push_dir(wit_dir).unwrap();
    let world = wit.select_world(&[package], Some(world)).unwrap();
    let mut module = module(&wit, world);
    wit_component::embed_component_metadata(&mut module, &wit, world, wit_component::StringEncoding::UTF8)
        .unwrap();
    let encoder = wit_component::ComponentEncoder::default().module(&module);
    encoder.and_then(|mut encoder| encoder.encode()).unwrap()
}

/// A core module for WASI preview 1 that is written as text, `guest/hostile/GUEST/NAME.wat`.
pub fn text_module(guest: &str, name: &str) -> PathBuf {
    let text = guest_builder::workspace().join(format!("guest/hostile/{guest}/{name}.wat"));
    file(&format!("{guest}-{name}.wasm"), wat::parse_file(text).unwrap())
}

/// A file beside the program under test, by a name that no other test uses.
pub fn file(name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let dir = guest_builder::target_dir(Path::new(HOST))
        .unwrap()
        .join("test-components");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Returns the words that the first `as_str` in a source file can give.
pub fn words(source: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(guest_builder::workspace().join(source)).unwrap();
    let (_, words) = source.split_once("pub fn as_str").unwrap();
    let (words, _) = words.split_once("\n    }\n").unwrap();
    let words: BTreeSet<_> = words.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(words.len() > 5, "{words:?}");
    words
}

/// Returns the path of a directory beside the program under test that does not exist yet.
///
/// # Panics
///
/// Another test of this process uses a directory of that name: the tests run at the same time, and
/// would replace each other's files.
pub fn scratch(name: &str) -> PathBuf {
    static TAKEN: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());
    // The thread of a test has its name.
    let test = thread::current().name().map(str::to_owned);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let of = taken.entry(name.to_owned()).or_insert_with(|| test.clone());
    assert_eq!(
        *of, test,
        "two tests use the directory {name}: give one of them another name"
    );
    drop(taken);
    let dir = guest_builder::target_dir(Path::new(HOST))
        .unwrap()
        .join("test-scratch")
        .join(name);
    let _ = fs::remove_dir_all(&dir);
    dir
}

/// The line that says that a new generation serves.
pub const NEW: &str = "component reloaded";

/// A directory of its own for one test, with a component in it that changes.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new(name: &str, first: &str) -> Self {
        let dir = scratch(&format!("place-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let place = Self(dir);
        place.put(first);
        place
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("guest.wasm")
    }

    /// Has the file replaced by another one.
    pub fn replace(&self, bytes: impl AsRef<[u8]>) {
        replace(&self.file(), bytes);
    }

    pub fn put(&self, name: &str) {
        self.replace(fs::read(guest(name)).unwrap());
    }

    pub fn serve(&self, args: &[&str]) -> Host {
        Host::with(&self.file(), args)
    }
}

/// The same component in other bytes: it ends in a custom section with this number.
pub fn again(name: &str, number: u8) -> Vec<u8> {
    let mut bytes = fs::read(guest(name)).unwrap();
    bytes.extend([0, 3, 1, b'#', number]);
    bytes
}

/// Has `file` replaced by another one with these bytes.
pub fn replace(file: &Path, bytes: impl AsRef<[u8]>) {
    let other = file.with_extension("new");
    fs::write(&other, bytes).unwrap();
    fs::rename(other, file).unwrap();
}

/// A running host. It is killed when this is dropped.
pub struct Host {
    child: Child,
    reader: Option<JoinHandle<()>>,
    places: Vec<String>,
    /// Those of TCP.
    addresses: Vec<SocketAddr>,
    lines: Receiver<String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Host {
    /// Starts a host that serves with `guest` on a free port and waits until it listens.
    pub fn serving(name: &str, args: &[&str]) -> Self {
        Self::with(&guest(name), args)
    }

    /// The same with a component from anywhere.
    pub fn with(component: &Path, args: &[&str]) -> Self {
        let component = component.to_str().unwrap();
        Self::start(&[&["--listen", "127.0.0.1:0", "--component", component], args].concat())
    }

    /// Starts a host and waits until it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(command().args(args), args)
    }

    /// Starts a host with the services of a file, which have so many listeners, and waits until it listens.
    pub fn with_config(file: &Path, listeners: usize) -> Self {
        let mut command = command();
        command.arg("--config").arg(file);
        Self::spawn(&mut command, &vec!["--listen"; listeners])
    }

    /// The same for a host that may read no more than what the modes of files let it, even where the superuser starts it.
    pub fn with_no_privileges(component: &Path, args: &[&str]) -> Self {
        let component = component.to_str().unwrap();
        let args = [&["--listen", "127.0.0.1:0", "--component", component], args].concat();
        if rustix::process::geteuid().is_root() {
            let mut setpriv = with_cache(Command::new("setpriv"));
            setpriv.args(["--bounding-set", "-dac_override,-dac_read_search"]);
            Self::spawn(setpriv.arg(HOST).args(&args), &args)
        } else {
            Self::start(&args)
        }
    }

    /// Starts a host below a shell that has run `setup` first, as to set a limit.
    pub fn below_shell(setup: &str, args: &[&str]) -> Self {
        let script = format!("{setup} && exec \"$0\" \"$@\"");
        Self::spawn(
            with_cache(Command::new("sh"))
                .arg("-c")
                .arg(script)
                .arg(HOST)
                .args(args),
            args,
        )
    }

    /// Starts a host by a command that is given these arguments for it, and waits until it listens.
    pub fn spawn(command: &mut Command, args: &[&str]) -> Self {
        let mut host = Self::launch(command);
        host.listens(args.iter().filter(|arg| **arg == "--listen").count().max(1));
        host
    }

    /// Starts a host by a command, and waits for nothing.
    pub fn launch(command: &mut Command) -> Self {
        Self::reading(command, Stdio::null())
    }

    /// The same with this standard input.
    pub fn reading(command: &mut Command, stdin: impl Into<Stdio>) -> Self {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = mpsc::channel();
        let kept = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line.clone());
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            reader: Some(reader),
            places: Vec::new(),
            addresses: Vec::new(),
            lines,
            log,
        }
    }

    /// Waits until it listens at so many addresses.
    pub fn listens(&mut self, listeners: usize) {
        for _ in 0..listeners {
            let line = self.line("listening on");
            let (_, place) = line.split_once("listening on ").unwrap();
            let place = first_word(place);
            self.addresses.extend(place.parse::<SocketAddr>());
            self.places.push(place.to_owned());
        }
    }

    /// Where it listens, as it says itself.
    pub fn places(&self) -> &[String] {
        &self.places
    }

    /// The address of the first listener of TCP.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The addresses of all listeners of TCP.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of the first listener.
    pub fn connect(&self) -> Client {
        Client::connect(self.address()).unwrap()
    }

    /// A client of the first listener that is reset at once, be it that it has already happened when it has connected.
    pub fn refuses(&self) {
        match Client::connect(self.address()) {
            Ok(client) => client.expect_reset(),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// Waits for a line of the log that holds `text`, passing over those before it.
    pub fn line(&self, text: &str) -> String {
        self.line_of(&[text])
    }

    /// The same for a line that holds any of `texts`.
    pub fn line_of(&self, texts: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if texts.iter().any(|text| line.contains(text)) => return line,
                Ok(_) => {}
                Err(error) => panic!("no line with {texts:?} ({error}) in the log:\n{}", self.log()),
            }
        }
    }

    /// Waits for a line that the guest writes to standard error.
    pub fn said(&self) -> String {
        field(&self.line("guest output"), "stderr")
    }

    /// Waits for the line of a connection that ended, and gives its outcome.
    pub fn outcome(&self) -> String {
        field(&self.line("connection ended"), "outcome")
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Sends a signal, by its number.
    pub fn signal(&self, number: i32) {
        signal(&self.child, number);
    }

    /// Stops the process, and waits until none of its threads runs. [`CONT`] continues it.
    pub fn pause(&self) {
        self.signal(STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        until("the host is stopped", || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat"));
                // The state follows the name, which is in parentheses.
                stat.is_ok_and(|stat| {
                    stat.rsplit_once(") ")
                        .is_some_and(|(_, rest)| rest.starts_with('T'))
                })
            })
        });
    }

    /// Asks the host to drain and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(TERM);
        self.wait()
    }

    /// Waits until the host has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let Some(status) = end_of(&mut self.child) else {
            panic!("the host does not end; its log:\n{}", self.log());
        };
        // The log is whole once its reader has come to the end.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// Entries of a directory of `/proc/PID`, as `fd`.
    pub fn entries(&self, directory: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{directory}", self.pid()))
            .unwrap()
            .count()
    }

    /// Memory mappings.
    pub fn mappings(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        maps.lines().count()
    }

    /// The time that it has been on the processor.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        // A hundred a second, on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// A figure of `/proc/PID/status` in KiB, as `VmRSS`.
    pub fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const HUP: i32 = 1;
pub const INT: i32 = 2;
pub const USR2: i32 = 12;
pub const TERM: i32 = 15;
/// Stands still, and goes on.
pub const STOP: i32 = 19;
pub const CONT: i32 = 18;

/// What comes before a space, or the end of a string in JSON.
pub fn first_word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace() || c == '"')
        .next()
        .unwrap()
}

/// The value of `key` in a line of the text log, without quotes.
pub fn field(line: &str, key: &str) -> String {
    let start = format!(" {key}=");
    let (_, rest) = line
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {key} in {line}"));
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    }
    .unwrap()
    .to_owned()
}

/// The other end of a connection. Every wait of it ends by [`DEADLINE`].
#[derive(Debug)]
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A connect waits as long as a write may (socket(7)). `connect_timeout` polls instead, and by the time that it looks a
        // connection may have been made and reset, which it tells as an error of the connect.
        socket.set_write_timeout(Some(DEADLINE))?;
        socket.connect(&address.into())?;
        let stream = TcpStream::from(socket);
        // Of a connection that was reset it cannot be set.
        let _ = stream.set_nodelay(true);
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(stream))
    }

    /// A client with an address of its own, as `127.0.0.2`.
    pub fn from(source: [u8; 4], address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// Sends bytes.
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        io::Write::write_all(&mut &self.0, bytes.as_ref()).unwrap();
    }

    /// Waits for as many bytes as `expected` has and compares.
    pub fn expect(&self, expected: impl AsRef<[u8]>) {
        let mut bytes = vec![0; expected.as_ref().len()];
        (&self.0).read_exact(&mut bytes).unwrap();
        assert_eq!(
            bytes.escape_ascii().to_string(),
            expected.as_ref().escape_ascii().to_string()
        );
    }

    /// Reads a line, and gives it without its end.
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while (&self.0).read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        String::from_utf8(line).unwrap()
    }

    /// Has a guest do something by a line, and returns the line that it answers with.
    pub fn asks(&self, what: &str) -> String {
        self.send(format!("{what}\n"));
        self.line()
    }

    /// Sends bytes and expects them back.
    pub fn echo(&self, bytes: impl AsRef<[u8]>) {
        self.send(&bytes);
        self.expect(&bytes);
    }

    /// Sends FIN, unless the host has reset the connection by now.
    pub fn finish(&self) {
        match self.0.shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            done => done.unwrap(),
        }
    }

    /// Reads to the host's FIN, and answers it with one, for which the host would wait.
    pub fn rest(&self) -> Vec<u8> {
        let bytes = self.half();
        self.finish();
        bytes
    }

    /// Reads to the host's FIN. The client can go on sending.
    pub fn half(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&self.0).read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Waits for a reset, passing over bytes before it.
    pub fn expect_reset(&self) {
        let error = (&self.0).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Whether nothing arrives for a while. A host that is slow can make this wrong only in one way: it passes.
    pub fn hears_nothing(&self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let peeked = self.0.peek(&mut [0]);
        self.0.set_read_timeout(Some(DEADLINE)).unwrap();
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Is true once this is dropped, be it by a panic.
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends a signal to a process, by its number.
pub fn signal(child: &Child, number: i32) {
    let status = Command::new("kill")
        .arg(format!("-{number}"))
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come to this: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a process has ended; `None` if it does not by the deadline.
fn end_of(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let status = child.try_wait().unwrap();
        if status.is_some() {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Checks that the lines are errors about the services file at `path` that begin like this, each
/// with a line of the file and a key.
pub fn assert_errors(lines: &[&str], path: &str, expected: &[&str]) {
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("error: {path}:{expected}")), "{line}");
    }
}

/// What a host that does not start has to say.
pub struct Refusal {
    pub status: Option<i32>,
    pub message: String,
}

/// Runs a host that is expected to end by itself.
pub fn refused(args: &[&str]) -> Refusal {
    refusal_of(command().args(args))
}

/// Runs a host by a command, and returns how it ends by itself.
pub fn refusal_of(command: &mut Command) -> Refusal {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = thread::spawn(move || {
        let mut message = String::new();
        stderr.read_to_string(&mut message).map(|_| message)
    });
    let Some(status) = end_of(&mut child) else {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("no refusal by {command:?}: {:?}", reader.join().unwrap());
    };
    Refusal {
        status: status.code(),
        message: reader.join().unwrap().unwrap(),
    }
}

/// Bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(count)
    .collect()
}
