"""Disks that fail: faults for a recording disk, and the store on it as one process sees it from start to end."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import apsw

from coordinator.store.db import Database, StoreFailed, open_database
from tests.helpers_apsw import checkpoint_every, open_on
from tests.helpers_disk import Forget, Operation, RecordingDisk, Sync, Write
from tests.helpers_power_cuts import OPENERS, Bench, Cut, Recording, cuts
from tests.helpers_unsynced import Image
from tests.helpers_workloads import Workload

STEPS_AFTER = 12
STEPS_MAX = 400


class Failing(Protocol):
    """A fault that counts how often it struck."""

    failures: int

    def __call__(self, disk: RecordingDisk, operation: Operation) -> None:
        """Raise an apsw error to make the operation fail."""


class Full:
    """From the given one on, no write that would make a file grow succeeds. Overwriting goes on, as on real disks.

    Of the write that met the limit the first half went through, of later ones nothing.
    """

    def __init__(self, at_write: int) -> None:
        self.writes_left = at_write
        self.failures = 0

    def __call__(self, disk: RecordingDisk, operation: Operation) -> None:
        if not isinstance(operation, Write):
            return
        if operation.offset + len(operation.data) <= len(disk.contents[operation.file]):
            return
        self.writes_left -= 1
        if self.writes_left < 0:
            if not self.failures:
                disk.write_part(operation, len(operation.data) // 2)
            self.failures += 1
            raise apsw.exception_for(apsw.SQLITE_FULL)


class WriteFails:
    """One write meets an error of the device; the first half of it went through."""

    def __init__(self, at_write: int) -> None:
        self.writes_left = at_write
        self.failures = 0

    def __call__(self, disk: RecordingDisk, operation: Operation) -> None:
        if not isinstance(operation, Write):
            return
        self.writes_left -= 1
        if self.writes_left == -1:
            disk.write_part(operation, len(operation.data) // 2)
            self.failures += 1
            raise apsw.exception_for(apsw.SQLITE_IOERR_WRITE)


class SyncFails:
    """One fsync fails, and the kernel drops what it could not write: the next fsync will succeed."""

    def __init__(self, at_sync: int) -> None:
        self.syncs_left = at_sync
        self.failures = 0

    def __call__(self, disk: RecordingDisk, operation: Operation) -> None:
        if not isinstance(operation, Sync):
            return
        self.syncs_left -= 1
        if self.syncs_left == -1:
            self.failures += 1
            disk.operations.append(Forget(operation.file))
            raise apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)


@asynccontextmanager
async def store_on(
    disk: RecordingDisk, home: Path, workload: Workload, checkpoint_pages: int = 1000
) -> AsyncIterator[Database]:
    """The real store, with its threads and its lock, over a recording disk. It can write, and has no readers."""

    def open_writer(_path: Path) -> sqlite3.Connection:
        connection = open_on(disk)
        checkpoint_every(connection, checkpoint_pages)
        workload.prepare(connection)
        return connection

    database = open_database(home, open_writer)
    try:
        yield database
    finally:
        await database.close()


@dataclass
class History:
    """What the callers of a store were told while its disk failed."""

    acknowledged: list[Any] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    after_failure: int = 0


async def live_through(
    database: Database, disk: RecordingDisk, workload: Workload, fault: Failing, seed: int
) -> History:
    """Take steps until the fault has struck, and more; it is taken away once three callers were told."""
    history = History()
    disk.fault = fault
    after = 0
    for _, step in zip(range(STEPS_MAX), workload.steps(random.Random(seed)), strict=False):
        after += bool(fault.failures)
        if after > STEPS_AFTER:
            break
        try:
            result = await database.write(step)
        except workload.refusals:
            continue
        except (sqlite3.Error, StoreFailed) as error:
            history.errors.append(error)
            if len(history.errors) == 3:
                disk.fault = None
        else:
            history.acknowledged.append(result)
            history.after_failure += bool(fault.failures)
    disk.fault = None
    return history


def look_after_a_kill(image: Image, workload: Workload, acknowledged: list[Any]) -> None:
    """Open what the process left behind, with each SQLite. Raises Lost, Unbalanced or Corrupt."""
    with Bench() as bench:
        for opener in OPENERS.values():
            bench.look(image, workload, acknowledged, opener)


async def start_again(disk: RecordingDisk, home: Path, workload: Workload) -> list[tuple[int, Any]]:
    """What the next process does after one was killed. Returns what was acknowledged, each with its place in time."""
    acknowledged: list[tuple[int, Any]] = []
    async with store_on(disk, home, workload) as database:
        for _, step in zip(range(STEPS_AFTER), workload.steps(random.Random(0)), strict=False):
            with contextlib.suppress(*workload.refusals):
                result = await database.write(step)
                acknowledged.append((len(disk.operations), result))
    return acknowledged


def look_after_power_cuts(
    disk: RecordingDisk, workload: Workload, acknowledged: list[tuple[int, Any]], since: int
) -> int:
    """Cut the power at every operation from this one on, and look. Returns how often."""
    recording = Recording(disk.initial, disk.operations, acknowledged)
    late: list[Cut] = list(cuts(recording, random.Random(since), 2, since))
    with Bench() as bench:
        for cut in late:
            bench.look(cut.image, workload, cut.acknowledged, OPENERS["sqlite3"])
    return len(late)


def from_the_start(acknowledged: list[Any]) -> list[tuple[int, Any]]:
    """Acknowledged before anything that is looked at."""
    return [(0, result) for result in acknowledged]
