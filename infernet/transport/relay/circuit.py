"""The byte stream inside a circuit, as the handshake and the records above it want one."""

from __future__ import annotations

import math
from typing import Final

import trio

from infernet.transport.contract import RECEIVE_BYTES_MAX, Stream, StreamBroken
from infernet.transport.relay.wire import Limit

MARGIN_S: Final = 5.0
MARGIN_SHARE: Final = 0.2


class CircuitStream(trio.abc.Stream):
    """A stream to a relay that is spliced there with one to somebody else.

    It keeps within what the relay said that it carries: it ends itself, with a reason, where the relay would cut it.
    Closing it resets the stream below, as closing a TCP connection ends both directions.
    """

    def __init__(self, stream: Stream, received: bytes, limit: Limit) -> None:
        """`received` is what came after the messages that made the circuit."""
        self._stream = stream
        self._unread = received
        self._limit = limit
        # A little before the relay does, so that the end has a reason here.
        lasts_s = limit.duration_s - min(MARGIN_S, MARGIN_SHARE * limit.duration_s)
        self._ends_at_s = trio.current_time() + lasts_s if limit.duration_s else math.inf
        self._sent_bytes = 0
        self._received_bytes = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As trio's; BrokenResourceError too where the relay carries no more."""
        # SPEC 08: Both ends MUST keep within the limits that the relay stated.
        self._sent_bytes += len(data)
        self._check_bytes(self._sent_bytes)
        with trio.move_on_at(self._ends_at_s):
            try:
                await self._stream.send(bytes(data))
            except StreamBroken as error:
                raise trio.BrokenResourceError(str(error)) from error
            return
        raise self._over()

    async def wait_send_all_might_not_block(self) -> None:
        """As trio's; nobody here asks, so it knows nothing."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As trio's; BrokenResourceError too when the time of the circuit is over."""
        if not self._unread:
            self._unread = await self._receive()
        limit = max_bytes or RECEIVE_BYTES_MAX
        data, self._unread = self._unread[:limit], self._unread[limit:]
        return data

    async def _receive(self) -> bytes:
        with trio.move_on_at(self._ends_at_s):
            try:
                data = await self._stream.receive()
            except StreamBroken as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._received_bytes += len(data)
            self._check_bytes(self._received_bytes)
            return data
        raise self._over()

    async def aclose(self) -> None:
        """Close at once, in both directions."""
        self._stream.reset()
        await trio.lowlevel.checkpoint()

    def _check_bytes(self, count: int) -> None:
        limit = self._limit.data_bytes
        if limit and count > limit:
            raise trio.BrokenResourceError(f"the relay carries {limit} bytes in each direction, and they are used up")

    def _over(self) -> trio.BrokenResourceError:
        return trio.BrokenResourceError(
            f"the relay carries a circuit for {self._limit.duration_s} s, and they are over"
        )
