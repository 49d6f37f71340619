"""Serving a stream that a peer opened: the same in every transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from infernet.transport.contract import Stream, StreamBroken
from protocol.ids import short

log = structlog.get_logger(__name__)

# After our side is done with a stream, the peer has this long to finish its own.
LINGER_S: Final = 10.0


async def serve_stream(stream: Stream, serve: Callable[[Stream], Awaitable[None]]) -> None:
    """Let `serve` have the stream, and end it afterwards: finished when it returns, reset when it raises.

    Raises nothing but cancellation.
    """
    try:
        await serve(stream)
        await stream.finish()
        await _linger(stream)
    except StreamBroken as error:
        log.debug("stream.broken", protocol=stream.protocol, peer=short(stream.peer), error=str(error))
        stream.reset()
    except Exception:
        log.exception("stream.failed", protocol=stream.protocol, peer=short(stream.peer))
        stream.reset()


async def _linger(stream: Stream) -> None:
    """Wait for the peer to finish its side; what it still sends is dropped."""
    with trio.move_on_after(LINGER_S) as deadline:
        while await stream.receive():
            pass
    if deadline.cancelled_caught:
        stream.reset()
