"""Money among many: how much honest people lose to cheats, and what an hour without a coordinator does."""

from __future__ import annotations

import faulthandler
from collections import Counter
from collections.abc import Callable

import pytest

from protocol.effects import JobDone, JobFailed
from protocol.events import Ask
from protocol.ids import JobId
from protocol.sim.checkers import Checker, Seen, all_checkers
from protocol.sim.money_checkers import money_checkers
from protocol.sim.scenario import EngineProfile, Money, Outage, Scenario, Workload
from protocol.sim.simulation import Simulation
from tests.helpers_tally import Tally

# A cheat gets eight tokens: with a third of cheats that is a hundredth of all where answers have 400 of them.
TOKENS_MEAN = 600.0


def cheats(jobs: int, seed: int) -> tuple[Simulation, Tally]:
    """A third of all askers sign for the prompt only; a third of all providers take that and send nothing."""
    tally = Tally()
    scenario = Scenario(
        seed=seed,
        peers=40,
        providers=10,
        engine=EngineProfile(slots=8, tokens_per_s=200.0, output_tokens_mean=TOKENS_MEAN),
        workload=Workload(jobs=jobs, jobs_per_s=10.0, output_tokens_max=4_000),
        money=Money(cheating_askers=0.3, cheating_providers=0.3, deposit_uusd=20_000_000, spend_uusd_max=200_000),
    )
    simulation = Simulation(scenario, [*all_checkers(), *money_checkers(), tally])
    simulation.run(10 + jobs / 10)
    assert simulation.settle(600)
    simulation.run(simulation.now_s + 700)
    simulation.finish()
    return simulation, tally


def losses(jobs: int, seed: int) -> tuple[int, int, str]:
    """The bars of each job; what honest providers lost and delivered in all, and the figures."""
    simulation, tally = cheats(jobs, seed)
    honest = {host.node for host in simulation.hosts if host.engine is not None}
    accounts = [account for account in tally.accounts.values() if account.provider in honest]
    delivered_uusd = sum(account.delivered_uusd for account in accounts)
    provider_losses = [account.provider_loss_uusd for account in accounts]
    asker_losses = [account.asker_loss_uusd for account in accounts]
    worst = max((account.provider_loss_uusd, account.window_uusd) for account in accounts)
    for account in accounts:
        window = max(account.window_uusd, 1_000, account.base_uusd // 16)
        assert account.provider_loss_uusd <= window
        assert account.asker_loss_uusd <= account.prefill_uusd
    assert simulation.bank is not None
    figures = (
        f"{jobs} jobs, {len(accounts)} paid attempts: {delivered_uusd} micro-USD delivered; providers lost "
        f"{sum(provider_losses)} ({sum(provider_losses) / delivered_uusd:.2%}), at most {worst[0]} in one; askers paid "
        f"{sum(asker_losses)} ({sum(asker_losses) / delivered_uusd:.2%}) for prompts without an answer; "
        f"{simulation.summary.jobs_done} done, failed {dict(simulation.summary.jobs_failed)}"
    )
    return sum(provider_losses), delivered_uusd, figures


def test_cheats_cost_honest_providers_one_window_each_and_a_hundredth_in_all(
    record_property: pytest.FixtureRequest,
) -> None:
    lost_uusd, delivered_uusd, figures = losses(80, 1)
    assert lost_uusd <= 0.01 * delivered_uusd, figures
    record_property("figures", figures)  # type: ignore[operator]


@pytest.mark.nightly
def test_ten_thousand_jobs_among_cheats() -> None:
    # It takes long, and says nothing wrong by that.
    faulthandler.cancel_dump_traceback_later()
    lost_in_all_uusd = delivered_in_all_uusd = 0
    for seed in range(25):
        lost_uusd, delivered_uusd, figures = losses(400, seed)
        print(figures)  # noqa: T201 - for whoever runs this
        lost_in_all_uusd += lost_uusd
        delivered_in_all_uusd += delivered_uusd
    assert lost_in_all_uusd <= 0.01 * delivered_in_all_uusd


class Course(Checker):
    """Judges nobody; says what became of the jobs that were asked before an instant, and of those after it."""

    def __init__(self, instant_s: float) -> None:
        super().__init__()
        self._instant_s = instant_s
        self._asked: dict[JobId, str] = {}
        self.ended: Counter[str] = Counter()

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Ask: self._on_ask, JobDone: self._on_end, JobFailed: self._on_end}

    def _on_ask(self, seen: Seen) -> None:
        self._asked[seen.item.job] = "before" if seen.at_s < self._instant_s else "during"

    def _on_end(self, seen: Seen) -> None:
        how = "done" if isinstance(seen.item, JobDone) else seen.item.code.name.lower()
        self.ended[f"{self._asked[seen.item.job]}: {how}"] += 1


def outage(jobs: int, begins_s: float, lasts_s: float, seed: int) -> str:
    """The coordinator goes in the middle of everything, when most askers have leases, and comes back."""
    scenario = Scenario(
        seed=seed,
        peers=24,
        providers=6,
        engine=EngineProfile(slots=8, output_tokens_mean=200.0),
        happenings=(Outage(begins_s, lasts_s),),
        workload=Workload(jobs=jobs, jobs_per_s=jobs / (begins_s + lasts_s), output_tokens_max=1_000),
        money=Money(deposit_uusd=20_000_000, spend_uusd_max=200_000),
    )
    course = Course(begins_s)
    simulation = Simulation(scenario, [*all_checkers(), *money_checkers(), course])
    simulation.run(begins_s + lasts_s + 30)
    assert simulation.settle(600)
    assert simulation.bank is not None
    simulation.bank.expire(simulation.wall_ms())
    simulation.run(simulation.now_s + 700)
    simulation.finish()
    unpaid = 0
    for host in simulation.hosts:
        assert host.desk is not None
        for lease, kept in host.desk.disk.providers.items():
            unpaid += kept.paid_uusd - simulation.bank.book.leases[lease].claimed_uusd
    figures = f"{jobs} jobs, an outage of {lasts_s:g} s: {dict(course.ended)}, {unpaid} micro-USD unpaid"
    assert unpaid == 0, figures
    assert {how for how in course.ended if how.startswith("before")} == {"before: done"}, figures
    assert course.ended["during: done"] > 0, figures
    assert all(lease.claimed_uusd or not lease.is_closed for lease in simulation.bank.book.leases.values()), figures
    return figures


def test_jobs_go_on_without_the_coordinator_and_are_paid_afterwards() -> None:
    outage(80, 20.0, 40.0, 1)


@pytest.mark.nightly
def test_an_hour_without_the_coordinator() -> None:
    print(outage(2_000, 200.0, 3_600.0, 2))  # noqa: T201 - figures for whoever runs this
