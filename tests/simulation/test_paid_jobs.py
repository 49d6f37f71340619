"""Paid jobs in the simulator: crashes, outages, cheats; the judges of money watch every step."""

from __future__ import annotations

import random

import pytest

from protocol.ledger import available
from protocol.sim.scenario import Clog, Crash, Faults, Happening, Money, Outage, Partition, Scenario, Workload
from protocol.sim.simulation import Simulation

SEEDS = 12
SEEDS_NIGHTLY = 400


def scenario(seed: int) -> Scenario:
    """Everything that can go wrong, drawn from the seed."""
    rng = random.Random(seed)
    peers = rng.randint(6, 14)
    providers = rng.randint(2, 4)
    aggregators = rng.choice((0, 1))
    happenings: list[Happening] = []
    for _ in range(rng.randint(1, 5)):
        at_s = rng.uniform(3, 20)
        kind = rng.randrange(5)
        if kind == 0:
            happenings.append(Crash(at_s, rng.randrange(peers), rng.uniform(0.5, 6), is_silent=rng.random() < 0.5))
        elif kind == 1:
            happenings.append(Outage(at_s, rng.uniform(1, 12)))
        elif kind == 2:
            happenings.append(Partition(at_s, rng.uniform(1, 8), (rng.randrange(peers),)))
        elif kind == 3:
            happenings.append(Clog(at_s, rng.uniform(1, 8), rng.randrange(peers)))
        else:
            happenings.append(Crash(at_s, rng.randrange(providers), rng.uniform(0.5, 3)))
    return Scenario(
        seed=seed,
        peers=peers,
        providers=providers,
        aggregators=aggregators,
        happenings=tuple(happenings),
        faults=Faults(loss=rng.choice((0.0, 0.02)), replay=rng.choice((0.0, 0.3)), clock_skew_ms_max=20_000),
        workload=Workload(jobs=30, jobs_per_s=2.0, cancel_share=0.1, embedding_share=0.1, via_share=0.2 * aggregators),
        money=Money(paid_share=rng.choice((1.0, 0.7)), price_out_uusd=rng.choice((1_500_000, 40_000_000))),
    )


def run(seed: int) -> Simulation:
    """One scenario to its end: healed, at rest, and claimed."""
    simulation = Simulation(scenario(seed))
    simulation.run(30)
    simulation.heal()
    assert simulation.settle(300), f"seed {seed}: jobs do not come to rest"
    # Claims that failed are tried again within five minutes.
    simulation.run(simulation.now_s + 700)
    simulation.finish()
    return simulation


def check_paid(simulation: Simulation) -> None:
    """Every provider has been credited with the best voucher that it had stored."""
    assert simulation.bank is not None
    for host in simulation.hosts:
        assert host.desk is not None
        for lease, kept in host.desk.disk.providers.items():
            claimed = simulation.bank.book.leases[lease].claimed_uusd
            assert claimed == kept.paid_uusd, f"{host.name}: {claimed} of {kept.paid_uusd}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_money_is_kept_whatever_happens(seed: int) -> None:
    check_paid(run(seed))


def test_the_same_seed_moves_the_same_money() -> None:
    first, second = run(3), run(3)
    assert first.bank is not None
    assert second.bank is not None
    assert first.trace == second.trace
    assert first.bank.book.head == second.bank.book.head


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_NIGHTLY, 20))
def test_money_is_kept_in_many_more_worlds(first: int) -> None:
    for seed in range(first, first + 20):
        check_paid(run(seed))


def test_who_stops_signing_gets_one_window_and_honest_providers_lose_no_more() -> None:
    world = Scenario(
        seed=5,
        peers=16,
        providers=4,
        workload=Workload(jobs=80, jobs_per_s=4.0, any_model_share=0.0),
        money=Money(cheating_askers=0.3),
    )
    simulation = Simulation(world)
    simulation.run(120)
    simulation.settle(300)
    simulation.run(simulation.now_s + 700)
    simulation.finish()
    assert simulation.bank is not None
    earned = sum(simulation.bank.book.balance(available(host.node)) - 1_000_000 for host in simulation.hosts[:4])
    assert earned > 0
    assert any(host.hides_vouchers for host in simulation.hosts)
    assert simulation.summary.jobs_failed["unpaid"] > 0
