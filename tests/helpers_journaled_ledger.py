"""The ledger with its journal behind every commit, as a workload; and whether the journal keeps what it promises."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from coordinator.store import db
from coordinator.store.journal import MAGIC, Journal, JournalFollower, read_journal
from coordinator.store.ledger import read_head
from tests.helpers_ledger_workload import LedgerWorkload
from tests.helpers_workloads import Lost, Unbalanced

JOURNAL: Final = "ledger.journal"


class JournaledLedger(LedgerWorkload):
    """Writes its journal into this folder while it is recorded; looks for it beside the database afterwards.

    `acknowledges_early` is a mutant: it does not wait for the journal.
    """

    def __init__(self, folder: Path, *, acknowledges_early: bool = False) -> None:
        super().__init__()
        self._folder = folder
        self._acknowledges_early = acknowledges_early
        self._journal: Journal | None = None
        self._followed: sqlite3.Connection | None = None

    def commit(
        self, connection: sqlite3.Connection, batch: list[db._Write], acknowledge: Callable[[db._Write], None]
    ) -> None:
        follower = JournalFollower(self._journal_of(connection), _must_not_break, _must_not_break)
        if self._acknowledges_early:
            super().commit(connection, batch, acknowledge)
            db._follow_up(follower, connection, batch)
            return

        def follow_and_acknowledge(write: db._Write) -> None:
            # Once for a batch: the others find nothing new.
            db._follow_up(follower, connection, batch)
            if write.error is None:
                acknowledge(write)

        super().commit(connection, batch, follow_and_acknowledge)

    def _journal_of(self, connection: sqlite3.Connection) -> Journal:
        if self._journal is None or connection is not self._followed:
            self.close()
            self._journal, self._followed = Journal(self._folder / JOURNAL), connection
        return self._journal

    def close(self) -> None:
        """Let go of the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def check(self, connection: sqlite3.Connection, acknowledged: Collection[Any]) -> None:
        super().check(connection, acknowledged)
        path = Path(connection.execute("PRAGMA database_list").fetchall()[0][2])
        check_journal(path.with_name(JOURNAL), connection, max((each[1] for each in acknowledged), default=0))


def _must_not_break(reason: str | None) -> None:
    raise AssertionError(reason)


def check_journal(path: Path, connection: sqlite3.Connection, acknowledged: int) -> None:
    """What was acknowledged is in it, and nothing that the database lacks; a start brings it up to date.

    Raises Lost or Unbalanced, and JournalRefused where the coordinator would refuse it.
    """
    heads = [row[0] for row in connection.execute("SELECT head FROM entries ORDER BY number").fetchall()]
    before = _heads(path)
    if before != heads[: len(before)]:
        raise Unbalanced(f"the journal has {len(before)} entries, and the database {len(heads)}")
    if len(before) < acknowledged:
        raise Lost(f"entry {acknowledged} was acknowledged, and the journal ends with {len(before)}")
    journal = Journal(path)
    try:
        journal.append_new(connection)
        if journal.last != read_head(connection):
            raise Unbalanced("the journal was not brought up to date")
    finally:
        journal.close()
    if _heads(path) != heads:
        raise Unbalanced("the journal has other entries than the database")


def _heads(path: Path) -> list[bytes]:
    """What whoever restores from it would find. A file that was never synced may have any content."""
    if not path.exists() or not path.read_bytes().startswith(MAGIC):
        return []
    return [head for _, head in read_journal(path)]
