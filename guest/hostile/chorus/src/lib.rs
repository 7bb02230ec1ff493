//! Uses its standard input and output in several ways at once, as a program for WASI 0.3 that uses WASI 0.2 too. A line of
//! standard input says which; what it has done is said on standard error.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use wasip2::cli::stdout::get_stdout;
use wasip3::cli::{stdin, stdout};
use wasip3::wit_bindgen::{StreamReader, StreamResult, StreamWriter};
use wasip3::wit_stream;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

struct Chorus;

impl wasip3::exports::cli::run::Guest for Chorus {
    async fn run() -> Result<(), ()> {
        let (mut input, _end) = stdin::read_via_stream();
        let mut output = voice();
        while let Some(word) = line(&mut input).await {
            match word.as_str() {
                "sing" => sing().await,
                "give up" => give_up(&mut output).await,
                "change" => change(&mut output).await,
                "take turns" => take_turns(&mut input).await,
                "ask" => {
                    output.write_all(b"name? ".into()).await;
                }
                word => {
                    output.write_all(format!("{word}!\n").into()).await;
                }
            }
        }
        Ok(())
    }
}

/// Another stream to standard output.
fn voice() -> StreamWriter<u8> {
    let (writer, reader) = wit_stream::new();
    drop(stdout::write_via_stream(reader));
    writer
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

/// Three streams at once, each with 16 MiB of a letter of its own, which is more than a transport takes.
async fn sing() {
    let mut voices: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for letter in *b"abc" {
        voices.push(Box::pin(async move {
            let mut voice = voice();
            for _ in 0..256 {
                voice.write_all(vec![letter; PIECE]).await;
            }
        }));
    }
    let mut said = false;
    poll_fn(|cx| {
        voices.retain_mut(|voice| voice.as_mut().poll(cx).is_pending());
        if voices.is_empty() {
            return Poll::Ready(());
        }
        if !said {
            eprintln!("all wait");
            said = true;
        }
        Poll::Pending
    })
    .await;
}

/// Writes until it would have to wait, and gives that write up.
async fn give_up(output: &mut StreamWriter<u8>) {
    let mut taken = 0;
    loop {
        let mut write = pin!(output.write(vec![b'x'; PIECE]));
        let polled = poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await;
        let waits = polled.is_pending();
        let (_, rest) = match polled {
            Poll::Ready(written) => written,
            Poll::Pending => write.cancel(),
        };
        taken += PIECE - rest.remaining();
        if waits {
            break;
        }
    }
    eprintln!("{taken}");
}

/// Writes by WASI 0.2 until that would have to wait, then by WASI 0.3, and then by 0.2 again.
async fn change(output: &mut StreamWriter<u8>) {
    let old = get_stdout();
    let mut taken = 0;
    while let Ok(permit @ 1..) = old.check_write() {
        let permit = permit as usize;
        old.write(&vec![b'a'; permit]).unwrap();
        taken += permit;
    }
    eprintln!("{taken}");
    output.write_all(vec![b'b'; 100_000]).await;
    old.blocking_write_and_flush(b"c").unwrap();
}

/// Reads by two streams, gives up what the second waits for, and says what the first gets.
async fn take_turns(input: &mut StreamReader<u8>) {
    let (mut other, _end) = stdin::read_via_stream();
    let mut first = pin!(input.read(Vec::with_capacity(100)));
    let mut second = pin!(other.read(Vec::with_capacity(100)));
    let both = poll_fn(|cx| {
        Poll::Ready(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending())
    });
    assert!(both.await);
    let (status, _) = second.cancel();
    assert_eq!(status, StreamResult::Cancelled);
    eprintln!("listening");
    let (_, heard) = first.await;
    eprintln!("heard {}", String::from_utf8_lossy(&heard).trim());
}

wasip3::cli::command::export!(Chorus);
