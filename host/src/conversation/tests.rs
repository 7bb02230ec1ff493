use super::*;

fn sends(text: &str) -> Step {
    Step::Client(Client::Sends(text.into()))
}

fn says(text: &str) -> Step {
    Step::Guest(Guest::Sends(text.into()))
}

/// The problem with a text, with its line.
fn problem(text: &str) -> (usize, Problem) {
    match Conversation::parse(text) {
        Err(ParseError::Line { line, problem }) => (line, problem),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn what_is_written_can_be_read() {
    let everything: Vec<u8> = (0..=255).chain(b"\n\n\\\"'".iter().copied()).collect();
    let mut conversation = Conversation::default();
    for step in [
        Step::Client(Client::Sends(everything.repeat(20))),
        Step::Client(Client::Break),
        sends(""),
        Step::Guest(Guest::Sends(vec![b'x'; 3 * WIDTH])),
        Step::Client(Client::Pause(Duration::from_millis(1500))),
        Step::Client(Client::End),
        Step::Guest(Guest::End),
        Step::Guest(Guest::Exits(NonZero::<i32>::MIN)),
    ] {
        conversation.add(0, step);
    }
    let mut read = Conversation::parse(&conversation.to_string()).unwrap();
    for (line, _) in &mut read.steps {
        *line = 0;
    }
    assert_eq!(read, conversation);
}

#[test]
fn lines_of_one_side_are_one_unless_a_break_or_a_pause_stands_between() {
    let text = "# a comment\n\n> \"one\"\n> \" two\"\n<  \"three\"\n> \"four\"\n>break\n> \"five\"\n\
                > pause 1s\n> \"six\"\n< \"seven\"\n< \"\"\n> end\n< reset\n";
    let expected = [
        (3, sends("one two")),
        (5, says("three")),
        (6, sends("four")),
        (7, Step::Client(Client::Break)),
        (8, sends("five")),
        (9, Step::Client(Client::Pause(Duration::from_secs(1)))),
        (10, sends("six")),
        (11, says("seven")),
        (13, Step::Client(Client::End)),
        (14, Step::Guest(Guest::Reset)),
    ];
    assert_eq!(Conversation::parse(text).unwrap().steps, expected);
}

#[test]
fn a_line_that_is_not_valid_is_refused_with_its_problem() {
    let escape = |text: &str| Problem::Escape(text.to_owned());
    let pause = |text: &str| Problem::Pause(text.to_owned());
    let status = |text: &str| Problem::Status(text.to_owned());
    for (line, expected) in [
        ("hello", Problem::Mark),
        ("\u{e9}", Problem::Mark),
        ("cut off", Problem::Mark),
        ("> hello", Problem::Client),
        ("> trap", Problem::Client),
        ("> exit 2", Problem::Client),
        ("< exit 0", status("0")),
        ("< exit", status("")),
        ("< exit +2", status("+2")),
        ("< exit 2147483648", status("2147483648")),
        (">", Problem::Client),
        ("< hello", Problem::Guest),
        ("< break", Problem::Guest),
        ("< pause 1s", Problem::Guest),
        ("> \"a\"b\"", Problem::Quote),
        ("> \"", Problem::Unclosed),
        ("> \"a\\\"", Problem::Unclosed),
        ("> \"a\\", Problem::Unclosed),
        ("< \"\\x4\"", escape("\\x4")),
        ("< \"\\x+4\"", escape("\\x+4")),
        ("< \"a\\q b\"", escape("\\q")),
        ("< \"\\\u{e9}\"", escape("\\\u{e9}")),
        ("< \"\\x\u{e9}\u{e9}\"", escape("\\x\u{e9}\u{e9}")),
        ("> pause", pause("")),
        ("> pause soon", pause("soon")),
        ("> pause 0s", pause("0s")),
        ("> pause 25h", pause("25h")),
        ("> pause 1sec", pause("1sec")),
        ("> pause 1.5s", pause("1.5s")),
        ("> pause 1ms 1000us", pause("1ms 1000us")),
        ("\u{a0}> end", Problem::Mark),
        (">\u{a0}end", Problem::Client),
        ("> end\u{c}", Problem::Client),
    ] {
        assert_eq!(problem(&format!("> \"a\"\n{line}\n")), (2, expected), "{line}");
    }
    let escape = problem("> \"\\q\"").1.to_string();
    assert!(escape.contains("`\\q` is not a valid escape"), "{escape}");
}

#[test]
fn a_step_that_cannot_be_is_refused_with_its_line() {
    for (text, line, earlier) in [
        ("> end\n> \"a\"", 2, "> end"),
        ("> end\n# two\n> end", 3, "> end"),
        ("< end\n< \"a\"", 2, "< end"),
        ("< end\n< end", 2, "< end"),
        ("> reset\n< \"a\"", 2, "> reset"),
        ("> reset\n< end", 2, "> reset"),
        ("> reset\n< reset", 2, "> reset"),
        ("> reset\n> end", 2, "> reset"),
        ("> reset\ncut", 2, "> reset"),
        ("< reset\n> \"a\"", 2, "< reset"),
        ("< reset\n< reset", 2, "< reset"),
        ("< trap\n> pause 1s", 2, "< trap"),
        ("< exit 2\n< end", 2, "< exit 2"),
        ("cut\n< \"a\"", 2, "cut"),
    ] {
        let (at, problem) = problem(text);
        let Problem::After {
            earlier: found,
            line: 1,
            ..
        } = &problem
        else {
            panic!("{text}: {problem:?}");
        };
        assert_eq!((at, found.as_str()), (line, earlier), "{text}");
    }
    // A half that has ended can still be reset.
    for text in [
        "> end\n> reset",
        "> end\n< \"a\"",
        "< end\n> \"a\"\n> end",
        "< end\n< reset",
        "< end\n< trap",
        "< end\n< exit 2",
        "< end\ncut",
        "> reset\n< trap",
        "> end\n> pause 1s",
        "cut",
    ] {
        Conversation::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn a_break_stands_between_two_texts_of_the_client() {
    for (text, line) in [
        ("> break\n> \"a\"", 1),
        ("> \"a\"\n> break", 2),
        ("> \"a\"\n> break\n> end", 2),
        ("> \"a\"\n> break\n> break\n> \"a\"", 2),
        ("> \"a\"\n< \"a\"\n> break\n> \"a\"", 3),
    ] {
        assert_eq!(problem(text), (line, Problem::Break), "{text}");
    }
}

#[test]
fn a_file_without_steps_is_no_conversation() {
    for text in ["", "\n", "# connection 1, finished\n"] {
        assert_eq!(Conversation::parse(text), Err(ParseError::Empty));
    }
}

#[test]
fn a_number_that_cannot_be_followed_is_ignored() {
    let dir = std::env::temp_dir().join(format!("wasm-inetd-numbers-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    for name in [
        "7.conversation",
        "00000012.conversation",
        "+50.conversation",
        "18446744073709551615.conversation",
        "99.txt",
        "notes.conversation",
    ] {
        fs::write(dir.join(name), "> end\n").unwrap();
    }
    let last = Conversation::last_number(&dir);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(last.unwrap(), 12);
}

#[test]
fn a_pipe_is_refused_without_being_opened() {
    let dir = std::env::temp_dir().join(format!("wasm-inetd-pipe-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let pipe = dir.join("1.conversation");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = Conversation::read_all(&dir).unwrap_err();
    fs::remove_dir_all(&dir).unwrap();
    let expected = format!(
        "cannot read the conversation `{}`: expected a regular file",
        pipe.display()
    );
    assert_eq!(format!("{error:#}"), expected);
}

#[test]
fn a_line_ends_with_or_without_a_carriage_return() {
    let expected = Conversation::parse("> \"a\"\n> end\n< end\n").unwrap();
    for text in [
        "> \"a\"\r\n> end\r\n< end\r\n",
        "> \"a\"\r\n> end\r\n< end\r",
        "> \"a\"\n> end\r\n< end \r",
        "> \"a\"\n> end\n< end\n\r",
    ] {
        assert_eq!(Conversation::parse(text).as_ref(), Ok(&expected), "{text:?}");
    }
    for (text, line) in [
        ("> end\r\r\n", 1),
        ("> end\n< end\r\r", 2),
        ("> end\r< end\r", 1),
        ("> end\n\r< end\n", 2),
    ] {
        assert_eq!(problem(text), (line, Problem::Return), "{text:?}");
    }
}
