"""Echoes line by line.

`quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.
"""

# The longest line, in bytes before its line feed.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"


class Session:
    """A connection. What it answers is what is sent, and whether that is the end."""

    def __init__(self):
        # What came behind the last line feed: at most `MAX_LINE` bytes.
        self.rest = b""

    def received(self, chunk):
        # A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines.
        data = self.rest + chunk
        # Everything before `start` is lines to echo.
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end - start > MAX_LINE:
                return data[:start] + TOO_LONG, True
            if data[start:end].strip(WHITESPACE) == b"quit":
                return data[:start], True
            start = end + 1
        if len(data) - start > MAX_LINE:
            return data[:start] + TOO_LONG, True
        self.rest = data[start:]
        return data[:start], False

    def ended(self):
        return self.rest, True
