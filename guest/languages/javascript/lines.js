// Echoes line by line, by the sessions contract.
//
// `quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.

// The longest line, in bytes before its line feed.
const MAX_LINE = 4096;

const LINE_FEED = 0x0a;
const NOTHING = new Uint8Array();
const TOO_LONG = Uint8Array.from(`error: a line may have ${MAX_LINE} bytes\n`, (char) => char.charCodeAt(0));

const answer = (send, next) => ({ send, next: { tag: next } });

class Session {
  // What came behind the last line feed: at most `MAX_LINE` bytes.
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

  // A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines.
  #received(chunk) {
    const bytes = concat(this.#rest, chunk);
    // Everything before `start` is lines to echo.
    let start = 0;
    for (;;) {
      const end = bytes.indexOf(LINE_FEED, start);
      const line = bytes.subarray(start, end < 0 ? undefined : end);
      if (line.length > MAX_LINE) {
        return answer(concat(bytes.subarray(0, start), TOO_LONG), "finish");
      }
      if (end < 0) {
        // A copy, since a view would keep the whole chunk.
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

// Lines are bytes, which need not be text. So each byte becomes one character, and only ASCII's whitespace is trimmed.
function isQuit(line) {
  return /^[ \t\f\r]*quit[ \t\f\r]*$/.test(String.fromCharCode(...line));
}

export const sessions = { Session };
