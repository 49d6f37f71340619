"""The ledger on disk beside the one in memory: same verdicts, same money, same bytes, whatever is rolled back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.store.ledger import Ledger, LedgerTransaction, read_head
from coordinator.store.migrations import migrate
from protocol.book import Book
from protocol.ledger import AnyCommand, Claim, Deposit, Entry, MoneyRefusal, Refused, Unchanged, available
from tests.helpers_ledger_commands import NOW_MS, lease_id, node, open_command, timed_commands

DEPOSIT = Deposit("p1", node(1), "BTC", 5, 3000, 0)


class ChangedMyMind(Exception):
    """What a block raises to be undone."""


def opened() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection)
    return connection


@pytest.fixture
def tx() -> Iterator[sqlite3.Connection]:
    with closing(opened()) as connection:
        yield connection


def balances(tx: sqlite3.Connection) -> dict[str, int]:
    return {name: balance for name, balance in tx.execute("SELECT name, balance FROM accounts") if balance}


def assert_same(tx: sqlite3.Connection, ledger: Ledger, book: Book) -> None:
    """What the rows say, what the ledger says by its cache and without it, and what the book says."""
    assert balances(tx) == {name: balance for name, balance in book.accounts.items() if balance}
    assert [row[0] for row in tx.execute("SELECT body FROM entries ORDER BY number")] == book.entries
    assert read_head(tx).head == book.head
    for each in (ledger, Ledger()):
        with each.begin(tx) as state:
            assert state.downtime_ms == book.downtime_ms
            assert state.head.head == book.head
            for lease in map(lease_id, (1, 2, 3)):
                assert state.lease(lease) == book.lease(lease)
            for intent in (b"a" * 16, b"b" * 16):
                assert state.payout(intent) == book.payout(intent)


@given(st.lists(st.lists(timed_commands, max_size=6), max_size=12))
def test_disk_and_memory_decide_and_keep_the_same(blocks: list[list[tuple[AnyCommand, int]]]) -> None:
    with closing(opened()) as tx:
        ledger, book = Ledger(), Book()
        for block in blocks:
            with ledger.begin(tx) as state:
                for command, at_ms in block:
                    assert state.command(command, at_ms) == book.command(command, at_ms)
        assert_same(tx, ledger, book)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(timed_commands, max_size=6), st.booleans(), st.booleans()), max_size=12))
def test_what_is_rolled_back_leaves_nothing_in_the_cache(
    blocks: list[tuple[list[tuple[AnyCommand, int]], bool, bool]],
) -> None:
    with closing(opened()) as tx:
        ledger, book = Ledger(), Book()
        for block, fails, commit_fails in blocks:
            tx.execute("BEGIN IMMEDIATE")
            tx.execute("SAVEPOINT closure")
            try:
                with ledger.begin(tx) as state:
                    for command, at_ms in block:
                        state.command(command, at_ms)
                    if fails:
                        raise ChangedMyMind
            except ChangedMyMind:
                tx.execute("ROLLBACK TO closure")
            tx.execute("RELEASE closure")
            # As when the disk is full: every closure has succeeded, and then the commit has not.
            tx.execute("ROLLBACK" if commit_fails else "COMMIT")
            if not fails and not commit_fails:
                for command, at_ms in block:
                    book.command(command, at_ms)
        assert_same(tx, ledger, book)


def test_a_claim_looks_nothing_up_that_is_known(tx: sqlite3.Connection) -> None:
    ledger = Ledger()
    for command in (DEPOSIT, open_command(), Claim(lease_id(1), node(2), 1, 0, None)):
        assert isinstance(ledger.command(tx, command, NOW_MS), Entry)
    statements: list[str] = []
    tx.set_trace_callback(lambda statement: statements.append(statement.strip()))
    with ledger.begin(tx) as state:
        for paid in range(2, 52):
            assert isinstance(state.command(Claim(lease_id(1), node(2), paid, 0, None), NOW_MS), Entry)
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len([select for select in selects if "FROM entries ORDER BY" in select]) == len(selects) == 1
    # A set, because SQLite tells a statement again for each trigger that it fires.
    assert len({statement for statement in statements if statement.startswith("UPDATE leases")}) == 1


@pytest.mark.parametrize("table", ["entries", "postings"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET {}", "DELETE FROM {}", "INSERT OR REPLACE INTO {} SELECT * FROM {}"]
)
def test_entries_and_postings_are_never_altered(tx: sqlite3.Connection, table: str, statement: str) -> None:
    Ledger().command(tx, DEPOSIT, NOW_MS)
    column = {"entries": "at_ms = 0", "postings": "amount = 1"}[table]
    values = (table, column) if "UPDATE" in statement else (table, table)
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|without gaps"):
        tx.execute(statement.format(*values))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET balance = -1 WHERE name LIKE 'available:%'",
        "UPDATE accounts SET balance = 9223372036854775807 + 1",
        "UPDATE accounts SET balance = 0.5",
        "UPDATE leases SET claimed_uusd = cap_uusd + 1",
        "UPDATE leases SET claimed_uusd = -1",
        "INSERT INTO postings VALUES (99, 0, 1, 5)",
        "INSERT INTO postings VALUES (1, 9, 99, 5)",
        "INSERT INTO postings VALUES (1, 9, 1, 0.5)",
        "INSERT INTO entries SELECT 99, at_ms, kind, NULL, NULL, body, head FROM entries LIMIT 1",
    ],
)
def test_the_tables_refuse_what_no_entry_can_mean(tx: sqlite3.Connection, statement: str) -> None:
    ledger = Ledger()
    ledger.command(tx, DEPOSIT, NOW_MS)
    ledger.command(tx, open_command(), NOW_MS)
    with pytest.raises(sqlite3.IntegrityError):
        tx.execute(statement)


def test_a_lease_never_goes_back_and_never_changes_after_its_end(tx: sqlite3.Connection) -> None:
    ledger = Ledger()
    for command in (DEPOSIT, open_command(), Claim(lease_id(1), node(2), 300, 0, None)):
        ledger.command(tx, command, NOW_MS)
    with pytest.raises(sqlite3.IntegrityError):
        tx.execute("UPDATE leases SET claimed_uusd = 299")
    ledger.command(tx, Claim(lease_id(1), node(2), 300, 1, None), NOW_MS)
    with pytest.raises(sqlite3.IntegrityError):
        tx.execute("UPDATE leases SET claimed_uusd = 301")


@pytest.mark.parametrize("amount", [1.0, 0.5, -1, 2**53 + 1, 2**63, True, "7", None])
def test_r6_no_amount_but_a_whole_number_reaches_the_ledger(tx: sqlite3.Connection, amount: object) -> None:
    ledger = Ledger()
    ledger.command(tx, DEPOSIT, NOW_MS)
    head = read_head(tx)
    for command in (
        Deposit("p2", node(1), "BTC", amount, 5, 0),  # type: ignore[arg-type]  # what must be refused
        Deposit("p2", node(1), "BTC", 5, amount, 0),  # type: ignore[arg-type]
        open_command(cap_uusd=amount),
    ):
        verdict = ledger.command(tx, command, NOW_MS)
        assert isinstance(verdict, Refused)
        assert verdict.code is MoneyRefusal.BAD_AMOUNT
    assert read_head(tx) == head


def test_r2_without_a_voucher_nothing_moves(tx: sqlite3.Connection) -> None:
    ledger = Ledger()
    ledger.command(tx, DEPOSIT, NOW_MS)
    ledger.command(tx, open_command(), NOW_MS)
    assert isinstance(ledger.command(tx, Claim(lease_id(1), node(2), 0, 0, None), NOW_MS), Unchanged)
    ledger.command(tx, Claim(lease_id(1), node(2), 0, 1, None), NOW_MS)
    assert balances(tx)[available(node(1))] == 3000
    assert available(node(2)) not in balances(tx)


def test_a_block_of_nothing_writes_nothing(tx: sqlite3.Connection) -> None:
    ledger = Ledger()
    changes = tx.total_changes
    with ledger.begin(tx) as state:
        assert isinstance(state, LedgerTransaction)
    assert tx.total_changes == changes
