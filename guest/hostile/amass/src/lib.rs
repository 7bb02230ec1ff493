//! Has the host keep as many things for it as it is told to, as a program for WASI 0.3 that uses
//! WASI 0.2 too.
//!
//! A line of standard input is a word and a number. The program makes that many of what the word
//! names, keeps all of them, and answers with the number that it has made. `drop WORD` lets go of
//! each at once. `names` uses a path of that many names, and answers with how many calls find it too
//! long.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::poll_fn;
use std::mem::forget;
use std::pin::Pin;
use std::task::Poll;

use wasip2::cli::stdin::get_stdin;
use wasip2::cli::stdout::get_stdout;
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::filesystem as files;
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip3::cli::environment::get_environment;
use wasip3::cli::{stderr, stdin, stdout};
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags};
use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
use wasip3::wit_bindgen::StreamReader;
use wasip3::{wit_future, wit_stream};

/// Nanoseconds for which nobody waits.
const FOR_EVER: u64 = 1 << 60;

/// Bytes of a path that is too long for every system.
const PATH: usize = 512 << 10;

/// Bytes of a path that nearly fills a call.
const LOOKUP: usize = 60 << 10;

/// Entries of the directory that `entries` expects.
const ENTRIES: usize = 1000;

thread_local! {
    /// Streams to files that nothing was written to yet.
    static OUTPUTS: RefCell<Vec<OutputStream>> = const { RefCell::new(Vec::new()) };
}

#[link(wasm_import_module = "$root")]
unsafe extern "C" {
    #[link_name = "[waitable-set-new]"]
    fn waitable_set_new() -> u32;
    #[link_name = "[waitable-set-drop]"]
    fn waitable_set_drop(set: u32);
}

struct Amass;

impl wasip3::exports::cli::run::Guest for Amass {
    async fn run() -> Result<(), ()> {
        let (mut input, _end) = stdin::read_via_stream();
        while let Some(line) = line(&mut input).await {
            let mut words = line.rsplit(' ');
            let count = words.next().and_then(|count| count.parse().ok()).unwrap_or(0);
            let kind = words.next().unwrap_or_default();
            let keeps = words.next().is_none();
            let mut made = 0;
            if kind == "names" {
                made = refusals(count).await;
            }
            while kind != "names" && made < count && make(kind, keeps).await {
                made += 1;
            }
            let answer = format!("{made}\n");
            get_stdout().blocking_write_and_flush(answer.as_bytes()).unwrap();
        }
        Ok(())
    }
}

/// A line of standard input, without its end.
async fn line(input: &mut StreamReader<u8>) -> Option<String> {
    let mut line = Vec::new();
    loop {
        match input.next().await? {
            b'\n' => return String::from_utf8(line).ok(),
            byte => line.push(byte),
        }
    }
}

/// Makes one of a kind, and keeps it if `keeps`. Returns whether that went well.
async fn make(kind: &str, keeps: bool) -> bool {
    match kind {
        "sleeps" => begin(wait_for(FOR_EVER), keeps).await,
        "streams" => done(wit_stream::new::<u8>(), keeps),
        "futures" => done(wit_future::new::<Result<(), stdin::ErrorCode>>(|| Ok(())), keeps),
        "sets" => {
            // SAFETY: both are functions of the component model, which check what they are given.
            let set = unsafe { waitable_set_new() };
            if !keeps {
                // SAFETY: as above.
                unsafe { waitable_set_drop(set) };
            }
        }
        "reads" => {
            let (writer, mut reader) = wit_stream::new::<u8>();
            begin(async move { reader.read(Vec::with_capacity(1)).await }, keeps).await;
            done(writer, keeps);
        }
        "writes" => {
            let (mut writer, reader) = wit_stream::new::<u8>();
            begin(async move { writer.write(vec![b'x'; 1]).await }, keeps).await;
            done(reader, keeps);
        }
        "inputs" => done(stdin::read_via_stream(), keeps),
        "input-reads" => {
            let (mut reader, end) = stdin::read_via_stream();
            begin(async move { reader.read(Vec::with_capacity(1)).await }, keeps).await;
            done(end, keeps);
        }
        "outputs" => {
            let (mut writer, reader) = wit_stream::new::<u8>();
            done(stdout::write_via_stream(reader), keeps);
            begin(async move { writer.write(vec![b'x'; 1]).await }, keeps).await;
        }
        // Both ends are the host's, and the guest keeps no handle.
        "pipes" => {
            let (reader, end) = stdin::read_via_stream();
            drop(end);
            drop(stderr::write_via_stream(reader));
            // So that the host begins to read from it.
            wait_for(1).await;
        }
        "errors" => {
            let (writer, reader) = wit_stream::new::<u8>();
            done(stderr::write_via_stream(reader), keeps);
            done(writer, keeps);
        }
        // In the first directory, if there is one.
        "files" => match open("file".to_owned()).await {
            Some(file) => done(file, keeps),
            None => return false,
        },
        // A stream keeps the file open without its handle.
        "file-streams" => match open("file".to_owned()).await {
            Some(file) => done(file.read_via_stream(0), keeps),
            None => return false,
        },
        // Streams of WASI 0.2: with bytes that they have read, only opened, and with bytes to write.
        "file-reads" => {
            let stream = input();
            let read = stream.read(u64::MAX);
            stream.subscribe().block();
            done(stream, keeps);
            return matches!(read, Ok(bytes) if bytes.is_empty());
        }
        "file-outputs" => OUTPUTS.with_borrow_mut(|streams| streams.push(output())),
        "file-writes" => {
            let Some(stream) = OUTPUTS.with_borrow_mut(Vec::pop) else {
                return false;
            };
            let permit = stream.check_write().unwrap_or_default();
            let written = stream.write(&vec![7; permit as usize]);
            done(stream, keeps);
            return permit > 0 && written.is_ok();
        }
        // By splices if they are not kept.
        "file-copies" => return copy(&input(), &output(), !keeps).is_ok(),
        // Streams keep the socket open without its handle.
        "socket-receives" => match connect().await {
            Some(socket) => done(socket.receive().0, keeps),
            None => return false,
        },
        "socket-sends" => match connect().await {
            Some(socket) => {
                let (writer, reader) = wit_stream::new::<u8>();
                drop(socket.send(reader));
                done(writer, keeps);
            }
            None => return false,
        },
        "fifos" => begin(open("fifo".to_owned()), keeps).await,
        // Of the directory, unread, begun, and to the end.
        "lists" => done(directory().read_directory(), keeps),
        "begun-lists" => {
            let (mut entries, end) = directory().read_directory();
            let some = entries.read(Vec::with_capacity(1)).await.1;
            done((entries, end), keeps);
            return !some.is_empty();
        }
        "list-reads" => {
            let (mut entries, end) = directory().read_directory();
            begin(async move { entries.read(Vec::with_capacity(1)).await }, keeps).await;
            done(end, keeps);
        }
        "entries" => {
            let (entries, end) = directory().read_directory();
            let names: HashSet<_> = entries
                .collect()
                .await
                .into_iter()
                .map(|entry| entry.name)
                .collect();
            return end.await.is_ok() && names.len() == ENTRIES;
        }
        "directories" => match open(".".to_owned()).await {
            Some(directory) => done(directory, keeps),
            None => return false,
        },
        "lookups" => begin(look_up("x".repeat(LOOKUP)), keeps).await,
        "paths" => begin(open("x".repeat(PATH)), keeps).await,
        "memory" => done(std::hint::black_box(vec![1_u8; 64 << 10]), keeps),
        "pollables" => done(subscribe_duration(FOR_EVER), keeps),
        "input-handles" => done(get_stdin(), keeps),
        "output-handles" => done(get_stdout(), keeps),
        _ => {}
    }
    true
}

/// Connects to the port of this computer that the environment variable PORT names.
async fn connect() -> Option<TcpSocket> {
    let port = get_environment().into_iter().find(|(name, _)| name == "PORT")?.1;
    let address = Ipv4SocketAddress {
        port: port.parse().ok()?,
        address: (127, 0, 0, 1),
    };
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).ok()?;
    socket.connect(IpSocketAddress::Ipv4(address)).await.ok()?;
    Some(socket)
}

/// The first directory.
fn directory() -> Descriptor {
    get_directories().into_iter().next().unwrap().0
}

/// How many of the functions that take a path find one of so many names too long.
async fn refusals(names: usize) -> usize {
    let path = || vec!["a"; names].join("/");
    let other = || "b".to_owned();
    let dir = directory();
    let (links, read) = (PathFlags::empty(), DescriptorFlags::READ);
    let time = || NewTimestamp::NoChange;
    let errors = [
        dir.open_at(links, path(), OpenFlags::empty(), read).await.err(),
        dir.create_directory_at(path()).await.err(),
        dir.stat_at(links, path()).await.err(),
        dir.set_times_at(links, path(), time(), time()).await.err(),
        dir.link_at(links, path(), &dir, other()).await.err(),
        dir.link_at(links, other(), &dir, path()).await.err(),
        dir.readlink_at(path()).await.err(),
        dir.remove_directory_at(path()).await.err(),
        dir.rename_at(path(), &dir, other()).await.err(),
        dir.rename_at(other(), &dir, path()).await.err(),
        dir.symlink_at(other(), path()).await.err(),
        dir.symlink_at(path(), "link".to_owned()).await.err(),
        dir.unlink_file_at(path()).await.err(),
        dir.metadata_hash_at(links, path()).await.err(),
    ];
    let too_long = errors
        .into_iter()
        .filter(|error| matches!(error, Some(ErrorCode::NameTooLong)));
    too_long.count()
}

/// Looks for a file in the first directory.
async fn look_up(path: String) -> bool {
    directory().stat_at(PathFlags::empty(), path).await.is_ok()
}

/// Opens a file of the first directory.
async fn open(path: String) -> Option<Descriptor> {
    let (dir, _): (Descriptor, _) = get_directories().into_iter().next()?;
    let opened = dir.open_at(
        PathFlags::empty(),
        path,
        OpenFlags::empty(),
        DescriptorFlags::READ,
    );
    opened.await.ok()
}

/// Opens a stream from a file by WASI 0.2.
fn input() -> InputStream {
    let (dir, _) = files::preopens::get_directories().remove(0);
    let (links, create) = (files::types::PathFlags::empty(), files::types::OpenFlags::empty());
    let file = dir.open_at(links, "file", create, files::types::DescriptorFlags::READ);
    file.unwrap().read_via_stream(0).unwrap()
}

/// Opens a stream to another file by WASI 0.2.
fn output() -> OutputStream {
    let (dir, _) = files::preopens::get_directories().remove(0);
    let (links, create) = (files::types::PathFlags::empty(), files::types::OpenFlags::CREATE);
    let file = dir.open_at(links, "copy", create, files::types::DescriptorFlags::WRITE);
    file.unwrap().write_via_stream(0).unwrap()
}

/// Copies a file without a call that waits, but for those to pollables.
fn copy(input: &InputStream, output: &OutputStream, splices: bool) -> Result<(), StreamError> {
    loop {
        let permit = output.check_write()?;
        if permit == 0 {
            output.subscribe().block();
            continue;
        }
        let copied = if splices {
            output.splice(input, u64::MAX)
        } else {
            input.read(permit).and_then(|bytes| {
                output.write(&bytes)?;
                Ok(bytes.len() as u64)
            })
        };
        match copied {
            Ok(0) => input.subscribe().block(),
            Ok(_) => {}
            Err(StreamError::Closed) => return output.blocking_flush(),
            Err(error) => return Err(error),
        }
    }
}

fn done<T>(what: T, keeps: bool) {
    if keeps {
        forget(what);
    }
}

/// Starts something that waits.
async fn begin<T>(future: impl Future<Output = T> + 'static, keeps: bool) {
    let mut future: Pin<Box<dyn Future<Output = T>>> = Box::pin(future);
    poll_fn(|cx| {
        let _ = future.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
    done(future, keeps);
}

wasip3::cli::command::export!(Amass);
