"""A store whose disk becomes full: filling it until it says so, also in a process whose files may not grow."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coordinator.store.db import Database, open_database, open_writer
from tests.helpers_workloads import DemonstrationLedger, Step

STEPS_MAX = 400
STEPS_AFTER = 8


def open_prepared(path: Path) -> sqlite3.Connection:
    connection = open_writer(path)
    DemonstrationLedger().prepare(connection)
    return connection


async def fill(database: Database, steps: Iterator[Step], acknowledged: list[Any]) -> sqlite3.Error | None:
    """Take steps until one meets the full disk."""
    for _, step in zip(range(STEPS_MAX), steps, strict=False):
        try:
            acknowledged.append(await database.write(step))
        except DemonstrationLedger.refusals:
            continue
        except sqlite3.Error as error:
            return error
    return None


async def write_under_a_limit(home: Path, limit_bytes: int) -> dict[str, Any]:
    """Meet RLIMIT_FSIZE three times, then go on without it. Python ignores SIGXFSZ, so that writes fail instead."""
    database = open_database(home, open_prepared)
    acknowledged: list[Any] = []
    steps = DemonstrationLedger().steps(random.Random(limit_bytes))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    errors = [await fill(database, steps, acknowledged) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = len(acknowledged)
    for _ in range(STEPS_AFTER):
        await fill(database, iter([next(steps)]), acknowledged)
    await database.close()
    codes = [error.sqlite_errorcode if error else None for error in errors]
    return {"acknowledged": acknowledged, "acknowledged_before": before, "codes": codes}


def main(home: str, limit_bytes: str) -> None:
    """In a process of its own: the limit is the whole process's. Writes what happened as JSON."""
    sys.stdout.write(json.dumps(asyncio.run(write_under_a_limit(Path(home), int(limit_bytes)))) + "\n")
