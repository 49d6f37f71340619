"""Providers that nobody can dial find out, keep relays, and serve through them: with calm, and with relays that die."""

from __future__ import annotations

import random

import pytest

from protocol.effects import DialBack, JobAccepted, ReachabilityLearnt
from protocol.events import PeerConnected, RelayReserved
from protocol.locality import is_circuit
from protocol.records import Reachability
from protocol.sim import Crash, Faults, Partition, Scenario, Simulation, Workload
from protocol.sim.checkers import Checker, Seen, all_checkers

START_S = 60.0


class Watch(Checker):
    """What was learnt of reachability, and who connected through a relay."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt: dict[int, ReachabilityLearnt] = {}
        self.circuits = 0
        self.accepted = 0
        self.dial_backs = 0
        self.relays: dict[int, set[bytes]] = {}

    def interests(self) -> dict[type, object]:
        return {
            ReachabilityLearnt: self._on_learnt,
            PeerConnected: self._on_connected,
            JobAccepted: self._on_accepted,
            DialBack: self._on_dial_back,
            RelayReserved: self._on_reserved,
        }

    def _on_learnt(self, seen: Seen) -> None:
        self.learnt[seen.index] = seen.item

    def _on_connected(self, seen: Seen) -> None:
        self.circuits += is_circuit(seen.item.address)

    def _on_accepted(self, seen: Seen) -> None:
        self.accepted += 1

    def _on_dial_back(self, seen: Seen) -> None:
        self.dial_backs += 1

    def _on_reserved(self, seen: Seen) -> None:
        self.relays.setdefault(seen.index, set()).add(seen.item.relay)


def run(scenario: Scenario, until_s: float) -> tuple[Simulation, Watch]:
    watch = Watch()
    simulation = Simulation(scenario, [*all_checkers(), watch])
    simulation.run(until_s)
    simulation.heal()
    assert simulation.settle(300.0)
    simulation.finish()
    return simulation, watch


def published(simulation: Simulation, provider: int) -> int:
    """Circuits to a provider that the directory of another peer shows."""
    peer = simulation.hosts[-1].peer
    assert peer is not None
    entry = peer.directory.get(simulation.hosts[provider].node)
    return sum(map(is_circuit, entry.heartbeat.addresses)) if entry is not None else 0


@pytest.mark.parametrize("seed", range(4))
def test_hidden_providers_are_reached_through_two_relays_each(seed: int) -> None:
    scenario = Scenario(
        seed=seed,
        peers=18,
        providers=4,
        hidden_providers=3,
        relays=3,
        workload=Workload(jobs=40, start_s=START_S),
    )
    simulation, watch = run(scenario, START_S + 30.0)
    for provider in range(1, 4):
        assert watch.learnt[provider].reachability is Reachability.NOT_REACHED
        assert "through 2 relays" in watch.learnt[provider].advice
        assert len(watch.relays[provider]) >= 2
        assert published(simulation, provider) == 2
    for index in (0, *range(4, 18)):
        assert watch.learnt[index].reachability in (Reachability.REACHED, Reachability.UNKNOWN)
    assert simulation.summary.jobs_done == 40
    assert watch.circuits >= 2 * 3, "every provider was reached by somebody, and both ends say so"


@pytest.mark.parametrize("seed", range(4))
def test_jobs_survive_relays_that_die_and_partitions(seed: int) -> None:
    rng = random.Random(seed)
    first_relay = 4
    crashes = tuple(
        Crash(
            rng.uniform(START_S, START_S + 30.0),
            first_relay + rng.randrange(3),
            rng.uniform(5.0, 30.0),
            is_silent=False,
        )
        for _ in range(4)
    )
    partition = Partition(START_S + 12.0, 10.0, (first_relay, 12, 13))
    scenario = Scenario(
        seed=seed,
        peers=18,
        providers=4,
        hidden_providers=3,
        relays=3,
        faults=Faults(loss=0.02),
        happenings=(*crashes, partition),
        workload=Workload(jobs=60, start_s=START_S, timeout_s=60.0),
    )
    simulation, _ = run(scenario, START_S + 80.0)
    summary = simulation.summary
    # Relays ask, too: nobody asks while it is down, and what it had asked is lost in the crash.
    ended = summary.jobs_done + sum(summary.jobs_failed.values())
    assert 50 <= summary.jobs_asked <= ended + len(crashes)
    assert summary.jobs_done >= 0.9 * summary.jobs_asked
    simulation.run(simulation.now_s + 120.0)
    for provider in range(1, 4):
        assert published(simulation, provider) >= 2, "what was lost has been replaced"


def test_an_idle_network_asks_seldom_whether_it_is_reached() -> None:
    scenario = Scenario(seed=1, peers=18, providers=4, hidden_providers=3, relays=3)
    _, watch = run(scenario, 1800.0)
    # Each asks at most three when it starts; the others ever less often.
    assert watch.dial_backs < 18 * 3 * 6


def test_the_same_seed_gives_the_same_trace() -> None:
    scenario = Scenario(
        seed=5, peers=14, providers=3, hidden_providers=2, relays=2, workload=Workload(jobs=10, start_s=START_S)
    )
    traces = set()
    for _ in range(2):
        simulation, _ = run(scenario, START_S + 20.0)
        traces.add(simulation.trace)
    assert len(traces) == 1
