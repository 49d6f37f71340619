"""How fast news reach everybody: figures, so that a change which makes gossip worse is seen.

Peers start within one second, one-way latency is 30 ms on average; an exchange comes every 5 s.
"""

from __future__ import annotations

import random

import pytest

from protocol.events import SetOffer
from protocol.records import Availability
from protocol.sim import Crash, Faults, Scenario, Simulation, Topology
from tests.helpers_machines import offer

# Peers start within this long.
START_S = 1.0


def converge(scenario: Scenario, limit_s: float) -> tuple[Simulation, float]:
    """Run until every peer holds the newest record of every other; returns when that was."""
    simulation = Simulation(scenario)
    assert simulation.run_until(simulation.has_converged, limit_s), f"not within {limit_s} s"
    return simulation, simulation.now_s


def news_delay_s(simulation: Simulation, index: int) -> float:
    """How long a change of one peer's offer takes to reach all others."""
    simulation.run(simulation.now_s + 20.0)
    assert simulation.has_converged()
    simulation.feed(index, SetOffer(offer(availability=Availability.DRAINING)))
    began_s = simulation.now_s
    assert simulation.run_until(simulation.has_converged, began_s + 60.0)
    return simulation.now_s - began_s


@pytest.mark.parametrize(
    ("topology", "start_limit_s", "news_limit_s"),
    [
        # A line of 20 has 19 hops of about 30 ms: push needs no round of exchange.
        (Topology.LINE, START_S + 7.0, 2.0),
        (Topology.RING, START_S + 7.0, 1.5),
        (Topology.STAR, START_S + 5.0, 0.5),
        (Topology.RANDOM, START_S + 5.0, 0.5),
    ],
)
def test_peers_that_are_wired_converge(topology: Topology, start_limit_s: float, news_limit_s: float) -> None:
    """A start beyond `START_S` is redialling: who started before its neighbour tries again after a second or two."""
    for seed in range(3):
        scenario = Scenario(seed=seed, peers=16, providers=4, topology=topology, neighbours_min=0)
        simulation, _ = converge(scenario, start_limit_s)
        assert news_delay_s(simulation, 0) <= news_limit_s
        simulation.finish()


@pytest.mark.slow
def test_fifty_peers_converge_over_slow_and_lossy_links() -> None:
    faults = Faults(latency_s_min=0.02, latency_s_mean=0.1, loss=0.05)
    simulation, at_s = converge(Scenario(seed=1, peers=50, providers=10, faults=faults), 15.0)
    assert at_s < 15.0
    assert news_delay_s(simulation, 0) < 5.0
    simulation.finish()


@pytest.mark.slow
def test_the_survivors_of_a_crash_of_thirty_percent_find_together_again() -> None:
    """Fifteen of fifty die for good, among them the one that everybody knew first. News then still reach all."""
    dead = sorted({0, *random.Random(1).sample(range(1, 50), 14)})
    crashes = tuple(Crash(20.0 + 0.1 * n, peer, None, is_silent=n % 2 == 0) for n, peer in enumerate(dead))
    scenario = Scenario(
        seed=2, peers=50, providers=10, topology=Topology.STAR, faults=Faults(loss=0.05), happenings=crashes
    )
    simulation = Simulation(scenario)
    assert simulation.run_until(simulation.has_converged, 15.0)
    simulation.run(25.0)
    witness = next(index for index in range(50) if index not in dead)
    simulation.feed(witness, SetOffer(offer(availability=Availability.DRAINING)))
    # The star's centre is gone: first its silence is noticed (20 s), then company is found (a look every 15 to 45 s).
    assert simulation.run_until(simulation.has_converged, 25.0 + 20.0 + 45.0)
    assert news_delay_s(simulation, witness) < 5.0


def test_without_company_the_loss_of_the_centre_is_the_end() -> None:
    """The judge can see the difference: with `neighbours_min` of 0 nobody looks for anybody."""
    scenario = Scenario(seed=3, peers=8, providers=2, topology=Topology.STAR, neighbours_min=0)
    simulation = Simulation(Scenario(**{**_fields(scenario), "happenings": (Crash(10.0, 0),)}))
    simulation.run(15.0)
    simulation.feed(1, SetOffer(offer(availability=Availability.DRAINING)))
    assert not simulation.run_until(simulation.has_converged, 100.0)


def _fields(scenario: Scenario) -> dict[str, object]:
    return {name: getattr(scenario, name) for name in scenario.__dataclass_fields__}


def test_gossip_costs_an_idle_network_little() -> None:
    """Bytes per peer and minute when nothing happens: a digest of twenty entries every five seconds, and no records."""
    simulation, _ = converge(Scenario(seed=1, peers=20, providers=4), 10.0)
    simulation.run(60.0)
    before = simulation.network.bytes_sent
    simulation.run(120.0)
    per_peer_and_minute = (simulation.network.bytes_sent - before) / 20
    assert per_peer_and_minute < 16_000
