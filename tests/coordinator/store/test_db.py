"""The database: grouped commits, isolation of failures, one process, and what survives a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coordinator.store import db
from coordinator.store.db import Database, StoreBusy, StoreClosed, StoreRefused, open_database

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(tmp_path)
    await database.write(lambda tx: tx.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY) STRICT"))
    yield database
    await database.close()


def insert(number: int) -> Callable[[sqlite3.Connection], int]:
    def closure(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO notes VALUES (?)", (number,))
        return number

    return closure


async def numbers(database: Database) -> list[int]:
    async with database.reader() as reader:
        return [row[0] for row in await reader.execute_fetchall("SELECT number FROM notes ORDER BY number")]


async def test_what_was_asked_of_sqlite_is_what_it_does(database: Database) -> None:
    def read_back(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "foreign_keys", "trusted_schema", "synchronous")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.write(read_back) == ["wal", 1, 0, 2]


async def test_a_write_is_seen_by_readers_once_it_returns(database: Database) -> None:
    assert await database.write(insert(7)) == 7
    assert await numbers(database) == [7]


async def test_readers_cannot_write(database: Database) -> None:
    async with database.reader() as reader:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.execute("INSERT INTO notes VALUES (1)")


async def test_a_closure_that_fails_is_undone_and_takes_nothing_with_it(database: Database) -> None:
    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (50)")
        raise ValueError("changed my mind")

    results = await asyncio.gather(
        database.write(insert(1)), database.write(half_done), database.write(insert(2)), return_exceptions=True
    )
    assert results[0] == 1
    assert isinstance(results[1], ValueError)
    assert results[2] == 2
    assert await numbers(database) == [1, 2]


async def test_waiting_writes_share_a_commit(database: Database) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    await database.write(lambda connection: connection.set_trace_callback(count))
    commits = 0
    await asyncio.gather(*(database.write(insert(number)) for number in range(200)))
    assert len(await numbers(database)) == 200
    assert 1 <= commits <= 20


async def test_a_cancelled_caller_leaves_no_open_transaction(database: Database) -> None:
    task = asyncio.create_task(database.write(insert(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(insert(2))
    assert await numbers(database) == [1, 2]


async def test_more_writes_than_may_wait_are_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database._queue, "maxsize", 1)
    results = await asyncio.gather(*(database.write(insert(number)) for number in range(50)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, StoreBusy)]
    kept = [result for result in results if isinstance(result, int)]
    assert refused
    assert await numbers(database) == sorted(kept)


async def test_close_finishes_what_waits_and_then_refuses(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    await database.write(lambda tx: tx.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY) STRICT"))
    writes = [asyncio.create_task(database.write(insert(number))) for number in range(30)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*writes) == list(range(30))
    with pytest.raises(StoreClosed):
        await database.write(insert(99))


async def test_a_second_process_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    program = (
        "import sys; from pathlib import Path; from coordinator.store.db import open_database\n"
        "try:\n    open_database(Path(sys.argv[1]))\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    second = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    await database.close()
    assert second.stdout.startswith("StoreRefused another coordinator already runs on")
    assert len(second.stdout.splitlines()) == 1
    await open_database(tmp_path).close()


async def test_a_home_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="choose another --home"):
        open_database(tmp_path / "absent")


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / db.DATABASE_NAME
    path.write_bytes(b"not a database at all, but somebody's file" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="cannot open"):
        open_database(tmp_path)
    assert path.read_bytes() == before


def test_the_log_of_the_last_process_is_written_again_and_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its fsync once failed nobody knows; the test of faults shows what that would lose."""
    (tmp_path / "left").mkdir()
    first = db.open_writer(tmp_path / "first")
    for suffix in ("", "-wal"):
        (tmp_path / "left" / f"store{suffix}").write_bytes((tmp_path / f"first{suffix}").read_bytes())
    first.close()
    before = (tmp_path / "left" / "store-wal").read_bytes()
    done: list[bytes | str] = []

    def write(file: int, piece: bytes, offset: int) -> int:
        assert offset == sum(map(len, done))
        done.append(piece[:777])  # the kernel may take less than it is given
        return os_pwrite(file, piece[:777], offset)

    def sync(file: int) -> None:
        assert os.path.samestat(os.fstat(file), os.stat(tmp_path / "left" / "store-wal"))
        done.append("synced")

    os_pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fsync", sync)
    db.open_writer(tmp_path / "left" / "store").close()
    assert done[-1] == "synced"
    assert b"".join(piece for piece in done if isinstance(piece, bytes)) == before
    assert len(before) > 4096


WRITES_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from coordinator.store.db import open_database

async def main():
    database = open_database(Path(sys.argv[1]))
    await database.write(lambda tx: tx.execute("CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY) STRICT"))
    async def writer(start):
        for number in range(start, 1_000_000, 8):
            await database.write(lambda tx: tx.execute("INSERT INTO notes VALUES (?)", (number,)))
            print(number, flush=True)
    await asyncio.gather(*(writer(start) for start in range(8)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged: list[int] = []
    async with asyncio.timeout(60):
        while len(acknowledged) < 200:
            line = await process.stdout.readline()
            if line.strip().isdigit():  # not the warning about an old SQLite
                acknowledged.append(int(line))
        os.kill(process.pid, signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
    acknowledged += [int(line) for line in rest.decode().split("\n")[:-1]]
    database = open_database(tmp_path)
    kept = set(await numbers(database))
    await database.close()
    assert kept.issuperset(acknowledged)


@pytest.mark.parametrize(
    ("version", "is_free"),
    [("3.40.1", False), ("3.44.6", True), ("3.50.6", False), ("3.50.7", True), ("3.51.2", False), ("3.52.0", True)],
)
def test_versions_of_sqlite_with_the_wal_reset_bug_are_known(version: str, is_free: bool) -> None:
    assert db._is_free_of_wal_reset_bug(map(int, version.split("."))) is is_free
