"""The faults that the in-memory network can make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from infernet.transport.contract import DialFailed, PortTaken, StreamBroken
from infernet.transport.memory import MemoryNetwork, MemoryTransport
from tests.helpers_transport import ECHO, HOLD, PROTOCOLS, RecordingHandler, identity

pytestmark = pytest.mark.anyio

LEFT, RIGHT = identity(1), identity(2)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only while everybody waits."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@asynccontextmanager
async def connected(
    network: MemoryNetwork,
) -> AsyncIterator[tuple[MemoryTransport, MemoryTransport, RecordingHandler, RecordingHandler]]:
    """Two nodes of a network, the left one connected to the right one."""
    handlers = RecordingHandler(), RecordingHandler()
    left, right = (network.transport(node, protocols=PROTOCOLS) for node in (LEFT, RIGHT))
    async with trio.open_nursery() as nursery:
        await nursery.start(left.run, handlers[0])
        await nursery.start(right.run, handlers[1])
        await left.dial(RIGHT, right.addresses())
        yield left, right, *handlers
        nursery.cancel_scope.cancel()


async def test_a_cut_link_breaks_streams_and_refuses_dials_until_it_heals() -> None:
    network = MemoryNetwork()
    async with connected(network) as (left, right, left_handler, right_handler):
        stream = await left.open_stream(RIGHT, ECHO)
        network.cut(LEFT, RIGHT)
        with pytest.raises(StreamBroken, match="the link was cut"):
            await stream.receive()
        assert (left_handler.lost, right_handler.lost) == ([RIGHT], [LEFT])
        with pytest.raises(DialFailed, match="the link is cut"):
            await left.dial(RIGHT, right.addresses())
        with pytest.raises(DialFailed, match="the link is cut"):
            await right.dial(LEFT, left.addresses())
        network.heal(RIGHT, LEFT)
        await left.dial(RIGHT, right.addresses())
        assert right.peers() == [LEFT]


async def test_a_killed_node_ends_and_can_be_started_again() -> None:
    network = MemoryNetwork()
    async with connected(network) as (left, right, left_handler, _):
        stream = await left.open_stream(RIGHT, HOLD)
        network.kill(RIGHT)
        with pytest.raises(StreamBroken, match="the node has ended"):
            await stream.receive()
        assert left_handler.lost == [RIGHT]
        await trio.testing.wait_all_tasks_blocked()
        assert right.addresses() == []
        async with trio.open_nursery() as nursery:
            again = network.transport(RIGHT, protocols=PROTOCOLS)
            await nursery.start(again.run, RecordingHandler())
            await left.dial(RIGHT, again.addresses())
            assert again.peers() == [LEFT]
            nursery.cancel_scope.cancel()


async def test_two_nodes_of_one_identity_do_not_run() -> None:
    network = MemoryNetwork()
    async with connected(network):
        with pytest.raises(PortTaken):
            await network.transport(LEFT, protocols=PROTOCOLS).run(RecordingHandler())


async def test_pipes_are_as_small_as_the_network_says() -> None:
    network = MemoryNetwork(pipe_bytes=10)
    async with connected(network) as (left, _, _, right_handler):
        stream = await left.open_stream(RIGHT, HOLD)
        await stream.send(bytes(10))
        with trio.move_on_after(1) as scope:
            await stream.send(b"x")
        assert scope.cancelled_caught
        right_handler.release.set()
        await stream.send(b"x")
