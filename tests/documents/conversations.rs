//! The page and the syntax definitions of conversations agree with the program.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

use super::document;
use crate::harness::{command, guest, scratch};

/// The page, and the definitions for editors.
const DEFINITIONS: [&str; 3] = [
    "docs/conversations.md",
    "docs/editors/conversation/conversation.tmLanguage.json",
    "docs/editors/conversation.vim",
];

/// The patterns of the grammar for editors, of which the last is that of lines that are not valid.
fn patterns() -> Vec<Regex> {
    let grammar: Value = serde_json::from_str(&document(DEFINITIONS[1])).unwrap();
    let patterns = grammar["patterns"].as_array().unwrap().iter();
    patterns
        .map(|pattern| Regex::new(pattern["match"].as_str().unwrap()).unwrap())
        .collect()
}

/// Whether an editor shows a line as one that is not valid.
fn is_marked(patterns: &[Regex], line: &str) -> bool {
    let first = patterns.iter().position(|pattern| pattern.is_match(line));
    first == Some(patterns.len() - 1)
}

/// Every conversation in `dir` and the folders below it.
fn conversations(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            conversations(&path, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "conversation")
        {
            found.push(path);
        }
    }
}

#[test]
fn every_word_of_a_conversation_is_explained_and_highlighted() {
    let source = document("host/src/conversation/mod.rs");
    let (_, words) = source.split_once("pub fn as_str").unwrap();
    let (words, _) = words.split_once("\n    }\n").unwrap();
    let mut words: Vec<_> = words.split('"').skip(1).step_by(2).collect();
    assert!(words.len() >= 5, "{words:?}");
    words.extend(["break", "pause", "end", "reset", "exit", "cut"]);
    for definition in DEFINITIONS {
        let text = document(definition);
        for word in &words {
            assert!(text.contains(word), "{definition} has no {word}");
        }
    }
}

#[test]
fn editors_mark_the_lines_that_the_program_refuses() {
    let patterns = patterns();
    let mut files = Vec::new();
    conversations(&guest_builder::workspace().join("guest/languages"), &mut files);
    assert!(files.len() >= 20, "{files:?}");
    for file in files {
        for line in fs::read_to_string(&file).unwrap().lines() {
            assert!(!is_marked(&patterns, line), "{}: {line}", file.display());
        }
    }
    let dir = scratch("talks-of-editors");
    fs::create_dir_all(&dir).unwrap();
    let first = "> \"a\"";
    for (line, is_valid) in [
        ("> \"b\"", true),
        ("<\"\\n\\r\\t\\0\\\\\\\"\\'\\x7f\u{e9}\"", true),
        ("> pause 1s", true),
        ("> pause 1s 500ms ", true),
        ("> end", true),
        ("  < end  ", true),
        ("< cpu-limit", true),
        ("< exit 2", true),
        ("< exit -1 ", true),
        ("< exit", false),
        ("< exit 0", false),
        ("< exit +2", false),
        ("< exit two", false),
        ("> exit 2", false),
        ("cut", true),
        ("# anything", true),
        ("", true),
        ("> \"b", false),
        ("> \"b\" c", false),
        ("< \"\\q\"", false),
        ("< \"\\x7\"", false),
        ("< pause 1s", false),
        ("> trap", false),
        ("> pause", false),
        ("> pause soon", false),
        ("> pause 1sec", false),
        ("> pause 1.5s", false),
        ("> pause 1ms 1000us", false),
        ("\t>\tpause\t1ms\t2ms\t", true),
        ("\u{a0}> end", false),
        (">\u{a0}end", false),
        ("> end\u{c}", false),
        ("hello", false),
    ] {
        assert_eq!(is_marked(&patterns, line), !is_valid, "{line}");
        fs::write(dir.join("1.conversation"), format!("{first}\n{line}\n")).unwrap();
        let output = command()
            .arg("replay")
            .arg(&dir)
            .arg(guest("echo"))
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(!said.contains("line 2: "), is_valid, "{line}: {said}");
    }
}
