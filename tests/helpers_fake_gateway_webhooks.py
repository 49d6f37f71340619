"""How the fake gateway tells of payments: signed as published, sent to the callback three times at most, and as wrongly
as it was told to. Each delivery is a task of its own, as with the real one, so two may overtake each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from tests.helpers_fake_gateway_book import Book, Payment, number, plain, timestamp
from tests.helpers_fake_gateway_faults import Fault, Faults

ATTEMPTS = 3
TIMEOUT_S = 30.0
STALE_S = 3600
# More at once would wait for each other in the client's pool until they time out.
DELIVERIES_AT_ONCE = 32
SHAPES = ("nested", "flat")


def sign(secret: str, time_s: int, body: bytes) -> str:
    """The published header, made here from its description and not with the code under test."""
    digest = hmac.new(secret.encode(), f"{time_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={time_s},v1={digest}"


class Webhooks:
    """Deliveries to one callback."""

    def __init__(self, book: Book, faults: Faults, secret: str, clock: Callable[[], int], backoff_s: float) -> None:
        self.callback: str | None = None
        self.shapes: tuple[str, ...] = SHAPES
        self._book = book
        self._faults = faults
        self._secret = secret
        self._clock = clock
        self._backoff_s = backoff_s
        # Callbacks are plain HTTP on this machine.
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=False)
        self._slots = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[tuple[str, bytes, str]] = []
        self._behind: list[tuple[str, bytes, str]] = []
        self._count = 0

    async def close(self) -> None:
        """Stop delivering."""
        for task in self._tasks:
            task.cancel()
        await self._http.aclose()

    async def drain(self, timeout_s: float) -> int:
        """Wait until nothing is on its way any more, or for so long; how many still are. What is held stays held."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        return len(self._tasks)

    def release(self) -> None:
        """Send what was held, in the order in which it was."""
        held, self._held = self._held + self._behind, []
        self._behind = []
        for one in held:
            self._start(*one)

    def tell(self, payment: Payment) -> None:
        """Send what is to be said of this payment now, with whatever goes wrong with it."""
        body = self._body(payment)
        signature = sign(self._secret, self._clock(), body)
        fault = self._faults.take("webhook")
        about = {"payment_id": payment.id, "status": payment.status, "fault": fault.kind if fault else None}
        self._book.note("webhook", **about)
        self._wrongly(fault, payment.id, body, signature)

    def _wrongly(self, fault: Fault | None, payment_id: str, body: bytes, signature: str) -> None:
        match fault.kind if fault else None:
            case "drop":
                return
            case "hold":
                self._held.append((payment_id, body, signature))
                return
            case "reorder":
                self._behind.append((payment_id, body, signature))
                return
            case "duplicate":
                assert fault is not None
                for _ in range(fault.times):
                    self._start(payment_id, body, signature)
            case "tamper":
                body = body.replace(b"payment", b"Payment", 1)
            case "forge":
                signature = sign("not the secret", self._clock(), body)
            case "stale":
                signature = sign(self._secret, self._clock() - STALE_S, body)
            case "malformed":
                body = body[: len(body) // 2]
                signature = sign(self._secret, self._clock(), body)
        self._start(payment_id, body, signature)
        behind, self._behind = self._behind, []
        for one in behind:
            self._start(*one)

    def _start(self, payment_id: str, body: bytes, signature: str) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(payment_id, body, signature))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, payment_id: str, body: bytes, signature: str) -> None:
        if self.callback is None:
            return
        headers = {
            "Content-Type": "application/json",
            "X-CoinPay-Signature": signature,
            "User-Agent": "CoinPay-Webhook/1.0",
        }
        for attempt in range(ATTEMPTS):
            try:
                async with self._slots:
                    answer = await self._http.post(self.callback, content=body, headers=headers)
            except httpx.HTTPError as error:
                outcome: int | str = type(error).__name__
            else:
                outcome = answer.status_code
            self._book.note("delivery", payment_id=payment_id, attempt=attempt + 1, outcome=outcome)
            if isinstance(outcome, int) and 200 <= outcome < 300:
                return
            await asyncio.sleep(self._backoff_s * 2**attempt if attempt + 1 < ATTEMPTS else 0)

    def _body(self, payment: Payment) -> bytes:
        self._count += 1
        now_s, kind = self._clock(), f"payment.{payment.status}"
        fields: dict[str, Any] = {
            "payment_id": payment.id,
            "status": payment.status,
            "amount_crypto": plain(payment.amount),
            "amount_usd": plain(payment.amount_usd),
            "currency": payment.blockchain,
            "payment_address": payment.address,
            "tx_hash": payment.tx_hash,
            "metadata": payment.metadata,
        }
        if payment.status == "confirmed":
            fields |= {"received_amount": number(payment.received), "confirmed_at": timestamp(now_s)}
        if self.shapes[self._count % len(self.shapes)] == "nested":
            identity = f"evt_{payment.id}_{now_s}"
            about = {"created_at": timestamp(now_s), "business_id": self._book.business_id}
            return msgspec.json.encode({"id": identity, "type": kind, "data": fields, **about})
        flat = {"event": kind, "type": kind, "business_id": self._book.business_id, "timestamp": timestamp(now_s)}
        return msgspec.json.encode({**flat, **fields})
