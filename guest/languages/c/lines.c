// Echoes line by line: a program that reads standard input, which is what the peer sends, and writes standard output.
//
// `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The longest line, in bytes before its `\n`.
#define MAX_LINE 4096

#define TEXT(value) #value
#define NUMBER(macro) TEXT(macro)

static const char too_long[] = "error: a line may have " NUMBER(MAX_LINE) " bytes\n";

// Writes all of it, in as many pieces as the peer takes. `write` and not `fwrite`: nothing waits in a buffer.
static bool say(const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, count);
        if (written < 0) {
            perror("cannot write");
            return false;
        }
        bytes += written;
        count -= (size_t)written;
    }
    return true;
}

static bool is_space(char byte) {
    return memchr(" \t\n\f\r", byte, 5) != NULL;
}

// Whether a line is `quit`, whatever white space is around it.
static bool is_quit(const char *line, const char *end) {
    while (line < end && is_space(*line)) {
        line++;
    }
    while (line < end && is_space(end[-1])) {
        end--;
    }
    return end - line == 4 && memcmp(line, "quit", 4) == 0;
}

// Serves the connection to its end, and tells whether all that there was to say could be said.
static bool serve(void) {
    // What has come and is not answered. It has room for the longest line and its end: if it is full and no line ends in
    // it, the line is too long.
    static char held[MAX_LINE + 1];
    size_t count = 0;

    for (;;) {
        // Gives what has arrived, which may be a part of a line, or many lines.
        ssize_t got = read(STDIN_FILENO, held + count, sizeof held - count);
        if (got < 0) {
            perror("cannot read");
            return false;
        }
        if (got == 0) {
            return say(held, count);
        }
        count += (size_t)got;

        const char *rest = held;
        const char *end = held + count;
        const char *newline;
        while ((newline = memchr(rest, '\n', (size_t)(end - rest))) != NULL) {
            if (is_quit(rest, newline)) {
                return say(held, (size_t)(rest - held));
            }
            rest = newline + 1;
        }
        // The lines that are whole lie one behind the other, so one write answers them all.
        if (!say(held, (size_t)(rest - held))) {
            return false;
        }
        count = (size_t)(end - rest);
        if (count == sizeof held) {
            return say(too_long, sizeof too_long - 1);
        }
        memmove(held, rest, count);
    }
}

int main(void) {
    return serve() ? EXIT_SUCCESS : EXIT_FAILURE;
}
