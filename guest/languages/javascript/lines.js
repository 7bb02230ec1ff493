// Echoes each line that the client sends, with the sessions contract.
//
// The host calls `handle` once for each event of a connection. `quit` ends the connection. A line
// of more than 4,096 bytes also ends it, after an error message.

// The maximum length of a line in bytes, without the line feed at its end.
const MAX_LINE = 4096;

const LINE_FEED = 0x0a;
const NOTHING = new Uint8Array();
const TOO_LONG = Uint8Array.from(
  `error: a line may have at most ${MAX_LINE} bytes\n`,
  (char) => char.charCodeAt(0),
);

const answer = (send, next) => ({ send, next: { tag: next } });

// The state of one connection.
class Session {
  // The bytes after the last line feed: the start of an incomplete line, at most `MAX_LINE` bytes.
  #rest = NOTHING;

  handle(event) {
    switch (event.tag) {
      case "received":
        return this.#received(event.val);
      case "ended":
        return answer(this.#rest, "finish");
      default:
        return answer(NOTHING, "go-on");
    }
  }

  // A chunk is not a message: a line can arrive in several chunks, and a chunk can contain several
  // lines.
  #received(chunk) {
    const bytes = concat(this.#rest, chunk);
    // The bytes before `start` are complete lines, to be echoed.
    let start = 0;
    for (;;) {
      const end = bytes.indexOf(LINE_FEED, start);
      const line = bytes.subarray(start, end < 0 ? undefined : end);
      if (line.length > MAX_LINE) {
        return answer(concat(bytes.subarray(0, start), TOO_LONG), "finish");
      }
      if (end < 0) {
        // Copy the bytes: a view would keep the whole chunk in memory.
        this.#rest = line.slice();
        return answer(bytes.subarray(0, start), "go-on");
      }
      if (isQuit(line)) {
        return answer(bytes.subarray(0, start), "finish");
      }
      start = end + 1;
    }
  }
}

function concat(head, tail) {
  const bytes = new Uint8Array(head.length + tail.length);
  bytes.set(head);
  bytes.set(tail, head.length);
  return bytes;
}

// Reports whether a line is `quit`, with any ASCII whitespace around it. A line need not be valid
// text, so each byte is converted to one character.
function isQuit(line) {
  return /^[ \t\f\r]*quit[ \t\f\r]*$/.test(String.fromCharCode(...line));
}

export const sessions = { Session };
