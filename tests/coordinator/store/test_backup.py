"""A restore on a disk that becomes full: all of it, or nothing."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from coordinator.store.backup import back_up, restore
from coordinator.store.db import DATABASE_NAME, LOCK_NAME, open_writer
from coordinator.store.journal import Journal
from coordinator.store.ledger import Head, Ledger
from coordinator.store.ledger_check import check_file
from protocol.ids import NodeId
from protocol.ledger import Deposit
from tests.helpers_ledger_commands import NOW_MS


@contextmanager
def no_file_grows_beyond(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def deposit(connection: sqlite3.Connection, first: int, count: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with Ledger().begin(connection) as ledger:
        for number in range(first, first + count):
            ledger.command(Deposit(f"p{number}", NodeId(number.to_bytes(32, "big")), "BTC", 1, 1, 0), NOW_MS)
    connection.execute("COMMIT")


def restored(copy: Path, journal: Path, home: Path) -> Head:
    warnings: list[str] = []
    head = restore(copy, journal, home, lambda _command, _head, _at_ms: None, warnings.append)
    assert not warnings
    return head


def test_a_restore_that_finds_no_room_for_what_the_journal_adds_restores_nothing(tmp_path: Path) -> None:
    home, copy, new = tmp_path / "home", tmp_path / "copy", tmp_path / "new"
    home.mkdir()
    new.mkdir()
    with closing(open_writer(home / DATABASE_NAME)) as connection, closing(Journal(home / "j")) as journal:
        deposit(connection, 0, 2000)
        journal.append_new(connection)
        back_up(home, copy)
        deposit(connection, 2000, 200)
        journal.append_new(connection)
        last = journal.last
    with no_file_grows_beyond(copy.stat().st_size + 4096), pytest.raises(sqlite3.Error, match=r"full|I/O"):
        restored(copy, home / "j", new)
    assert not (new / DATABASE_NAME).exists()
    assert restored(copy, home / "j", new) == last
    assert check_file(new / DATABASE_NAME) == last
    assert sorted(os.listdir(new)) == sorted([DATABASE_NAME, LOCK_NAME])
