"""The ledger on disk: carries out in SQL what `protocol.accounts` decides, exactly as `protocol.book` does in memory.

Used on the writer's thread only, inside its transaction. What was read or written before is kept in memory, so a claim
costs no SELECT; what a block of commands changes is written at its end, each row once. The cache is trusted only as
long as the last entry on disk is the one that it knows: after a rollback, of a savepoint or of a commit that failed, it
is not, and everything is read again. Nothing but an entry changes what is cached.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct

from protocol.accounts import apply
from protocol.ids import LeaseId
from protocol.ledger import (
    CREDIT,
    GENESIS_HEAD,
    OUTSIDE,
    AnyCommand,
    Entry,
    Lease,
    Payout,
    Posting,
    Verdict,
    digest,
    entry_body,
    next_head,
)

# A row takes some hundred bytes: tens of megabytes at most.
CACHED_ROWS_MAX: Final = 100_000


class Account(Struct):
    """A row of `accounts`."""

    account: int
    asset: str
    balance: int


class LeaseRow(Struct, frozen=True):
    """A lease, and the entry that changed it last: its number, time and the head after it."""

    lease: Lease
    entry: int
    at_ms: int
    head: bytes


class Head(Struct, frozen=True):
    """So many entries, and what they hash to."""

    entry: int
    head: bytes


class Ledger:
    """The ledger of one database, with what is remembered of it between transactions."""

    def __init__(self) -> None:
        self._cache = _Cache(Head(0, GENESIS_HEAD), 1, 0)
        self._is_read = False

    @property
    def downtime_ms(self) -> int:
        """What the last transaction knew of it; from any thread."""
        return self._cache.downtime_ms

    @contextmanager
    def begin(self, tx: sqlite3.Connection) -> Iterator[LedgerTransaction]:
        """A block of commands, inside a transaction that is open. What they changed is written when the block ends."""
        head = read_head(tx)
        if not self._is_read or head != self._cache.head or self._cache.rows > CACHED_ROWS_MAX:
            self._cache = _Cache(head, _next_account(tx), read_value(tx, "downtime_ms") or 0)
            self._is_read = True
        transaction = LedgerTransaction(tx, self._cache)
        try:
            yield transaction
            transaction.flush()
        except BaseException:
            self._is_read = False
            raise

    def command(self, tx: sqlite3.Connection, command: AnyCommand, at_ms: int) -> Verdict:
        """Decide one command and carry out what comes of it."""
        with self.begin(tx) as transaction:
            return transaction.command(command, at_ms)


class _Cache:
    def __init__(self, head: Head, next_account: int, downtime_ms: int) -> None:
        self.head = head
        self.next_account = next_account
        self.downtime_ms = downtime_ms
        self.accounts: dict[str, Account] = {}
        self.leases: dict[LeaseId, LeaseRow] = {}

    @property
    def rows(self) -> int:
        return len(self.accounts) + len(self.leases)


class LedgerTransaction:
    """The state that the rules look at, and what a block of commands adds to it."""

    def __init__(self, tx: sqlite3.Connection, cache: _Cache) -> None:
        self._tx = tx
        self._cache = cache
        self._entries: list[tuple[int, int, str, str | None, bytes | None, bytes, bytes]] = []
        self._postings: list[tuple[int, int, int, int]] = []
        self._references: dict[str, bytes] = {}
        self._new_accounts: dict[str, Account] = {}
        self._changed_accounts: dict[int, Account] = {}
        self._new_leases: dict[LeaseId, LeaseRow] = {}
        self._changed_leases: dict[LeaseId, LeaseRow] = {}
        self._payouts: dict[bytes, tuple[Payout, int]] = {}
        self._downtime_ms = cache.downtime_ms

    # ------------------------------------------------------------ protocol.ledger.State

    @property
    def downtime_ms(self) -> int:
        return self._cache.downtime_ms

    def balance(self, account: str) -> int:
        row = self._account(account)
        return row.balance if row is not None else 0

    def lease(self, lease: LeaseId) -> Lease | None:
        row = self.lease_row(lease)
        return row.lease if row is not None else None

    def payout(self, intent: bytes) -> Payout | None:
        if intent in self._payouts:
            return self._payouts[intent][0]
        row = self._tx.execute(
            """
            SELECT name, amount_uusd, is_resolved FROM payouts JOIN accounts USING (account) WHERE intent = ?
            """,
            (intent,),
        ).fetchone()
        return Payout(intent, row[0], row[1], bool(row[2])) if row is not None else None

    def recorded(self, reference: str) -> bytes | None:
        if reference in self._references:
            return self._references[reference]
        row = self._tx.execute("SELECT command_hash FROM entries WHERE reference = ?", (reference,)).fetchone()
        return row[0] if row is not None else None

    # ------------------------------------------------------------ beyond the rules

    @property
    def head(self) -> Head:
        """The last entry so far."""
        return self._cache.head

    def lease_row(self, lease: LeaseId) -> LeaseRow | None:
        """A lease and its last entry."""
        row = self._cache.leases.get(lease)
        if row is None:
            row = _read_lease(self._tx, lease)
            if row is not None:
                self._cache.leases[lease] = row
        return row

    def command(self, command: AnyCommand, at_ms: int) -> Verdict:
        """Decide a command and carry out what comes of it."""
        verdict = apply(self, command, at_ms)
        if isinstance(verdict, Entry):
            self._carry_out(verdict, at_ms)
        return verdict

    # ------------------------------------------------------------ carrying out

    def _carry_out(self, entry: Entry, at_ms: int) -> None:
        number = self._cache.head.entry + 1
        for position, posting in enumerate(entry.postings):
            account = self._post(posting)
            self._postings.append((number, position, account, posting.amount))
        body = entry_body(number, at_ms, entry)
        head = next_head(self._cache.head.head, body)
        command_hash = None
        if entry.reference is not None:
            command_hash = self._references[entry.reference] = digest(entry.command)
        kind = entry.command.__struct_config__.tag
        assert isinstance(kind, str)
        self._entries.append((number, at_ms, kind, entry.reference, command_hash, body, head))
        if entry.lease is not None:
            # A lease of nothing is a lease, and moves nothing.
            _ = self._account(entry.lease.account) or self._new_account(entry.lease.account, CREDIT)
            self._put_lease(LeaseRow(entry.lease, number, at_ms, head))
        if entry.payout is not None:
            self._payouts[entry.payout.intent] = (entry.payout, number)
        self._cache.downtime_ms += entry.downtime_ms
        self._cache.head = Head(number, head)

    def _post(self, posting: Posting) -> int:
        row = self._account(posting.account) or self._new_account(posting.account, posting.asset)
        if posting.account not in self._new_accounts:
            self._changed_accounts[row.account] = row
        assert row.asset == posting.asset, "an account holds one asset"
        row.balance += posting.amount
        return row.account

    def _new_account(self, name: str, asset: str) -> Account:
        row = Account(self._cache.next_account, asset, 0)
        self._cache.next_account += 1
        self._cache.accounts[name] = self._new_accounts[name] = row
        return row

    def _put_lease(self, row: LeaseRow) -> None:
        lease = row.lease.lease
        is_new = lease in self._new_leases or (lease not in self._cache.leases and _read_lease(self._tx, lease) is None)
        (self._new_leases if is_new else self._changed_leases)[lease] = row
        self._cache.leases[lease] = row

    def _account(self, name: str) -> Account | None:
        row = self._cache.accounts.get(name)
        if row is None:
            found = self._tx.execute("SELECT account, asset, balance FROM accounts WHERE name = ?", (name,)).fetchone()
            if found is None:
                return None
            row = self._cache.accounts[name] = Account(*found)
        return row

    def _account_number(self, name: str) -> int:
        row = self._account(name)
        assert row is not None, "a lease or payout is of an account that has been posted to"
        return row.account

    def flush(self) -> None:
        """Write what has changed, each row once."""
        if not self._entries:
            return
        many = self._tx.executemany
        many(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?)",
            [
                (row.account, name, row.asset, row.balance, name.partition(":")[0] in OUTSIDE)
                for name, row in self._new_accounts.items()
            ],
        )
        many(
            "UPDATE accounts SET balance = ? WHERE account = ?",
            [(row.balance, row.account) for row in self._changed_accounts.values()],
        )
        many("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", self._entries)
        many("INSERT INTO postings VALUES (?, ?, ?, ?)", self._postings)
        self._flush_leases()
        for payout, entry in self._payouts.values():
            self._tx.execute(
                """
                INSERT INTO payouts VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (intent) DO UPDATE SET entry = excluded.entry, is_resolved = excluded.is_resolved
                """,
                (payout.intent, entry, self._account_number(payout.account), payout.amount_uusd, payout.is_resolved),
            )
        if self._cache.downtime_ms != self._downtime_ms:
            write_value(self._tx, "downtime_ms", self._cache.downtime_ms)

    def _flush_leases(self) -> None:
        self._tx.executemany(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(row.lease.lease, row.entry, self._account_number(row.lease.account)),
                    *(row.lease.payer, row.lease.provider, row.lease.relay, row.lease.relay_bps, row.lease.fee_bps),
                    *(row.lease.cap_uusd, row.lease.claimed_uusd, row.lease.is_closed),
                    *(row.lease.serve_until_ms, row.lease.claim_by_ms, row.lease.downtime_ms),
                )
                for row in self._new_leases.values()
            ],
        )
        self._tx.executemany(
            "UPDATE leases SET entry = ?, claimed_uusd = ?, is_closed = ? WHERE lease = ?",
            [
                (row.entry, row.lease.claimed_uusd, row.lease.is_closed, row.lease.lease)
                for row in self._changed_leases.values()
            ],
        )


# ---------------------------------------------------------------- rows


def read_head(tx: sqlite3.Connection) -> Head:
    """The last entry of the ledger."""
    row = tx.execute("SELECT number, head FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    return Head(*row) if row is not None else Head(0, GENESIS_HEAD)


def _next_account(tx: sqlite3.Connection) -> int:
    number: int = tx.execute("SELECT coalesce(max(account), 0) + 1 FROM accounts").fetchone()[0]
    return number


def accounts_with_money(tx: sqlite3.Connection, prefix: str) -> list[str]:
    """The names of accounts that start so and are not empty, in order."""
    rows = tx.execute(
        "SELECT name FROM accounts WHERE name >= ? AND name < ? AND balance > 0 ORDER BY name",
        (prefix, prefix + "\U0010ffff"),
    )
    return [row[0] for row in rows]


LEASE_COLUMNS: Final = """
    leases.lease, name, payer, provider, relay, relay_bps, fee_bps, cap_uusd, claimed_uusd, is_closed, serve_until_ms,
    claim_by_ms, downtime_ms
"""


def lease_from_row(row: Any) -> Lease:
    """The lease in a row of `LEASE_COLUMNS`, which are in the order of its fields."""
    fields: dict[str, Any] = dict(zip(Lease.__struct_fields__, row, strict=True))
    return Lease(**{**fields, "is_closed": bool(fields["is_closed"])})


def _read_lease(tx: sqlite3.Connection, lease: LeaseId) -> LeaseRow | None:
    row = tx.execute(
        f"""
        SELECT entry, at_ms, head, {LEASE_COLUMNS}
        FROM leases JOIN accounts USING (account) JOIN entries ON entries.number = leases.entry
        WHERE leases.lease = ?
        """,  # noqa: S608 - the columns are a constant above
        (lease,),
    ).fetchone()
    return LeaseRow(lease_from_row(row[3:]), row[0], row[1], row[2]) if row is not None else None


def read_value(tx: sqlite3.Connection, name: str) -> int | None:
    """A number that is kept beside the ledger."""
    row = tx.execute("SELECT value FROM settlement WHERE name = ?", (name,)).fetchone()
    return row[0] if row is not None else None


def write_value(tx: sqlite3.Connection, name: str, value: int) -> None:
    """Keep a number beside the ledger."""
    tx.execute(
        "INSERT INTO settlement VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
    )
