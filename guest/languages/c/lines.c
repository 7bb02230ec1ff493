// Echoes each line that the client sends.
//
// The program reads from the client on standard input, and writes to it on standard output. `quit`
// ends the connection. A line of more than 4,096 bytes also ends it, after an error message.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The maximum length of a line in bytes, without the `\n` at its end.
#define MAX_LINE 4096

#define TEXT(value) #value
#define NUMBER(macro) TEXT(macro)

static const char too_long[] = "error: a line may have at most " NUMBER(MAX_LINE) " bytes\n";

// Writes all bytes, in as many calls as it takes. `write` does not buffer, so the client receives
// each answer at once.
static bool write_all(const char *bytes, size_t count) {
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

// Reports whether a line is `quit`, with any whitespace around it.
static bool is_quit(const char *line, const char *end) {
    while (line < end && is_space(*line)) {
        line++;
    }
    while (line < end && is_space(end[-1])) {
        end--;
    }
    return end - line == 4 && memcmp(line, "quit", 4) == 0;
}

// Serves the connection until it ends. Returns false if a read or a write fails.
static bool serve(void) {
    // The bytes that are not answered yet. The buffer has room for a line of the maximum length and
    // its `\n`. If it is full and contains no `\n`, the line is too long.
    static char buffer[MAX_LINE + 1];
    size_t count = 0;

    for (;;) {
        // `read` returns the bytes that have arrived: a part of a line, one line, or several lines.
        ssize_t got = read(STDIN_FILENO, buffer + count, sizeof buffer - count);
        if (got < 0) {
            perror("cannot read");
            return false;
        }
        if (got == 0) {
            return write_all(buffer, count);
        }
        count += (size_t)got;

        const char *rest = buffer;
        const char *end = buffer + count;
        const char *newline;
        while ((newline = memchr(rest, '\n', (size_t)(end - rest))) != NULL) {
            if (is_quit(rest, newline)) {
                return write_all(buffer, (size_t)(rest - buffer));
            }
            rest = newline + 1;
        }
        // The complete lines are adjacent, so one write answers them all.
        if (!write_all(buffer, (size_t)(rest - buffer))) {
            return false;
        }
        count = (size_t)(end - rest);
        if (count == sizeof buffer) {
            return write_all(too_long, sizeof too_long - 1);
        }
        memmove(buffer, rest, count);
    }
}

int main(void) {
    return serve() ? EXIT_SUCCESS : EXIT_FAILURE;
}
