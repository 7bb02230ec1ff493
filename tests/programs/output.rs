//! Standard output, and standard input beside it, of programs that do several things at once.

use crate::harness::{Host, text_module};

#[test]
fn what_is_written_is_sent_while_the_program_waits_for_more() {
    for guest in ["errands", "chorus"] {
        let host = Host::serving(guest, &[]);
        let client = host.connect();
        client.send("ask\n");
        client.expect("name? ");
        assert!(client.hears_nothing());
        // More than the transport takes.
        client.send(if guest == "errands" { "fill\n" } else { "give up\n" });
        let written: usize = host.said().parse().unwrap();
        client.expect(vec![b'x'; written]);
        assert!(client.hears_nothing());
    }
    let host = Host::with(&text_module("errands", "ask"), &[]);
    let client = host.connect();
    client.expect("name? ");
    client.send("Ada");
    assert_eq!(client.rest(), b"Ada");
}

#[test]
fn two_handles_of_standard_output_may_both_write_what_they_were_permitted_to() {
    let host = Host::serving("errands", &[]);
    let client = host.connect();
    client.send("fill-by-two\n");
    let written: usize = host.said().parse().unwrap();
    client.expect(vec![b'x'; written]);
    client.expect("y");
}

#[test]
fn what_is_written_by_two_versions_of_wasi_is_sent_in_order() {
    let host = Host::serving("chorus", &[]);
    let client = host.connect();
    client.send("change\n");
    let first: usize = host.said().parse().unwrap();
    client.expect(vec![b'a'; first]);
    client.expect(vec![b'b'; 100_000]);
    client.expect("c");
}

#[test]
fn a_write_that_is_given_up_is_sent_as_far_as_it_was_taken() {
    let host = Host::serving("chorus", &["--write-timeout", "5s", "--idle-timeout", "6s"]);
    let client = host.connect();
    client.send("give up\n");
    let taken: usize = host.said().parse().unwrap();
    client.expect(vec![b'x'; taken]);
    // Nothing waits to be written any more.
    assert_eq!(client.rest(), b"");
    assert_eq!(host.outcome(), "idle-timeout");
}

#[test]
fn a_stream_that_waits_beside_another_gets_what_comes() {
    let host = Host::serving("chorus", &[]);
    let client = host.connect();
    client.send("take turns\n");
    assert_eq!(host.said(), "listening");
    client.send("well\n");
    assert_eq!(host.said(), "heard well");
}
