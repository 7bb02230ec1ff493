//! Echoes line by line: a program that reads standard input, which is what the peer sends, and writes standard output.
//!
//! `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

const std = @import("std");

/// The longest line, in bytes before its `\n`.
const max_line = 4096;

const too_long = std.fmt.comptimePrint("error: a line may have {d} bytes\n", .{max_line});

pub fn main() !void {
    // One thread and no allocator are enough, so a connection takes no memory but what the module begins with.
    var threaded: std.Io.Threaded = .init_single_threaded;
    const io = threaded.io();

    // The buffer has room for the longest line and its end: if it is full and no line ends in it, the line is too long.
    var buffer: [max_line + 1]u8 = undefined;
    var stdin = std.Io.File.stdin().readerStreaming(io, &buffer);
    const input = &stdin.interface;
    // Written without a buffer: each line is answered as soon as it is whole.
    const output = std.Io.File.stdout();

    while (input.takeDelimiterInclusive('\n')) |line| {
        const word = std.mem.trim(u8, line, " \t\n\x0c\r");
        if (std.mem.eql(u8, word, "quit")) return;
        try output.writeStreamingAll(io, line);
    } else |err| switch (err) {
        // The rest, which has no end of its own.
        error.EndOfStream => try output.writeStreamingAll(io, input.buffered()),
        error.StreamTooLong => try output.writeStreamingAll(io, too_long),
        error.ReadFailed => return stdin.err.?,
    }
}
