"""The real ledger as a workload: what its transactions acknowledge, and whether all of it is there.

Each step writes a block of commands through `coordinator.store.ledger`, with all that its transaction writes beside it
in the real coordinator: the request that is used up, the signed lease, the order of a payout, the wish to close.
"""

from __future__ import annotations

import bisect
import hashlib
import marshal
import random
import sqlite3
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from coordinator.payments.payout_rules import Intent, PayoutState
from coordinator.store import db, heads, leases, ledger_check, payouts, replay
from coordinator.store.ledger import Ledger, read_head
from protocol.book import Book
from protocol.envelope import AuthenticatedRequest
from protocol.ids import LeaseId, NodeId
from protocol.ledger import (
    AnyCommand,
    Claim,
    ExpireLease,
    Lease,
    OpenLease,
    OrderPayout,
    Payout,
    Refused,
    ReturnPayout,
    SettlePayout,
    Verdict,
)
from protocol.records import Signed
from tests.helpers_ledger_blocks import OPENING, Block, GivenUp, Happenings
from tests.helpers_records import NOW_MS
from tests.helpers_workloads import ChangedItsMind, Lost, Step, Unbalanced

NODE: Final = NodeId(bytes(31) + b"\x01")
SIGNED: Final = Signed(b"what a coordinator has signed" * 8, bytes(64))
HEAD_EVERY: Final = 7
TABLES: Final = (
    "accounts", "entries", "postings", "leases", "lease_records", "close_wishes", "payouts", "heads",
    "payout_intents", "settlement", "replay_windows",
)  # fmt: skip
# Where something is in one of two tables alone, a part of a transaction was kept.
BESIDE: Final = (
    ("lease {} was opened without being signed", "SELECT lease FROM leases EXCEPT SELECT lease FROM lease_records"),
    ("nobody knows where to payout {} goes", "SELECT intent FROM payouts EXCEPT SELECT intent FROM payout_intents"),
    ("payout {} has no money", "SELECT intent FROM payout_intents EXCEPT SELECT intent FROM payouts"),
    ("head {} was signed, and is not there", "SELECT entry FROM heads EXCEPT SELECT number FROM entries"),
    ("account {} is below zero", "SELECT name FROM accounts WHERE balance < 0 AND is_outside = 0"),
    ("lease {} is claimed beyond its cap", "SELECT hex(lease) FROM leases WHERE claimed_uusd > cap_uusd"),
)
Attempt = tuple[tuple[AnyCommand, ...], int, list[Verdict]]


class LedgerWorkload:
    """One ledger. What its steps acknowledge is `[step, entry, head, facts]`, as JSON can carry it.

    A fact is `[table, id, least]`: a row that must be there, with at least so much claimed, resolved or closed.
    """

    refusals: tuple[type[Exception], ...] = (ChangedItsMind,)

    def __init__(self, first_step: int = 1) -> None:
        self._first_step = first_step
        self._connection: sqlite3.Connection | None = None
        self._ledger = Ledger()
        #: What each step did when it was last tried.
        self.attempts: dict[int, Attempt] = {}
        self._batch_ends: list[int] = [len(OPENING)]
        self._sound: set[bytes] = set()

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Give everybody some money, once."""
        if read_head(connection).entry:
            return
        connection.execute("BEGIN IMMEDIATE")
        with Ledger().begin(connection) as ledger:
            for deposit in OPENING:
                ledger.command(deposit, NOW_MS)
        connection.execute("COMMIT")

    # ------------------------------------------------------------ writing

    def steps(self, rng: random.Random) -> Iterator[Step]:
        for block in Happenings(rng, self._first_step).blocks():
            yield self._step(block)

    def commit(
        self, connection: sqlite3.Connection, batch: list[db._Write], acknowledge: Callable[[db._Write], None]
    ) -> None:
        """The store's own group commit. How far each one comes is noted, so that a part of one can be told."""
        db._commit(connection, batch)
        self._batch_ends.append(read_head(connection).entry)
        for write in batch:
            if write.error is None:
                acknowledge(write)

    def _ledger_of(self, tx: sqlite3.Connection) -> Ledger:
        """A process has one connection and one ledger, with its cache."""
        if tx is not self._connection:
            self._connection, self._ledger = tx, Ledger()
        return self._ledger

    def _step(self, block: Block) -> Step:
        def step(tx: sqlite3.Connection) -> list[Any]:
            replay.use(tx, AuthenticatedRequest(2, NODE, block.number, block.number, None), block.number)
            verdicts: list[Verdict] = []
            with self._ledger_of(tx).begin(tx) as ledger:
                for command in block.commands:
                    verdicts.append(ledger.command(command, block.at_ms))
                    if block.given_up is GivenUp.WITHIN:
                        raise ChangedItsMind
                head = ledger.head
                facts = [fact for pair in zip(block.commands, verdicts, strict=True) for fact in _facts(ledger, *pair)]
            facts += _write_beside(tx, block, facts)
            if block.number % HEAD_EVERY == 0 and head.entry:
                heads.put(tx, head.entry, SIGNED)
            _give_up(tx, block.given_up)
            self.attempts[block.number] = (block.commands, block.at_ms, verdicts)
            return [block.number, head.entry, head.head.hex(), facts]

        return step

    # ------------------------------------------------------------ looking

    def check(self, connection: sqlite3.Connection, acknowledged: Collection[Any]) -> None:
        rows = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
        # Thousands of cuts leave the same few states: each is looked through once.
        state = hashlib.sha256(marshal.dumps(rows)).digest()
        if state not in self._sound:
            check_soundness(connection)
            self._sound.add(state)
        found = {row[0]: row[-1].hex() for row in rows["entries"]}
        kept = _kept(rows)
        used = max((row[1] for row in rows["replay_windows"]), default=0)
        entry = 0
        for step, number, head, facts in acknowledged:
            if number and found.get(number) != head:
                raise Lost(f"entry {number}, acknowledged by step {step}; there are {len(found)}")
            if used < step:
                raise Lost(f"the request of step {step} can be used again")
            for table, row, least in facts:
                if kept.get((table, row), -1) < least:
                    raise Lost(f"{table} {row} stands at {kept.get((table, row))}, and {least} was acknowledged")
            entry = max(entry, number)
        self._check_the_top(entry, len(found))

    def _check_the_top(self, acknowledged: int, found: int) -> None:
        """Beyond what was acknowledged there may be one commit, whole."""
        if len(self._batch_ends) == 1:
            return  # nobody has noted them
        if found not in self._batch_ends:
            raise Unbalanced(f"entry {found} is the last, and no commit ended there")
        place = bisect.bisect_left(self._batch_ends, acknowledged)
        later = [end for end in self._batch_ends[place:] if end > self._batch_ends[place]]
        if later and found > later[0]:
            raise Unbalanced(f"{found} entries are there, and {acknowledged} were acknowledged")

    def book(self, acknowledged: Collection[Any]) -> Book:
        """The ledger in memory after the same steps. Raises Unbalanced where the one on disk decided otherwise."""
        book = Book()
        for deposit in OPENING:
            book.command(deposit, NOW_MS)
        for step, number, head, _ in acknowledged:
            commands, at_ms, verdicts = self.attempts[step]
            if [book.command(command, at_ms) for command in commands] != verdicts:
                raise Unbalanced(f"step {step} was not decided as its commands must be")
            if (book.number, book.head.hex()) != (number, head):
                raise Unbalanced(f"step {step} came to entry {number}, and the book is at {book.number}")
        return book


def check_soundness(connection: sqlite3.Connection) -> None:
    """The ledger agrees with itself, and with what is written beside it. Raises Unbalanced."""
    try:
        ledger_check.check(connection)
    except ledger_check.Drift as drift:
        raise Unbalanced(str(drift)) from drift
    for text, statement in BESIDE:
        row = connection.execute(f"{statement} LIMIT 1").fetchone()
        if row is not None:
            raise Unbalanced(text.format(row[0]))


def _kept(rows: dict[str, list[Any]]) -> dict[tuple[str, str], int]:
    """How far each row has come that a fact may be about."""
    kept = {("leases", row[0].hex()): row[9] for row in rows["leases"]}
    kept |= {("ends", row[0].hex()): row[10] for row in rows["leases"]}
    kept |= {("payouts", row[0].hex()): row[4] for row in rows["payouts"]}
    kept |= {("lease_records", row[0].hex()): 0 for row in rows["lease_records"]}
    kept |= {("close_wishes", row[0].hex()): 0 for row in rows["close_wishes"]}
    return kept


def _facts(ledger: Any, command: AnyCommand, verdict: Verdict) -> Iterator[list[Any]]:
    """What whoever gave this command may rely on."""
    if isinstance(verdict, Refused):
        return
    if isinstance(command, OpenLease | Claim | ExpireLease):
        lease: Lease = ledger.lease(command.lease)
        yield ["leases", lease.lease.hex(), lease.claimed_uusd]
        yield ["ends", lease.lease.hex(), int(lease.is_closed)]
        if isinstance(command, OpenLease):
            yield ["lease_records", lease.lease.hex(), 0]
    elif isinstance(command, OrderPayout | SettlePayout | ReturnPayout):
        payout: Payout = ledger.payout(command.intent)
        yield ["payouts", payout.intent.hex(), int(payout.is_resolved)]


def _write_beside(tx: sqlite3.Connection, block: Block, facts: list[list[Any]]) -> list[list[Any]]:
    """What the coordinator writes in the same transaction, where it has not been written before."""
    for table, row, _ in facts:
        key = bytes.fromhex(row)
        if table == "lease_records" and leases.find_record(tx, LeaseId(key), NODE) is None:
            leases.put_record(tx, LeaseId(key), NODE, key[16:], SIGNED)
        if table == "payouts" and payouts.get(tx, key) is None:
            # Of a key of its own, as one key has no two on their way.
            to = ("USDC", "base", "0x")
            payouts.insert(tx, Intent(key, NodeId(key + key), row, 1, *to, PayoutState.QUEUED, created_ms=block.at_ms))
    if block.closes is None or tx.execute("SELECT 1 FROM leases WHERE lease = ?", (block.closes,)).fetchone() is None:
        return []
    leases.put_close_wish(tx, block.closes, SIGNED, block.at_ms)
    return [["close_wishes", block.closes.hex(), 0]]


def _give_up(tx: sqlite3.Connection, given_up: GivenUp) -> None:
    if given_up is GivenUp.REFUSED:
        try:
            tx.execute("UPDATE entries SET at_ms = 0")
        except sqlite3.IntegrityError as error:
            raise ChangedItsMind from error
    if given_up is not GivenUp.NEVER:
        raise ChangedItsMind
