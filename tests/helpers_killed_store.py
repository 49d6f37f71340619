"""What is killed to test the coordinator's store: it opens the real one, writes, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from coordinator.store.db import Database, Follower, open_database, open_writer
from tests.helpers_workloads import DemonstrationLedger, Step, Workload

TOGETHER = 4
CHECKPOINT_PAGES = 24
Writer = Callable[[Database, Step], Awaitable[None]]


def write_until_killed(home: str, seed: int, rounds: int, first_transfer: int = 1) -> None:
    """Write rounds of steps into the store in this directory; each line of standard output is one acknowledged."""
    asyncio.run(keep_writing(Path(home), DemonstrationLedger(first_transfer), seed, rounds, acknowledge))


def acknowledge_too_early(home: str, seed: int, rounds: int) -> None:
    """A mutant: it acknowledges from inside the transaction."""
    asyncio.run(keep_writing(Path(home), DemonstrationLedger(), seed, rounds, acknowledge_inside))


async def keep_writing(
    home: Path, workload: Workload, seed: int, rounds: int, write: Writer, follow: Callable[[], Follower] | None = None
) -> None:
    """The same for any workload whose results are JSON; what it refuses is passed over."""

    def opened(path: Path) -> sqlite3.Connection:
        connection = open_with_small_log(path)
        workload.prepare(connection)
        return connection

    async def one(step: Step) -> None:
        with contextlib.suppress(*workload.refusals):
            await write(database, step)

    database = open_database(home, opened)
    if follow is not None:
        database.follower = follow()
    steps = workload.steps(random.Random(seed))
    for _ in range(rounds):
        await asyncio.gather(*(one(next(steps)) for _ in range(TOGETHER)))
    await database.close()


def open_with_small_log(path: Path) -> sqlite3.Connection:
    """What the store opens, so that checkpoints are met often."""
    connection = open_writer(path)
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return connection


async def acknowledge(database: Database, step: Step) -> None:
    """Say what was written, once it is."""
    say(await database.write(step))


async def acknowledge_inside(database: Database, step: Step) -> None:
    """Say it before it is."""
    await database.write(lambda tx: say(step(tx)))


def say(result: Any) -> None:
    """One line, in one call."""
    os.write(1, json.dumps(result).encode() + b"\n")
