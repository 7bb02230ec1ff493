//! Echoes each line that the client sends.
//!
//! The program reads from the client on standard input, and writes to it on standard output. `quit`
//! ends the connection. A line of more than 4,096 bytes also ends it, after an error message.

const std = @import("std");

/// The maximum length of a line in bytes, without the `\n` at its end.
const max_line = 4096;

const too_long = std.fmt.comptimePrint(
    "error: a line may have at most {d} bytes\n",
    .{max_line},
);

pub fn main() !void {
    // The program needs only one thread and no allocator, so its memory does not grow.
    var threaded: std.Io.Threaded = .init_single_threaded;
    const io = threaded.io();

    // The buffer has room for a line of the maximum length and its `\n`. If it is full and contains
    // no `\n`, the line is too long.
    var buffer: [max_line + 1]u8 = undefined;
    var stdin = std.Io.File.stdin().readerStreaming(io, &buffer);
    const input = &stdin.interface;
    // Write without a buffer, so that each answer is sent as soon as its line is complete.
    const output = std.Io.File.stdout();

    while (input.takeDelimiterInclusive('\n')) |line| {
        const word = std.mem.trim(u8, line, " \t\n\x0c\r");
        if (std.mem.eql(u8, word, "quit")) return;
        try output.writeStreamingAll(io, line);
    } else |err| switch (err) {
        // The last line has no `\n`.
        error.EndOfStream => try output.writeStreamingAll(io, input.buffered()),
        error.StreamTooLong => try output.writeStreamingAll(io, too_long),
        error.ReadFailed => return stdin.err.?,
    }
}
