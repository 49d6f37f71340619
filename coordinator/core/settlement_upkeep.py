"""What the ledger needs now and then: proof of life, ends of leases, the public chat's budget, heads, checks of itself.

Every few seconds one transaction notes that claims can be made now. A longer gap since the last such note is time in
which they could not be, whatever the reason was: the process down, the machine asleep, the disk full, the ledger
stopped. It is added to the deadlines of all leases in the very transaction that closes those that are due.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from coordinator.config import Config
from coordinator.core.settlement import DAY_MS, SPONSOR_PREFIX, Settlement
from coordinator.store import heads, leases
from coordinator.store.db import Database, StoreBusy, StoreClosed, StoreFailed
from coordinator.store.journal import Journal, JournalFollower, JournalRefused
from coordinator.store.ledger import Head, LedgerTransaction, accounts_with_money, read_head, read_value, write_value
from coordinator.store.ledger_check import Drift, check_file
from protocol.envelope import Signer, sign_record
from protocol.ledger import Budget, ExpireLease, Resume, SweepBudget
from protocol.money_records import LedgerHeadRecord
from protocol.records import Signed

ALIVE_INTERVAL_S: Final = 5.0
# Two notes may be late before it counts: a busy disk is no outage.
GAP_MS_MAX: Final = 15_000
HEAD_INTERVAL_S: Final = 60.0
CHECK_INTERVAL_S: Final = 3600.0
# Of one transaction; the rest has its turn a few seconds later.
EXPIRED_AT_ONCE_MAX: Final = 500

log = structlog.get_logger(__name__)


class SettlementUpkeep:
    """Runs beside the settlement from `start` to `stop`; `head` is the newest that was signed."""

    def __init__(
        self,
        config: Config,
        key: Signer,
        database: Database,
        settlement: Settlement,
        wall_ms: Callable[[], int],
    ) -> None:
        self.head: Signed | None = None
        self._journal_path = config.journal_path
        self._budget_uusd = config.sponsor_budget_uusd
        self._key = key
        self._database = database
        self._settlement = settlement
        self._wall_ms = wall_ms
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Check the ledger, count the time that was missed, sign a head; then go on by the clock."""
        await self.check()
        await self._open_journal()
        await self._quietly(self.tick)
        await self._quietly(self.sign_head)
        loop = asyncio.get_running_loop()
        for work, interval_s in (
            (self.tick, ALIVE_INTERVAL_S),
            (self.sign_head, HEAD_INTERVAL_S),
            (self.check, CHECK_INTERVAL_S),
        ):
            self._tasks.append(loop.create_task(self._repeat(work, interval_s)))

    async def _open_journal(self) -> None:
        if self._journal_path is None:
            return
        try:
            journal = await asyncio.to_thread(Journal, self._journal_path)
        except JournalRefused as error:
            self._settlement.stop_because(str(error))
            return
        self._database.follower = JournalFollower(
            journal, self._settlement.stop_because, self._settlement.pause_because
        )
        # The first commit compares the two, and brings the journal what a crash has kept from it.
        await self._quietly(lambda: self._database.write(lambda _tx: None))

    async def stop(self) -> None:
        """Note a last time that claims could be made, and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self._quietly(self.tick)
        self._tasks.clear()

    async def _repeat(self, work: Callable[[], Awaitable[None]], interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self._quietly(work)

    async def _quietly(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (sqlite3.Error, StoreBusy, StoreClosed, StoreFailed):
            # What was not noted counts as time away, so nobody loses by it.
            log.exception("settlement_upkeep_failed")
        except AssertionError as error:
            log.exception("ledger_invariant_broken")
            self._settlement.stop_because(f"an invariant does not hold: {error}")

    # ------------------------------------------------------------ every few seconds

    async def tick(self) -> None:
        """Count missed time, end what is due, renew the budget, note that claims can be made."""
        if self._settlement.stopped_because is not None:
            return
        if self._settlement.paused_because is not None:
            # After a commit of nothing the journal is tried again; until it succeeds, this is time away.
            await self._database.write(lambda _tx: None)
            if self._settlement.paused_because is not None:
                return
        await self._database.write(lambda tx: self.tick_in(tx, self._wall_ms()))

    def tick_in(self, tx: sqlite3.Connection, now_ms: int) -> None:
        """`tick`, inside a transaction."""
        last_ms = read_value(tx, "last_alive_ms")
        with self._settlement.ledger.begin(tx) as ledger:
            if last_ms is not None and now_ms - last_ms > GAP_MS_MAX:
                log.warning("claims_were_impossible", gap_ms=now_ms - last_ms)
                ledger.command(Resume(now_ms - last_ms), now_ms)
            for lease in leases.due(tx, ledger.downtime_ms, now_ms, EXPIRED_AT_ONCE_MAX):
                ledger.command(ExpireLease(lease), now_ms)
            self._renew_budget(tx, ledger, now_ms)
        write_value(tx, "last_alive_ms", now_ms)

    def _renew_budget(self, tx: sqlite3.Connection, ledger: LedgerTransaction, now_ms: int) -> None:
        today = now_ms // DAY_MS
        if self._budget_uusd:
            ledger.command(Budget(today, self._budget_uusd), now_ms)
        for name in accounts_with_money(tx, SPONSOR_PREFIX):
            day = int(name.removeprefix(SPONSOR_PREFIX))
            if day < today:
                ledger.command(SweepBudget(day), now_ms)

    # ------------------------------------------------------------ every minute

    async def sign_head(self) -> None:
        """Sign what the ledger hashes to now, and keep it."""
        # Read in a commit of its own: when that is done the journal has this entry too, or the ledger stands still.
        head = await self._database.write(read_head)
        # SPEC 07: The coordinator MUST NOT sign a head, and MUST NOT send a payout, while its journal lacks an entry.
        if not self._settlement.is_running:
            return
        signed = self._signed(head, self._wall_ms())
        await self._database.write(lambda tx: heads.put(tx, head.entry, signed))
        self.head = signed

    def _signed(self, head: Head, now_ms: int) -> Signed:
        return sign_record(
            LedgerHeadRecord(
                version=1,
                coordinator=self._key.node,
                entry=head.entry,
                head=head.head,
                signed_at_ms=now_ms,
                extensions=(),
            ),
            self._key,
        )

    # ------------------------------------------------------------ every hour

    async def check(self) -> None:
        """Compare everything that is cached with the entries; stop the ledger when it differs."""
        # SPEC 06: The coordinator MUST compare all balances with the postings when it starts and every hour, and MUST
        #   stop everything about money where they differ.
        try:
            head = await asyncio.to_thread(check_file, self._database.path)
        except Drift as drift:
            self._settlement.stop_because(str(drift))
        except sqlite3.OperationalError:
            log.exception("ledger_not_checked")  # no file descriptor, say: that tells nothing about the ledger
        except sqlite3.DatabaseError as error:
            self._settlement.stop_because(f"the ledger cannot be read: {error}")
        else:
            log.info("ledger_checked", entries=head.entry, head=head.head.hex())
