"""What is read of a ledger on disk: an entry that follows, or one sentence that says where it does not."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.store.ledger import Head, Ledger
from coordinator.store.ledger_check import Drift, check, follow
from coordinator.store.migrations import migrate
from protocol.book import Book
from protocol.errors import RemoteProtocolError
from protocol.ledger import GENESIS_HEAD, AnyCommand, Entry, entry_body, next_head, read_entry_body
from tests.helpers_ledger_commands import NOW_MS, open_command, timed_commands


@given(st.lists(timed_commands, max_size=20))
def test_every_entry_is_read_as_it_was_written(commands: list[tuple[AnyCommand, int]]) -> None:
    book = Book()
    for command, at_ms in commands:
        verdict = book.command(command, at_ms)
        if isinstance(verdict, Entry):
            assert read_entry_body(book.entries[-1]) == (book.number, at_ms, command, verdict.postings)


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    try:
        number, at_ms, _, postings = read_entry_body(data)
    except RemoteProtocolError:
        return
    assert (type(number), type(at_ms), type(postings)) == (int, int, tuple)


@given(st.binary(min_size=1, max_size=4), st.integers(0, 200))
def test_an_altered_entry_does_not_follow(noise: bytes, at: int) -> None:
    body = entry_body(1, NOW_MS, Entry(open_command(), ()))
    altered = body[: at % len(body)] + noise + body[at % len(body) + len(noise) :]
    if altered != body:
        with pytest.raises(Drift):
            follow(Head(0, GENESIS_HEAD), altered, next_head(GENESIS_HEAD, body))


@given(st.lists(timed_commands, max_size=25), st.booleans())
def test_a_ledger_of_any_commands_agrees_with_itself(commands: list[tuple[AnyCommand, int]], replays: bool) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as tx:
        migrate(tx)
        ledger = Ledger()
        for command, at_ms in commands:
            ledger.command(tx, command, at_ms)
        with ledger.begin(tx) as state:
            head = state.head
        assert check(tx, replayed_entries_max=1000 if replays else 0) == head
