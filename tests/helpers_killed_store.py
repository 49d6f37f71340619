"""What is killed to test the coordinator's store: it opens the real one, writes, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coordinator.store.db import Database, open_database, open_writer
from tests.helpers_workloads import DemonstrationLedger, Step

TOGETHER = 4
CHECKPOINT_PAGES = 24


def write_until_killed(home: str, seed: int, rounds: int, first_transfer: int = 1) -> None:
    """Write rounds of steps into the store in this directory; each line of standard output is one acknowledged."""
    asyncio.run(_write(Path(home), DemonstrationLedger(first_transfer).steps(random.Random(seed)), rounds))


def _open(path: Path) -> sqlite3.Connection:
    connection = open_writer(path)
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    DemonstrationLedger().prepare(connection)
    return connection


async def _write(home: Path, steps: Iterator[Step], rounds: int) -> None:
    database = open_database(home, _open)
    for _ in range(rounds):
        await asyncio.gather(*(_acknowledge(database, next(steps)) for _ in range(TOGETHER)))
    await database.close()


async def _acknowledge(database: Database, step: Step) -> None:
    try:
        result: Any = await database.write(step)
    except DemonstrationLedger.refusals:
        return
    os.write(1, json.dumps(result).encode() + b"\n")
