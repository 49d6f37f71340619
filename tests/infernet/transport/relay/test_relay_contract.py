"""What the transport contract says of relays and dial-backs, once for both transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from infernet.transport.contract import DialFailed, RelayRefused, Transport
from infernet.transport.memory import MemoryNetwork
from protocol.locality import is_circuit
from protocol.records import Reachability
from tests.helpers_relay import Place, node
from tests.helpers_transport import (
    ECHO,
    PATIENCE_S,
    PROTOCOLS,
    RecordingHandler,
    World,
    eventually,
    identity,
    read_to_end,
    running_world,
)

pytestmark = pytest.mark.anyio


class MemoryNodes(World):
    """Nodes of one memory network, some of which nobody can dial."""

    network = MemoryNetwork()

    async def place(self, seed: int, handler: RecordingHandler, *, hidden: bool) -> Transport:
        if seed == 1:
            self.network = MemoryNetwork()
        transport = self.network.transport(identity(seed), protocols=PROTOCOLS)
        if hidden:
            self.network.hide(transport.node_id)
        await self._run(transport, handler)
        return transport


class Libp2pNodes(World):
    """Nodes on loopback TCP; one that cannot be dialled does not listen."""

    async def place(self, seed: int, handler: RecordingHandler, *, hidden: bool) -> Transport:
        transport = node(seed, listens=not hidden)
        await self._run(transport, handler)
        return transport


@dataclass
class Three:
    """A relay, a node that nobody can dial, and somebody else; the last two are connected with the first."""

    world: World
    relay: Transport
    hidden: Transport
    asker: Transport
    asker_handler: RecordingHandler
    nursery: trio.Nursery

    def reserve(self) -> Place:
        place = Place()
        self.nursery.start_soon(place.keep, self.hidden, self.relay)
        return place


@pytest.fixture(params=[MemoryNodes, Libp2pNodes], ids=["memory", "libp2p"])
def kind(request: pytest.FixtureRequest) -> type[MemoryNodes | Libp2pNodes]:
    """Every test of this module runs in each world."""
    found: type[MemoryNodes | Libp2pNodes] = request.param
    return found


@asynccontextmanager
async def three(kind: type[MemoryNodes | Libp2pNodes]) -> AsyncIterator[Three]:
    with trio.fail_after(2 * PATIENCE_S):
        async with running_world(kind) as world, trio.open_nursery() as nursery:
            assert isinstance(world, MemoryNodes | Libp2pNodes)
            handler = RecordingHandler()
            relay = await world.place(1, RecordingHandler(), hidden=False)
            hidden = await world.place(2, RecordingHandler(), hidden=True)
            asker = await world.place(3, handler, hidden=True)
            relay.relays_connections = True
            for transport in (hidden, asker):
                await transport.dial(relay.node_id, relay.addresses())
            yield Three(world, relay, hidden, asker, handler, nursery)
            nursery.cancel_scope.cancel()


async def test_a_node_that_cannot_be_dialled_is_reached_through_a_relay(kind: type[MemoryNodes | Libp2pNodes]) -> None:
    async with three(kind) as t:
        place = t.reserve()
        await eventually(lambda: place.heard)
        await t.asker.dial(t.hidden.node_id, place.heard[0])
        assert is_circuit(t.asker_handler.infos[-1].remote_address)
        stream = await t.asker.open_stream(t.hidden.node_id, ECHO)
        await stream.send(b"hello")
        await stream.finish()
        assert await read_to_end(stream) == b"hello"


async def test_without_a_place_it_is_not_reached(kind: type[MemoryNodes | Libp2pNodes]) -> None:
    async with three(kind) as t:
        place = t.reserve()
        await eventually(lambda: place.heard)
        place.scope.cancel()
        await eventually(lambda: place.scope.cancelled_caught)
        with pytest.raises(DialFailed):
            await t.asker.dial(t.hidden.node_id, place.heard[0])


async def test_a_place_is_lost_with_the_connection_and_says_so(kind: type[MemoryNodes | Libp2pNodes]) -> None:
    async with three(kind) as t:
        place = t.reserve()
        await eventually(lambda: place.heard)
        t.world.kill(t.relay)
        await eventually(lambda: place.lost)
        with pytest.raises(DialFailed):
            await t.asker.dial(t.hidden.node_id, place.heard[0])


async def test_whoever_does_not_relay_gives_no_place(kind: type[MemoryNodes | Libp2pNodes]) -> None:
    async with three(kind) as t:
        t.relay.relays_connections = False
        with pytest.raises(RelayRefused):
            await t.hidden.reserve_relay(t.relay.node_id, lambda _: None)
        with pytest.raises(RelayRefused):
            await t.hidden.reserve_relay(identity(77), lambda _: None)


async def test_a_dial_back_finds_who_answers_there(kind: type[MemoryNodes | Libp2pNodes]) -> None:
    async with three(kind) as t:
        [address] = t.relay.addresses()
        bare = address.partition("/p2p/")[0] if kind is Libp2pNodes else address
        assert (await t.asker.dial_back(t.relay.node_id, bare))[0] is Reachability.REACHED
        assert (await t.asker.dial_back(t.hidden.node_id, bare))[0] is Reachability.WRONG_NODE
        t.world.kill(t.relay)
        await eventually(lambda: t.relay.node_id not in t.asker.peers())
        assert (await t.asker.dial_back(t.relay.node_id, bare))[0] is Reachability.NOT_REACHED
