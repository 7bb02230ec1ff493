//! Echoes line by line: a program that reads standard input, which is what the peer sends, and writes standard output.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

use std::io::{self, BufRead as _, Read as _, Write as _};

/// The longest line, in bytes before its `\n`.
const MAX_LINE: usize = 4096;

fn main() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        // One byte more than a line and its end may have tells that it is too long.
        let bound = MAX_LINE as u64 + 1;
        input.by_ref().take(bound).read_until(b'\n', &mut line)?;
        let whole = line.last() == Some(&b'\n');
        if !whole && line.len() > MAX_LINE {
            writeln!(output, "error: a line may have {MAX_LINE} bytes")?;
            return output.flush();
        }
        if whole && line.trim_ascii() == b"quit" {
            return Ok(());
        }
        output.write_all(&line)?;
        output.flush()?;
        if !whole {
            return Ok(());
        }
    }
}
