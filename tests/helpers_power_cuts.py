"""Power cuts: from what a recording disk saw, every file set that a cut may leave, opened again and looked through."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

from coordinator.store import db
from tests.helpers_apsw import checkpoint_every, open_on, open_with_apsw
from tests.helpers_disk import DATABASE, Operation, RecordingDisk
from tests.helpers_unsynced import DROPPED, Image, UnsyncedDisk, fates
from tests.helpers_workloads import Lost, Step, Unbalanced, Workload

Opener = Callable[[Path], sqlite3.Connection]
OPENERS: Final[dict[str, Opener]] = {"sqlite3": db.open_writer, "apsw": open_with_apsw}


# ---------------------------------------------------------------- recording


@dataclass
class Recording:
    """What a disk saw, and after how many operations what was acknowledged."""

    initial: Image
    operations: list[Operation]
    acknowledged: list[tuple[int, Any]] = field(default_factory=list)


def commit_then_acknowledge(
    connection: sqlite3.Connection, batch: list[db._Write], acknowledge: Callable[[db._Write], None]
) -> None:
    """The store's own group commit; what did not fail is acknowledged after it has returned."""
    db._commit(connection, batch)
    for write in batch:
        if write.error is None:
            acknowledge(write)


Commit = Callable[[sqlite3.Connection, list[db._Write], Callable[[db._Write], None]], None]


@dataclass(frozen=True)
class Conditions:
    """How a workload is run. Small logs and little memory, so that checkpoints and spills happen often."""

    batches: int
    batch_max: int = 5
    restart_every: int = 25
    checkpoint_pages: int = 24
    cache_pages: int = 12
    # Applied after the store's own, by tests that take a guarantee away.
    pragmas: tuple[str, ...] = ()
    commit: Commit = commit_then_acknowledge


def opened(disk: RecordingDisk, workload: Workload, conditions: Conditions) -> sqlite3.Connection:
    """The store on this disk, ready for the workload."""
    connection = open_on(disk)
    checkpoint_every(connection, conditions.checkpoint_pages)
    connection.execute(f"PRAGMA cache_size = {conditions.cache_pages}")
    for pragma in conditions.pragmas:
        connection.execute(f"PRAGMA {pragma}")
    workload.prepare(connection)
    return connection


def record(workload: Workload, seed: int, conditions: Conditions, empty_disk: RecordingDisk | None = None) -> Recording:
    """Run a workload from an empty disk on, with a clean restart now and then and at the end."""
    rng = random.Random(seed)
    steps = workload.steps(rng)
    with empty_disk or RecordingDisk(seed=seed) as disk:
        recording = Recording(disk.initial, disk.operations)
        connection = opened(disk, workload, conditions)

        def acknowledge(write: db._Write) -> None:
            recording.acknowledged.append((len(disk.operations), write.result))

        for number in range(conditions.batches):
            if number % conditions.restart_every == conditions.restart_every - 1:
                connection.close()
                connection = opened(disk, workload, conditions)
            size = rng.choice((1, 1, 2, conditions.batch_max))
            batch = [waiting(next(steps)) for _ in range(size)]
            conditions.commit(connection, batch, acknowledge)
            for write in batch:
                if write.error is not None and not isinstance(write.error, workload.refusals):
                    raise write.error
        connection.close()
    return recording


def waiting(step: Step) -> db._Write:
    """A write as the store's queue holds it, with nobody waiting: `_commit` looks at neither loop nor future."""
    return db._Write(step, cast("Any", None), cast("Any", None))


# ---------------------------------------------------------------- looking


@dataclass
class Figures:
    """How many cuts were looked at and what was found; the first findings in words."""

    operations: int = 0
    cuts: int = 0
    lost: int = 0
    unbalanced: int = 0
    corrupt: int = 0
    cpu_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    def note(self, where: str, finding: Exception) -> None:
        """Count a finding."""
        match finding:
            case Lost():
                self.lost += 1
            case Unbalanced():
                self.unbalanced += 1
            case _:
                self.corrupt += 1
        if len(self.findings) < 5:
            self.findings.append(f"{where}: {type(finding).__name__}: {finding}")

    def __str__(self) -> str:
        speed = self.cuts / max(self.cpu_s, 1e-9)
        return (
            f"{self.cuts} power cuts over {self.operations} disk operations: {self.lost} with loss, "
            f"{self.unbalanced} unbalanced, {self.corrupt} corrupt; {speed:.0f} in a second of CPU"
            + "".join(f"\n  {finding}" for finding in self.findings)
        )


class Corrupt(Exception):
    """The database cannot be opened, or SQLite's own checks find it damaged."""


class Bench:
    """A directory in memory where images are laid out and opened. A context manager."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._home = Path(tempfile.mkdtemp(prefix="cuts-", dir=memory if memory.is_dir() else None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._home, ignore_errors=True)

    def lay(self, image: Image) -> Path:
        """Make the directory hold these files and no others; returns the database's path."""
        for name in os.listdir(self._home):
            if name not in image:
                os.unlink(self._home / name)
        for name, data in image.items():
            file = os.open(self._home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(file, data)
            os.close(file)
        return self._home / DATABASE

    def look(self, image: Image, workload: Workload, acknowledged: list[Any], opener: Opener) -> None:
        """Recover as the store does at its start, and check everything. Raises Lost, Unbalanced or Corrupt."""
        path = self.lay(image)
        try:
            connection = opener(path)
        except Exception as error:
            raise Corrupt(f"cannot be opened: {error}") from error
        try:
            inspect(connection, workload, acknowledged)
        except sqlite3.Error as error:
            raise Corrupt(str(error)) from error
        finally:
            connection.close()


def inspect(connection: sqlite3.Connection, workload: Workload, acknowledged: list[Any]) -> None:
    """Everything that must hold in an open store. Raises Lost, Unbalanced or Corrupt."""
    workload.prepare(connection)
    if (found := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
        raise Corrupt(f"integrity_check: {found[:3]}")
    if found := connection.execute("PRAGMA foreign_key_check").fetchall():
        raise Corrupt(f"foreign_key_check: {found[:3]}")
    workload.check(connection, acknowledged)


@dataclass(frozen=True)
class Cut:
    """One moment and one thing that may have become of what was pending then."""

    operation: int
    image: Image
    acknowledged: list[Any]


def cuts(recording: Recording, rng: random.Random, per_operation: int, since: int = 0) -> Iterator[Cut]:
    """Cuts before the first operation and after each one, each of them leaving something else than the others.

    With `since` those after so many operations alone.
    """
    disk = UnsyncedDisk(recording.initial)
    seen: set[object] = set()
    acknowledged: list[Any] = []
    waiting_acknowledgements = iter([*recording.acknowledged, (len(recording.operations) + 1, None)])
    position, result = next(waiting_acknowledgements)
    for number in range(len(recording.operations) + 1):
        before = len(disk.pending)
        if number:
            disk.follow(recording.operations[number - 1])
        if len(disk.pending) < before or position <= number:
            seen.clear()
        while position <= number:
            acknowledged = [*acknowledged, result]
            position, result = next(waiting_acknowledgements)
        if number < since:
            continue
        for fate in sorted(fates(disk.pending, rng, per_operation)):
            # Pending operations keep their places until a sync, so what was kept of them says it all.
            kept = tuple((place, each) for place, each in enumerate(fate) if each != DROPPED)
            if kept not in seen:
                seen.add(kept)
                yield Cut(number, disk.image(fate), acknowledged)


def cut_everywhere(
    recording: Recording, workload: Workload, seed: int, per_operation: int, figures: Figures, *, alternately: bool
) -> None:
    """Look at every cut with each SQLite, or with one and the other in turn, and add to the figures."""
    openers = list(OPENERS.items())
    started_s = time.process_time()
    figures.operations += len(recording.operations)
    with Bench() as bench:
        for number, cut in enumerate(cuts(recording, random.Random(seed), per_operation)):
            figures.cuts += 1
            for name, opener in [openers[number % 2]] if alternately else openers:
                try:
                    bench.look(cut.image, workload, cut.acknowledged, opener)
                except (Lost, Unbalanced, Corrupt) as finding:
                    figures.note(f"operation {cut.operation}, {name}", finding)
                    break
    figures.cpu_s += time.process_time() - started_s


def recovery(cut: Cut, workload: Workload) -> Recording:
    """What a start after a cut does to the disk: to cut it again."""
    with RecordingDisk(cut.image) as disk:
        connection = open_on(disk)
        workload.prepare(connection)
        connection.close()
    return Recording(disk.initial, disk.operations, [(0, result) for result in cut.acknowledged])


def cut_recoveries(
    recording: Recording, workload: Workload, seed: int, share: float, per_operation: int, figures: Figures
) -> None:
    """Cut the power again while the store recovers from some of the cuts."""
    rng = random.Random(seed)
    for cut in cuts(recording, rng, per_operation):
        if rng.random() < share:
            again = recovery(cut, workload)
            cut_everywhere(again, workload, rng.getrandbits(32), per_operation, figures, alternately=True)
