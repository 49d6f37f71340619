"""What a store is made to do while its power is cut: a workload, and one to begin with.

A workload knows what its steps write and how to tell whether all of it is there. `DemonstrationLedger` writes jobs
and their events through the store's own functions, and moves money between accounts in tables of its own, so that
"nothing lost, nothing unbalanced" means something.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from coordinator.store import job_events, jobs, replay
from protocol.envelope import AuthenticatedRequest
from protocol.ids import JobId, NodeId

# Runs inside one transaction of the store. What it returns is acknowledged once its commit has returned; one that
# raises has had no effect.
Step = Callable[[sqlite3.Connection], Any]


class Lost(AssertionError):
    """Something that was acknowledged is not there."""


class Unbalanced(AssertionError):
    """What is there contradicts itself: a part of a transaction was kept."""


class Workload(Protocol):
    """What to write, and what must be there afterwards. `refusals` are what its steps raise on purpose."""

    refusals: tuple[type[Exception], ...]

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Bring the database, which is migrated, to where the steps begin. Called at each opening: idempotent."""

    def steps(self, rng: random.Random) -> Iterator[Step]:
        """Endlessly, what to do next."""

    def check(self, connection: sqlite3.Connection, acknowledged: Collection[Any]) -> None:
        """Raise Lost or Unbalanced. What was not acknowledged may be there or not."""


TABLES = (
    "CREATE TABLE test_accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL) STRICT",
    """
    CREATE TABLE test_postings (
        transfer INTEGER NOT NULL, account INTEGER NOT NULL REFERENCES test_accounts (id), amount INTEGER NOT NULL,
        PRIMARY KEY (transfer, account)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE TABLE test_papers (transfer INTEGER PRIMARY KEY, scan BLOB NOT NULL) STRICT",
)
ACCOUNTS = 6
PAPER_BYTES = 9000
PAPERS_KEPT = 5
NODE = NodeId(bytes(31) + b"\x01")


class ChangedItsMind(Exception):
    """Raised by steps that fail after they have written."""


class DemonstrationLedger:
    """Transfers between a few accounts, each with a job, its event and a used request, in one transaction."""

    refusals: tuple[type[Exception], ...] = (ChangedItsMind,)

    def __init__(self, first_transfer: int = 1) -> None:
        self._first_transfer = first_transfer

    def prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'test_accounts'").fetchone():
            return
        connection.execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            connection.execute(statement)
        for account in range(ACCOUNTS):
            connection.execute("INSERT INTO test_accounts VALUES (?, 0)", (account,))
        connection.execute("COMMIT")

    def steps(self, rng: random.Random) -> Iterator[Step]:
        for transfer in itertools.count(self._first_transfer):
            paying, paid = rng.sample(range(ACCOUNTS), 2)
            kind = rng.random()
            if kind < 0.1:
                yield self._failing(transfer, paying, paid)
            elif kind < 0.15:
                yield self._with_paper(transfer, paying, paid, rng.randbytes(PAPER_BYTES))
            elif kind < 0.2:
                yield self._forgetting_old_papers(transfer)
            else:
                yield self._transfer(transfer, paying, paid, rng.randint(1, 1_000_000))

    def _transfer(self, transfer: int, paying: int, paid: int, amount: int) -> Step:
        def step(tx: sqlite3.Connection) -> tuple[str, int]:
            job = JobId(transfer.to_bytes(16, "big"))
            replay.use(tx, AuthenticatedRequest(2, NODE, transfer, transfer, None), transfer)
            jobs.put(tx, jobs.Job(job, "chat", "running", NODE, "model", transfer))
            for account, change in ((paying, -amount), (paid, amount)):
                tx.execute("INSERT INTO test_postings VALUES (?, ?, ?)", (transfer, account, change))
                tx.execute("UPDATE test_accounts SET balance = balance + ? WHERE id = ?", (change, account))
            job_events.insert(tx, job_events.JobEvent(job, 1, "accepted", 0, None, transfer))
            return ("transfer", transfer)

        return step

    def _failing(self, transfer: int, paying: int, paid: int) -> Step:
        moved = self._transfer(transfer, paying, paid, 5)

        def step(tx: sqlite3.Connection) -> None:
            moved(tx)
            tx.execute("UPDATE test_accounts SET balance = 77 WHERE id = ?", (paying,))
            raise ChangedItsMind

        return step

    def _with_paper(self, transfer: int, paying: int, paid: int, scan: bytes) -> Step:
        """One that needs several pages."""
        moved = self._transfer(transfer, paying, paid, 7)

        def step(tx: sqlite3.Connection) -> Any:
            tx.execute("INSERT INTO test_papers VALUES (?, ?)", (transfer, scan))
            return moved(tx)

        return step

    def _forgetting_old_papers(self, transfer: int) -> Step:
        """Frees pages, which later steps use again, so that the file does not grow."""

        def step(tx: sqlite3.Connection) -> tuple[str, int]:
            tx.execute("DELETE FROM test_papers WHERE transfer < ?", (transfer - PAPERS_KEPT,))
            return ("forgotten", transfer - PAPERS_KEPT)

        return step

    def check(self, connection: sqlite3.Connection, acknowledged: Collection[Any]) -> None:
        # A few plain queries, added up here: this runs a hundred thousand times.
        postings = connection.execute("SELECT transfer, account, amount FROM test_postings").fetchall()
        balances = dict(connection.execute("SELECT id, balance FROM test_accounts").fetchall())
        papers = {row[0] for row in connection.execute("SELECT transfer FROM test_papers").fetchall()}
        counts = connection.execute(COUNTS, (NODE,)).fetchone()
        there = {transfer for transfer, _, _ in postings}
        self._check_balance(postings, balances)
        if counts[:2] != (len(there), len(there)):
            raise Unbalanced(f"{len(there)} transfers, but {counts[0]} jobs and {counts[1]} events of them")
        if not papers <= there:
            raise Unbalanced(f"papers without their transfer: {papers - there}")
        wanted = {number for kind, number in acknowledged if kind == "transfer"}
        if missing := wanted - there:
            raise Lost(f"transfers {sorted(missing)[:5]} of {len(wanted)} acknowledged")
        forgotten = max((number for kind, number in acknowledged if kind == "forgotten"), default=0)
        if papers and min(papers) < forgotten:
            raise Lost(f"papers before {forgotten} are back")
        if wanted and (counts[2] or 0) < max(wanted):
            raise Lost("a used request can be used again")

    def _check_balance(self, postings: list[tuple[int, int, int]], balances: dict[int, int]) -> None:
        of_transfer: Counter[int] = Counter()
        of_account: Counter[int] = Counter()
        for transfer, account, amount in postings:
            of_transfer[transfer] += amount
            of_account[account] += amount
        if any(of_transfer.values()):
            raise Unbalanced(f"transfers that do not add up to nothing: {+of_transfer or of_transfer}")
        if any(balances[account] != of_account[account] for account in range(ACCOUNTS)):
            raise Unbalanced(f"balances {balances} that are not the sums of their postings {dict(of_account)}")


# Of the jobs, of their events, and the highest request that was used.
COUNTS = """
    SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_events),
        (SELECT highest FROM replay_windows WHERE node = ?)
"""
