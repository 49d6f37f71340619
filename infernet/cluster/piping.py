"""A stream of ours and a local TCP connection made one: what comes on either goes out on the other.

No faster than it is taken there: each direction holds one piece, and the rest waits in the sender's window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from infernet.transport.contract import RECEIVE_BYTES_MAX, Stream, StreamBroken

# A side that has ended gets this long to be heard out by the other.
LINGER_S: Final = 10.0


async def pipe(stream: Stream, socket: trio.SocketStream, first: bytes, count: Callable[[int], None]) -> None:
    """Carry bytes until both sides have finished or one breaks; both are closed then.

    `first` came on the stream already. `count` hears how many bytes went through. Raises nothing but cancellation.
    """
    is_whole = False
    try:
        async with trio.open_nursery() as nursery:
            # An end that has said all it has to say leaves the other one no more than a moment: llama.cpp's RPC has no
            # use for half a connection.
            def ended() -> None:
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + LINGER_S)

            nursery.start_soon(_to_socket, stream, socket, first, count, ended)
            nursery.start_soon(_to_stream, socket, stream, count, ended)
        is_whole = not nursery.cancel_scope.cancelled_caught
    except* (StreamBroken, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one end is gone; the other one hears by what is done below
    finally:
        # SPEC 11: Both MUST pass on that a side has finished, and MUST break the other side when one breaks.
        if not is_whole:
            stream.reset()
        await trio.aclose_forcefully(socket)


async def _to_socket(
    stream: Stream, socket: trio.SocketStream, first: bytes, count: Callable[[int], None], ended: Callable[[], None]
) -> None:
    data = first or await stream.receive()
    while data:
        # SPEC 11: Both MUST NOT read faster from one side than the other side takes.
        await socket.send_all(data)
        count(len(data))
        data = await stream.receive()
    await socket.send_eof()
    ended()


async def _to_stream(
    socket: trio.SocketStream, stream: Stream, count: Callable[[int], None], ended: Callable[[], None]
) -> None:
    while data := await socket.receive_some(RECEIVE_BYTES_MAX):
        await stream.send(bytes(data))
        count(len(data))
    await stream.finish()
    ended()
