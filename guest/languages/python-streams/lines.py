"""Echoes each line that the client sends, with the streams contract.

`quit` ends the connection. A line of more than 4,096 bytes also ends it, after an error message.
"""

import componentize_py_async_support
import wit_world
from componentize_py_async_support.futures import FutureReader, FutureWriter
from componentize_py_async_support.streams import ByteStreamReader, ByteStreamWriter
from componentize_py_types import Err, Ok, Result
from wit_world import exports
from wit_world.imports.types import ErrorCode, Peer

# The maximum length of a line in bytes, without the line feed at its end.
MAX_LINE = 4096

TOO_LONG = b"error: a line may have at most %d bytes\n" % MAX_LINE

WHITESPACE = b" \t\f\r"

# The size of a read, in bytes.
CHUNK = 16 * 1024

type End = Result[None, ErrorCode]


class Handler(exports.Handler):
    async def handle(
        self, peer: Peer, inbound: ByteStreamReader, inbound_end: FutureReader[End]
    ) -> tuple[ByteStreamReader, FutureReader[End]]:
        writer, outbound = wit_world.byte_stream()
        end, outbound_end = wit_world.result_unit_types_error_code_future(
            lambda: Err(ErrorCode.INTERNAL_ERROR)
        )
        # The host sends nothing before `handle` returns, so serve the connection in a task that
        # outlives the call.
        componentize_py_async_support.spawn(serve(inbound, inbound_end, writer, end))
        return outbound, outbound_end


async def serve(
    inbound: ByteStreamReader,
    inbound_end: FutureReader[End],
    outbound: ByteStreamWriter,
    end: FutureWriter[End],
) -> None:
    with inbound, inbound_end, end:
        # Drop the writing end of the stream before resolving the future.
        with outbound:
            by_guest = await echo(inbound, outbound)
        await end.write(Ok(None) if by_guest else await inbound_end.read())


async def echo(inbound: ByteStreamReader, outbound: ByteStreamWriter) -> bool:
    """Echoes lines until the connection ends. Returns whether the guest ended it."""
    # The bytes after the last line feed: an incomplete line of at most `MAX_LINE` bytes.
    rest = b""
    while not inbound.writer_dropped and not outbound.reader_dropped:
        # A chunk is not a message: a line can arrive in several chunks, and a chunk can contain
        # several lines.
        data = rest + await inbound.read(CHUNK)
        # The bytes before `start` are complete lines, to be echoed.
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
