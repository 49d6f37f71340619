"""A disk that is really full: SQLite and the kernel as they are, on a small file system and under a limit of size."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.store.db import DATABASE_NAME, StoreRefused, open_database
from tests.helpers_full_disk import STEPS_AFTER, fill, open_prepared
from tests.helpers_power_cuts import inspect
from tests.helpers_workloads import DemonstrationLedger

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SIZE_BYTES = 2 << 20
ROOT = Path(__file__).resolve().parents[3]
LIMITED = "import sys; from tests.helpers_full_disk import main; main(*sys.argv[1:])"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two mebibytes: what is told to be free, and as much for the log to be copied."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(place)]
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def look(home: Path, acknowledged: list[Any]) -> None:
    """Open what lies there, as the next process would: exactly what was acknowledged."""
    connection = open_prepared(home / DATABASE_NAME)
    try:
        inspect(connection, DemonstrationLedger(), acknowledged)
        there = {row[0] for row in connection.execute("SELECT DISTINCT transfer FROM test_postings").fetchall()}
        assert there == {number for kind, number in acknowledged if kind == "transfer"}
    finally:
        connection.close()


@pytest.mark.parametrize("free_bytes", [40_000, 90_000, 200_000, 333_000, 512_000, 700_000])
async def test_a_full_file_system_is_told_and_needs_no_restart(
    free_bytes: int, small_disk: Path, tmp_path: Path
) -> None:
    database = open_database(small_disk, open_prepared)
    acknowledged: list[Any] = []
    steps = DemonstrationLedger().steps(random.Random(free_bytes))
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - free_bytes)))
    for _ in range(3):
        error = await fill(database, steps, acknowledged)
        assert error is not None, "the disk was never full"
        assert error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    ballast.unlink()
    for _ in range(STEPS_AFTER):
        await fill(database, iter([next(steps)]), acknowledged)
    assert not database.failed.done()
    copy = tmp_path / "copy"
    shutil.copytree(small_disk, copy, ignore=shutil.ignore_patterns("*.lock"))
    look(copy, acknowledged)
    await database.close()
    look(small_disk, acknowledged)


async def test_a_store_that_cannot_be_made_for_want_of_space_is_refused_and_made_later(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    for spare_bytes in (0, 8192, 24_576):
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - spare_bytes))
        with pytest.raises(StoreRefused, match=r"cannot open|cannot write to"):
            open_database(small_disk, open_prepared)
        ballast.unlink()
    await open_database(small_disk, open_prepared).close()


@pytest.mark.parametrize("limit_bytes", [470_000, 520_000, 575_555, 620_000])
async def test_a_limit_on_the_size_of_files_is_told_and_needs_no_restart(limit_bytes: int, tmp_path: Path) -> None:
    """RLIMIT_FSIZE needs no root, and fails a write with EFBIG where a full disk would with ENOSPC."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit_bytes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["codes"] == [sqlite3.SQLITE_IOERR_WRITE] * 3
    acknowledged = [(kind, number) for kind, number in answer["acknowledged"]]
    assert len(acknowledged) > answer["acknowledged_before"] > 0
    look(tmp_path, acknowledged)
