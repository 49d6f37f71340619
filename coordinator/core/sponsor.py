"""Who pays for the public chat: the coordinator itself, as an asker with a budget for each day.

Its peer asks as any asker does; the leases that it wants come out of the account `sponsor:<day>`, which holds what the
operator gives for that day and nothing else. So the ledger keeps the budget, and no counting here could exceed it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from coordinator.config import Config
from coordinator.core.driver import PeerDriver
from coordinator.core.http import ApiError
from coordinator.core.settlement import DAY_MS, Settlement
from coordinator.store import sponsor
from coordinator.store.db import Database, StoreBusy, StoreClosed, StoreFailed
from protocol import events as e
from protocol.effects import RequestLease, StoreMark
from protocol.ids import NodeId
from protocol.ledger import MoneyRefusal

BUDGET_SPENT: Final = "budget_spent"
SPENT_TEXT: Final = "the budget of this public chat is spent for today"
SPENT_HINT: Final = "come back after midnight UTC, or ask from a node of your own with `infernet chat`"
# Leases that are closed give back what they did not need, so it is worth asking again.
ASKED_AGAIN_MS: Final = 60_000
# A lease is served for a day; what was stored longer ago than two is of no use.
KEPT_MS: Final = 2 * DAY_MS

Spawn = Callable[[Coroutine[Any, Any, None]], object]

log = structlog.get_logger(__name__)


class Sponsor:
    """Performs what paying needs: leases from the settlement, and marks on disk."""

    def __init__(
        self,
        config: Config,
        node: NodeId,
        database: Database,
        settlement: Settlement,
        wall_ms: Callable[[], int],
        spawn: Spawn,
    ) -> None:
        self._spend_uusd = config.chat_spend_uusd_max if config.sponsor_budget_uusd else 0
        self._node = node
        self._database = database
        self._settlement = settlement
        self._wall_ms = wall_ms
        self._spawn = spawn
        self._driver: PeerDriver | None = None
        self._spent_ms: int | None = None

    @property
    def pays(self) -> bool:
        """Whether the operator gives anything."""
        return self._spend_uusd > 0

    @property
    def is_spent(self) -> bool:
        """Whether today's budget did not reach for a lease, a moment ago."""
        now_ms = self._wall_ms()
        if self._spent_ms is None or now_ms // DAY_MS != self._spent_ms // DAY_MS:
            return False
        return now_ms - self._spent_ms < ASKED_AGAIN_MS

    @property
    def spend_uusd_max(self) -> int:
        """What the next chat may cost; 0: it is answered for nothing, or not at all."""
        return 0 if self.is_spent or not self._settlement.is_running else self._spend_uusd

    async def attach(self, driver: PeerDriver) -> None:
        """Let this peer pay, and take up the leases from before a restart."""
        self._driver = driver
        if not self.pays:
            return
        driver.handle(e.UseCoordinator(self._node))
        kept = await self._database.write(lambda tx: sponsor.kept(tx, self._wall_ms() - KEPT_MS))
        driver.handle(*kept)

    def on_money(self, effect: RequestLease | StoreMark) -> None:
        """Perform what the peer wants; the answer comes as an event."""
        if isinstance(effect, RequestLease):
            self._spawn(self._lease(effect))
        else:
            self._spawn(self._store(effect))

    async def _lease(self, effect: RequestLease) -> None:
        assert self._driver is not None
        asked_ms = self._wall_ms()
        try:
            signed = await self._settlement.open_lease(self._node, effect.signed)
        except ApiError as error:
            self._driver.handle(self._denied(effect, error, asked_ms))
        except (sqlite3.Error, StoreBusy, StoreClosed, StoreFailed):
            log.exception("sponsor_has_no_lease")
            self._driver.handle(e.LeaseDenied(effect.request, "the coordinator cannot lock money just now", False))
        else:
            # What is asked for first is more than a job needs; less than that may still be there.
            self._spent_ms = None
            self._driver.handle(e.LeaseGranted(effect.request, signed))

    def _denied(self, effect: RequestLease, error: ApiError, asked_ms: int) -> e.LeaseDenied:
        if error.fields.get("code") != MoneyRefusal.INSUFFICIENT:
            return e.LeaseDenied(effect.request, error.message, is_final=False)
        # SPEC 07: The coordinator MUST say so when the public chat's budget is spent, and MUST let providers answer
        #   that do it for nothing.
        self._spent_ms = asked_ms
        return e.LeaseDenied(effect.request, SPENT_TEXT, is_final=True)

    async def _store(self, effect: StoreMark) -> None:
        assert self._driver is not None
        try:
            await self._database.write(lambda tx: sponsor.put(tx, effect, self._wall_ms()))
        except (sqlite3.Error, StoreBusy, StoreClosed, StoreFailed):
            # Without the mark nothing is signed, and the provider stops at its window.
            log.exception("sponsor_mark_not_stored")
            return
        self._driver.handle(e.MarkStored(effect.lease, effect.mark_uusd))
