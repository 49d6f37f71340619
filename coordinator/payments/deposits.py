"""Deposits at work: invoices for clients, hints from webhooks, questions to the gateway, and credit in the ledger.

Only an answer to a question of ours credits anything. A webhook makes the question come at once; without any webhook
it comes by the clock. The row of a deposit and the entry in the ledger change in one transaction.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from coordinator.core.money import MoneyRefused, of_verdict
from coordinator.payments import deposit_rules as rules
from coordinator.payments.call_budget import CallBudget, Purpose
from coordinator.payments.deposit_rules import Deposit, Judged, Limits, Stage
from coordinator.payments.gateway import Gateway, GatewayError, Invoice, InvoiceRequest
from coordinator.payments.webhook import OLD_SIGNATURE_HEADER, SIGNATURE_HEADER, WebhookSecrets, verify
from coordinator.payments.webhook_events import BadWebhook, parse_event
from coordinator.store import deposits, webhooks
from coordinator.store.db import Database, StoreBusy, StoreClosed, StoreFailed
from coordinator.store.ledger import Ledger
from protocol.formats.amounts import BadAmount
from protocol.formats.coins import Pair
from protocol.ids import NodeId
from protocol.ledger import MoneyRefusal, Refused, ReleaseHold, Verdict

# Of one key within a day: each costs a request at the gateway, and most people pay the first.
UNPAID_PER_DAY_MAX: Final = 20
POLLED_AT_ONCE_MAX: Final = 100
IDLE_S_MAX: Final = 30.0
SIGNATURE_CHARACTERS_KEPT: Final = 512
RETRY_AFTER_S: Final = 2

Mark = Callable[[sqlite3.Connection], None]

log = structlog.get_logger(__name__)


class Deposits:
    """Runs on the event loop from `start` to `stop`. `on_broken` hears of an invariant that does not hold.

    While the ledger `is_stopped` nothing is asked by the clock: what was paid meanwhile is credited afterwards.
    """

    def __init__(
        self,
        gateway: Gateway,
        secrets_of_webhooks: WebhookSecrets,
        calls: CallBudget,
        limits: Limits,
        database: Database,
        ledger: Ledger,
        wall_ms: Callable[[], int],
        on_broken: Callable[[str], None],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_stopped = is_stopped
        self._gateway = gateway
        self._secrets = secrets_of_webhooks
        self._calls = calls
        self._limits = limits
        self._database = database
        self._ledger = ledger
        self._wall_ms = wall_ms
        self._on_broken = on_broken
        self._creating: set[bytes] = set()
        self._hint = asyncio.Event()
        self._is_hinted = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask the gateway by the clock from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ask no more. What was being asked is asked again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # ------------------------------------------------------------ invoices

    async def create(self, node: NodeId, request: str, amount_uusd: int, pair: Pair, mark: Mark) -> Deposit:
        """An invoice for a client, the same one for the same number. Raises ApiError."""
        deposit = await self._database.write(lambda tx: self._find_or_make(tx, node, request, amount_uusd, pair, mark))
        if isinstance(deposit, MoneyRefused):
            raise deposit
        if deposit.stage is not Stage.NEW:
            return deposit
        if deposit.deposit in self._creating:
            text = "this invoice is just being made; ask again under the same request_id"
            raise MoneyRefused(409, "in_progress", text, retry_after_s=RETRY_AFTER_S)
        self._creating.add(deposit.deposit)
        try:
            return await self._make(deposit)
        finally:
            self._creating.discard(deposit.deposit)

    def _find_or_make(
        self, tx: sqlite3.Connection, node: NodeId, request: str, amount_uusd: int, pair: Pair, mark: Mark
    ) -> Deposit | MoneyRefused:
        mark(tx)
        before = deposits.find_request(tx, node, request)
        if before is not None:
            # SPEC 07: The coordinator MUST answer a request that repeats a `request_id` with what came of the first
            #   one, and MUST refuse another request under it.
            if (before.amount_uusd, before.code, before.network) != (amount_uusd, pair.code, pair.network):
                return MoneyRefused(409, "conflict", "another deposit was asked for under this request_id")
            return before
        now_ms = self._wall_ms()
        if deposits.count_waiting(tx, node, now_ms - rules.DAY_MS) >= UNPAID_PER_DAY_MAX:
            text = f"{UNPAID_PER_DAY_MAX} invoices of this key were not paid today; pay one of them, or wait"
            return MoneyRefused(429, "too_many_deposits", text, retry_after_s=3600)
        deposit = Deposit(
            secrets.token_bytes(16),
            node,
            request,
            amount_uusd,
            pair.code,
            pair.network,
            Stage.NEW,
            created_ms=now_ms,
        )
        deposits.insert(tx, deposit)
        return deposit

    async def _make(self, deposit: Deposit) -> Deposit:
        if not self._calls.take(Purpose.INVOICE):
            text = "the payment gateway takes no more requests just now; ask again under the same request_id"
            raise MoneyRefused(503, "busy", text, retry_after_s=30)
        wanted = InvoiceRequest(deposit.deposit.hex(), deposit.amount_uusd, deposit.code, deposit.network)
        try:
            invoice = await self._gateway.create_invoice(wanted)
        except GatewayError as error:
            # Unclear or not: at worst there is an invoice that nobody has seen and nobody will pay.
            log.warning("invoice_failed", reason=error.reason, status=error.status, detail=error.detail)
            text = "the payment gateway made no invoice: ask again in a moment (programs: under the same request_id)"
            raise MoneyRefused(502, "gateway_failed", text, retry_after_s=10) from None
        after = rules.opened(deposit, invoice, self._wall_ms())
        if not invoice.amount or after.gateway_id is None:
            raise MoneyRefused(502, "gateway_failed", "the payment gateway asks for nothing; choose another coin")
        try:
            await self._database.write(lambda tx: deposits.update(tx, after))
        except sqlite3.IntegrityError:
            log.error("payment_used_twice", payment=invoice.gateway_id)  # noqa: TRY400 - where it was raised says nothing
            text = "the payment gateway gave an invoice twice; ask again with another request_id"
            raise MoneyRefused(502, "gateway_failed", text) from None
        self._hint.set()
        return after

    # ------------------------------------------------------------ webhooks

    async def receive(self, signatures: Sequence[str], old_signatures: Sequence[str], body: bytes) -> None:
        """Take a webhook: it is kept, and what it is about is asked of the gateway. Raises WebhookRefused."""
        now_ms = self._wall_ms()
        verify(signatures, old_signatures, body, now_ms // 1000, self._secrets)
        name, values = (SIGNATURE_HEADER, signatures) if signatures else (OLD_SIGNATURE_HEADER, old_signatures)
        signature = f"{name}: {values[0]}"[:SIGNATURE_CHARACTERS_KEPT]
        if await self._database.write(lambda tx: self._take(tx, body, signature, now_ms)):
            self._is_hinted = True
            self._hint.set()

    @staticmethod
    def _take(tx: sqlite3.Connection, body: bytes, signature: str, now_ms: int) -> bool:
        """Whether there is something to ask now."""
        if webhooks.seen(tx, body):
            return False
        try:
            event = parse_event(body)
        except BadWebhook as error:
            log.warning("webhook_unreadable", reason=str(error))
            webhooks.put(tx, body, signature, now_ms, None, "unreadable")
            return False
        payment = event.payment_id
        deposit = deposits.find_payment(tx, payment) if payment is not None else None
        if deposit is None:
            webhooks.put(tx, body, signature, now_ms, payment, "unknown" if payment is not None else "other")
            return False
        if deposit.stage in rules.SETTLED:
            webhooks.put(tx, body, signature, now_ms, payment, "settled")
            return False
        webhooks.put(tx, body, signature, now_ms, payment, "queued")
        deposits.update(tx, rules.hinted(deposit, event.status, now_ms))
        return True

    # ------------------------------------------------------------ asking the gateway

    async def poll_due(self) -> int:
        """Ask about everything that is due, as far as the gateway takes requests; how many were asked about."""
        polled = 0
        while not self._is_stopped():
            self._is_hinted = False
            found = await self._database.write(lambda tx: deposits.due(tx, self._wall_ms(), POLLED_AT_ONCE_MAX))
            if not found:
                break
            for deposit in found:
                if not self._may_ask(deposit):
                    return polled
                await self._poll(deposit)
                polled += 1
                # What a webhook has told of meanwhile comes first, and a ledger that stands still waits.
                if self._is_hinted or self._is_stopped():
                    break
        return polled

    def _may_ask(self, deposit: Deposit) -> bool:
        if deposit.next_poll_ms == rules.TOLD_PAID_MS and self._calls.take(Purpose.PAID_POLL):
            return True
        return self._calls.take(Purpose.POLL)

    async def _poll(self, deposit: Deposit) -> None:
        assert deposit.gateway_id is not None
        try:
            invoice = await self._gateway.get_invoice(deposit.gateway_id)
        except GatewayError as error:
            log.info("deposit_not_read", reason=error.reason, status=error.status, detail=error.detail)
            await self._database.write(lambda tx: self._not_read(tx, deposit))
            return
        await self._settle(lambda tx: self._judge(tx, deposit, invoice))

    def _not_read(self, tx: sqlite3.Connection, asked: Deposit) -> None:
        deposit, now_ms = deposits.get(tx, asked.deposit), self._wall_ms()
        assert deposit is not None
        if deposit.stage not in rules.SETTLED:
            after = rules.failed_to_ask(deposit, now_ms)
            deposits.update(tx, rules.with_hint(asked, deposit, after, now_ms))

    def _judge(self, tx: sqlite3.Connection, asked: Deposit, invoice: Invoice) -> Deposit:
        deposit, now_ms = deposits.get(tx, asked.deposit), self._wall_ms()
        assert deposit is not None
        if self._is_stopped():
            return deposit  # it is asked about again
        hour_uusd = deposits.credited_since(tx, now_ms - rules.HOUR_MS)
        judged = rules.judge(deposit, invoice, now_ms, hour_uusd, self._limits)
        if judged.command is None:
            judged = Judged(rules.with_hint(asked, deposit, judged.deposit, now_ms))
        return self._carry_out(tx, judged, now_ms)

    def _carry_out(self, tx: sqlite3.Connection, judged: Judged, now_ms: int) -> Deposit:
        """The row and the entry, or neither."""
        verdict = self._credit(tx, judged, now_ms)
        if isinstance(verdict, Refused) and verdict.code is MoneyRefusal.CONFLICT:
            # The row came out of a backup. What the ledger has under this payment may be the same credit and differ in
            # being held alone, which depends on the hour and the limits.
            other = rules.as_it_was(judged)
            if not isinstance(repeated := self._credit(tx, other, now_ms), Refused):
                judged, verdict = other, repeated
        deposit = judged.deposit
        if isinstance(verdict, Refused):
            # Another amount was credited under this payment: the ledger stays as it is.
            deposit = replace(deposit, stage=Stage.REVIEW, credited_uusd=0, reason=f"the ledger: {verdict.text}")
        if deposit.stage in (Stage.REVIEW, Stage.HELD):
            log.warning("deposit_needs_person", deposit=deposit.deposit.hex(), reason=deposit.reason)
        elif judged.command is not None:
            log.info("deposit_credited", deposit=deposit.deposit.hex(), credited_uusd=deposit.credited_uusd)
        deposits.update(tx, deposit)
        return deposit

    def _credit(self, tx: sqlite3.Connection, judged: Judged, now_ms: int) -> Verdict | None:
        return self._ledger.command(tx, judged.command, now_ms) if judged.command is not None else None

    async def _settle(self, closure: Callable[[sqlite3.Connection], Deposit]) -> Deposit:
        try:
            return await self._database.write(closure)
        except AssertionError as error:
            self._on_broken(f"an invariant does not hold: {error}")
            raise

    async def _run(self) -> None:
        while True:
            self._hint.clear()
            try:
                await self.poll_due()
                await self._database.write(lambda tx: webhooks.prune(tx, self._wall_ms()))
                wait_s = await self._wait_s()
            except StoreClosed:
                return
            except (sqlite3.Error, StoreBusy, StoreFailed, AssertionError):
                log.exception("deposits_failed")
                wait_s = IDLE_S_MAX
            try:
                async with asyncio.timeout(wait_s):
                    await self._hint.wait()
            except TimeoutError:
                pass

    async def _wait_s(self) -> float:
        due_ms = await self._database.write(deposits.next_due_ms)
        if due_ms is None or self._is_stopped():
            return IDLE_S_MAX
        return min(IDLE_S_MAX, max((due_ms - self._wall_ms()) / 1000, self._calls.wait_s()))

    # ------------------------------------------------------------ a person decides

    async def release(self, identity: bytes) -> Deposit:
        """Somebody looked at a deposit that is held, and it is good. Raises MoneyRefused."""

        def write(tx: sqlite3.Connection) -> Deposit | MoneyRefused:
            deposit, now_ms = deposits.get(tx, identity), self._wall_ms()
            if deposit is None or deposit.stage is not Stage.HELD or deposit.gateway_id is None:
                return MoneyRefused(404, "unknown_hold", "no such deposit is held")
            verdict = self._ledger.command(
                tx, ReleaseHold(deposit.gateway_id, deposit.node, deposit.credited_uusd), now_ms
            )
            if isinstance(verdict, Refused):
                return of_verdict(verdict)
            after = replace(deposit, stage=Stage.CREDITED, reason="released by a person")
            deposits.update(tx, after)
            return after

        return _raised(await self._decided(write))

    async def credit(self, identity: bytes, received: int) -> Deposit:
        """Somebody has seen so many ledger units arrive for a deposit that is not settled. Raises MoneyRefused."""

        def write(tx: sqlite3.Connection) -> Deposit | MoneyRefused:
            deposit, now_ms = deposits.get(tx, identity), self._wall_ms()
            if deposit is None:
                return MoneyRefused(404, "unknown_deposit", "there is no such deposit")
            try:
                return self._carry_out(tx, rules.by_hand(deposit, received, now_ms), now_ms)
            except BadAmount as error:
                return MoneyRefused(400, "bad_amount", str(error))
            except ValueError as error:
                return MoneyRefused(409, "conflict", str(error))

        return _raised(await self._decided(write))

    async def _decided(self, closure: Callable[[sqlite3.Connection], Deposit | MoneyRefused]) -> Deposit | MoneyRefused:
        try:
            return await self._database.write(closure)
        except AssertionError as error:
            self._on_broken(f"an invariant does not hold: {error}")
            raise


def _raised(answer: Deposit | MoneyRefused) -> Deposit:
    if isinstance(answer, MoneyRefused):
        raise answer
    return answer
