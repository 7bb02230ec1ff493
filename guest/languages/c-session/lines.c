// Echoes line by line, by the sessions contract: each event of a connection is answered by a call that returns at once.
//
// `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// Made of the contract by wit-bindgen, as build.sh has it.
#include "session_service.h"

// The longest line, in bytes before its `\n`.
#define MAX_LINE 4096

#define TEXT(value) #value
#define NUMBER(macro) TEXT(macro)

static const char too_long[] = "error: a line may have " NUMBER(MAX_LINE) " bytes\n";

// A connection: what has come of a line that is not whole.
struct exports_sessions_session_t {
    size_t count;
    uint8_t held[MAX_LINE];
};

typedef exports_sessions_session_t session_t;
typedef exports_sessions_answer_t answer_t;

// Where there is no memory there is no answer: a trap resets the connection.
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

// Whether a line is `quit`, whatever white space is around it.
static bool is_quit(const uint8_t *line, const uint8_t *end) {
    while (line < end && is_space(*line)) {
        line++;
    }
    while (line < end && is_space(end[-1])) {
        end--;
    }
    return end - line == 4 && memcmp(line, "quit", 4) == 0;
}

// Has `length` bytes at `bytes` be what is sent. They come from `allocate`, and the bindings free them once the host
// has them; but not where there are none, so that is done here.
static void send(answer_t *answer, uint8_t *bytes, size_t length) {
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

// Answers a chunk, which may be a part of a line, or many lines.
static void received(session_t *session, const uint8_t *chunk, size_t length, answer_t *answer) {
    // What was held and what has come, with room for the last words behind it.
    uint8_t *text = allocate(session->count + length + sizeof too_long);
    memcpy(text, session->held, session->count);
    memcpy(text + session->count, chunk, length);

    // The lines that are whole lie one behind the other, so the text up to `rest` answers them all.
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
    send(answer, text, (size_t)(rest - text));
}

// Answers the end of what the peer says: a last line that has no end is given back.
static void ended(const session_t *session, answer_t *answer) {
    // One byte more, since none may be given no memory.
    uint8_t *text = allocate(session->count + 1);
    memcpy(text, session->held, session->count);
    send(answer, text, session->count);
    finish(answer);
}

exports_sessions_own_session_t exports_sessions_constructor_session(exports_sessions_peer_t *peer) {
    // What a function is given is its own, and nothing here asks who is there.
    exports_sessions_peer_free(peer);
    session_t *session = allocate(sizeof *session);
    session->count = 0;
    return exports_sessions_session_new(session);
}

void exports_sessions_session_destructor(session_t *session) {
    free(session);
}

void exports_sessions_method_session_handle(session_t *session, exports_sessions_event_t *event, answer_t *answer) {
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
        // `opened` needs no answer, and nothing else was asked for.
        break;
    }
    exports_sessions_event_free(event);
}
