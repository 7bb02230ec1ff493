//! Makes calls to the host that are as long as it is told to, as a program for WASI 0.2.
//!
//! A line of standard input is a word and a number. The program makes a few calls of that size, and
//! answers with the microseconds that the fastest and the slowest of them took. `hold WORD
//! NUMBER` makes that many handles instead, keeps all of them, and answers with the number of those
//! that it got. `names NUMBER` uses a path of that many names, and answers with how many calls find
//! it too long.

use std::io::{BufRead, Result, Write, stdin, stdout};
use std::mem::forget;

use wasip2::cli::stderr::get_stderr;
use wasip2::cli::stdin::get_stdin;
use wasip2::cli::stdout::get_stdout;
use wasip2::clocks::monotonic_clock::{now, subscribe_duration};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags};
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::OutputStream;
use wasip2::random::random::get_random_bytes;

/// Nanoseconds for which nobody waits.
const FOR_EVER: u64 = 1 << 60;

/// Calls of one size.
const CALLS: usize = 10;

fn main() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.rsplit(' ');
        let number = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let word = words.next().unwrap_or_default();
        let answer = if words.next() == Some("hold") {
            let held = (0..number).filter(|_| hold(word));
            held.count().to_string()
        } else if word == "names" {
            refusals(number).to_string()
        } else {
            let (fastest, slowest) = call(word, number);
            format!("{fastest} {slowest}")
        };
        println!("{answer}");
        stdout().flush()?;
    }
    Ok(())
}

/// Makes a handle, or takes 64 KiB of memory, and keeps it. Returns whether there was one.
fn hold(word: &str) -> bool {
    match word {
        "listings" | "begun-listings" => {
            let dirs = get_directories();
            let Some(Ok(list)) = dirs.first().map(|(dir, _)| dir.read_directory()) else {
                return false;
            };
            if word == "begun-listings" {
                let _ = list.read_directory_entry();
            }
            forget(list);
        }
        // More than its stream permits.
        "writes" => {
            if let Some((dir, _)) = get_directories().first() {
                let file = dir.open_at(
                    PathFlags::empty(),
                    "file",
                    OpenFlags::CREATE,
                    DescriptorFlags::WRITE,
                );
                let stream = file.unwrap().write_via_stream(0).unwrap();
                let permit = stream.check_write().unwrap();
                let _ = stream.write(&vec![7; permit as usize + 1]);
                forget(stream);
            }
        }
        "memory" => forget(std::hint::black_box(vec![1_u8; 64 << 10])),
        "pollables" => forget(subscribe_duration(FOR_EVER)),
        "inputs" => forget(get_stdin()),
        "outputs" => forget(get_stdout()),
        "input-pollables" => {
            let input = get_stdin();
            forget(input.subscribe());
            forget(input);
        }
        _ => {}
    }
    true
}

/// How many of the functions that take a path find one of so many names too long.
fn refusals(names: usize) -> usize {
    let path = vec!["a"; names].join("/");
    let (dir, _) = get_directories().remove(0);
    let (links, read) = (PathFlags::empty(), DescriptorFlags::READ);
    let time = NewTimestamp::NoChange;
    let errors = [
        dir.open_at(links, &path, OpenFlags::empty(), read).err(),
        dir.create_directory_at(&path).err(),
        dir.stat_at(links, &path).err(),
        dir.set_times_at(links, &path, time, time).err(),
        dir.link_at(links, &path, &dir, "b").err(),
        dir.link_at(links, "b", &dir, &path).err(),
        dir.readlink_at(&path).err(),
        dir.remove_directory_at(&path).err(),
        dir.rename_at(&path, &dir, "b").err(),
        dir.rename_at("b", &dir, &path).err(),
        dir.symlink_at("b", &path).err(),
        dir.symlink_at(&path, "link").err(),
        dir.unlink_file_at(&path).err(),
        dir.metadata_hash_at(links, &path).err(),
    ];
    let too_long = errors
        .into_iter()
        .filter(|error| *error == Some(ErrorCode::NameTooLong));
    too_long.count()
}

/// Makes calls of this size, and returns how long they took.
fn call(word: &str, size: usize) -> (u64, u64) {
    match word {
        // The same pollable many times.
        "poll" => {
            let ready = subscribe_duration(0);
            let list = vec![&ready; size];
            times(|| drop(poll(&list)))
        }
        // Many pollables, of which one is ready.
        "poll-each" => {
            let mut list: Vec<Pollable> = (1..size).map(|_| subscribe_duration(FOR_EVER)).collect();
            list.push(subscribe_duration(0));
            let list: Vec<_> = list.iter().collect();
            times(|| drop(poll(&list)))
        }
        "random" => times(|| drop(get_random_bytes(size as u64))),
        "path" => {
            let path = "x".repeat(size);
            let dirs = get_directories();
            times(|| {
                if let Some((dir, _)) = dirs.first() {
                    let _ = dir.stat_at(PathFlags::empty(), &path);
                }
            })
        }
        // One whose every part is looked up.
        "deep-path" => {
            let path = "./".repeat(size / 2);
            let dirs = get_directories();
            times(|| {
                if let Some((dir, _)) = dirs.first() {
                    let _ = dir.stat_at(PathFlags::empty(), &path);
                }
            })
        }
        "list" => {
            let dirs = get_directories();
            times(|| {
                if let Some((dir, _)) = dirs.first() {
                    drop(dir.read_directory());
                }
            })
        }
        "errors" => {
            let (errors, bytes) = (get_stderr(), vec![b'\n'; size]);
            times(|| {
                wait_for(&errors);
                let _ = errors.write(&bytes);
            })
        }
        "zeroes" => {
            let errors = get_stderr();
            times(|| {
                wait_for(&errors);
                let _ = errors.write_zeroes(size as u64);
            })
        }
        // One instruction. The slowest is the first, which touches memory that was not in use yet.
        "fill" => times(|| drop(std::hint::black_box(vec![1_u8; size]))),
        _ => (0, 0),
    }
}

/// Waits until a stream permits to write.
fn wait_for(stream: &OutputStream) {
    while matches!(stream.check_write(), Ok(0)) {
        stream.subscribe().block();
    }
}

/// The fastest and the slowest of some calls, in microseconds.
fn times(mut call: impl FnMut()) -> (u64, u64) {
    let (mut fastest, mut slowest) = (u64::MAX, 0);
    for _ in 0..CALLS {
        let start = now();
        call();
        let time = (now() - start) / 1000;
        fastest = fastest.min(time);
        slowest = slowest.max(time);
    }
    (fastest, slowest)
}
