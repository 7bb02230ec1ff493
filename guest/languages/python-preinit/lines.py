"""Echoes each line that the client sends.

`quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error message.
"""

# The maximum length of a line in bytes, without the line feed at its end.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have at most %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"


class Session:
    """The state of one connection.

    Each method returns the bytes to send, and whether the connection ends after them.
    """

    def __init__(self):
        # The bytes after the last line feed: an incomplete line of at most `MAX_LINE` bytes.
        self.rest = b""

    def received(self, chunk):
        # A chunk is not a message: a line can arrive in several chunks, and a chunk can contain
        # several lines.
        data = self.rest + chunk
        # The bytes before `start` are complete lines, to be echoed.
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
