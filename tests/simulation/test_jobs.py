"""Jobs in a whole network: all go well without faults; with faults each ends once, and after them all is well again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec import structs

from protocol import constants as c
from protocol.effects import JobAccepted, JobDone, JobFailed, JobQueued, JobResumed, JobText
from protocol.errors import Refusal
from protocol.events import Drain
from protocol.sim import Clog, Crash, EngineProfile, Faults, Partition, Scenario, Simulation, Topology, Workload
from protocol.sim.checkers import Checker, Seen, all_checkers
from protocol.sim.simulation import SimulationFailed


class Watch(Checker):
    """Keeps what the askers were told, by job."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Seen] = []

    def interests(self) -> dict:
        told = (JobAccepted, JobQueued, JobResumed, JobText, JobDone, JobFailed)
        return dict.fromkeys(told, self.told.append)


def test_without_faults_every_job_is_done() -> None:
    workload = Workload(jobs=60, jobs_per_s=4.0, embedding_share=0.2)
    simulation = Simulation(Scenario(seed=1, peers=20, providers=6, models=2, workload=workload))
    simulation.run(20.0)
    assert simulation.settle(60.0)
    simulation.finish()
    summary = simulation.summary
    assert (summary.jobs_asked, summary.jobs_done, dict(summary.jobs_failed)) == (60, 60, {})
    # Search, dial, handshakes and the first token: within two seconds, most of them far below.
    assert sorted(summary.first_text_s)[len(summary.first_text_s) // 2] < 0.7
    assert max(summary.first_text_s) < 3.0


def test_cancelled_jobs_end_and_free_their_slots() -> None:
    workload = Workload(jobs=60, jobs_per_s=4.0, cancel_share=1.0, cancel_s_mean=0.5)
    simulation = Simulation(Scenario(seed=1, peers=20, providers=6, workload=workload))
    simulation.run(20.0)
    assert simulation.settle(30.0)
    simulation.finish()
    assert simulation.summary.jobs_failed["cancelled"] > 30


@pytest.mark.parametrize("silent", [False, True])
def test_a_provider_that_dies_before_the_first_token_is_replaced(silent: bool) -> None:
    """Its process dies: the next one has the order within two seconds. Its machine dies: when it is silent too long."""
    slow_prompt = EngineProfile(prompt_tokens_per_s=20.0)
    workload = Workload(jobs=1, start_s=10.0, prompt_characters_mean=400.0, any_model_share=0.0)
    scenario = Scenario(seed=3, peers=6, providers=3, engine=slow_prompt, workload=workload)
    watch = Watch()
    simulation = Simulation(scenario, [*all_checkers(), watch])
    assert simulation.run_until(lambda: len(watch.told) == 1, 30.0)
    accepted = watch.told[0].item
    assert isinstance(accepted, JobAccepted)
    victim = next(host.index for host in simulation.hosts if host.node == accepted.provider)
    died_s = simulation.now_s
    simulation._crash(Crash(died_s, victim, None, is_silent=silent))
    assert simulation.run_until(lambda: len(watch.told) > 1, died_s + 40.0)
    again = watch.told[1]
    assert isinstance(again.item, JobAccepted)
    assert again.item.attempt == 2
    assert again.item.provider != accepted.provider
    limit_s = c.SILENCE_DEADLINE_S + 1.0 if silent else 2.0
    assert again.at_s - died_s < limit_s
    assert simulation.settle(60.0)
    simulation.finish()
    assert simulation.summary.jobs_done == 1


def first_accepted(simulation: Simulation, watch: Watch, limit_s: float) -> int:
    """Run until a job is accepted; the index of its provider."""
    assert simulation.run_until(lambda: any(isinstance(seen.item, JobAccepted) for seen in watch.told), limit_s)
    accepted = next(seen.item for seen in watch.told if isinstance(seen.item, JobAccepted))
    return next(host.index for host in simulation.hosts if host.node == accepted.provider)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_provider_that_dies_in_the_middle_of_its_answer_is_replaced(seed: int, silent: bool) -> None:
    """The judges see to it that the answer is the one that a single provider would have given."""
    engine = EngineProfile(output_tokens_mean=4000.0)
    watch = Watch()
    simulation = Simulation(Scenario(seed=seed, peers=6, providers=3, engine=engine), [*all_checkers(), watch])
    simulation.at(10.0, 5, structs.replace(simulation._ask(0, random.Random(seed)), output_tokens_max=300))
    victim = first_accepted(simulation, watch, 30.0)
    simulation.run(simulation.now_s + 2.0)
    texts = [seen for seen in watch.told if isinstance(seen.item, JobText)]
    assert texts
    died_s = simulation.now_s
    simulation._crash(Crash(died_s, victim, None, is_silent=silent))
    limit_s = 3.0 + (c.SILENCE_DEADLINE_S if silent else 0.0)
    assert simulation.run_until(lambda: isinstance(watch.told[-1].item, JobText) and resumed(watch), died_s + limit_s)
    assert simulation.settle(60.0)
    simulation.finish()
    done = watch.told[-1].item
    assert isinstance(done, JobDone)
    assert len(done.served) == 2


def resumed(watch: Watch) -> bool:
    return any(isinstance(seen.item, JobResumed) for seen in watch.told)


def test_a_machine_that_never_answers_costs_a_job_less_than_two_seconds() -> None:
    """It is black-holed when the order comes: connected, known, and silent."""
    workload = Workload(jobs=1, start_s=10.0, any_model_share=0.0)
    watch = Watch()
    scenario = Scenario(seed=3, peers=6, providers=3, workload=workload)
    found = Simulation(scenario, [*all_checkers(), watch])
    victim = first_accepted(found, watch, 30.0)
    (asked_s,) = [seen.at_s for seen in watch.told[:1]]
    watch = Watch()
    simulation = Simulation(scenario, [*all_checkers(), watch])
    simulation.run(9.5)
    simulation._crash(Crash(9.5, victim, None, is_silent=True))
    assert first_accepted(simulation, watch, 30.0) != victim
    assert watch.told[0].at_s - asked_s < 2.0
    assert simulation.settle(60.0)
    simulation.finish()


def test_a_full_market_lets_jobs_wait_and_does_them_all() -> None:
    """More jobs than slots, for a while: everybody who has the time is served, and hears where it stands meanwhile."""
    engine = EngineProfile(slots=2, tokens_per_s=40.0)
    workload = Workload(jobs=40, jobs_per_s=10.0)
    watch = Watch()
    scenario = Scenario(seed=1, peers=40, providers=3, engine=engine, workload=workload)
    simulation = Simulation(scenario, [*all_checkers(), watch])
    simulation.run(15.0)
    assert simulation.settle(60.0)
    simulation.finish()
    assert (simulation.summary.jobs_done, dict(simulation.summary.jobs_failed)) == (40, {})
    assert sum(isinstance(seen.item, JobQueued) for seen in watch.told) > 15


def test_a_market_that_is_far_too_small_answers_every_job_one_way_or_the_other() -> None:
    """Those turned away hear so with a reason, and when to come again."""
    engine = EngineProfile(slots=1, tokens_per_s=10.0)
    workload = Workload(jobs=60, jobs_per_s=10.0, timeout_s=20.0)
    watch = Watch()
    scenario = Scenario(seed=1, peers=20, providers=3, engine=engine, workload=workload)
    simulation = Simulation(scenario, [*all_checkers(), watch])
    simulation.run(15.0)
    assert simulation.settle(60.0)
    simulation.finish()
    summary = simulation.summary
    assert summary.jobs_done >= 9
    refused = summary.jobs_failed["busy"] + summary.jobs_failed["rate_limited"] + summary.jobs_failed["deadline"]
    assert summary.jobs_done + refused == 60
    busy = [seen.item for seen in watch.told if isinstance(seen.item, JobFailed) and seen.item.code is Refusal.BUSY]
    assert busy
    assert all(failed.retry_after_ms > 0 for failed in busy)


def test_providers_that_drain_one_after_another_lose_no_job() -> None:
    engine = EngineProfile(slots=2)
    workload = Workload(jobs=60, jobs_per_s=3.0)
    simulation = Simulation(Scenario(seed=2, peers=20, providers=5, engine=engine, workload=workload))
    for number, at_s in enumerate((6.0, 10.0, 14.0)):
        simulation.at(at_s, number, Drain())
    simulation.run(30.0)
    assert simulation.settle(60.0)
    simulation.finish()
    assert (simulation.summary.jobs_done, dict(simulation.summary.jobs_failed)) == (60, {})


def test_an_order_from_before_a_restart_is_not_run_after_it_whatever_the_clocks_say() -> None:
    """The clock of the asker is so far ahead that its order is younger than the new process; the seal is not."""
    workload = Workload(jobs=30, jobs_per_s=10.0, start_s=10.0)
    faults = Faults(replay=1.0, clock_skew_ms_max=25_000)
    crashes = tuple(Crash(10.5 + n / 3, n % 3, 0.05) for n in range(9))
    for seed in range(6):
        scenario = Scenario(seed=seed, peers=9, providers=3, faults=faults, happenings=crashes, workload=workload)
        simulation = Simulation(scenario)
        simulation.run(40.0)
        simulation.heal()
        assert simulation.settle(200.0)
        simulation.finish()


# ---------------------------------------------------------------- faults, then health


def chaos(seed: int) -> Scenario:
    """A scenario with some of everything that can go wrong, from a seed."""
    rng = random.Random(seed)
    peers = rng.randint(4, 20)
    happenings: list[Crash | Partition | Clog] = []
    for _ in range(rng.randint(0, 6)):
        kind, at_s, peer = rng.randrange(3), rng.uniform(0.0, 40.0), rng.randrange(peers)
        if kind == 0:
            happenings.append(Crash(at_s, peer, rng.choice([None, 0.05, 1.0, 5.0, 30.0]), rng.random() < 0.3))
        elif kind == 1:
            inside = tuple(rng.sample(range(peers), rng.randint(1, peers - 1)))
            happenings.append(Partition(at_s, rng.choice([1.0, 10.0, 25.0, 60.0]), inside))
        else:
            happenings.append(Clog(at_s, rng.choice([0.5, 5.0, 30.0]), peer))
    return Scenario(
        seed=seed,
        peers=peers,
        providers=rng.randint(1, peers // 2),
        models=rng.randint(1, 2),
        publish_share=rng.choice([1.0, 0.5]),
        topology=rng.choice(list(Topology)),
        engine=EngineProfile(
            slots=rng.choice([1, 2, 8]),
            context_tokens=100_000,
            failure_rate=rng.choice([0.0, 0.1]),
            hang_rate=rng.choice([0.0, 0.0, 0.1]),
            cancel_s=rng.choice([0.05, 0.5]),
        ),
        faults=Faults(
            latency_s_mean=rng.choice([0.006, 0.03, 0.2]),
            loss=rng.choice([0.0, 0.05, 0.2]),
            split=rng.choice([0.0, 0.1, 0.7]),
            bandwidth_bytes_per_s=rng.choice([None, 20_000.0, 1e6]),
            replay=rng.choice([0.0, 0.3]),
            clock_skew_ms_max=rng.choice([0, 1000, 20_000]),
            outbox_bytes_max=rng.choice([20_000, 1_310_720]),
        ),
        happenings=tuple(happenings),
        workload=Workload(
            jobs=rng.randint(5, 60),
            jobs_per_s=rng.choice([1.0, 5.0, 20.0]),
            cancel_share=rng.choice([0.0, 0.3]),
            embedding_share=rng.choice([0.0, 0.3]),
            prompt_characters_mean=rng.choice([100.0, 400.0, 30_000.0]),
            timeout_s=rng.choice([3.0, 30.0, 120.0]),
        ),
    )


def survive(scenario: Scenario) -> Simulation:
    """Safety while things go wrong, then liveness once they are right again (TigerBeetle's two modes)."""
    simulation = Simulation(scenario)
    simulation.run(70.0)
    assert not simulation.violations(), simulation.violations()
    simulation.heal()
    assert simulation.settle(200.0), f"jobs or streams are left: {scenario!r}"
    assert simulation.run_until(simulation.has_converged, simulation.now_s + 120.0), f"no convergence: {scenario!r}"
    assert simulation.settle(60.0)
    simulation.finish()
    return simulation


@pytest.mark.slow
def test_whatever_goes_wrong_every_job_ends_once_and_the_network_recovers() -> None:
    done = sum(survive(chaos(seed)).summary.jobs_done for seed in range(24))
    assert done > 150


@pytest.mark.nightly
@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_other_ways_to_go_wrong(hundred: int) -> None:
    for seed in range(1000 + 100 * hundred, 1100 + 100 * hundred):
        survive(chaos(seed))


@pytest.mark.slow
def test_fifty_peers_with_loss_of_whom_thirty_percent_crash_under_load() -> None:
    victims = random.Random(5).sample(range(50), 15)
    crashes = tuple(
        Crash(8.0 + n, peer, 10.0 if n % 2 else None, is_silent=n % 3 == 0) for n, peer in enumerate(victims)
    )
    scenario = Scenario(
        seed=5,
        peers=50,
        providers=15,
        models=2,
        faults=Faults(latency_s_mean=0.06, loss=0.05),
        happenings=crashes,
        workload=Workload(jobs=120, jobs_per_s=5.0, timeout_s=60.0),
    )
    simulation = survive(scenario)
    summary = simulation.summary
    # Those asked by peers that were down, or whose asker crashed, are neither done nor failed.
    assert summary.jobs_done > 0.7 * summary.jobs_asked
    simulation.heal()


def test_after_the_faults_jobs_are_done_as_if_there_had_been_none() -> None:
    """Liveness proper: new jobs, asked once everything is healed, are all done."""
    before = chaos(11)
    scenario = replace(
        before,
        peers=12,
        providers=4,
        engine=EngineProfile(slots=8),
        happenings=(Partition(3.0, 60.0, (0, 1, 2)), Crash(5.0, 3, None), Crash(6.0, 1, 2.0, is_silent=True)),
        faults=replace(before.faults, clock_skew_ms_max=0, bandwidth_bytes_per_s=None, latency_s_mean=0.03),
        workload=Workload(jobs=30, start_s=100.0, jobs_per_s=5.0),
    )
    simulation = Simulation(scenario)
    simulation.run(50.0)
    simulation.heal()
    simulation.run(120.0)
    assert simulation.settle(60.0)
    simulation.finish()
    assert simulation.summary.jobs_done == simulation.summary.jobs_asked == 30


def test_a_failure_names_the_scenario_that_shows_it_again() -> None:
    class Strict(Checker):
        def interests(self) -> dict:
            return {JobDone: lambda seen: self.blame(seen.at_s, "a job was done")}

    scenario = Scenario(seed=42, peers=4, providers=2, workload=Workload(jobs=2, jobs_per_s=10.0))
    simulation = Simulation(scenario, [Strict()])
    simulation.run(20.0)
    with pytest.raises(SimulationFailed) as caught:
        simulation.finish()
    assert "Strict: a job was done" in str(caught.value)
    assert eval(str(caught.value).split(" in ", 1)[1].splitlines()[0], _names()) == scenario


def _names() -> dict[str, object]:
    import protocol.sim as sim

    return {**{name: getattr(sim, name) for name in sim.__all__}, "c": c}
