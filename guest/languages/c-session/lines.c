// Echoes each line that the client sends, with the sessions contract.
//
// The host calls `handle` once for each event of a connection. `quit` ends the connection. A line
// of more than 4,096 bytes also ends it, after an error message.

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// Generated from the contract by wit-bindgen; see build.sh.
#include "session_service.h"

// The maximum length of a line in bytes, without the `\n` at its end.
#define MAX_LINE 4096

#define TEXT(value) #value
#define NUMBER(macro) TEXT(macro)

static const char too_long[] = "error: a line may have at most " NUMBER(MAX_LINE) " bytes\n";

// The state of one connection: the bytes after the last `\n`, which are the start of an incomplete
// line.
struct exports_sessions_session_t {
    size_t count;
    uint8_t held[MAX_LINE];
};

typedef exports_sessions_session_t session_t;
typedef exports_sessions_answer_t answer_t;

// Allocates memory, or traps if there is none. A trap resets the connection.
static void *allocate(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static bool is_space(uint8_t byte) {
    return memchr(" \t\n\f\r", byte, 5) != NULL;
}

// Reports whether a line is `quit`, with any whitespace around it.
static bool is_quit(const uint8_t *line, const uint8_t *end) {
    while (line < end && is_space(*line)) {
        line++;
    }
    while (line < end && is_space(end[-1])) {
        end--;
    }
    return end - line == 4 && memcmp(line, "quit", 4) == 0;
}

// Puts `length` bytes at `bytes` into the answer. `bytes` must come from `allocate`. The bindings
// free it after the host has copied the bytes. They do not if `length` is 0, so this function does.
static void set_send(answer_t *answer, uint8_t *bytes, size_t length) {
    if (length == 0) {
        free(bytes);
        bytes = NULL;
    }
    answer->send.ptr = bytes;
    answer->send.len = length;
}

static void finish(answer_t *answer) {
    answer->next.tag = EXPORTS_SESSIONS_NEXT_FINISH;
}

// Answers a chunk of bytes: a part of a line, one line, or several lines.
static void received(session_t *session, const uint8_t *chunk, size_t length, answer_t *answer) {
    // The held bytes and the chunk, with room for the error message after them.
    uint8_t *text = allocate(session->count + length + sizeof too_long);
    memcpy(text, session->held, session->count);
    memcpy(text + session->count, chunk, length);

    // The complete lines are adjacent, so the text up to `rest` answers them all.
    uint8_t *rest = text;
    uint8_t *end = text + session->count + length;
    for (;;) {
        uint8_t *newline = memchr(rest, '\n', (size_t)(end - rest));
        uint8_t *line_end = newline != NULL ? newline : end;
        if (line_end - rest > MAX_LINE) {
            memcpy(rest, too_long, sizeof too_long - 1);
            rest += sizeof too_long - 1;
            finish(answer);
            break;
        }
        if (newline == NULL) {
            session->count = (size_t)(end - rest);
            memcpy(session->held, rest, session->count);
            break;
        }
        if (is_quit(rest, newline)) {
            finish(answer);
            break;
        }
        rest = newline + 1;
    }
    set_send(answer, text, (size_t)(rest - text));
}

// Answers the end of the client's half: echoes a last line that has no `\n`.
static void ended(const session_t *session, answer_t *answer) {
    // Allocate one byte more, because `malloc(0)` may return NULL.
    uint8_t *text = allocate(session->count + 1);
    memcpy(text, session->held, session->count);
    set_send(answer, text, session->count);
    finish(answer);
}

exports_sessions_own_session_t exports_sessions_constructor_session(exports_sessions_peer_t *peer) {
    // The function owns its arguments. This guest does not use the peer, so free it.
    exports_sessions_peer_free(peer);
    session_t *session = allocate(sizeof *session);
    session->count = 0;
    return exports_sessions_session_new(session);
}

void exports_sessions_session_destructor(session_t *session) {
    free(session);
}

void exports_sessions_method_session_handle(
    session_t *session, exports_sessions_event_t *event, answer_t *answer) {
    memset(answer, 0, sizeof *answer);
    answer->next.tag = EXPORTS_SESSIONS_NEXT_GO_ON;
    switch (event->tag) {
    case EXPORTS_SESSIONS_EVENT_RECEIVED:
        received(session, event->val.received.ptr, event->val.received.len, answer);
        break;
    case EXPORTS_SESSIONS_EVENT_ENDED:
        ended(session, answer);
        break;
    default:
        // `opened` needs no answer. The guest never asks for `written` or `woken`.
        break;
    }
    exports_sessions_event_free(event);
}
