"""M1: whatever moment the power fails, what was acknowledged is there, whole, and nothing is damaged."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable

import pytest
from rich.console import Console

from coordinator.store import db
from tests.helpers_power_cuts import Conditions, Figures, Recording, cut_everywhere, cut_recoveries, record
from tests.helpers_workloads import DemonstrationLedger

NIGHTLY_CUTS = 100_000
# Each of them a test that ends before a minute has passed.
NIGHTLY_SHARES = 10
Acknowledge = Callable[[db._Write], None]


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
    figures = cut(Conditions(batches=40), per_operation=3)
    assert_nothing_was_found(figures)
    assert figures.cuts > 1500


@pytest.mark.slow
def test_a_second_cut_during_the_recovery_loses_nothing_either() -> None:
    figures = Figures()
    workload = DemonstrationLedger()
    recording = record(workload, 2, Conditions(batches=12))
    cut_recoveries(recording, workload, 2, 0.03, 3, figures)
    assert_nothing_was_found(figures)
    assert figures.cuts > 100


@pytest.mark.nightly
@pytest.mark.parametrize("share", range(NIGHTLY_SHARES))
def test_nothing_is_lost_in_a_hundred_thousand_power_cuts(share: int) -> None:
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
def test_the_checker_sees_the_loss_when_commits_are_not_synced() -> None:
    figures = cut(Conditions(batches=8, pragmas=("synchronous = NORMAL",)))
    assert figures.lost > 50, str(figures)
    assert (figures.unbalanced, figures.corrupt) == (0, 0), "that much WAL promises without a sync"


@pytest.mark.slow
def test_the_checker_sees_the_damage_when_nothing_is_synced() -> None:
    figures = cut(Conditions(batches=8, pragmas=("synchronous = OFF",)))
    assert figures.corrupt > 20, str(figures)


def acknowledging_before_the_commit(
    connection: sqlite3.Connection, batch: list[db._Write], acknowledge: Acknowledge
) -> None:
    """A mutant of `_commit`."""
    connection.execute("BEGIN IMMEDIATE")
    for write in batch:
        db._apply(connection, write)
        if write.error is None:
            acknowledge(write)
    connection.execute("COMMIT")


def without_a_transaction(connection: sqlite3.Connection, batch: list[db._Write], acknowledge: Acknowledge) -> None:
    """Another: every statement is a commit."""
    for write in batch:
        try:
            write.result = write.closure(connection)
        except DemonstrationLedger.refusals as error:
            write.error = error
        else:
            acknowledge(write)


@pytest.mark.slow
def test_the_checker_sees_a_commit_that_acknowledges_too_early() -> None:
    figures = cut(Conditions(batches=8, commit=acknowledging_before_the_commit))
    assert figures.lost > 50, str(figures)
    assert (figures.unbalanced, figures.corrupt) == (0, 0)


@pytest.mark.slow
def test_the_checker_sees_transactions_that_were_kept_in_part() -> None:
    figures = cut(Conditions(batches=4, commit=without_a_transaction))
    assert figures.unbalanced > 50, str(figures)
