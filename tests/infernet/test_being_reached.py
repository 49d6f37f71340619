"""infernet/being_reached.py: what is published, when this node relays, and jobs for a provider that nobody can dial."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from infernet.being_reached import BeingReached
from infernet.engines.contract import Engine
from infernet.node import Node
from infernet.transport.libp2p_host import Libp2pTransport
from protocol.constants import HEARTBEAT_ADDRESSES_MAX, PROTOCOLS
from protocol.effects import JobDone, OwnAddresses, ReachabilityLearnt
from protocol.ids import peer_id
from protocol.locality import is_circuit
from protocol.records import Reachability, Role
from tests.helpers_engine import PacedEngine
from tests.helpers_node import ask, config_of_nobody, key_of, question
from tests.helpers_relay import node as transport_of
from tests.helpers_transport import PATIENCE_S, eventually

pytestmark = pytest.mark.anyio

PUBLIC = "/ip4/8.8.4.4/tcp/46337"


def learnt(reachability: Reachability, address: str | None = None) -> ReachabilityLearnt:
    return ReachabilityLearnt(reachability, address, "what to do")


def being_reached(**changes: Any) -> BeingReached:
    """One with a transport that does not run, so it listens nowhere."""
    settings = {"advertise": True, "role": Role.PROVIDER, **changes}
    transport = transport_of(1)
    return BeingReached(
        config_of_nobody(**settings), transport.node_id, transport, post=lambda event: None, changed=lambda: None
    )


def test_the_address_at_which_others_reached_us_is_published() -> None:
    reached = being_reached()
    reached.observe(learnt(Reachability.REACHED, PUBLIC))
    assert reached.advertised() == [f"{PUBLIC}/p2p/{peer_id(transport_of(1).node_id)}"]


@pytest.mark.parametrize(
    "address", ["/ip4/192.168.1.7/tcp/46337", "/ip4/127.0.0.1/tcp/46337", "/dns/x.example/tcp/1", None]
)
def test_an_address_that_means_nothing_elsewhere_is_not(address: str | None) -> None:
    reached = being_reached()
    reached.observe(learnt(Reachability.REACHED, address))
    assert reached.advertised() == []


def test_in_a_market_of_ones_own_it_is() -> None:
    reached = being_reached(allow_private=True)
    reached.observe(learnt(Reachability.REACHED, "/ip4/192.168.1.7/tcp/46337"))
    assert len(reached.advertised()) == 1


def test_circuits_come_after_direct_addresses_and_within_the_limit() -> None:
    reached = being_reached()
    reached.observe(learnt(Reachability.REACHED, PUBLIC))
    circuits = tuple(f"/ip4/9.9.9.9/tcp/1/p2p/r{number}/p2p-circuit/p2p/x" for number in range(12))
    reached.observe(OwnAddresses((*circuits[:3], "/dns/" + "x" * 300)))
    assert reached.advertised()[1:] == list(circuits[:3])
    assert reached.advertised()[0].startswith(PUBLIC)
    reached.observe(OwnAddresses(circuits))
    assert len(reached.advertised()) == HEARTBEAT_ADDRESSES_MAX


def test_who_has_no_libp2p_is_told_that_and_nothing_about_ports() -> None:
    reached = being_reached(p2p_enabled=False)
    reached.observe(learnt(Reachability.UNKNOWN))
    for advice in (reached.advice, reached.status()["advice"]):
        assert "--p2p turns it on" in advice
    assert being_reached().status()["advice"] == ""


def test_who_hides_publishes_nothing_whatever_was_learnt() -> None:
    reached = being_reached(advertise=False)
    reached.observe(learnt(Reachability.REACHED, PUBLIC))
    reached.observe(OwnAddresses(("/ip4/9.9.9.9/tcp/1/p2p/r/p2p-circuit/p2p/x",)))
    assert reached.advertised() == []


@pytest.mark.parametrize(
    ("settings", "at_first", "when_reached"),
    [
        ({"relay": "auto"}, False, True),
        ({"relay": "yes"}, True, True),
        ({"relay": "no"}, False, False),
        ({"relay": "auto", "role": Role.AGGREGATOR}, True, True),
        ({"relay": "no", "role": Role.AGGREGATOR}, False, False),
        ({"relay": "auto", "role": Role.CLIENT}, False, False),
        ({"relay": "auto", "advertise": False}, False, False),
    ],
)
def test_whether_it_relays(settings: dict[str, Any], at_first: bool, when_reached: bool) -> None:
    reached = being_reached(**settings)
    assert reached.relays is at_first
    reached.observe(learnt(Reachability.REACHED, PUBLIC))
    assert reached.relays is when_reached
    reached.observe(learnt(Reachability.NOT_REACHED))
    assert reached.relays is at_first
    assert reached.status()["relays_for_others"] is at_first


# ---------------------------------------------------------------- whole nodes, over TCP


class Market:
    """Whole nodes on loopback, each with a transport of its own."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._number = 40
        self._scopes: dict[bytes, trio.CancelScope] = {}
        self.transports: dict[bytes, Libp2pTransport] = {}

    async def start(self, *knows: Node, engine: Engine | None = None, listens: bool = True, **changes: Any) -> Node:
        self._number += 1
        key = key_of(self._number)
        peers = tuple(node.addresses()[0] for node in knows)
        config = config_of_nobody(peers=peers, allow_private=True, **{"advertise": True, **changes})
        transport = Libp2pTransport(
            key.secret_bytes(),
            agent="infernet/test",
            protocols=PROTOCOLS,
            randomness=random.Random(self._number),
            listen_hosts=("127.0.0.1",) if listens else (),
            port=0,
            allow_private=True,
        )
        self.transports[key.node] = transport
        node = Node(config, key, transport=transport, engine=engine, rng=random.Random(self._number))

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self._scopes[node.node_id] = scope
                await node.run(task_status=task_status)

        await self._nursery.start(run)
        return node

    def kill(self, node: Node) -> None:
        self._scopes[node.node_id].cancel()


@asynccontextmanager
async def market() -> AsyncIterator[Market]:
    with trio.fail_after(3 * PATIENCE_S):
        async with trio.open_nursery() as nursery:
            yield Market(nursery)
            nursery.cancel_scope.cancel()


def knows_circuits(node: Node, provider: Node) -> int:
    """How many circuits to a provider stand in the record that a node holds."""
    entry = node.driver.peer.directory.get(provider.node_id)
    return sum(map(is_circuit, entry.heartbeat.addresses)) if entry is not None else 0


async def test_a_provider_that_only_dials_out_answers_through_either_of_two_relays() -> None:
    async with market() as m:
        relays = [await m.start(role=Role.AGGREGATOR) for _ in range(2)]
        provider = await m.start(*relays, engine=PacedEngine(), listens=False)
        await eventually(lambda: len(provider.status()["reached"]["circuits"]) == 2, "two relays")
        assert provider.addresses() == []
        published = provider.advertised_addresses()
        assert {peer_id(relay.node_id) in address for relay in relays for address in published} == {True, False}

        asker = await m.start(relays[0], relays[1], role=Role.CLIENT, listens=False, advertise=False)
        await eventually(
            lambda: any(
                peer["node_id"] == provider.node_id.hex() and len(peer["addresses"]) == 2 for peer in asker.peers()
            ),
            "the record of the provider",
        )
        events = await ask(asker, question())
        assert isinstance(events[-1], JobDone)
        assert "reached through 2 relays" in provider.status()["reached"]["advice"]
        assert sum(m.transports[relay.node_id].relay_statistics().circuits for relay in relays) == 1

        m.kill(relays[0])
        await eventually(lambda: len(provider.status()["reached"]["circuits"]) == 1, "one relay less")
        events = await ask(asker, question())
        assert isinstance(events[-1], JobDone)


async def test_a_node_that_others_reach_hears_so_and_relays() -> None:
    async with market() as m:
        others = [await m.start(role=Role.PROVIDER) for _ in range(2)]
        node = await m.start(*others, role=Role.PROVIDER)
        await eventually(lambda: node.status()["reached"]["reachability"] == "reached", "the verdict")
        reached = node.status()["reached"]
        assert reached["reached_at"] == node.addresses()[0].partition("/p2p/")[0]
        assert reached["relays_for_others"]
        assert node.addresses()[0] in node.advertised_addresses()
