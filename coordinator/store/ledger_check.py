"""Does the ledger agree with itself? Everything that is cached, against the entries; the entries, against the rules.

It looks and changes nothing, through a connection of its own, so it can run beside the writer: it sees one moment.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from coordinator.store.db import uri_to_read
from coordinator.store.ledger import LEASE_COLUMNS, Head, lease_from_row, read_head, read_value
from protocol.book import Book
from protocol.claims import check_evidence
from protocol.errors import RemoteProtocolError
from protocol.ledger import GENESIS_HEAD, AnyCommand, Entry, Payout, Posting, next_head, read_entry_body

# Up to so many entries every command is decided again, some 40,000 a second; beyond, only bytes and sums are compared.
REPLAYED_ENTRIES_MAX: Final = 200_000

_CHECKS: Final = (
    (
        "the balance of {} is not the sum of its postings",
        """
        SELECT name FROM accounts LEFT JOIN (SELECT account, sum(amount) AS total FROM postings GROUP BY account)
        USING (account) WHERE balance <> coalesce(total, 0)
        """,
    ),
    ("the accounts in {} do not sum to zero", "SELECT asset FROM accounts GROUP BY asset HAVING sum(balance) <> 0"),
    (
        "lease {} does not hold what is left of it",
        """
        SELECT hex(lease) FROM leases LEFT JOIN accounts ON name = 'lease:' || lower(hex(lease))
        WHERE coalesce(balance, 0) <> (cap_uusd - claimed_uusd) * (1 - is_closed)
        """,
    ),
    (
        "payout {} does not hold its money",
        """
        SELECT hex(intent) FROM payouts LEFT JOIN accounts ON name = 'payout:' || lower(hex(intent))
        WHERE coalesce(balance, 0) <> amount_uusd * (1 - is_resolved)
        """,
    ),
)


class Drift(Exception):
    """The ledger does not agree with itself; the message is one sentence that says where."""


def check_file(
    path: Path, *, replayed_entries_max: int = REPLAYED_ENTRIES_MAX, verifies_signatures: bool = False
) -> Head:
    """Check the ledger in this database; returns its head. Raises Drift, or sqlite3.Error when it cannot be read."""
    with closing(sqlite3.connect(uri_to_read(path), uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN")
        return check(connection, replayed_entries_max=replayed_entries_max, verifies_signatures=verifies_signatures)


def check(
    tx: sqlite3.Connection, *, replayed_entries_max: int = REPLAYED_ENTRIES_MAX, verifies_signatures: bool = False
) -> Head:
    """Check what this transaction sees; returns the head. Signatures are verified of what is replayed. Raises Drift."""
    for text, statement in _CHECKS:
        try:
            row = tx.execute(f"{statement} LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            # A full disk, say, tells nothing about the ledger; amounts whose sum is no number tell that they are wrong.
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                raise
            raise Drift(f"what is kept cannot be added up: {error}") from None
        if row is not None:
            raise Drift(text.format(row[0]))
    head = read_head(tx)
    if head.entry > replayed_entries_max:
        _compare("account", _balances(tx), add_up(read_entries(tx)))
    else:
        _check_rows(tx, replay(read_entries(tx), verifies_signatures=verifies_signatures))
    return head


def _balances(tx: sqlite3.Connection) -> dict[str, int]:
    return dict(tx.execute("SELECT name, balance FROM accounts WHERE balance <> 0").fetchall())


class ReadEntry(NamedTuple):
    """An entry that follows from the one before: what its bytes say, and the head after it."""

    number: int
    at_ms: int
    command: AnyCommand
    postings: tuple[Posting, ...]
    head: bytes


def read_entries(tx: sqlite3.Connection) -> Iterator[ReadEntry]:
    """Every entry in order, as its bytes say, which the other columns repeat. Raises Drift."""
    rows = tx.execute("SELECT number, at_ms, kind, body, head FROM entries ORDER BY number")
    last = Head(0, GENESIS_HEAD)
    for number, at_ms, kind, body, head in rows:
        entry = follow(last, body, head)
        if (entry.number, entry.at_ms, entry.command.__struct_config__.tag) != (number, at_ms, kind):
            raise Drift(f"entry {number} is kept under other words than its own")
        last = Head(number, head)
        yield entry


def follow(last: Head, body: bytes, head: bytes) -> ReadEntry:
    """Read an entry that comes after this head. Raises Drift when it does not."""
    number = last.entry + 1
    try:
        stated, at_ms, command, postings = read_entry_body(body)
    except RemoteProtocolError as error:
        raise Drift(f"entry {number} cannot be read: {error}") from None
    if stated != number:
        raise Drift(f"entry {number} is missing")
    if next_head(last.head, body) != head:
        raise Drift(f"entry {number} does not follow from the one before")
    return ReadEntry(number, at_ms, command, postings, head)


def add_up(entries: Iterable[ReadEntry]) -> dict[str, int]:
    """What all entries sum up to in each account that is not empty."""
    balances: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        for posting in entry.postings:
            balances[posting.account] += posting.amount
    return {name: balance for name, balance in balances.items() if balance}


def replay(entries: Iterable[ReadEntry], *, verifies_signatures: bool = False) -> Book:
    """Decide every command again: the state that must have come of it. Raises Drift."""
    book = Book(keeps_entries=False)
    for entry in entries:
        if verifies_signatures:
            try:
                check_evidence(book, entry.command)
            except RemoteProtocolError as error:
                raise Drift(f"entry {entry.number} is not what was signed: {error}") from None
        # The head covers number, time, command and postings: where it is the same, so is all of it.
        if not isinstance(book.command(entry.command, entry.at_ms), Entry) or book.head != entry.head:
            raise Drift(f"entry {entry.number} is not what comes of its command")
    return book


def _check_rows(tx: sqlite3.Connection, book: Book) -> None:
    _compare("account", _balances(tx), {name: balance for name, balance in book.accounts.items() if balance})
    leases = tx.execute(f"SELECT {LEASE_COLUMNS} FROM leases JOIN accounts USING (account)")  # noqa: S608 - constant
    _compare("lease", {row[0]: lease_from_row(row) for row in leases}, book.leases)
    payouts = tx.execute("SELECT intent, name, amount_uusd, is_resolved FROM payouts JOIN accounts USING (account)")
    _compare("payout", {row[0]: Payout(row[0], row[1], row[2], bool(row[3])) for row in payouts}, book.payouts)
    references = tx.execute("SELECT reference, command_hash FROM entries WHERE reference IS NOT NULL")
    _compare("reference", dict(references.fetchall()), book.references)
    if (read_value(tx, "downtime_ms") or 0) != book.downtime_ms:
        raise Drift("the time that the coordinator was away is not what its entries say")


def _compare(what: str, found: Mapping[Any, object], expected: Mapping[Any, object]) -> None:
    if found != expected:
        raise Drift(f"what is kept of some {what} is not what comes of the entries")
