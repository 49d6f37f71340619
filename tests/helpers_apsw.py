"""A test double for sqlite3.Connection: an adapter over apsw, with the small part that the store uses.

Through it the store's own functions and its own group commit run on a disk of the test's (`helpers_disk`), and on
another SQLite than the interpreter's. Unlike sqlite3, rows are fetched at once, and a text of several statements is
not refused.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import apsw

from coordinator.store import db
from tests.helpers_disk import DATABASE, RecordingDisk

# As CPython's _sqlite/util.c maps them; everything else is a DatabaseError or an OperationalError.
ERRORS: dict[int, type[sqlite3.Error]] = {
    apsw.SQLITE_CONSTRAINT: sqlite3.IntegrityError,
    apsw.SQLITE_MISMATCH: sqlite3.IntegrityError,
    apsw.SQLITE_CORRUPT: sqlite3.DatabaseError,
    apsw.SQLITE_NOTADB: sqlite3.DatabaseError,
    apsw.SQLITE_TOOBIG: sqlite3.DataError,
    apsw.SQLITE_MISUSE: sqlite3.InterfaceError,
    apsw.SQLITE_INTERNAL: sqlite3.InternalError,
    apsw.SQLITE_NOTFOUND: sqlite3.InternalError,
}
CHANGING = ("INSERT", "UPDATE", "DELETE", "REPLACE")


def as_sqlite3_error(error: apsw.Error) -> sqlite3.Error:
    """The same failure as sqlite3 reports it, with its extended code."""
    result: int = getattr(error, "result", apsw.SQLITE_ERROR)
    converted = ERRORS.get(result, sqlite3.OperationalError)(str(error))
    converted.sqlite_errorcode = getattr(error, "extendedresult", result)
    converted.sqlite_errorname = type(error).__name__
    return converted


class AdaptedCursor:
    """What an execute returns."""

    def __init__(self, rows: list[Any], rowcount: int, lastrowid: int) -> None:
        self._rows = iter(rows)
        self.rowcount = rowcount
        self.lastrowid = lastrowid

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)


class AdaptedConnection:
    """An apsw connection that answers and fails as one of sqlite3 in autocommit (`isolation_level=None`)."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.apsw = connection

    @property
    def in_transaction(self) -> bool:
        return self.apsw.in_transaction

    def execute(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> AdaptedCursor:
        try:
            rows = self.apsw.execute(statement, parameters).fetchall()
        except apsw.Error as error:
            raise as_sqlite3_error(error) from error
        is_changing = statement.lstrip().upper().startswith(CHANGING)
        return AdaptedCursor(rows, self.apsw.changes() if is_changing else -1, self.apsw.last_insert_rowid())

    def executemany(self, statement: str, parameters: Iterable[Sequence[Any] | Mapping[str, Any]]) -> AdaptedCursor:
        cursors = [self.execute(statement, each) for each in parameters]
        return AdaptedCursor([], sum(cursor.rowcount for cursor in cursors), self.apsw.last_insert_rowid())

    def close(self) -> None:
        # SQLite closes whatever its last checkpoint meets; apsw would raise what the disk raised meanwhile.
        with contextlib.suppress(apsw.Error):
            self.apsw.close(force=True)


def adapted(connection: apsw.Connection) -> sqlite3.Connection:
    """For the store's functions, which ask for a sqlite3.Connection."""
    return cast("sqlite3.Connection", AdaptedConnection(connection))


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        db.prepare_writer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_with_apsw(path: Path) -> sqlite3.Connection:
    """What `db.open_writer` does, on the same real files, with the SQLite that apsw brings."""
    try:
        return _prepared(adapted(apsw.Connection(str(path))))
    except apsw.Error as error:
        raise as_sqlite3_error(error) from error


def open_on(disk: RecordingDisk) -> sqlite3.Connection:
    """What `db.open_writer` does, on a recording disk."""
    # As open_writer does, before SQLite looks.
    disk.create(DATABASE)
    if (log_file := disk.names.get(f"{DATABASE}-wal")) is not None:
        if disk.contents[log_file]:
            disk.write(log_file, 0, bytes(disk.contents[log_file]))
        disk.sync(log_file)
    connection = adapted(apsw.Connection(DATABASE, vfs=disk.name))
    # The files of a VFS in Python have no shared memory.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    return _prepared(connection)


def checkpoint_every(connection: sqlite3.Connection, pages: int) -> None:
    """As `PRAGMA wal_autocheckpoint` and SQLite's own hook: after a commit, and whatever comes of it the commit stands.

    The hook of SQLite would do the same, but apsw raises what the disk raised although SQLite has passed it over.
    """

    def hook(committed: apsw.Connection, database: str, pages_in_log: int) -> int:
        if pages_in_log >= pages:
            with contextlib.suppress(apsw.Error):
                committed.wal_checkpoint(database, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK

    cast("AdaptedConnection", connection).apsw.set_wal_hook(hook)
