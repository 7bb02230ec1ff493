//! Tries what it is told to, as a program: a line of standard input is a word and what it is about, and is answered by a line.

use std::fs;
use std::io::{BufRead, ErrorKind, Result, Write, stdin, stdout};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

use wasip2::cli::stdout::{OutputStream, get_stdout};
use wasip2::random::random::get_random_bytes;

fn main() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match word {
            "args" => std::env::args().collect::<Vec<_>>().join(" "),
            "env" => std::env::var(rest).unwrap_or_else(|_| "no such variable".to_owned()),
            "variables" => std::env::vars().count().to_string(),
            "read" => told(fs::read_to_string(rest)),
            "write" => told(fs::write(rest, "written").map(|()| "written".to_owned())),
            "list" => told(fs::read_dir(rest).map(|entries| entries.count().to_string())),
            "connect" => told(TcpStream::connect(rest).map(|_| "connected".to_owned())),
            "resolve" => told(
                (rest, 80)
                    .to_socket_addrs()
                    .map(|found| found.count().to_string()),
            ),
            "listen" => told(TcpListener::bind(rest).map(|_| "listening".to_owned())),
            "send" => told(
                UdpSocket::bind("0.0.0.0:0")
                    .and_then(|socket| socket.send_to(b"!", rest).map(|_| "sent".to_owned())),
            ),
            "complain" => {
                eprintln!("{}", rest.replace("\\n", "\n").replace("\\e", "\x1b"));
                "complained".to_owned()
            }
            "hold-files" => hold(rest, |path| fs::File::open(path)),
            "hold-sockets" => hold(rest, |address| TcpStream::connect(address)),
            "fill-sockets" => hold(rest, |address| {
                let mut socket = TcpStream::connect(address)?;
                socket.set_nonblocking(true)?;
                while socket.write(&[b'x'; 64 << 10]).is_ok() {}
                Ok(socket)
            }),
            "exit" => {
                print!("leaving");
                stdout().flush()?;
                std::process::exit(rest.parse().unwrap_or(-1));
            }
            "spin" => loop {
                std::hint::spin_loop();
            },
            "hoard" => vec![1_u8; rest.parse().unwrap_or(0)].len().to_string(),
            "panic" => panic!("as it was told to"),
            "ask" => {
                print!("name? ");
                stdout().flush()?;
                continue;
            }
            "random" => get_random_bytes(rest.parse().unwrap_or(0)).len().to_string(),
            "fill" => {
                fill(&get_stdout(), b'x');
                continue;
            }
            "fill-by-two" => {
                let (one, other) = (get_stdout(), get_stdout());
                one.check_write().unwrap();
                fill(&other, b'x');
                // Which was permitted before.
                one.write(b"y").unwrap();
                continue;
            }
            _ => "what?".to_owned(),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Opens what `rest` names as often as it says first, and holds all of it until the process ends.
/// Tells how often that went well.
fn hold<T>(rest: &str, open: impl Fn(&str) -> Result<T>) -> String {
    let (count, name) = rest.split_once(' ').unwrap_or((rest, ""));
    let count = count.parse().unwrap_or(0);
    let held: Vec<T> = (0..count).map_while(|_| open(name).ok()).collect();
    let count = held.len().to_string();
    std::mem::forget(held);
    count
}

/// Writes until it would have to wait, and says on standard error how much that was.
fn fill(output: &OutputStream, byte: u8) {
    let mut taken = 0;
    while let Ok(permit @ 1..) = output.check_write() {
        output.write(&vec![byte; permit as usize]).unwrap();
        taken += permit;
    }
    eprintln!("{taken}");
}

fn told(result: Result<String>) -> String {
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound => "not found".to_owned(),
        _ => format!("refused: {error}"),
    })
}
