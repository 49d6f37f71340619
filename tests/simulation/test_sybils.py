"""S5: a thousand keys in one hand against a hundred honest nodes.

The bar: what an honest node says reaches at least 99 % of all other honest nodes within 30 s, and no forgery is
believed. Keys are free; networks are not, so there are three honest ones for each of the army.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.events import SetOffer
from protocol.ids import NodeId
from protocol.records import Availability
from protocol.sim import Scenario, Simulation, Topology
from tests.helpers_machines import offer
from tests.helpers_sybils import Army, Orders

SEEN_S = 30.0
SEEN_SHARE = 0.99

# Honest nodes, each in a network of its own; keys of the army, and its networks; when it is measured. The default suite
# runs a smaller form of the same proportions.
SMALL = (24, 240, 8, 90.0)
FULL = (100, 1000, 32, 180.0)


def battle(honest: int, orders: Orders, *, start_s: float = 10.0, topology: Topology = Topology.STAR) -> Army:
    """Honest peers that have heard of one bootstrap node, and the army; both start within the first seconds."""
    simulation = Simulation(
        Scenario(seed=1, peers=honest, providers=honest // 4, models=4, topology=topology, start_s=start_s), checkers=[]
    )
    return Army(simulation, orders)


def seen_share(army: Army, at_s: float) -> float:
    """All honest nodes say something new at once; the share of (node, other node) that know it half a minute later."""
    simulation = army.simulation
    simulation.run(at_s)
    for host in simulation.hosts:
        host.receive(
            SetOffer(offer(availability=Availability.DRAINING, name=host.name, addresses=(host.address or "",)))
        )
    simulation.run(at_s + SEEN_S)
    newest = {host.node: host.sequence_of(host.node) for host in simulation.hosts}
    known = sum(host.sequence_of(node) >= newest[node] for host in simulation.hosts for node in newest)
    return known / len(newest) ** 2


def forgeries_believed(army: Army) -> int:
    return sum(
        host.peer is not None and host.peer.directory.signer_of(body) is not None
        for host in army.simulation.hosts
        for body in army.forgeries
    )


ATTACKS: dict[str, Callable[[Orders, NodeId, float], Orders]] = {
    # They crowd in from the beginning, and swallow.
    "cold boot": lambda army, _target, _at_s: army,
    # An honest network stands when they come.
    "sybil": lambda army, _target, _at_s: replace(army, start_s=40.0),
    # All of them around one node.
    "eclipse": lambda army, target, _at_s: replace(army, start_s=40.0, target=target, victims=1),
    # They are the best neighbours there are, until ten seconds before.
    "covert flash": lambda army, _target, at_s: replace(army, start_s=20.0, flash_s=at_s - 10.0),
    # They lie, too: forgeries, promises, and floods of their own keys.
    "liars": lambda army, _target, _at_s: replace(army, forges=0.2, floods=0.1),
}


def fight(attack: str, size: tuple[int, int, int, float]) -> None:
    honest, members, networks, at_s = size
    target = battle(honest, Orders(0)).simulation.hosts[honest // 2].node
    army = battle(honest, ATTACKS[attack](Orders(members, networks), target, at_s))
    share = seen_share(army, at_s)
    assert share >= SEEN_SHARE, f"{share:.4f}"
    assert forgeries_believed(army) == 0
    if attack == "liars":
        assert army.forgeries
    if attack == "eclipse":
        victim = army.simulation.hosts[honest // 2]
        assert victim.peer is not None
        assert victim.peer.statistics().neighbours > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    # The first two are in what the others do, and have their turn at night.
    [pytest.param(name, marks=pytest.mark.nightly) if name in ("cold boot", "sybil") else name for name in ATTACKS],
)
def test_honest_nodes_hear_each_other_through_a_crowd_ten_times_as_large(attack: str) -> None:
    fight(attack, SMALL)


@pytest.mark.nightly
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hundred_honest_nodes_hear_each_other_through_a_thousand_sybils(attack: str) -> None:
    fight(attack, FULL)
