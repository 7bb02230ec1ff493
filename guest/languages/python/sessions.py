"""Echoes line by line, by the sessions contract.

`quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.
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

# The longest line, in bytes before its line feed.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"


class Session(Contract):
    def __init__(self, peer: Peer) -> None:
        # What came behind the last line feed: at most `MAX_LINE` bytes.
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
        # A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines.
        data = self.rest + chunk
        # Everything before `start` is lines to echo.
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
