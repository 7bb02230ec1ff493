"""Echoes line by line, by the streams contract.

`quit` ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.
"""

import componentize_py_async_support
import wit_world
from componentize_py_async_support.futures import FutureReader, FutureWriter
from componentize_py_async_support.streams import ByteStreamReader, ByteStreamWriter
from componentize_py_types import Err, Ok, Result
from wit_world import exports
from wit_world.imports.types import ErrorCode, Peer

# The longest line, in bytes before its line feed.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"

# How much is read at once, in bytes.
CHUNK = 16 * 1024

type End = Result[None, ErrorCode]


class Handler(exports.Handler):
    async def handle(
        self, peer: Peer, inbound: ByteStreamReader, inbound_end: FutureReader[End]
    ) -> tuple[ByteStreamReader, FutureReader[End]]:
        writer, outbound = wit_world.byte_stream()
        end, outbound_end = wit_world.result_unit_types_error_code_future(lambda: Err(ErrorCode.INTERNAL_ERROR))
        # Nothing is sent before `handle` has returned, so the work goes on beside it.
        componentize_py_async_support.spawn(serve(inbound, inbound_end, writer, end))
        return outbound, outbound_end


async def serve(
    inbound: ByteStreamReader, inbound_end: FutureReader[End], outbound: ByteStreamWriter, end: FutureWriter[End]
) -> None:
    with inbound, inbound_end, end:
        # The writing end is dropped before the end is told.
        with outbound:
            by_guest = await echo(inbound, outbound)
        await end.write(Ok(None) if by_guest else await inbound_end.read())


async def echo(inbound: ByteStreamReader, outbound: ByteStreamWriter) -> bool:
    """Echoes until the end, and tells whether it was the guest that ended the connection."""
    # What came behind the last line feed: at most `MAX_LINE` bytes.
    rest = b""
    while not inbound.writer_dropped and not outbound.reader_dropped:
        # A chunk is not a message: a line may come in many chunks, and a chunk may hold many lines.
        data = rest + await inbound.read(CHUNK)
        # Everything before `start` is lines to echo.
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end - start > MAX_LINE:
                await outbound.write_all(data[:start] + TOO_LONG)
                return True
            if data[start:end].strip(WHITESPACE) == b"quit":
                await outbound.write_all(data[:start])
                return True
            start = end + 1
        if len(data) - start > MAX_LINE:
            await outbound.write_all(data[:start] + TOO_LONG)
            return True
        rest = data[start:]
        await outbound.write_all(data[:start])
    await outbound.write_all(rest)
    return False
