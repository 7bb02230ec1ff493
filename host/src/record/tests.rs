use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A directory of its own for one test. It is removed when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("wasm-inetd-record-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A conversation of one step.
fn says(text: &str) -> Conversation {
    Conversation::parse(&format!("> \"{text}\"\n")).unwrap()
}

/// The text of its file.
fn text_of(number: u64, text: &str) -> String {
    format!("# connection {number}, finished\n> \"{text}\"\n")
}

#[test]
fn no_file_is_replaced_whoever_records_to_a_directory() {
    let scratch = Scratch::new("shared");
    let recorders = ["a", "b", "c"].map(|name| (name, Recorder::new(&scratch.0).unwrap()));
    let mut expected = BTreeSet::new();
    for number in 1..=4 {
        for (name, Recorder(directory)) in &recorders {
            let text = format!("{name} {number}");
            directory.write(number, "finished", says(&text)).unwrap();
            expected.insert(text_of(number, &text));
        }
    }
    let names = scratch.names();
    assert_eq!(names.len(), 12, "{names:?}");
    for name in &names {
        // Other users cannot read what clients have sent.
        let mode = fs::metadata(scratch.0.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let texts = names
        .iter()
        .map(|name| fs::read_to_string(scratch.0.join(name)).unwrap());
    assert_eq!(texts.collect::<BTreeSet<_>>(), expected);
    assert!(names.contains("00000001.conversation") && names.contains("00000012.conversation"));
}

#[test]
fn a_file_has_the_number_of_its_connection_behind_those_that_were_there() {
    let scratch = Scratch::new("numbers");
    fs::create_dir_all(&scratch.0).unwrap();
    for name in ["00000007.conversation", "18446744073709551615.conversation"] {
        fs::write(scratch.0.join(name), "> end\n").unwrap();
    }
    let Recorder(directory) = Recorder::new(&scratch.0).unwrap();
    for number in [2, 1] {
        directory.write(number, "finished", says("hello")).unwrap();
    }
    for (name, text) in [
        ("00000007.conversation", "> end\n".to_owned()),
        ("00000008.conversation", text_of(1, "hello")),
        ("00000009.conversation", text_of(2, "hello")),
    ] {
        assert_eq!(fs::read_to_string(scratch.0.join(name)).unwrap(), text, "{name}");
    }
    assert_eq!(scratch.names().len(), 4);
}

#[test]
fn a_directory_that_somebody_has_removed_is_created_again() {
    let scratch = Scratch::new("removed");
    let Recorder(directory) = Recorder::new(&scratch.0).unwrap();
    directory.write(1, "finished", says("first")).unwrap();
    fs::remove_dir_all(&scratch.0).unwrap();
    for number in 2..=3 {
        directory.write(number, "finished", says("more")).unwrap();
    }
    let expected = ["00000002.conversation", "00000003.conversation"];
    assert_eq!(scratch.names(), expected.map(str::to_owned).into());
}

#[test]
fn a_directory_that_somebody_has_moved_takes_no_more_files() {
    let scratch = Scratch::new("moved");
    fs::create_dir(&scratch.0).unwrap();
    let dir = scratch.0.join("record");
    let recorder = Recorder::new(&dir).unwrap();
    let write = |number| {
        let text = text_of(number, "x");
        recorder.0.write(number, "finished", says("x")).unwrap();
        text
    };
    let first = write(1);
    let moved = scratch.0.join("moved");
    fs::rename(&dir, &moved).unwrap();
    let second = write(2);
    let read = |dir: &Path, number| fs::read_to_string(dir.join(Conversation::file_name(number)));
    assert_eq!(read(&moved, 1).unwrap(), first);
    assert_eq!(read(&dir, 2).unwrap(), second);
    assert_eq!(fs::read_dir(&moved).unwrap().count(), 1);
}

#[test]
fn nothing_is_left_of_a_file_that_cannot_be_put_in_place() {
    let scratch = Scratch::new("left");
    let Recorder(directory) = Recorder::new(&scratch.0).unwrap();
    let mut part = directory.part(directory.dir.load_full()).unwrap();
    part.file.write_all(b"> \"half").unwrap();
    part.put(&scratch.0.join("missing/1.conversation")).unwrap_err();
    assert_eq!(scratch.names().len(), 1);
    drop(part);
    assert!(scratch.names().is_empty());
}

#[tokio::test]
async fn few_conversations_are_written_at_the_same_time() {
    let scratch = Scratch::new("writers");
    let at_end = || AtEnd {
        bytes_in: 5,
        peer_ended: false,
        peer_failed: false,
        guest_ended: false,
        status: None,
    };
    let tape = async || {
        let tape = Tape::default();
        let mut hello = tape.record(&b"hello"[..]);
        hello.read_exact(&mut [0; 5]).await.unwrap();
        tape
    };
    let recorder = Recorder::new(&scratch.0).unwrap();
    let writers = u32::try_from(WRITERS).unwrap();
    let others = recorder.0.writers.acquire_many(writers).await.unwrap();
    // It waits for the others, and is given up.
    let waiting = recorder.keep("", 1, tape().await, Outcome::Drained, at_end());
    assert_eq!(waiting.now_or_never(), None);
    drop(others);
    recorder
        .keep("", 2, tape().await, Outcome::Drained, at_end())
        .await;
    let name = Conversation::file_name(2);
    let expected = "# connection 2, drained\n> \"hello\"\ncut\n";
    assert_eq!(fs::read_to_string(scratch.0.join(&name)).unwrap(), expected);
    assert_eq!(scratch.names(), [name].into());
}

/// The conversation of a client that sends `hello`, whose guest answers `HELLO`; the host then ends
/// the connection properly.
async fn conversation(outcome: Outcome, at_end: AtEnd) -> String {
    let tape = Tape::default();
    let (near, mut far) = tokio::io::duplex(100);
    let (reader, writer) = tokio::io::split(near);
    let (mut reader, mut writer) = (tape.record(reader), tape.record(writer));
    far.write_all(b"hello").await.unwrap();
    reader.read_exact(&mut [0; 5]).await.unwrap();
    writer.write_all(b"HELLO").await.unwrap();
    // The host's part.
    writer.shutdown().await.unwrap();
    far.write_all(b" again").await.unwrap();
    far.shutdown().await.unwrap();
    reader.read_to_end(&mut Vec::new()).await.unwrap();
    tape.conversation(outcome, at_end).unwrap().to_string()
}

#[tokio::test]
async fn a_conversation_has_what_the_guest_did_and_not_what_the_host_did_to_end_it() {
    let at_end = AtEnd {
        bytes_in: 5,
        peer_ended: false,
        peer_failed: false,
        guest_ended: false,
        status: None,
    };
    let finished = AtEnd {
        guest_ended: true,
        ..at_end
    };
    let failed = AtEnd {
        peer_failed: true,
        ..at_end
    };
    let exited = |status| AtEnd {
        status: Some(status),
        ..finished
    };
    for (outcome, at_end, last) in [
        (Outcome::Finished, finished, "< end\n"),
        (Outcome::Finished, exited(0), "< end\n"),
        (Outcome::Finished, exited(2), "< end\n< exit 2\n"),
        (Outcome::Finished, exited(-1), "< end\n< exit -1\n"),
        (Outcome::IdleTimeout, at_end, "cut\n"),
        (Outcome::FirstByteTimeout, at_end, "cut\n"),
        (Outcome::WriteTimeout, at_end, "cut\n"),
        (Outcome::Lifetime, at_end, "cut\n"),
        (Outcome::Drained, at_end, "cut\n"),
        (Outcome::Closed, at_end, "cut\n"),
        // The guest had ended its half, and read on.
        (Outcome::Drained, finished, "< end\ncut\n"),
        (Outcome::GuestReset, at_end, "< reset\n"),
        (Outcome::GuestTrap, at_end, "< trap\n"),
        (Outcome::GuestTrap, failed, "> reset\n< trap\n"),
        (Outcome::GuestTrap, finished, "< end\n< trap\n"),
        (Outcome::CpuLimit, at_end, "< cpu-limit\n"),
        (Outcome::PeerReset, failed, "> reset\n"),
        (Outcome::PeerLost, failed, "> reset\n"),
    ] {
        let text = conversation(outcome, at_end).await;
        assert_eq!(text, format!("> \"hello\"\n< \"HELLO\"\n{last}"), "{outcome:?}");
        Conversation::parse(&text).unwrap();
    }
    // All bytes were read before it ended.
    let all = AtEnd {
        bytes_in: 11,
        peer_ended: true,
        ..finished
    };
    let text = conversation(Outcome::Finished, all).await;
    assert_eq!(text, "> \"hello\"\n< \"HELLO\"\n< end\n> \" again\"\n> end\n");
}

#[tokio::test]
async fn what_comes_after_the_guest_has_ended_does_not_make_a_conversation_too_long() {
    let at_end = AtEnd {
        bytes_in: 5,
        peer_ended: false,
        peer_failed: false,
        guest_ended: true,
        status: None,
    };
    for (ends_first, bytes_in) in [(true, 5), (false, 5), (true, MAX as u64)] {
        let tape = Tape::default();
        let (mut reader, mut writer) = (tape.record(tokio::io::repeat(b'x')), tape.record(Vec::new()));
        reader.read_exact(&mut [0; 5]).await.unwrap();
        if ends_first {
            writer.shutdown().await.unwrap();
        }
        for _ in 0..=MAX / (1 << 20) {
            reader.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        }
        let conversation = tape.conversation(Outcome::Finished, AtEnd { bytes_in, ..at_end });
        let kept = ends_first && bytes_in == 5;
        let expected = kept.then(|| "> \"xxxxx\"\n< end\n".to_owned()).ok_or(Bound::Own);
        assert_eq!(
            conversation.map(|kept| kept.to_string()),
            expected,
            "{ends_first} {bytes_in}"
        );
    }
}

#[tokio::test]
async fn steps_count_as_the_memory_that_they_take() {
    // Each round is two steps of one byte each, which no other step joins.
    let most = MAX / (2 * (tape::STEP + 1));
    for (rounds, is_kept) in [(most - 10, true), (most + 10, false)] {
        let tape = Tape::default();
        let (mut reader, mut writer) = (
            tape.record(tokio::io::repeat(b'x')),
            tape.record(tokio::io::sink()),
        );
        for _ in 0..rounds {
            reader.read_exact(&mut [0]).await.unwrap();
            writer.write_all(b"y").await.unwrap();
        }
        let at_end = AtEnd {
            bytes_in: rounds as u64,
            peer_ended: false,
            peer_failed: false,
            guest_ended: false,
            status: None,
        };
        let conversation = tape.conversation(Outcome::Drained, at_end);
        assert_eq!(conversation.is_ok(), is_kept, "{rounds}");
    }
}

#[tokio::test]
async fn all_conversations_together_take_a_bounded_part_of_the_memory() {
    let of_all: &_ = Box::leak(Box::new(Semaphore::new(1000)));
    let read = async |tape: &Tape, count| {
        let mut reader = tape.record(tokio::io::repeat(b'x'));
        reader.read_exact(&mut vec![0; count]).await.unwrap();
    };
    let conversation = |tape: &Tape, count| {
        let at_end = AtEnd {
            bytes_in: count,
            peer_ended: false,
            peer_failed: false,
            guest_ended: false,
            status: None,
        };
        tape.conversation(Outcome::Drained, at_end).map(drop)
    };
    let [first, second, third] = [(); 3].map(|()| Tape::within(of_all));
    read(&first, 500).await;
    read(&second, 200).await;
    read(&second, 200).await;
    // What was kept of it has left room for others, but a conversation is kept whole or not at all.
    read(&second, 1).await;
    read(&third, 100).await;
    assert_eq!(conversation(&second, 401), Err(Bound::OfAll));
    for (tape, count) in [(first, 500), (third, 100)] {
        assert_eq!(conversation(&tape, count), Ok(()));
        // It is being written.
        assert!(of_all.available_permits() < 1000);
    }
    assert_eq!(of_all.available_permits(), 1000);
}
