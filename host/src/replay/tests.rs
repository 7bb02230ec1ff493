use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::*;

const STEP: Duration = Duration::from_secs(60);

fn steps(text: &str) -> Conversation {
    Conversation::parse(text).unwrap()
}

#[tokio::test]
async fn a_read_gives_bytes_of_one_chunk() {
    let (mut player, mut reader, _writer) = Player::new(STEP, Time::new(false, STEP));
    let text = "> \"on\"\n> \"e\"\n> break\n> \"two\"\n> pause 1ms\n> \"three\"\n> end\n";
    let conversation = steps(text);
    let playing = async {
        for (_, step) in &conversation.steps {
            player.play(step).await.unwrap();
        }
    };
    let reading = async {
        let mut reads = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let count = reader.read(&mut buffer).await.unwrap();
            reads.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            if count == 0 {
                return reads;
            }
        }
    };
    let ((), reads) = tokio::join!(playing, reading);
    assert_eq!(reads, ["one", "two", "three", ""]);
}

#[tokio::test]
async fn a_client_that_resets_is_seen_in_both_directions() {
    let (mut player, mut reader, mut writer) = Player::new(STEP, Time::new(false, STEP));
    player.play(&Step::Client(Client::Reset)).await.unwrap();
    let read = reader.read(&mut [0]).await.unwrap_err();
    let write = writer.write(b"x").await.unwrap_err();
    assert_eq!(read.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(write.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_guest_reads_the_bytes_before_a_reset() {
    let (mut player, mut reader, _writer) = Player::new(STEP, Time::new(false, STEP));
    let mut buffer = [0; 4];
    let conversation = steps("> \"first\"\n> break\n> \"second\"\n> reset\n");
    let playing = async {
        for (_, step) in &conversation.steps {
            player.play(step).await.unwrap();
        }
    };
    // The first chunk is read in part when the second one waits and the reset comes.
    let (read, ()) = tokio::join!(reader.read(&mut buffer), playing);
    let mut all = buffer[..read.unwrap()].to_vec();
    for _ in 0..2 {
        let error = reader.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(all, b"firstsecond");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_has_as_long_for_each_step_as_patience_allows() {
    let (mut player, _reader, mut writer) = Player::new(Duration::from_secs(2), Time::new(false, STEP));
    let step = Step::Guest(Guest::Sends(b"ab".to_vec()));
    let guest = async {
        writer.write_all(b"a").await.unwrap();
        sleep(Duration::from_millis(1900)).await;
        writer.write_all(b"b").await.unwrap();
        writer
    };
    let (played, _writer) = tokio::join!(player.play(&step), guest);
    played.unwrap();
    let found = player.play(&step).await.unwrap_err();
    assert_eq!(found.found, ["nothing more for 2s"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_stands_still_while_the_guest_works() {
    let time = Time::new(true, Duration::from_secs(5));
    let (mut player, mut reader, mut writer) = Player::new(STEP, time.clone());
    let guest = async {
        reader.read_exact(&mut [0]).await.unwrap();
        // Work, which takes longer than the pause of the client.
        sleep(Duration::from_millis(250)).await;
        time.timer(Some(Duration::from_millis(100))).await;
        writer.write_all(b"T").await.unwrap();
        time.timer(None).await;
    };
    let conversation = steps("> \"x\"\n> pause 200ms\n> \"y\"\n");
    let client = async {
        for (_, step) in &conversation.steps {
            player.play(step).await.unwrap();
        }
        player.play(&Step::Guest(Guest::Sends(b"T".to_vec()))).await
    };
    tokio::select! {
        played = client => played.unwrap(),
        () = guest => unreachable!(),
    }
    // The timer was due in the pause.
    assert_eq!(time.now(), Duration::from_millis(200));
}

#[tokio::test(start_paused = true)]
async fn a_pause_lasts_as_long_as_its_guest_waits_for_timers() {
    let time = Time::new(true, Duration::from_secs(5));
    let (mut player, _reader, mut writer) = Player::new(Duration::from_secs(5), time.clone());
    let guest = async {
        loop {
            // Half a minute of work in the whole hour, which is more than the patience.
            sleep(Duration::from_millis(8)).await;
            time.timer(Some(Duration::from_secs(1))).await;
            // Nobody may listen any more.
            let _ = writer.write_all(b"T").await;
        }
    };
    let conversation = steps(&format!("> pause 1h 500ms\n< \"{}\"\n", "T".repeat(3600)));
    let client = async {
        for (_, step) in &conversation.steps {
            player.play(step).await.unwrap();
        }
        assert_eq!(time.now(), Duration::from_millis(3_600_500));
        player
            .play(&Step::Guest(Guest::Sends(b"TT".to_vec())))
            .await
            .unwrap();
    };
    tokio::select! {
        () = client => {}
        () = guest => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_in_which_a_guest_only_works_is_a_difference() {
    let patience = Duration::from_secs(5);
    // Work without an end, and timers that never let the time pass.
    for timer in [None, Some(Duration::ZERO), Some(Duration::from_nanos(1))] {
        let time = Time::new(true, patience);
        let (mut player, _reader, _writer) = Player::new(patience, time.clone());
        let guest = async {
            loop {
                sleep(Duration::from_millis(8)).await;
                if timer.is_some() {
                    time.timer(timer).await;
                }
            }
        };
        let step = Step::Client(Client::Pause(Duration::from_secs(3600)));
        let mismatch = tokio::select! {
            played = player.play(&step) => played.unwrap_err(),
            () = guest => continue,
        };
        assert_eq!(
            mismatch.expected, "the guest waits during > pause 1h",
            "{timer:?}"
        );
        assert_eq!(
            mismatch.found,
            ["it works or writes for 5s without waiting"],
            "{timer:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_forgets_the_bytes_before() {
    let (mut player, _reader, mut writer) = Player::new(STEP, Time::new(false, STEP));
    writer.write_all(b"one").await.unwrap();
    for (_, step) in &steps("> \"x\"\n> pause 1s\n> reset\n< trap\n").steps {
        player.play(step).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_shown_where_it_is() {
    let common = "0123456789".repeat(100);
    for (at, sent, shown) in [
        (3, "x", ["< \"012A\"", "< \"012x\""]),
        (
            303,
            "x",
            [
                "< after 263 bytes: \"3456789012345678901234567890123456789012A\"",
                "< after 263 bytes: \"3456789012345678901234567890123456789012x\"",
            ],
        ),
        // The guest stops too early.
        (
            303,
            "",
            [
                "< after 263 bytes: \"3456789012345678901234567890123456789012A\"",
                "< after 263 bytes: \"3456789012345678901234567890123456789012\"",
            ],
        ),
    ] {
        let (mut player, _reader, mut writer) = Player::new(STEP, Time::new(false, STEP));
        let text = format!("{}{sent}", &common[..at]);
        writer.write_all(text.as_bytes()).await.unwrap();
        let step = Step::Guest(Guest::Sends(format!("{}A", &common[..at]).into_bytes()));
        let mismatch = player.play(&step).await.unwrap_err();
        assert_eq!([mismatch.expected, mismatch.found[0].clone()], shown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_goes_on_after_the_last_step() {
    let patience = Duration::from_secs(5);
    let time = Time::new(true, patience);
    let (player, mut reader, _writer) = Player::new(patience, time.clone());
    let (over, done) = (CancellationToken::new(), CancellationToken::new());
    let guest = async {
        reader.read_to_end(&mut Vec::new()).await.unwrap();
        let was_cut = tokio::select! {
            biased;
            () = time.timer(Some(Duration::from_secs(3))) => false,
            () = over.cancelled() => true,
        };
        done.cancel();
        was_cut
    };
    let conversation = steps("> \"x\"\n> end\n> pause 1s\n> reset\n< trap\n");
    let playing = perform(player, &conversation, patience, &time, &over, &done);
    let (was_cut, played) = tokio::join!(guest, playing);
    played.unwrap();
    assert!(!was_cut);
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_sends_behind_the_last_step_is_found_for_a_short_time() {
    for (pause, is_found) in [(0, true), (90, true), (1000, false)] {
        let (mut player, _reader, mut writer) = Player::new(STEP, Time::new(false, STEP));
        let guest = async {
            writer.write_all(b"one").await.unwrap();
            sleep(Duration::from_millis(pause)).await;
            // Nobody may listen any more.
            let _ = writer.write_all(b"two").await;
        };
        let conversation = steps("< \"one\"\n");
        let playing = async {
            let played = play_all(&mut player, &conversation).await;
            drop(player);
            played
        };
        let (played, ()) = tokio::join!(playing, guest);
        let found = played.err().map(|differs| (differs.line, differs.found));
        let expected = is_found.then(|| (1, vec!["< \"two\"".to_owned()]));
        assert_eq!(found, expected, "{pause}");
    }
}

#[test]
fn a_difference_is_shown_with_what_the_guest_wrote() {
    let difference = Difference {
        file: "talks/1.conversation".into(),
        line: 3,
        expected: "< \"one\\n\"".to_owned(),
        found: vec!["< \"on\"".to_owned(), "< trap".to_owned()],
        reason: Some("wasm `unreachable` instruction executed".to_owned()),
        is_of_system: false,
        output: vec!["panicked at src/lib.rs:3:5:".to_owned(), "no".to_owned()],
    };
    assert_eq!(
        difference.to_string(),
        "talks/1.conversation:3\n- < \"one\\n\"\n+ < \"on\"\n+ < trap\n  \
         wasm `unreachable` instruction executed\n  standard error:\n    \
         panicked at src/lib.rs:3:5:\n    no"
    );
    assert_eq!(
        difference.in_one_line(),
        "talks/1.conversation:3: expected < \"one\\n\", found < \"on\", then < trap \
         (wasm `unreachable` instruction executed); standard error: panicked at src/lib.rs:3:5: | no"
    );
}
