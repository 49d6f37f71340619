"""Jobs by way of others: handed on with a slot that is held, and passed on by aggregators; judged as from outside."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec import structs

from protocol.effects import JobAccepted
from protocol.events import Ask
from protocol.ids import NodeId
from protocol.sim import Crash, EngineProfile, Faults, Partition, Scenario, Simulation, Workload
from protocol.sim.checkers import Checker, Seen, all_checkers
from protocol.sim.relay_checkers import Handoffs, PassedOn, Slots

SMALL = EngineProfile(slots=1, output_tokens_mean=80.0)


class Ways(Checker):
    """Which way every accepted job went."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[NodeId | None] = []

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {JobAccepted: self._on_accepted}

    def _on_accepted(self, seen: Seen) -> None:
        self.ways.append(seen.item.via)


class Reserved(Simulation):
    """The same askers, who want nobody else to hear of their orders."""

    def _ask(self, number: int, rng: random.Random) -> Ask:
        return structs.replace(super()._ask(number, rng), may_hand_off=False)


class Judged:
    """A run with all judges, those of this room among them."""

    def __init__(self, scenario: Scenario, cls: type[Simulation] = Simulation) -> None:
        self.handoffs, self.slots, self.ways = Handoffs(), Slots(), Ways()
        self.passed_on = PassedOn(self._aggregators)
        judges = [*all_checkers(), self.handoffs, self.slots, self.passed_on, self.ways]
        self.simulation = cls(scenario, judges)

    def _aggregators(self) -> frozenset[NodeId]:
        scenario = self.simulation.scenario
        hosts = self.simulation.hosts[scenario.providers : scenario.providers + scenario.aggregators]
        return frozenset(host.node for host in hosts)

    def run(self, until_s: float) -> None:
        self.simulation.run(until_s)
        self.simulation.heal()
        assert self.simulation.settle(200.0)
        self.simulation.finish()


def test_full_providers_hand_jobs_on_and_fewer_are_refused() -> None:
    refused = {}
    for cls in (Simulation, Reserved):
        refused[cls] = 0
        for seed in range(2):
            workload = Workload(jobs=80, jobs_per_s=3.0)
            judged = Judged(Scenario(seed=seed, peers=16, providers=8, engine=SMALL, workload=workload), cls)
            judged.run(60.0)
            counts = judged.handoffs.counts
            refused[cls] += counts["refusals"]
            assert judged.simulation.summary.jobs_done == 80
            assert judged.slots.most == SMALL.slots
            assert bool(counts["questions"]) == (cls is Simulation)
            if cls is Simulation:
                assert counts["refusals with a slot"] > counts["refusals"] / 4
                assert counts["orders with a slot"] == counts["refusals with a slot"]
    assert refused[Simulation] < 0.95 * refused[Reserved]


def test_aggregators_pass_jobs_on_as_they_are() -> None:
    workload = Workload(jobs=80, start_s=5.0, jobs_per_s=4.0, via_share=0.5, embedding_share=0.2, cancel_share=0.1)
    judged = Judged(Scenario(seed=1, peers=24, providers=5, aggregators=2, workload=workload))
    judged.run(40.0)
    assert judged.passed_on.jobs > 30
    assert judged.passed_on.bytes > 50_000
    summary = judged.simulation.summary
    assert summary.jobs_done + summary.jobs_failed["cancelled"] == 80
    assert 30 < sum(way is not None for way in judged.ways.ways) < 60


def test_providers_that_nobody_can_dial_are_reached_through_aggregators() -> None:
    """No asker has a way of its own to any provider, and none knows that it needs one."""
    workload = Workload(jobs=30, start_s=10.0)
    scenario = Scenario(seed=2, peers=14, providers=3, hidden_providers=3, aggregators=2, degree=8, neighbours_min=0)
    judged = Judged(replace(scenario, workload=workload))
    judged.run(40.0)
    assert judged.simulation.summary.jobs_done == 30
    assert len(judged.ways.ways) == 30
    assert None not in judged.ways.ways


@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_wrong_on_the_way_every_job_ends_once_and_nothing_is_left(seed: int) -> None:
    """Aggregators and providers die, connections stall, streams are replayed, and everybody is busy."""
    rng = random.Random(seed)
    crashes = tuple(
        Crash(rng.uniform(5.0, 25.0), rng.randrange(7), rng.uniform(1.0, 10.0), is_silent=rng.random() < 0.3)
        for _ in range(8)
    )
    partition = Partition(15.0, 6.0, (5, *rng.sample(range(7, 24), 4)))
    scenario = Scenario(
        seed=seed,
        peers=24,
        providers=5,
        aggregators=2,
        hidden_providers=1,
        engine=EngineProfile(slots=2, failure_rate=0.05, hang_rate=0.02),
        faults=Faults(loss=0.02, replay=0.2, clock_skew_ms_max=2_000),
        happenings=(*crashes, partition),
        workload=Workload(jobs=100, jobs_per_s=4.0, via_share=0.4, cancel_share=0.1, embedding_share=0.1),
    )
    judged = Judged(scenario)
    judged.run(40.0)
    assert judged.passed_on.jobs > 10
    assert judged.handoffs.counts["questions"] > 0
