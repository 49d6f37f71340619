"""identify and ping: what any libp2p program expects of a peer before it talks to it."""

from __future__ import annotations

from typing import Final

import trio

from infernet.transport.contract import Stream

# A peer that pings keeps one stream and uses it every few seconds.
PING_IDLE_S: Final = 60.0


async def serve_ping(stream: Stream) -> None:
    """Echo whatever comes, which for the ping protocol is 32 bytes at a time (libp2p ping specification)."""
    while True:
        with trio.move_on_after(PING_IDLE_S) as idle:
            data = await stream.receive()
        if idle.cancelled_caught or not data:
            return
        await stream.send(data)
