"""M1 for the real ledger: whatever moment the power fails, no acknowledged claim is lost and no sum is off."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.store import db, journal
from coordinator.store.db import open_writer
from tests.helpers_disk import DATABASE, RecordingDisk
from tests.helpers_journaled_ledger import JournaledLedger
from tests.helpers_ledger_workload import LedgerWorkload
from tests.helpers_power_cuts import (
    Conditions,
    Figures,
    cut_everywhere,
    cut_recoveries,
    inspect,
    record,
)
from tests.helpers_recorded_files import RecordedFiles
from tests.helpers_workloads import Lost, Unbalanced

NIGHTLY_CUTS = 80_000
# Each of them a test that ends before a minute has passed.
NIGHTLY_SHARES = 16
Acknowledge = Callable[[db._Write], None]


def assert_nothing_was_found(figures: Figures) -> None:
    assert (figures.lost, figures.unbalanced, figures.corrupt) == (0, 0, 0), str(figures)


def conditions(workload: LedgerWorkload, batches: int) -> Conditions:
    """A commit of the ledger takes some twenty pages: a checkpoint after every third."""
    return Conditions(batches=batches, commit=workload.commit, checkpoint_pages=60)


def cut(seed: int, batches: int, per_operation: int, **changes: Any) -> Figures:
    """Record the real ledger and cut everywhere."""
    figures, workload = Figures(), LedgerWorkload()
    recording = record(workload, seed, replace(conditions(workload, batches), **changes))
    cut_everywhere(recording, workload, seed, per_operation, figures, alternately=True)
    return figures


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_wherever_the_power_is_cut() -> None:
    figures = cut(seed=1, batches=12, per_operation=3)
    assert_nothing_was_found(figures)
    assert figures.cuts > 300


@pytest.mark.nightly
def test_a_second_cut_during_the_recovery_loses_nothing_either() -> None:
    figures, workload = Figures(), LedgerWorkload()
    recording = record(workload, 2, conditions(workload, 6))
    cut_recoveries(recording, workload, 2, 0.04, 2, figures)
    assert_nothing_was_found(figures)
    assert figures.cuts > 30


@pytest.mark.nightly
@pytest.mark.parametrize("share", range(NIGHTLY_SHARES))
def test_nothing_is_lost_in_eighty_thousand_power_cuts(share: int) -> None:
    figures, again = Figures(), Figures()
    for seed in itertools.count(1000 * (share + 1)):
        workload = LedgerWorkload()
        recording = record(workload, seed, conditions(workload, 40))
        cut_everywhere(recording, workload, seed, 5, figures, alternately=True)
        cut_recoveries(recording, workload, seed, 0.001, 3, again)
        if figures.cuts + again.cuts >= NIGHTLY_CUTS / NIGHTLY_SHARES:
            break
    Console(width=120).print(f"the real ledger: {figures}\nwhile recovering: {again}")
    assert_nothing_was_found(figures)
    assert_nothing_was_found(again)


def test_the_recording_decides_as_a_book_does_and_is_the_same_every_time() -> None:
    recordings = []
    for _ in range(2):
        workload = LedgerWorkload()
        recordings.append(record(workload, 5, conditions(workload, 30)))
        book = workload.book([result for _, result in recordings[-1].acknowledged])
        assert book.number > 30
        kinds = {type(verdict).__name__ for _, _, verdicts in workload.attempts.values() for verdict in verdicts}
        assert kinds == {"Entry", "Unchanged", "Refused"}
    assert recordings[0] == recordings[1]


# ---------------------------------------------------------------- the journal


def cut_with_journal(
    seed: int,
    batches: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    per_operation: int = 2,
    acknowledges_early: bool = False,
) -> Figures:
    """Record ledger and journal on one disk, and cut everywhere."""
    figures, workload = Figures(), JournaledLedger(folder, acknowledges_early=acknowledges_early)
    disk = RecordingDisk(seed=seed)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "os", RecordedFiles(disk))
        recording = record(workload, seed, conditions(workload, batches), disk)
        workload.close()
    cut_everywhere(recording, workload, seed, per_operation, figures, alternately=True)
    return figures


@pytest.mark.slow
def test_the_journal_has_what_was_acknowledged_and_is_brought_up_to_date_after_any_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long").mkdir()
    (tmp_path / "short").mkdir()
    figures = cut_with_journal(3, 7, tmp_path / "long", monkeypatch)
    assert_nothing_was_found(figures)
    assert figures.cuts > 200
    # While it is made, too.
    assert_nothing_was_found(cut_with_journal(0, 1, tmp_path / "short", monkeypatch, per_operation=5))


@pytest.mark.nightly
def test_the_journal_keeps_its_promise_in_thousands_of_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(30, 32):
        folder = tmp_path / str(seed)
        folder.mkdir()
        figures = cut_with_journal(seed, 40, folder, monkeypatch, per_operation=4)
        Console(width=120).print(f"ledger and journal: {figures}")
        assert_nothing_was_found(figures)


@pytest.mark.slow
def test_the_checker_sees_an_acknowledgement_that_did_not_wait_for_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = cut_with_journal(4, 6, tmp_path, monkeypatch, acknowledges_early=True)
    assert figures.lost > 3, str(figures)
    assert (figures.unbalanced, figures.corrupt) == (0, 0)


# ---------------------------------------------------------------- the checker sees what it should


@pytest.mark.slow
def test_the_checker_sees_that_claims_are_lost_when_commits_are_not_synced() -> None:
    figures = cut(1, 5, 3, pragmas=("synchronous = NORMAL",), checkpoint_pages=1000)
    assert figures.lost > 20, str(figures)
    assert (figures.unbalanced, figures.corrupt) == (0, 0), "that much WAL promises without a sync"


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
        except LedgerWorkload.refusals as error:
            write.error = error
        else:
            acknowledge(write)


@pytest.mark.slow
def test_the_checker_sees_a_commit_that_acknowledges_too_early() -> None:
    figures = cut(1, 6, 2, commit=acknowledging_before_the_commit)
    assert figures.lost > 20, str(figures)
    assert (figures.unbalanced, figures.corrupt) == (0, 0)


@pytest.mark.slow
def test_the_checker_sees_transactions_that_were_kept_in_part() -> None:
    figures = cut(1, 4, 1, commit=without_a_transaction)
    assert figures.unbalanced > 20, str(figures)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE accounts SET balance = balance + 1 WHERE name LIKE 'available:%'", Unbalanced),
        ("UPDATE accounts SET balance = balance + 1 WHERE name = 'treasury'", Unbalanced),
        ("DELETE FROM lease_records WHERE rowid = 1", Unbalanced),
        ("DELETE FROM payout_intents", Unbalanced),
        ("DELETE FROM close_wishes", Lost),
        ("UPDATE replay_windows SET highest = highest - 1", Lost),
    ],
)
def test_the_checker_sees_a_row_that_is_off(statement: str, kind: type[Exception], tmp_path: Path) -> None:
    workload, connection, acknowledged = left_behind(tmp_path)
    inspect(connection, workload, acknowledged)
    assert connection.execute(statement).rowcount > 0
    with pytest.raises(kind):
        inspect(connection, workload, acknowledged)
    connection.close()


def test_the_checker_sees_more_than_the_last_commit_and_what_is_not_there(tmp_path: Path) -> None:
    workload, connection, acknowledged = left_behind(tmp_path)
    with pytest.raises(Unbalanced, match="entries are there"):
        inspect(connection, workload, acknowledged[:5])
    step, entry, head, facts = acknowledged[-1]
    with pytest.raises(Lost, match=f"entry {entry + 1}"):
        inspect(connection, workload, [*acknowledged, [step, entry + 1, head, facts]])
    table, row, least = next(fact for each in acknowledged for fact in each[3] if fact[0] == "leases" and fact[2])
    with pytest.raises(Lost, match="was acknowledged"):
        inspect(connection, workload, [*acknowledged, [step, entry, head, [[table, row, least + 10**9]]]])
    connection.close()


def left_behind(tmp_path: Path) -> tuple[LedgerWorkload, sqlite3.Connection, list[Any]]:
    """A ledger that was written whole, and opened again."""
    workload, disk = LedgerWorkload(), RecordingDisk(seed=6)
    recording = record(workload, 6, conditions(workload, 30), disk)
    for name, data in disk.image().items():
        (tmp_path / name).write_bytes(data)
    return workload, open_writer(tmp_path / DATABASE), [result for _, result in recording.acknowledged]
