"""Three nodes of a relay test on loopback TCP: a relay, a node that is reached only through it, and one that dials."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from infernet.transport.contract import RelayRefused, Transport
from infernet.transport.libp2p_host import HostLimits, Libp2pTransport
from infernet.transport.relay.hop import RelayLimits
from protocol.ids import NodeId
from tests.helpers_transport import (
    PATIENCE_S,
    PROTOCOLS,
    RecordingHandler,
    World,
    eventually,
    identity,
    running_world,
    secret,
)

RELAY: Final = 11
HIDDEN: Final = 12
ASKER: Final = 13

# Loopback is one network; the tests are not to run into what protects a relay on the Internet.
NO_PACE: Final = RelayLimits(
    bytes_per_s=1e12, bytes_per_circuit_per_s=1e12, circuits_per_network_per_s=1e6, circuits_per_network_burst=10**6
)


def relay_limits(**changes: object) -> RelayLimits:
    """The limits of a relay in a test, with these changed."""
    return replace(NO_PACE, **changes)


def node(
    seed: int, *, listens: bool = True, limits: RelayLimits | None = None, allow_private: bool = True
) -> Libp2pTransport:
    """A transport on 127.0.0.1, or one that only dials."""
    return Libp2pTransport(
        secret(seed),
        agent="infernet/test",
        protocols=PROTOCOLS,
        randomness=random.Random(seed),
        listen_hosts=("127.0.0.1",) if listens else (),
        port=0,
        limits=HostLimits(relay=limits or NO_PACE),
        allow_private=allow_private,
    )


@dataclass
class Place:
    """A place that a node holds at a relay: what it heard of it, and how to let go."""

    heard: list[tuple[str, ...]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def keep(self, transport: Transport, relay: Transport) -> None:
        await self.keep_at(transport, relay.node_id)

    async def keep_at(self, transport: Transport, relay: NodeId) -> None:
        try:
            with self.scope:
                await transport.reserve_relay(relay, self.heard.append)
        except RelayRefused as error:
            self.lost.append(str(error))


class RelayWorld(World):
    """Nodes on loopback TCP, some of them relays and some that nobody can dial."""

    async def run(self, transport: Libp2pTransport, handler: RecordingHandler | None = None) -> RecordingHandler:
        """Start a node."""
        handler = handler or RecordingHandler()
        await self._run(transport, handler)
        return handler

    async def start_relay(self, seed: int = RELAY, limits: RelayLimits | None = None) -> Libp2pTransport:
        """Start a node that relays."""
        relay = node(seed, limits=limits)
        relay.relays_connections = True
        await self.run(relay)
        return relay

    async def reserve(self, transport: Libp2pTransport, relay: Libp2pTransport) -> Place:
        """Connect with a relay and take a place there."""
        await transport.dial(relay.node_id, relay.addresses())
        place = Place()
        self._nursery.start_soon(place.keep, transport, relay)
        await eventually(lambda: place.heard or place.lost, "an answer of the relay")
        return place


@dataclass
class RelayedPair:
    """A relay, a node that holds a place there, and one that has not dialled yet."""

    world: RelayWorld
    relay: Libp2pTransport
    hidden: Libp2pTransport
    asker: Libp2pTransport
    hidden_handler: RecordingHandler
    asker_handler: RecordingHandler
    place: Place

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the hidden node is reached."""
        return self.place.heard[-1]

    async def connect(self) -> None:
        """Let the asker dial the hidden node through the relay."""
        await self.asker.dial(self.hidden.node_id, self.addresses)


@asynccontextmanager
async def relay_world() -> AsyncIterator[RelayWorld]:
    """A world in which nothing takes longer than PATIENCE_S twice."""
    with trio.fail_after(PATIENCE_S * 2):
        async with running_world(RelayWorld) as world:
            assert isinstance(world, RelayWorld)
            yield world


@asynccontextmanager
async def circuit(limits: RelayLimits | None = None) -> AsyncIterator[RelayedPair]:
    """The three nodes, with the place taken."""
    async with relay_world() as world:
        relay = await world.start_relay(limits=limits)
        hidden, asker = node(HIDDEN, listens=False), node(ASKER, listens=False)
        hidden_handler = await world.run(hidden)
        asker_handler = await world.run(asker)
        place = await world.reserve(hidden, relay)
        assert not place.lost, place.lost
        assert hidden.node_id == identity(HIDDEN)
        yield RelayedPair(world, relay, hidden, asker, hidden_handler, asker_handler, place)
