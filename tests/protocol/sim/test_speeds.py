"""Providers of a simulation are as fast as somebody measured, say so, and gain little by saying more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.details import said_of
from protocol.effects import JobDone
from protocol.ids import NodeId
from protocol.sim import EngineProfile, Scenario, Simulation, Speed, Workload
from protocol.sim.checkers import Checker, Seen, all_checkers

FAST, SLOW = Speed(2000.0, 60.0), Speed(200.0, 4.0)
WORK = Workload(jobs=24, jobs_per_s=4.0, any_model_share=0.0, output_tokens_max=64)
SCENARIO = Scenario(
    seed=5, peers=9, providers=4, engine=EngineProfile(output_tokens_mean=60.0), speeds=(FAST, SLOW), workload=WORK
)


class Done(Checker):
    """Judges nothing, and counts who did jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.by: Counter[NodeId] = Counter()

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {JobDone: self._on_done}

    def _on_done(self, seen: Seen) -> None:
        self.by[seen.item.receipt.provider] += 1


def done_by(scenario: Scenario) -> list[int]:
    """How many jobs each provider did."""
    done = Done()
    simulation = Simulation(scenario, [*all_checkers(), done])
    simulation.run(10.0)
    assert simulation.settle(200.0)
    simulation.finish()
    return [done.by[host.node] for host in simulation.hosts[: scenario.providers]]


def test_speeds_are_dealt_in_turn_and_heard_by_all() -> None:
    simulation = Simulation(replace(SCENARIO, workload=Workload()))
    assert simulation.run_until(simulation.has_converged, 60.0)
    asker = simulation.hosts[-1].peer
    assert asker is not None
    said = []
    for host in simulation.hosts[:4]:
        entry = asker.directory.get(host.node)
        assert entry is not None
        said.append(said_of(entry.heartbeat, "model-0"))
    assert [(one.prompt_tokens_per_s, one.tokens_per_s) for one in said] == [(1792, 56), (192, 4)] * 2


def test_without_speeds_nobody_says_anything() -> None:
    simulation = Simulation(replace(SCENARIO, speeds=(), workload=Workload()))
    simulation.run(5.0)
    assert all(host.offer is None or host.offer.said == {} for host in simulation.hosts)


@pytest.mark.slow
def test_strangers_that_say_they_are_slow_get_fewer_jobs_and_liars_little_more() -> None:
    honest = done_by(SCENARIO)
    assert sum(honest) == 24
    assert honest[0] + honest[2] > 3 * (honest[1] + honest[3])
    # One of the slow ones boasts: it counts as one in the middle until it was measured.
    boasting = replace(SCENARIO, speeds=(FAST, SLOW, FAST, replace(SLOW, boast=1000.0)))
    lied = done_by(boasting)
    assert lied[0] + lied[2] > 3 * (lied[1] + lied[3])
