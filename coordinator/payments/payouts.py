"""Payouts at work: orders of clients, one attempt after another, and the gateway's list beside ours.

One task does all of it, one call at a time, so a list never begins while a payout is being sent. Before each call the
attempt is on disk; whatever interrupts it leaves a row in `sending`, and such a row is unknown to whoever finds it.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog

from coordinator.core.money import MoneyRefused, of_verdict, stopped
from coordinator.payments import payout_rules as rules
from coordinator.payments.amounts import UUSD_PER_CENT
from coordinator.payments.call_budget import CallBudget, Purpose
from coordinator.payments.gateway import Gateway, GatewayError, GatewayRefused, PayoutListing, PayoutRequest
from coordinator.payments.payout_rules import Intent, PayoutState, Step
from coordinator.store import payout_addresses, payouts
from coordinator.store.db import Database, StoreBusy, StoreClosed, StoreFailed
from coordinator.store.ledger import Ledger
from coordinator.store.payouts import Frozen, Stray
from protocol.formats.amounts import format_usd
from protocol.formats.coins import Pair
from protocol.ids import NodeId
from protocol.ledger import OrderPayout, Refused, ReturnPayout, SettlePayout, available

DAY_MS: Final = 24 * 60 * 60 * 1000
RECONCILE_MS: Final = 60 * 60 * 1000
RECONCILED_MS: Final = 7 * DAY_MS
IDLE_S: Final = 15.0
AUTOMATIC_AT_ONCE_MAX: Final = 50
STRAYS_MAX: Final = 500

T = TypeVar("T")
Mark = Callable[[sqlite3.Connection], None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PayoutLimits:
    """In micro-USD. `resend` is the most that is sent again by itself; `automatic` 0 pays nobody out unasked."""

    least: int
    per_day_and_key: int
    per_day: int
    resend: int
    automatic: int = 0


class Payouts:
    """Runs on the event loop from `start` to `stop`. `on_broken` hears of an invariant that does not hold."""

    def __init__(
        self,
        gateway: Gateway,
        calls: CallBudget,
        limits: PayoutLimits,
        database: Database,
        ledger: Ledger,
        wall_ms: Callable[[], int],
        on_broken: Callable[[str], None],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.frozen: Frozen | None = None
        self._gateway = gateway
        self._calls = calls
        self._limits = limits
        self._database = database
        self._ledger = ledger
        self._wall_ms = wall_ms
        self._on_broken = on_broken
        self._is_stopped = is_stopped
        self._next_reconcile_ms = 0
        self._is_compared = False
        self._shown: set[str] = set()
        self._hint = asyncio.Event()
        self._working = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Send and look by the clock from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Send no more. What was being sent is unknown after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # ------------------------------------------------------------ orders

    async def request(
        self, node: NodeId, request: str, amount_uusd: int | None, pair: Pair | None, mark: Mark
    ) -> Intent:
        """Order a payout; without an amount, of all whole cents that may leave today. Raises MoneyRefused."""
        answer = await self._write(lambda tx: self._order(tx, node, request, amount_uusd, pair, mark))
        if isinstance(answer, MoneyRefused):
            raise answer
        if self._is_stopped():
            # An order that was made before, and is not in the journal: nobody is told of it either.
            raise stopped()
        self._hint.set()
        return answer

    def _order(
        self,
        tx: sqlite3.Connection,
        node: NodeId,
        request: str,
        amount_uusd: int | None,
        pair: Pair | None,
        mark: Mark,
    ) -> Intent | MoneyRefused:
        if self._is_stopped():
            return stopped()
        mark(tx)
        before = payouts.find_request(tx, node, request)
        if before is not None:
            # SPEC 07: The coordinator MUST answer a request that repeats a `request_id` with what came of the first
            #   one, and MUST refuse another request under it.
            if amount_uusd not in (None, before.amount_uusd) or pair not in (None, before.pair):
                return MoneyRefused(409, "conflict", "another payout was asked for under this request_id")
            return before
        now_ms = self._wall_ms()
        if (frozen := payouts.frozen(tx)) is not None:
            self.frozen = frozen
            text = "payouts wait until the operator has looked at something; your money is safe, and deposits go on"
            return MoneyRefused(503, "payouts_frozen", text, retry_after_s=3600)
        # SPEC 07: The coordinator MUST have at most one payout of a key on its way.
        if payouts.find_open(tx, node) is not None:
            return MoneyRefused(409, "payout_in_flight", "a payout of this key is on its way; wait for its end")
        target = self._target(tx, node, pair, now_ms)
        if isinstance(target, MoneyRefused):
            return target
        if amount_uusd is None:
            amount_uusd = self._all_of(tx, node, now_ms)
        if (refused := self._beyond_limits(tx, node, amount_uusd, now_ms)) is not None:
            return refused
        intent = Intent(
            secrets.token_bytes(16),
            node,
            request,
            amount_uusd,
            target.code,
            target.network,
            target.account,
            PayoutState.QUEUED,
            created_ms=now_ms,
            next_ms=now_ms,
        )
        verdict = self._ledger.command(tx, OrderPayout(intent.intent, node, amount_uusd), now_ms)
        if isinstance(verdict, Refused):
            return of_verdict(verdict)
        payouts.insert(tx, intent)
        return intent

    def _all_of(self, tx: sqlite3.Connection, node: NodeId, now_ms: int) -> int:
        """What of a key's money can leave now, in whole cents."""
        with self._ledger.begin(tx) as ledger:
            there_uusd = ledger.balance(available(node))
        allowed_uusd = self._limits.per_day_and_key - payouts.ordered_since(tx, now_ms - DAY_MS, node)
        return max(0, min(there_uusd, allowed_uusd)) // UUSD_PER_CENT * UUSD_PER_CENT

    @staticmethod
    def _target(
        tx: sqlite3.Connection, node: NodeId, pair: Pair | None, now_ms: int
    ) -> payout_addresses.PayoutAddress | MoneyRefused:
        addresses = payout_addresses.list_of(tx, node)
        target = payout_addresses.default_of(addresses, now_ms, pair)
        if target is None:
            where = f" for {pair.code} on {pair.network}" if pair is not None else ""
            text = f"no address{where} holds yet: set one (`infernet payout set`); each holds 24 hours after it was set"
            return MoneyRefused(409, "no_payout_address", text)
        # SPEC 07: The coordinator MUST NOT order a payout to an address with a destination tag as long as the gateway
        #   cannot send one.
        if target.destination_tag is not None:
            return destination_tag_refused()
        return target

    def _beyond_limits(
        self, tx: sqlite3.Connection, node: NodeId, amount_uusd: int, now_ms: int
    ) -> MoneyRefused | None:
        limits, day_ago_ms = self._limits, now_ms - DAY_MS
        if amount_uusd < limits.least:
            text = f"{format_usd(amount_uusd)} is less than the smallest payout here, {format_usd(limits.least)}"
            return MoneyRefused(400, "bad_amount", text)
        if payouts.ordered_since(tx, day_ago_ms, node) + amount_uusd > limits.per_day_and_key:
            text = (
                f"a key is paid out {format_usd(limits.per_day_and_key)} within a day at most; ask for less, or later"
            )
            return MoneyRefused(429, "payout_limit", text, retry_after_s=3600)
        if payouts.ordered_since(tx, day_ago_ms) + amount_uusd > limits.per_day:
            text = "this coordinator has paid out as much today as it may; ask again tomorrow"
            return MoneyRefused(429, "payout_limit", text, retry_after_s=3600)
        return None

    # ------------------------------------------------------------ work

    async def work(self) -> None:
        """Everything that is due now, once."""
        async with self._working:
            await self._write(self._recover)
            if self._wall_ms() >= self._next_reconcile_ms:
                await self._reconcile()
                await self._order_automatically()
            await self._send_queued()
            await self._look()

    def _recover(self, tx: sqlite3.Connection) -> None:
        """Nothing is being sent now, so what says that it is has been interrupted."""
        now_ms = self._wall_ms()
        for intent in payouts.open_in(tx, PayoutState.SENDING):
            self._carry_out(tx, rules.unclear(intent, "interrupted while it was being sent", now_ms))
        for number in payouts.without_row(tx):
            payouts.freeze(tx, f"payout {number.hex()} is in the ledger and in no list: was a backup restored?", now_ms)
        self.frozen = payouts.frozen(tx)

    async def _send_queued(self) -> None:
        # Rows that came out of a backup may be older than what the gateway has done since.
        if not self._is_compared:
            return
        queued = await self._database.write(lambda tx: payouts.open_in(tx, PayoutState.QUEUED))
        for intent in queued:
            if intent.next_ms <= self._wall_ms() and self.frozen is None:
                if not self._calls.take(Purpose.PAYOUT):
                    return
                await self._send(intent.intent)

    async def _send(self, number: bytes) -> None:
        # SPEC 07: The coordinator MUST have an attempt on disk before it asks the gateway to send.
        intent = await self._write(lambda tx: self._begin(tx, number))
        if intent is None:
            return
        wanted = PayoutRequest(number.hex(), intent.amount_uusd, intent.code, intent.network, intent.address)
        try:
            payout = await self._gateway.create_payout(wanted)
        except GatewayRefused as error:
            step = rules.refused(intent, error, self._wall_ms())
        except GatewayError as error:
            step = rules.unclear(intent, error.reason, self._wall_ms())
        except ValueError as error:
            step = rules.impossible(intent, str(error), self._wall_ms())
        else:
            step = rules.answered(intent, payout, self._wall_ms())
        log.info("payout_tried", intent=number.hex(), status=step.intent.status.value, reason=step.intent.reason)
        await self._write(lambda tx: self._carry_out(tx, step))

    def _begin(self, tx: sqlite3.Connection, number: bytes) -> Intent | None:
        intent = payouts.get(tx, number)
        if intent is None or intent.status is not PayoutState.QUEUED or payouts.frozen(tx) is not None:
            return None
        # SPEC 07: The coordinator MUST NOT sign a head, and MUST NOT send a payout, while its journal lacks an entry.
        if self._is_stopped():
            return None
        with self._ledger.begin(tx) as ledger:
            held = ledger.payout(number)
        if held is None or held.is_resolved:
            self._freeze(tx, f"payout {number.hex()} is to be sent, and its money is not set aside")
            return None
        begun = rules.begin(intent, self._wall_ms())
        payouts.update(tx, begun)
        return begun

    async def _look(self) -> None:
        """Look in the gateway's list for what has not ended, where that is due."""
        looked_for = await self._database.write(lambda tx: payouts.open_in(tx, PayoutState.SENT, PayoutState.UNKNOWN))
        due = [intent for intent in looked_for if intent.next_ms <= self._wall_ms()]
        if not due:
            return
        listing = await self._list(min(intent.created_ms for intent in due) - rules.LIST_MARGIN_MS)
        if listing is not None:
            numbers = [intent.intent for intent in due]
            await self._write(lambda tx: self._apply(tx, numbers, listing))

    def _apply(self, tx: sqlite3.Connection, numbers: list[bytes], listing: PayoutListing) -> None:
        now_ms = self._wall_ms()
        for number in numbers:
            intent = payouts.get(tx, number)
            if intent is not None and intent.status in (PayoutState.SENT, PayoutState.UNKNOWN):
                self._carry_out(tx, rules.listed(intent, listing, now_ms, self._limits.resend))

    async def _list(self, since_ms: int) -> PayoutListing | None:
        if not self._calls.take(Purpose.PAYOUT):
            return None
        try:
            return await self._gateway.list_payouts(since_ms=max(0, since_ms))
        except GatewayError as error:
            log.warning("payouts_not_listed", reason=error.reason, status=error.status, detail=error.detail)
            return None

    def _carry_out(self, tx: sqlite3.Connection, step: Step) -> Intent:
        """The row and the entry, or neither."""
        now_ms = self._wall_ms()
        if payouts.is_number_of_another(tx, step.intent.gateway_id, step.intent.intent):
            step = rules.number_of_another(self._row(tx, step), now_ms)
        if step.command is not None:
            verdict = self._ledger.command(tx, step.command, now_ms)
            if isinstance(verdict, Refused):
                # The row came out of a backup, and the ledger, with its journal, knows more.
                step = rules.resolved_before(self._row(tx, step), now_ms)
        intent = step.intent
        payouts.update(tx, intent)
        if step.freeze is not None:
            self._freeze(tx, step.freeze)
        if intent.needs_person:
            log.warning("payout_needs_person", intent=intent.intent.hex(), reason=intent.reason)
        return intent

    @staticmethod
    def _row(tx: sqlite3.Connection, step: Step) -> Intent:
        row = payouts.get(tx, step.intent.intent)
        assert row is not None
        return row

    def _freeze(self, tx: sqlite3.Connection, reason: str) -> None:
        payouts.freeze(tx, reason, self._wall_ms())
        self.frozen = payouts.frozen(tx)
        log.critical("payouts_frozen", reason=reason, hint="infernet-coordinator payouts list")

    # ------------------------------------------------------------ every hour

    async def _reconcile(self) -> None:
        """Hold the gateway's list beside ours. What does not fit stops payouts, and nothing else."""
        now_ms = self._wall_ms()
        since_ms = max(await self._database.write(lambda tx: payouts.since_ms(tx, now_ms)), now_ms - RECONCILED_MS)
        listing = await self._list(since_ms - rules.LIST_MARGIN_MS)
        if listing is None:
            return
        await self._write(lambda tx: self._compare(tx, listing, since_ms))
        self._next_reconcile_ms = now_ms + RECONCILE_MS
        self._is_compared = True

    def _compare(self, tx: sqlite3.Connection, listing: PayoutListing, since_ms: int) -> None:
        numbers = [row.intent_id for row in listing.payouts if row.intent_id is not None]
        found = rules.strays(listing, payouts.by_number(tx, numbers, since_ms), since_ms)
        # SPEC 07: The coordinator MUST stop payouts, and not deposits, when the gateway's list of them and its own
        #   differ, and when the gateway gives two of them one number.
        new = [
            (gateway_id, reason)
            for gateway_id, reason in found.items()
            if payouts.put_stray(tx, gateway_id, reason, self._wall_ms())
        ]
        if new:
            self._freeze(tx, f"{new[0][0]}: {new[0][1]}" + (f", and {len(new) - 1} more" if len(new) > 1 else ""))

    async def _order_automatically(self) -> None:
        if not self._limits.automatic or self.frozen is not None:
            return
        keys = await self._database.write(
            lambda tx: payouts.rich(tx, self._limits.automatic, self._wall_ms(), AUTOMATIC_AT_ONCE_MAX)
        )
        for node in keys:
            try:
                await self.request(node, f"automatic:{secrets.token_hex(8)}", None, None, lambda _tx: None)
            except MoneyRefused as refused:
                log.info("automatic_payout_refused", code=refused.code)

    # ------------------------------------------------------------ a person decides

    async def decide(self, number: bytes, decision: str) -> Intent:
        """`sent`, `return` or `resend` a payout of which nobody knows; `return` one that waits. Raises MoneyRefused."""
        # Not while a call is under way, which may be about this very payout.
        async with self._working:
            answer = await self._write(lambda tx: self._decide(tx, number, decision))
        if isinstance(answer, MoneyRefused):
            raise answer
        self._hint.set()
        return answer

    def _decide(self, tx: sqlite3.Connection, number: bytes, decision: str) -> Intent | MoneyRefused:
        intent, now_ms = payouts.get(tx, number), self._wall_ms()
        if intent is None:
            intent = self._intent_of_ledger(tx, number, now_ms)
        if intent is None:
            return MoneyRefused(404, "unknown_payout", "there is no such payout")
        if not intent.code:
            if decision == "resend":
                return MoneyRefused(409, "conflict", "nobody knows any more where to: give it back, or say it was sent")
            return self._resolve_without_row(tx, intent, decision, now_ms)
        if (resolved := payouts.resolution(tx, number)) is not None and intent.ended_ms is None:
            return self._end_as_resolved(tx, intent, decision, resolved, now_ms)
        # One that waits has not been sent, and where the gateway refuses it day after day its owner wants the money.
        is_waiting = intent.status is PayoutState.QUEUED and decision == "return"
        if intent.status is not PayoutState.UNKNOWN and not is_waiting:
            text = f"this payout is {intent.status.value}; unknown ones are decided, and queued ones can be given back"
            return MoneyRefused(409, "conflict", text)
        steps = {"sent": rules.confirmed, "return": rules.given_back, "resend": rules.sent_again}
        step = steps[decision](intent, now_ms)
        log.warning("payout_decided", intent=number.hex(), decision=decision)
        return self._carry_out(tx, step)

    @staticmethod
    def _end_as_resolved(
        tx: sqlite3.Connection, intent: Intent, decision: str, resolved: PayoutState, now_ms: int
    ) -> Intent | MoneyRefused:
        """The row has come out of a backup that is older than its end: it ends as the ledger says."""
        if {"sent": PayoutState.CONFIRMED, "return": PayoutState.FAILED}.get(decision) is not resolved:
            what = "sent" if resolved is PayoutState.CONFIRMED else "return"
            return MoneyRefused(409, "conflict", f"the ledger has it already; all that can be decided is `{what}`")
        log.warning("payout_decided", intent=intent.intent.hex(), decision=decision)
        ended = rules.ended_before(intent, resolved, now_ms)
        payouts.update(tx, ended)
        return ended

    def _intent_of_ledger(self, tx: sqlite3.Connection, number: bytes, now_ms: int) -> Intent | None:
        """A payout that only the ledger has, because a backup was restored: nobody knows its coin or address."""
        with self._ledger.begin(tx) as ledger:
            held = ledger.payout(number)
        if held is None or held.is_resolved:
            return None
        node = NodeId(bytes.fromhex(held.account.partition(":")[2]))
        return Intent(number, node, "", held.amount_uusd, "", "", "", PayoutState.UNKNOWN, created_ms=now_ms)

    def _resolve_without_row(
        self, tx: sqlite3.Connection, intent: Intent, decision: str, now_ms: int
    ) -> Intent | MoneyRefused:
        command = ReturnPayout(intent.intent) if decision == "return" else SettlePayout(intent.intent, "unknown", 0)
        verdict = self._ledger.command(tx, command, now_ms)
        if isinstance(verdict, Refused):
            return of_verdict(verdict)
        log.warning("payout_decided", intent=intent.intent.hex(), decision=decision)
        status = PayoutState.FAILED if decision == "return" else PayoutState.CONFIRMED
        return replace(intent, status=status, ended_ms=now_ms)

    async def strays(self) -> list[Stray]:
        """What does not fit, for a person to look at."""
        found = await self._database.write(lambda tx: payouts.list_strays(tx, STRAYS_MAX))
        self._shown.update(each.gateway_id for each in found)
        return found

    async def unfreeze(self) -> None:
        """A person has looked at everything that did not fit. Raises MoneyRefused for what came after the look."""
        # SPEC 07: The coordinator MUST NOT let payouts go on while something does not fit that it has not shown to its
        #   operator.
        if not await self._write(lambda tx: payouts.unfreeze(tx, tuple(self._shown))):
            text = "something does not fit that nobody has looked at: see payouts list, then unfreeze again"
            raise MoneyRefused(409, "conflict", text)
        self._shown.clear()
        self.frozen = None
        log.warning("payouts_unfrozen")
        self._hint.set()

    # ------------------------------------------------------------ the loop

    async def _write(self, closure: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.write(closure)
        except AssertionError as error:
            self._on_broken(f"an invariant does not hold: {error}")
            raise

    async def _run(self) -> None:
        while True:
            self._hint.clear()
            try:
                if not self._is_stopped():
                    await self.work()
            except StoreClosed:
                return
            except (sqlite3.Error, StoreBusy, StoreFailed, AssertionError):
                log.exception("payouts_failed")
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._hint.wait()
            except TimeoutError:
                pass


def destination_tag_refused() -> MoneyRefused:
    """Without its tag the payment would be somebody else's."""
    text = "this address carries a destination tag, and the payment gateway cannot send one: give one without a tag"
    return MoneyRefused(400, "destination_tag", text)
