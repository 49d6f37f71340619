"""F5 for the real ledger: a disk that is full or fails. Callers are told, and the ledger's cache is never believed.

After a commit that failed the same process goes on, and decides as a book in memory does that heard of nothing but
what was acknowledged.
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.store.db import StoreFailed
from coordinator.store.ledger import Ledger, LedgerTransaction, read_head
from tests.helpers_apsw import open_on
from tests.helpers_disk import RecordingDisk
from tests.helpers_disk_faults import (
    Failing,
    Full,
    SyncFails,
    WriteFails,
    from_the_start,
    live_through,
    look_after_a_kill,
    look_after_power_cuts,
    start_again,
    store_on,
)
from tests.helpers_ledger_workload import LedgerWorkload
from tests.helpers_workloads import Unbalanced

pytestmark = pytest.mark.anyio

# A commit of the ledger takes some twenty pages. Checkpoints come so often that their own syncs are met as well.
OFTEN_PAGES = 30
# Seeds, each with the write or sync that is made to fail.
SOME = [(1, 0), (1, 7), (1, 33), (2, 110)]
SOME_SYNCS = [(1, 0), (1, 3), (2, 21)]
MANY = [(seed, at) for seed in range(10, 15) for at in range(0, 200, 5)]

Point = tuple[int, int]


@pytest.fixture(scope="module")
def prepared() -> dict[str, bytes]:
    """A store that was opened and closed, so that faults meet its work and not its making."""
    with RecordingDisk() as disk:
        open_on(disk).close()
        return disk.image()


def look_at_the_cut(disk: RecordingDisk, workload: LedgerWorkload, acknowledged: list[Any], since: int) -> None:
    assert look_after_power_cuts(disk, workload, from_the_start(acknowledged), since)


async def recover_from(fault: Failing, code: int, seed: int, prepared: dict[str, bytes], home: Path) -> int:
    """A fault after which the ledger goes on by itself. Returns how many entries it came to."""
    workload = LedgerWorkload()
    # A log that is begun anew is written over, and does not grow.
    checkpoint_pages = 1000 if isinstance(fault, Full) else OFTEN_PAGES
    with RecordingDisk(prepared, seed) as disk:
        async with store_on(disk, home, workload, checkpoint_pages) as database:
            history = await live_through(database, disk, workload, fault, seed)
            assert fault.failures, "the fault met nothing"
            assert {error.sqlite_errorcode for error in history.errors if isinstance(error, sqlite3.Error)} <= {code}
            assert not any(isinstance(error, StoreFailed) for error in history.errors)
            assert history.after_failure, "it went on"
            book = workload.book(history.acknowledged)
            head = await database.write(read_head)
            assert (head.entry, head.head) == (book.number, book.head), "exactly what was acknowledged is there"
            look_after_a_kill(disk.image(), workload, history.acknowledged)
            at_kill = len(disk.operations)
        look_after_a_kill(disk.image(), workload, history.acknowledged)
        look_at_the_cut(disk, workload, history.acknowledged, at_kill)
    return book.number


async def end_with(fault: Failing, seed: int, prepared: dict[str, bytes], home: Path) -> bool:
    """An fsync that fails. Returns whether the store ended; a checkpoint may fail without, for it is done again."""
    workload = LedgerWorkload()
    with RecordingDisk(prepared, seed) as disk:
        async with store_on(disk, home, workload, OFTEN_PAGES) as database:
            history = await live_through(database, disk, workload, fault, seed)
            assert fault.failures, "the fault met nothing"
            ended = database.failed.done()
            assert ended == bool(history.errors)
            if ended:
                assert all(isinstance(error, StoreFailed) for error in history.errors)
                assert not history.after_failure, "nothing more is written"
            workload.book(history.acknowledged)
            look_after_a_kill(disk.image(), workload, history.acknowledged)
            at_kill = len(disk.operations)
            next_disk = disk.after_a_kill()
        look_after_a_kill(disk.image(), workload, history.acknowledged)
        look_at_the_cut(disk, workload, history.acknowledged, at_kill)
    await go_on_after_a_kill(next_disk, home, history.acknowledged)
    return ended


async def go_on_after_a_kill(disk: RecordingDisk, home: Path, acknowledged: list[Any]) -> None:
    """The next process is shown what never came to the disk; what it acknowledges must not rest on that."""
    since = len(disk.operations)
    with disk:
        workload = LedgerWorkload(first_step=10_000)
        later = await start_again(disk, home, workload)
        assert look_after_power_cuts(disk, workload, [*from_the_start(acknowledged), *later], since)


@pytest.mark.slow
@pytest.mark.parametrize("point", SOME, ids=str)
async def test_a_full_disk_is_told_and_the_ledger_goes_on_as_a_book_does(
    point: Point, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    assert await recover_from(Full(point[1]), sqlite3.SQLITE_FULL, point[0], prepared, tmp_path) > 5


@pytest.mark.slow
@pytest.mark.parametrize("point", SOME, ids=str)
async def test_a_write_that_fails_is_told_and_the_ledger_goes_on_as_a_book_does(
    point: Point, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    assert await recover_from(WriteFails(point[1]), sqlite3.SQLITE_IOERR_WRITE, point[0], prepared, tmp_path) > 5


@pytest.mark.slow
async def test_an_fsync_that_fails_ends_the_store_and_no_claim_is_lost(
    prepared: dict[str, bytes], tmp_path: Path
) -> None:
    ended = [await end_with(SyncFails(at), seed, prepared, tmp_path) for seed, at in SOME_SYNCS]
    assert True in ended
    assert False in ended, "syncs of checkpoints were met too"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "code"), [(Full, sqlite3.SQLITE_FULL), (WriteFails, sqlite3.SQLITE_IOERR_WRITE)], ids=["full", "write"]
)
async def test_two_hundred_points_of_a_disk_that_takes_no_more(
    kind: type[Full | WriteFails], code: int, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    for seed, at in MANY:
        await recover_from(kind(at), code, seed, prepared, tmp_path)
    Console(width=120).print(f"the real ledger, {kind.__name__}: {len(MANY)} points, each told and gone on from")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10, 20))
async def test_two_hundred_points_of_an_fsync_that_fails(seed: int, prepared: dict[str, bytes], tmp_path: Path) -> None:
    ended = [await end_with(SyncFails(at), seed, prepared, tmp_path) for at in range(20)]
    Console(width=120).print(
        f"the real ledger, SyncFails: {len(ended)} points, {sum(ended)} ended the store, nothing lost"
    )
    assert 5 < sum(ended) < len(ended)


class Believing(Ledger):
    """A mutant: whatever became of the commit, it believes its cache."""

    def begin(self, tx: sqlite3.Connection) -> AbstractContextManager[LedgerTransaction]:
        if self._is_read:
            self._cache.head = read_head(tx)
        return super().begin(tx)


@pytest.mark.slow
async def test_a_cache_that_is_believed_after_a_failed_commit_is_seen(
    prepared: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers_ledger_workload.Ledger", Believing)
    seen = 0
    for seed in range(1, 7):
        try:
            await recover_from(Full(30), sqlite3.SQLITE_FULL, seed, prepared, tmp_path)
        except (Unbalanced, AssertionError):
            seen += 1
    assert seen >= 3
