"""How much somebody may say who has not proven who they are yet."""

from __future__ import annotations

from typing import Final

import trio

from infernet.transport.channel import ChannelBroken

# One Noise message of 65,535 bytes, and the multistream tokens around it (specs/01, Guards).
UNPROVEN_BYTES_MAX: Final = 68 * 1024


class TooMuchSaid(ChannelBroken):
    """A stranger sent more than a handshake has."""


class UnprovenStream(trio.abc.Stream):
    """A byte stream of which at most UNPROVEN_BYTES_MAX are read; for as long as the handshake takes.

    What an honest peer sends ahead of its turn is not lost: it stays where it is.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._left_bytes = UNPROVEN_BYTES_MAX

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As trio's. Raises ChannelBroken for a stranger who says too much."""
        left_bytes = self._left_bytes
        if left_bytes == 0:
            raise TooMuchSaid(f"it sent {UNPROVEN_BYTES_MAX} bytes and no proof of who it is")
        data = await self._stream.receive_some(min(max_bytes or left_bytes, left_bytes))
        self._left_bytes = left_bytes - len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As trio's."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As trio's."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As trio's."""
        await self._stream.aclose()
