"""Two things that Hypercorn cannot be told by its settings, each with the test that fails without it.

A reader who stops reading holds a connection, its task and its buffers for ever, because neither writing nor closing
has a deadline (test_a_reader_that_takes_nothing_is_cut_off). And HTTP/2 on plain text is offered to anyone, which
browsers never use: code that only strangers reach (test_no_request_line_or_header_is_a_server_error).

Both are subclasses put in the place of the originals; `apply` does it once for the process.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol

# Kernel and process buffer what an honest answer holds several times over; who takes nothing of it for so long is gone.
SEND_DEADLINE_S: Final = 30.0
CLOSE_DEADLINE_S: Final = 5.0


class DeadlineServer(TCPServer):
    """One connection, of which every write and the close have a deadline."""

    async def protocol_send(self, event: Event) -> None:
        """Write, or give the connection up."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        transport = self.writer.transport
        try:
            async with self.send_lock:
                self.writer.write(event.data)
                if transport.is_closing():
                    raise ConnectionResetError
                if transport.get_write_buffer_size():
                    # Aborting is what ends the wait; a timer costs less than asyncio.timeout, and this runs per token.
                    give_up = self.loop.call_later(SEND_DEADLINE_S, transport.abort)
                    try:
                        await self.writer.drain()
                    finally:
                        give_up.cancel()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await super()._close()
        except TimeoutError:
            self.writer.transport.abort()


class Http1Only(H11Protocol):
    """HTTP/1.1, and WebSockets on top of it."""

    async def _check_protocol(self, event: Any) -> None:
        """Stay: neither an h2c upgrade nor HTTP/2 without TLS."""


def apply() -> None:
    """Put both in place."""
    # The module names are what Hypercorn looks its own classes up by.
    setattr(hypercorn.asyncio.run, "TCPServer", DeadlineServer)  # noqa: B010 - mypy forbids the assignment
    setattr(hypercorn.protocol, "H11Protocol", Http1Only)  # noqa: B010 - as above
