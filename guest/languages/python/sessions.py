"""Echoes each line that the client sends, with the sessions contract.

The host calls `handle` once for each event of a connection. `quit` ends the connection. A line
of more than 4,096 bytes also ends it, after an error message.
"""

from wit_world.exports.sessions import (
    Answer,
    Event,
    Event_Ended,
    Event_Received,
    Next_Finish,
    Next_GoOn,
    Session as Contract,
)
from wit_world.imports.types import Peer

# The maximum length of a line in bytes, without the line feed at its end.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have at most %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"


class Session(Contract):
    """The state of one connection."""

    def __init__(self, peer: Peer) -> None:
        # The bytes after the last line feed: an incomplete line of at most `MAX_LINE` bytes.
        self.rest = b""

    def handle(self, event: Event) -> Answer:
        match event:
            case Event_Received(chunk):
                return self.received(chunk)
            case Event_Ended():
                return Answer(self.rest, Next_Finish())
            case _:
                return Answer(b"", Next_GoOn())

    def received(self, chunk: bytes) -> Answer:
        # A chunk is not a message: a line can arrive in several chunks, and a chunk can contain
        # several lines.
        data = self.rest + chunk
        # The bytes before `start` are complete lines, to be echoed.
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end - start > MAX_LINE:
                return Answer(data[:start] + TOO_LONG, Next_Finish())
            if data[start:end].strip(WHITESPACE) == b"quit":
                return Answer(data[:start], Next_Finish())
            start = end + 1
        if len(data) - start > MAX_LINE:
            return Answer(data[:start] + TOO_LONG, Next_Finish())
        self.rest = data[start:]
        return Answer(data[:start], Next_GoOn())
