//! What a guest does that serves lines, in whatever language it is written and by whichever contract.

use std::path::Path;

use super::{Host, field, noise};

/// Has a component serve lines, and compares what it says with what it should say. Gives the contract by which it serves.
pub fn serves_lines(component: &Path) -> String {
    let name = component.file_name().unwrap().display();
    let host = Host::with(component, &[]);

    let client = host.connect();
    client.echo("one\n");
    client.send("tw");
    assert!(
        client.hears_nothing(),
        "{name} answered before the line was whole"
    );
    client.send("o\nthree\r\n");
    client.expect("two\nthree\r\n");
    client.send("four\n \tquit\r\nfive\n");
    assert_eq!(client.rest(), b"four\n", "{name} on quit");
    drop(client);
    assert_eq!(host.outcome(), "finished");

    let client = host.connect();
    client.send("quite\na last line without its end");
    client.finish();
    assert_eq!(client.rest(), b"quite\na last line without its end");
    assert_eq!(host.outcome(), "finished");

    // A peer that has nothing to say.
    let client = host.connect();
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(host.outcome(), "finished");

    let longest = [vec![b'x'; 4096], vec![b'\n']].concat();
    let client = host.connect();
    client.echo(&longest);
    client.send([b"x", longest.as_slice()].concat());
    assert_eq!(
        client.rest(),
        b"error: a line may have at most 4096 bytes\n",
        "{name} on an over-long line"
    );
    assert_eq!(host.outcome(), "finished");

    // It needs no end to be too long, and the lines before it are answered.
    let client = host.connect();
    client.send([b"short\n", &longest[..4096], b"x"].concat());
    assert_eq!(
        client.rest(),
        b"short\nerror: a line may have at most 4096 bytes\n"
    );

    // Many lines of any bytes, which fall across whatever the guest reads at once, as do their ends.
    let client = host.connect();
    let mut lines = noise(7, 48 << 10);
    for end in lines.iter_mut().step_by(1021) {
        *end = b'\n';
    }
    lines.push(b'\n');
    client.echo(&lines);
    client.finish();
    assert_eq!(client.rest(), b"");
    field(&host.line("connection ended"), "contract")
}
