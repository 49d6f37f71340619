"""infernet/cluster/piping.py: bytes in order, ends passed on, and nothing held but what fits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from infernet.cluster import piping
from infernet.cluster.piping import pipe
from infernet.transport.contract import Stream, StreamBroken
from infernet.transport.memory import MemoryNetwork
from protocol.ids import peer_id
from tests.helpers_rpc_cluster import FIRST, HEAD
from tests.helpers_transport import ECHO, read_to_end

pytestmark = pytest.mark.anyio


class Holder:
    """A handler that gives a test the streams that come."""

    def __init__(self) -> None:
        self.came, self._coming = trio.open_memory_channel[Stream](1)
        self.done = trio.Event()

    def connected(self, _info: object) -> None:
        """Nobody asks."""

    def disconnected(self, _peer: object) -> None:
        """Nobody asks."""

    async def stream_opened(self, stream: Stream) -> None:
        """Leave it to the test until it is done."""
        await self.came.send(stream)
        await self.done.wait()

    async def next(self) -> Stream:
        return await self._coming.receive()


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a stream."""
    net, holder = MemoryNetwork(), Holder()
    near, far = (net.transport(node, protocols=(ECHO,)) for node in (HEAD, FIRST))
    async with trio.open_nursery() as nursery:
        await nursery.start(near.run, Holder())
        await nursery.start(far.run, holder)
        await near.dial(FIRST, [f"/memory/1/p2p/{peer_id(FIRST)}"])
        opened = await near.open_stream(FIRST, ECHO)
        yield opened, await holder.next()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Both ends of a TCP connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ours = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    theirs = await listener.accept()
    async with listener, ours, theirs:
        yield ours, theirs


async def test_bytes_go_both_ways_from_the_first_and_ends_are_passed_on() -> None:
    counted: list[int] = []
    async with ends() as (head, worker), sockets() as (ours, program), trio.open_nursery() as nursery:
        nursery.start_soon(pipe, worker, ours, b"already ", counted.append)
        await head.send(b"here")
        with trio.fail_after(20):
            assert await program.receive_some(8) == b"already "
            assert await program.receive_some(8) == b"here"
            await program.send_all(b"there")
            assert await head.receive() == b"there"
            await program.send_eof()
            assert await head.receive() == b""
            await head.send(b"after")
            assert await program.receive_some(8) == b"after"
            await head.finish()
            assert await program.receive_some(8) == b""
    assert sum(counted) == len(b"already heretherafter") + 1


async def test_an_end_that_breaks_breaks_the_other() -> None:
    async with ends() as (head, worker), sockets() as (ours, program), trio.open_nursery() as nursery:
        nursery.start_soon(pipe, worker, ours, b"", lambda _: None)
        head.reset()
        with trio.fail_after(20):
            assert await program.receive_some(8) == b""
    async with ends() as (head, worker), sockets() as (ours, program), trio.open_nursery() as nursery:
        nursery.start_soon(pipe, worker, ours, b"", lambda _: None)
        # Closing with something unread is a reset in TCP.
        await head.send(b"unread")
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(program.socket)
            await program.aclose()
            await head.send(b"more")
            with suppress(StreamBroken):
                assert await read_to_end(head) == b""


async def test_who_ends_one_side_does_not_keep_the_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piping, "LINGER_S", 0.05)
    async with ends() as (head, worker), sockets() as (ours, program), trio.open_nursery() as nursery:
        nursery.start_soon(pipe, worker, ours, b"", lambda _: None)
        await head.finish()
        with trio.fail_after(20):
            assert await program.receive_some(8) == b""
            # The program says nothing more, and does not close: it is left alone.
            with pytest.raises(StreamBroken):
                await read_to_end(head)


async def test_who_does_not_read_is_not_read_for() -> None:
    counted: list[int] = []
    async with ends() as (head, worker), sockets() as (ours, _), trio.open_nursery() as nursery:
        nursery.start_soon(pipe, worker, ours, b"", counted.append)
        sent = 0
        with trio.move_on_after(0.3) as stuck:
            while sent < 256 * 1024 * 1024:
                await head.send(b"x" * 65536)
                sent += 65536
                stuck.deadline = trio.current_time() + 0.3
        assert stuck.cancelled_caught
        # What the kernel's buffers hold, and one piece.
        assert sent < 32 * 1024 * 1024
        nursery.cancel_scope.cancel()
