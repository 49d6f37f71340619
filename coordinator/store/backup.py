"""Backups of the database, and back from one with the journal.

A backup is taken through a connection that only reads, so the server may run: it sees one moment, never checkpoints,
and the writer goes on meanwhile. It is one file. A restore decides every command of the journal again, so it ends in
the very head that was signed, or it says where it does not.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from coordinator.store import leases
from coordinator.store.db import DATABASE_NAME, LOCK_NAME, open_writer, take_lock, uri_to_read
from coordinator.store.journal import JournalReading, read_journal
from coordinator.store.ledger import Head, Ledger, LedgerTransaction, read_head
from coordinator.store.ledger_check import Drift, ReadEntry, check, follow
from protocol.ids import NodeId
from protocol.ledger import Entry, OpenLease
from protocol.records import Signed

REPLAYED_AT_ONCE: Final = 2000
# What SQLite keeps beside a database that was not closed.
LOG_ENDINGS: Final = ("-wal", "-shm", "-journal")

# Signs the lease that came of this command, once more: what was signed is no part of an entry.
SignLease = Callable[[OpenLease, Head, int], tuple[NodeId, bytes, Signed] | None]


class BackupRefused(Exception):
    """There is no backup, or nothing was restored; the message is one line: what, why, what to do."""


def back_up(home: Path, target: Path) -> Head:
    """Copy the database of this home into a new file, and check the copy; returns its head.

    Raises BackupRefused, Drift or sqlite3.Error; then there is no file.
    """
    source = home / DATABASE_NAME
    if not source.exists():
        raise BackupRefused(f"there is no database in {home}; choose another --home")
    with _new_file(target) as draft, closing(sqlite3.connect(draft, isolation_level=None)) as copy:
        with closing(sqlite3.connect(uri_to_read(source), uri=True)) as reader:
            reader.backup(copy)
        # One file that needs no others beside it.
        copy.execute("PRAGMA journal_mode = DELETE")
        return check(copy, replayed_entries_max=0)


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A draft that becomes this file, whole and on disk, when the block ends well; else there is nothing."""
    if not path.name:
        raise BackupRefused("a backup needs the name of a file that is not there yet")
    draft = path.with_name(f"{path.name}.draft")
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        # Of one that was killed. A log that stayed behind would be taken for one of the new file.
        for ending in ("", *LOG_ENDINGS):
            draft.with_name(draft.name + ending).unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise BackupRefused(f"cannot write {path}: {error.strerror}; name a file that is not there yet") from None
    try:
        yield draft
        _sync(draft)
        os.link(draft, path)
    finally:
        draft.unlink()
        _sync(path.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def restore(
    backup: Path, journal: Path | None, home: Path, sign_lease: SignLease, warn: Callable[[str], object]
) -> Head:
    """Put a backup into a home that has no database, and add what the journal has since; returns the head.

    `warn` hears, in one line, where the journal cannot be read to its end.
    Raises BackupRefused, JournalRefused, Drift or sqlite3.Error; then the home has no database, as before. What is no
    entry of the ledger (registrations, chats, complaints, wishes to close) is as old as the backup.
    """
    if not backup.is_file():
        raise BackupRefused(f"there is no file {backup}")
    lock = take_lock(home / LOCK_NAME)
    try:
        _check_nothing_is_left(home / DATABASE_NAME)
        with _new_file(home / DATABASE_NAME) as draft:
            with (
                closing(sqlite3.connect(uri_to_read(backup), uri=True)) as reader,
                closing(sqlite3.connect(draft)) as copy,
            ):
                reader.backup(copy)
            with closing(open_writer(draft)) as connection:
                # A draft is worth nothing until it is whole, and then it is synced.
                connection.execute("PRAGMA synchronous = OFF")
                if journal is not None:
                    _catch_up(connection, journal, sign_lease, warn)
                # Into one file, before it is called whole: what the log still had when SQLite closes it, and finds no
                # room for, would be lost without a word.
                connection.execute("PRAGMA journal_mode = DELETE")
                return check(connection, replayed_entries_max=0)
    finally:
        os.close(lock)


def _check_nothing_is_left(database: Path) -> None:
    """What another database has left beside it, SQLite would write over the one that is restored."""
    if database.exists():
        return  # a better reason to refuse
    for ending in LOG_ENDINGS:
        left = database.with_name(database.name + ending)
        if ending != "-shm" and left.exists() and left.stat().st_size:
            raise BackupRefused(f"{left} is left of another database; move it away together with that")
        left.unlink(missing_ok=True)


def _catch_up(
    connection: sqlite3.Connection, journal: Path, sign_lease: SignLease, warn: Callable[[str], object]
) -> None:
    ledger, first = Ledger(), read_head(connection)
    reading = read_journal(journal, trusted=first.entry)
    entries = _entries_after(first, reading)
    while some := list(islice(entries, REPLAYED_AT_ONCE)):
        connection.execute("BEGIN IMMEDIATE")
        opened = []
        with ledger.begin(connection) as transaction:
            for entry in some:
                _repeat(transaction, entry)
                if isinstance(entry.command, OpenLease):
                    opened.append((entry.command, Head(entry.number, entry.head), entry.at_ms))
        for command, head, at_ms in opened:
            signed = sign_lease(command, head, at_ms)
            if signed is not None:
                leases.put_record(connection, command.lease, *signed)
        connection.execute("COMMIT")
    if reading.rest is not None:
        warn(
            f"{journal} cannot be read {_where(reading)}: after a crash that was never acknowledged; but if the file "
            "is damaged, entries are missing, so keep it and look for another copy"
        )


def _where(reading: JournalReading) -> str:
    rest = reading.rest
    return f"from byte {rest.offset} on ({rest.size_bytes} bytes after entry {rest.after_entry})" if rest else ""


def _entries_after(first: Head, reading: JournalReading) -> Iterator[ReadEntry]:
    last = Head(0, bytes(32))
    for body, head in reading:
        if last.entry >= first.entry:
            yield follow(last, body, head)
        last = Head(last.entry + 1, head)
        if last.entry == first.entry and last.head != first.head:
            raise Drift(f"entry {last.entry} of the journal is not that of the backup")
    if last.entry < first.entry:
        where = f" and cannot be read {_where(reading)}" if reading.rest is not None else ""
        raise Drift(f"the journal ends at entry {last.entry}{where}, before the backup, which has {first.entry}")


def _repeat(transaction: LedgerTransaction, entry: ReadEntry) -> None:
    verdict = transaction.command(entry.command, entry.at_ms)
    if not isinstance(verdict, Entry) or transaction.head != Head(entry.number, entry.head):
        raise Drift(f"entry {entry.number} of the journal is not what comes of its command")
