"""M1: whatever moment the power fails, what was acknowledged is there, whole, and nothing is damaged.

Here with rows of several pages and pages that are freed and used again, which a ledger has none of; the ledger itself
is cut in `test_ledger_power_cuts`.
"""

from __future__ import annotations

import itertools

import pytest
from rich.console import Console

from tests.helpers_power_cuts import Conditions, Figures, Recording, cut_everywhere, cut_recoveries, record
from tests.helpers_workloads import DemonstrationLedger

# With those of the ledger a hundred thousand.
NIGHTLY_CUTS = 20_000
# Each of them a test that ends before a minute has passed.
NIGHTLY_SHARES = 2


def cut(conditions: Conditions, *, seed: int = 1, per_operation: int = 3) -> Figures:
    """Record and cut, and say what was found."""
    figures = Figures()
    workload = DemonstrationLedger()
    cut_everywhere(record(workload, seed, conditions), workload, seed, per_operation, figures, alternately=True)
    return figures


def assert_nothing_was_found(figures: Figures) -> None:
    assert (figures.lost, figures.unbalanced, figures.corrupt) == (0, 0, 0), str(figures)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_wherever_the_power_is_cut() -> None:
    figures = cut(Conditions(batches=20), per_operation=3)
    assert_nothing_was_found(figures)
    assert figures.cuts > 700


@pytest.mark.slow
def test_a_second_cut_during_the_recovery_loses_nothing_either() -> None:
    figures = Figures()
    workload = DemonstrationLedger()
    recording = record(workload, 2, Conditions(batches=10))
    cut_recoveries(recording, workload, 2, 0.02, 2, figures)
    assert_nothing_was_found(figures)
    assert figures.cuts > 50


@pytest.mark.nightly
@pytest.mark.parametrize("share", range(NIGHTLY_SHARES))
def test_nothing_is_lost_in_twenty_thousand_power_cuts(share: int) -> None:
    figures, again = Figures(), Figures()
    workload = DemonstrationLedger()
    for seed in itertools.count(1000 * (share + 1)):
        recording = record(workload, seed, Conditions(batches=40))
        cut_everywhere(recording, workload, seed, 6, figures, alternately=False)
        cut_recoveries(recording, workload, seed, 0.002, 4, again)
        if figures.cuts >= NIGHTLY_CUTS / NIGHTLY_SHARES:
            break
    Console(width=120).print(f"{figures}\nwhile recovering: {again}")
    assert_nothing_was_found(figures)
    assert_nothing_was_found(again)


def test_the_recording_is_the_same_every_time() -> None:
    first, second = (record(DemonstrationLedger(), 5, Conditions(batches=6)) for _ in range(2))
    assert first == second
    assert isinstance(first, Recording)
    assert first.acknowledged


# ---------------------------------------------------------------- the checker sees what it should


@pytest.mark.slow
def test_the_checker_sees_the_damage_when_nothing_is_synced() -> None:
    figures = cut(Conditions(batches=8, pragmas=("synchronous = OFF",)))
    assert figures.corrupt > 20, str(figures)
