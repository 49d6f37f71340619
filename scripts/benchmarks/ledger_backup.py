"""How long a backup of a large ledger takes, and back from it with the journal, beside copies of the same file.

The last tenth of the entries is in the journal alone, as when the disk dies a while after the last backup. The ledger
that comes back must have the same head. What is made is checked each time, as the command does it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from coordinator.store.backup import back_up, restore
from coordinator.store.db import DATABASE_NAME, open_writer
from coordinator.store.journal import Journal
from coordinator.store.ledger import Ledger, read_head
from protocol.ids import LeaseId, NodeId
from protocol.ledger import Claim, Deposit, Entry, OpenLease
from protocol.records import Signed

LEASES: Final = 1000
CLAIMS_AT_ONCE: Final = 2000
NOW_MS: Final = 1_795_000_000_000
VOUCHER: Final = Signed(bytes(150), bytes(64))


@dataclass(frozen=True)
class Figures:
    """Seconds, and of what."""

    database_mib: int
    entries: int
    entries_in_journal_alone: int
    backup_s: float
    restore_s: float
    bare_copy_s: float
    #: Backup and restore, as a multiple of two bare copies.
    ratio: float
    is_same_head: bool


def node(number: int) -> NodeId:
    """A key that signs nothing."""
    return NodeId(number.to_bytes(32, "big"))


def lease(number: int) -> LeaseId:
    """One of the leases."""
    return LeaseId((LEASES + number).to_bytes(32, "big"))


class Writer:
    """Fills a ledger and its journal."""

    def __init__(self, home: Path) -> None:
        self._ledger = Ledger()
        self._claims = 0
        self._journal = Journal(home / "ledger.journal")
        self._connection = open_writer(home / DATABASE_NAME)
        self._connection.execute("PRAGMA synchronous = OFF")  # this is not what is measured
        with self._ledger.begin(self._connection) as ledger:
            ledger.command(Deposit("bench", node(1), "BTC", 1, 2**50, 0), NOW_MS)
            for number in range(LEASES):
                command = OpenLease(
                    *(lease(number), node(1), None, node(2), node(3 + number % 50), None, 0, 100, 10**12 // 2),
                    *(NOW_MS + 1, NOW_MS + 2, VOUCHER),
                )
                assert isinstance(ledger.command(command, NOW_MS), Entry)

    def grow(self, database_bytes: int) -> None:
        """Claim until the database is so large, with what is in its log and comes to the file later."""
        while self._size_bytes() < database_bytes:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._ledger.begin(self._connection) as ledger:
                for _ in range(CLAIMS_AT_ONCE):
                    self._claims += 1
                    at = self._claims % LEASES
                    command = Claim(lease(at), node(3 + at % 50), 10 * self._claims, 0, VOUCHER)
                    assert isinstance(ledger.command(command, NOW_MS), Entry)
            self._connection.execute("COMMIT")
            self._journal.append_new(self._connection)

    def _size_bytes(self) -> int:
        row = self._connection.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        ).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Let go of both files."""
        self._connection.close()
        self._journal.close()


def measure(folder: Path, size_bytes: int) -> Figures:
    """Fill, back up, go on, restore."""
    home, new, copy = folder / "home", folder / "new", folder / "copy"
    home.mkdir()
    new.mkdir()
    writer = Writer(home)
    writer.grow(size_bytes * 9 // 10)
    started_s = time.perf_counter()
    first = back_up(home, copy)
    backup_s = time.perf_counter() - started_s
    writer.grow(size_bytes)
    writer.close()
    bare_s = bare_copy_s(home / DATABASE_NAME, folder / "bare")
    started_s = time.perf_counter()
    head = restore(copy, home / "ledger.journal", new, lambda _command, _head, _at_ms: None, print)
    restore_s = time.perf_counter() - started_s
    with closing(open_writer(home / DATABASE_NAME)) as connection:
        is_same_head = read_head(connection) == head
    return Figures(
        database_mib=(home / DATABASE_NAME).stat().st_size // 2**20,
        entries=head.entry,
        entries_in_journal_alone=head.entry - first.entry,
        backup_s=backup_s,
        restore_s=restore_s,
        bare_copy_s=bare_s,
        ratio=(backup_s + restore_s) / (2 * bare_s),
        is_same_head=is_same_head,
    )


def bare_copy_s(source: Path, target: Path) -> float:
    """How long the file alone takes to another place on this disk."""
    started_s = time.perf_counter()
    shutil.copyfile(source, target)
    file = os.open(target, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
    target.unlink()
    return time.perf_counter() - started_s


def main() -> int:
    """Measure and print; 1 when the head is another one."""
    parser = argparse.ArgumentParser(prog="scripts/bench ledger_backup", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the database (default 1024)")
    parser.add_argument("--folder", help="where the files are made: the disk that is measured")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    words = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=words.folder))
    try:
        figures = measure(folder, words.mib * 2**20)
    finally:
        shutil.rmtree(folder)
    if words.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        print(
            f"{figures.database_mib} MiB, {figures.entries} entries, {figures.entries_in_journal_alone} of them in the "
            f"journal alone:\nbackup {figures.backup_s:.1f} s, restore {figures.restore_s:.1f} s, "
            f"{'the same head' if figures.is_same_head else 'ANOTHER HEAD'}; "
            f"bare copy {figures.bare_copy_s:.1f} s: ratio {figures.ratio:.1f}"
        )
    return 0 if figures.is_same_head else 1


if __name__ == "__main__":
    sys.exit(main())
