"""F5: a disk that is full or fails. Callers are told, nothing is half done, and a full disk needs no restart."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from rich.console import Console

from coordinator.store.db import Database, StoreFailed, StoreRefused, open_database
from tests.helpers_apsw import AdaptedConnection, AdaptedCursor, open_on
from tests.helpers_disk import DATABASE, RecordingDisk
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
from tests.helpers_workloads import DemonstrationLedger

pytestmark = pytest.mark.anyio

# Checkpoints come so often that their own syncs are met as well.
OFTEN_PAGES = 16
# Seeds, each with the write or sync that is made to fail. A step has some 15 writes and a sync.
SOME = [(1, at) for at in (0, 1, 2, 7, 20, 33)] + [(2, 57), (2, 110)]
SOME_SYNCS = [(1, 0), (1, 3), (1, 6), (1, 7), (1, 8), (2, 21)]
MANY = [(seed, at) for seed in range(10, 15) for at in range(0, 200, 5)]

Point = tuple[int, int]


@pytest.fixture(scope="module")
def prepared() -> dict[str, bytes]:
    """A store that was opened and closed, so that faults meet its work and not its making."""
    with RecordingDisk() as disk:
        connection = open_on(disk)
        DemonstrationLedger().prepare(connection)
        connection.close()
        return disk.image()


def transfers(connection: sqlite3.Connection) -> set[int]:
    return {row[0] for row in connection.execute("SELECT DISTINCT transfer FROM test_postings").fetchall()}


def named(acknowledged: list[Any]) -> set[int]:
    return {number for kind, number in acknowledged if kind == "transfer"}


async def recover_from(fault: Failing, code: int, seed: int, prepared: dict[str, bytes], home: Path) -> None:
    """A fault after which the store goes on by itself: callers are told, and exactly what they were told is there."""
    workload = DemonstrationLedger()
    with RecordingDisk(prepared, seed) as disk:
        async with store_on(disk, home, workload) as database:
            history = await live_through(database, disk, workload, fault, seed)
            assert fault.failures, "the fault met nothing"
            assert {error.sqlite_errorcode for error in history.errors if isinstance(error, sqlite3.Error)} <= {code}
            assert not any(isinstance(error, StoreFailed) for error in history.errors)
            assert history.after_failure, "it went on"
            assert await database.write(transfers) == named(history.acknowledged)
            look_after_a_kill(disk.image(), workload, history.acknowledged)
            at_kill = len(disk.operations)
        look_after_a_kill(disk.image(), workload, history.acknowledged)
        assert look_after_power_cuts(disk, workload, from_the_start(history.acknowledged), at_kill)


async def end_with(fault: Failing, seed: int, prepared: dict[str, bytes], home: Path) -> bool:
    """An fsync that fails. Returns whether the store ended; a checkpoint may fail without, for it is done again."""
    workload = DemonstrationLedger()
    with RecordingDisk(prepared, seed) as disk:
        async with store_on(disk, home, workload, OFTEN_PAGES) as database:
            history = await live_through(database, disk, workload, fault, seed)
            assert fault.failures, "the fault met nothing"
            ended = database.failed.done()
            assert ended == bool(history.errors)
            if ended:
                assert all(isinstance(error, StoreFailed) for error in history.errors)
                assert not history.after_failure, "nothing more is written"
                with pytest.raises(StoreFailed):
                    await database.write(transfers)
            look_after_a_kill(disk.image(), workload, history.acknowledged)
            at_kill = len(disk.operations)
            next_disk = disk.after_a_kill()
        look_after_a_kill(disk.image(), workload, history.acknowledged)
        assert look_after_power_cuts(disk, workload, from_the_start(history.acknowledged), at_kill)
    await go_on_after_a_kill(next_disk, home, history.acknowledged)
    return ended


async def go_on_after_a_kill(disk: RecordingDisk, home: Path, acknowledged: list[Any]) -> None:
    """The next process is shown what never came to the disk; what it acknowledges must not rest on that."""
    since = len(disk.operations)
    with disk:
        later = await start_again(disk, home, DemonstrationLedger(first_transfer=10_000))
        everything = [*from_the_start(acknowledged), *later]
        assert look_after_power_cuts(disk, DemonstrationLedger(), everything, since)


@pytest.mark.slow
@pytest.mark.parametrize("point", SOME, ids=str)
async def test_a_full_disk_is_told_and_needs_no_restart(
    point: Point, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    await recover_from(Full(point[1]), sqlite3.SQLITE_FULL, point[0], prepared, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("point", SOME, ids=str)
async def test_a_write_that_fails_is_told_and_needs_no_restart(
    point: Point, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    await recover_from(WriteFails(point[1]), sqlite3.SQLITE_IOERR_WRITE, point[0], prepared, tmp_path)


@pytest.mark.slow
async def test_an_fsync_that_fails_ends_the_store_and_loses_nothing(prepared: dict[str, bytes], tmp_path: Path) -> None:
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
    Console(width=120).print(f"{kind.__name__}: {len(MANY)} points, each told, each gone on from, nothing lost")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10, 20))
async def test_two_hundred_points_of_an_fsync_that_fails(seed: int, prepared: dict[str, bytes], tmp_path: Path) -> None:
    ended = [await end_with(SyncFails(at), seed, prepared, tmp_path) for at in range(20)]
    Console(width=120).print(f"SyncFails: {len(ended)} points, {sum(ended)} ended the store, nothing lost")
    assert 5 < sum(ended) < len(ended)


# ---------------------------------------------------------------- opening


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Full, WriteFails, SyncFails])
async def test_a_store_that_cannot_be_made_is_refused_and_can_be_made_later(
    fault: Callable[[int], Failing], tmp_path: Path
) -> None:
    refused = 0
    for at in range(0, 60, 4):
        with RecordingDisk(seed=at) as disk:
            disk.fault = fault(at)
            try:
                database = open_database(tmp_path, lambda _path, disk=disk: open_on(disk))
            except StoreRefused:
                refused += 1
            else:
                await database.close()
            disk.fault = None
            async with store_on(disk, tmp_path, DemonstrationLedger()) as database:
                assert await database.write(transfers) == set()
    assert refused


# ---------------------------------------------------------------- who waits together


class Gate:
    """A write that holds the writer until others wait behind it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.reached = threading.Event()

    def closure(self, _tx: sqlite3.Connection) -> None:
        self.reached.set()
        assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()


async def together(database: Database, closures: list[Callable[[sqlite3.Connection], Any]], held: Gate) -> list[Any]:
    """Let these be carried out in one commit."""
    first = asyncio.ensure_future(database.write(held.closure))
    assert await asyncio.to_thread(held.reached.wait, 30)
    waiting = [asyncio.ensure_future(database.write(closure)) for closure in closures]
    await asyncio.sleep(0)
    held.open()
    await first
    return await asyncio.gather(*waiting, return_exceptions=True)


class AlreadyDone(Exception):
    """A definite answer."""


def pay_once(tx: sqlite3.Connection) -> str:
    if tx.execute("SELECT 1 FROM test_papers WHERE transfer = 1").fetchone():
        raise AlreadyDone
    tx.execute("INSERT INTO test_papers VALUES (1, x'00')")
    return "done"


@pytest.fixture(params=[Full, WriteFails, SyncFails])
def fault(request: pytest.FixtureRequest) -> Failing:
    made: Failing = request.param(0)
    return made


async def test_everybody_who_waits_for_a_commit_that_fails_is_told_so_and_nothing_else(
    fault: Failing, prepared: dict[str, bytes], tmp_path: Path
) -> None:
    """The second payment must not hear "already done" of a first one that was never kept."""
    with RecordingDisk(prepared) as disk:
        async with store_on(disk, tmp_path, DemonstrationLedger()) as database:
            gate = Gate()

            def break_the_disk(_tx: sqlite3.Connection) -> None:
                disk.fault = fault

            answers = await together(database, [break_the_disk, pay_once, pay_once, transfers], gate)
            kinds = {type(answer) for answer in answers}
            assert kinds <= {sqlite3.OperationalError, StoreFailed}, answers
            assert len(kinds) == 1
            disk.fault = None
            if not isinstance(fault, SyncFails):
                assert await database.write(pay_once) == "done"


async def test_a_store_that_has_failed_still_closes_and_answers_each_that_waits(
    prepared: dict[str, bytes], tmp_path: Path
) -> None:
    with RecordingDisk(prepared) as disk:
        async with store_on(disk, tmp_path, DemonstrationLedger()) as database:
            disk.fault = SyncFails(0)
            with pytest.raises(StoreFailed, match="disk failed"):
                await database.write(pay_once)
            answers = await asyncio.gather(*(database.write(pay_once) for _ in range(50)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreFailed}
            assert len({id(answer) for answer in answers}) == 50, "one each: a raised exception gathers tracebacks"


class RollbackFails(AdaptedConnection):
    """A connection that cannot take back what was written."""

    def execute(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> AdaptedCursor:
        if statement == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, parameters)


async def test_a_rollback_that_fails_ends_the_store_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    def open_writer(_path: Path) -> sqlite3.Connection:
        connection = RollbackFails(apsw.Connection(":memory:"))
        return cast("sqlite3.Connection", connection)

    def take_the_savepoint(tx: sqlite3.Connection) -> None:
        tx.execute("RELEASE closure")

    database = open_database(tmp_path, open_writer)
    for closure in (take_the_savepoint, transfers):
        async with asyncio.timeout(30):
            with pytest.raises(StoreFailed, match="disk I/O error"):
                await database.write(closure)
    await database.close()


async def test_a_damaged_database_ends_the_store(prepared: dict[str, bytes], tmp_path: Path) -> None:
    """Although a closure's failure alone would only undo that closure."""
    with RecordingDisk(prepared) as disk:
        connection = open_on(disk)
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'test_postings'").fetchone()[0]
        connection.close()
        content = disk.contents[disk.names[DATABASE]]
        content[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
        async with store_on(disk, tmp_path, DemonstrationLedger()) as database:
            with pytest.raises(StoreFailed, match="malformed"):
                await database.write(transfers)
            with pytest.raises(StoreFailed):
                await database.write(lambda _tx: None)


async def test_savepoints_need_no_temporary_file(prepared: dict[str, bytes], tmp_path: Path) -> None:
    """What two closures of one commit change twice is kept in memory. A recording disk has no temporary files."""

    def change_many_pages(tx: sqlite3.Connection) -> None:
        for number in range(60):
            tx.execute("INSERT OR REPLACE INTO test_papers VALUES (?, randomblob(3900))", (number,))

    with RecordingDisk(prepared) as disk:
        async with store_on(disk, tmp_path, DemonstrationLedger()) as database:
            await database.write(change_many_pages)
            assert await together(database, [change_many_pages] * 3, Gate()) == [None] * 3
