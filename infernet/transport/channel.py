"""Bytes between two ends, below streams: what multistream, Noise and yamux read from and write to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class ChannelBroken(Exception):
    """The connection is of no more use; the message says why."""


class Channel(Protocol):
    """An ordered pair of byte flows. A send that is cancelled may have sent a part: the channel is then broken."""

    async def send(self, data: bytes) -> None:
        """Send everything. Raises ChannelBroken."""

    async def receive(self) -> bytes:
        """Some bytes; b"" when the other end has closed. Raises ChannelBroken."""

    async def aclose(self) -> None:
        """Close at once, without farewell. Never raises."""


class ByteReader:
    """Reads exact counts out of a flow that comes in pieces of any size."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        self._receive = receive
        self._buffer = bytearray()

    async def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises ChannelBroken when the flow ends before."""
        while len(self._buffer) < count:
            piece = await self._receive()
            if not piece:
                raise ChannelBroken("the other end closed in the middle of a message")
            self._buffer += piece
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def rest(self) -> bytes:
        """What was received and not read; the reader is empty afterwards."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data
