//! Echoes each line that the client sends.
//!
//! The program reads from the client on standard input, and writes to it on standard output. `quit`
//! ends the connection. A line of more than 4,096 bytes also ends it, after an error message.

use std::io::{self, BufRead as _, Read as _, Write as _};

/// The maximum length of a line in bytes, without the `\n` at its end.
const MAX_LINE: usize = 4096;

fn main() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        // Read at most the length of the longest line and its `\n`. If that many bytes contain no
        // `\n`, the line is too long.
        let limit = MAX_LINE as u64 + 1;
        input.by_ref().take(limit).read_until(b'\n', &mut line)?;
        let complete = line.last() == Some(&b'\n');
        if !complete && line.len() > MAX_LINE {
            writeln!(output, "error: a line may have at most {MAX_LINE} bytes")?;
            return output.flush();
        }
        if complete && line.trim_ascii() == b"quit" {
            return Ok(());
        }
        output.write_all(&line)?;
        output.flush()?;
        if !complete {
            return Ok(());
        }
    }
}
