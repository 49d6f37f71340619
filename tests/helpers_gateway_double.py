"""A gateway in this process, for tests of many thousands of payments: the fake gateway's book, without its HTTP.

A test double. What it answers goes through the product's own reading of answers; what goes wrong is drawn with a seed.
`Crash` is not an Exception: nothing may catch it, as nothing catches a power cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from coordinator.payments.bounded_json import decode_object
from coordinator.payments.coinpayportal_replies import ASSETS, read_invoice, read_payouts
from coordinator.payments.gateway import (
    GatewayRefused,
    GatewayUnclear,
    Invoice,
    InvoiceRequest,
    Payout,
    PayoutListing,
    PayoutRequest,
)
from protocol.formats.amounts import format_usd
from tests.fake_gateway import BUSINESS
from tests.helpers_fake_gateway_book import Book, Refused, payment_json, payout_json

ANSWER_BYTES_MAX = 64 * 1024 * 1024


class Crash(BaseException):
    """The process is gone at this very point."""


@dataclass
class Rates:
    """How often each goes wrong: without its effect, and with it."""

    silent: float = 0.0
    lost: float = 0.0
    refused: float = 0.0
    failed: float = 0.0
    crash: float = 0.0
    list_fails: float = 0.0


@dataclass
class DoubleGateway:
    """See `coordinator.payments.gateway.Gateway`, as which it is used."""

    clock_ms: Callable[[], int]
    seed: int = 0
    rates: Rates = field(default_factory=Rates)
    gets: int = 0

    def __post_init__(self) -> None:
        self.book = Book(BUSINESS, self.seed)
        self.dice = random.Random(self.seed)

    def _now_s(self) -> int:
        return self.clock_ms() // 1000

    def _invoice(self, identity: str) -> Invoice:
        told = payment_json(self.book.payment(identity), public=False, business_id=BUSINESS)
        return read_invoice(decode_object(msgspec.json.encode({"payment": told}), ANSWER_BYTES_MAX))

    def _perhaps(self, rate: float, error: BaseException) -> None:
        if self.dice.random() < rate:
            raise error

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        self._perhaps(self.rates.silent, GatewayUnclear("timeout"))
        body = {
            "business_id": BUSINESS,
            "amount": _decimal(request.amount_uusd),
            "blockchain": ASSETS[request.code, request.network][0],
            "metadata": {"order_id": request.order_id},
        }
        payment = self.book.create_payment(body, self._now_s())
        self._perhaps(self.rates.lost, GatewayUnclear("timeout"))
        return self._invoice(payment.id)

    async def get_invoice(self, gateway_id: str) -> Invoice:
        self.gets += 1
        self._perhaps(self.rates.silent, GatewayUnclear("timeout"))
        try:
            return self._invoice(gateway_id)
        except Refused as refused:
            raise GatewayRefused("not_found", status=refused.status) from None

    async def create_payout(self, request: PayoutRequest) -> Payout:
        rates = self.rates
        self._perhaps(rates.crash, Crash())
        self._perhaps(rates.silent, GatewayUnclear("timeout"))
        self._perhaps(rates.refused, GatewayRefused("rate_limited", status=429))
        body = {
            "recipient_email": "operator@example.org",
            "recipient_wallet": request.address,
            "cryptocurrency": ASSETS[request.code, request.network][0],
            "amount_usd": _decimal(request.amount_uusd),
            "metadata": {"intent_id": request.intent_id},
        }
        outcome = "failed" if self.dice.random() < rates.failed else None
        payout = self.book.create_payout(body, self._now_s(), outcome)
        self._perhaps(rates.crash, Crash())
        self._perhaps(rates.lost, GatewayUnclear("timeout"))
        return self._rows([payout])[0]

    async def list_payouts(self, *, since_ms: int = 0, at_most: int = 10_000) -> PayoutListing:
        self._perhaps(self.rates.list_fails, GatewayUnclear("timeout"))
        newest = []
        for payout in reversed(self.book.payouts.values()):
            if payout.created_s * 1000 < since_ms:
                break
            newest.append(payout)
        return PayoutListing(tuple(self._rows(newest[:at_most])), complete=len(newest) <= at_most)

    def _rows(self, payouts: list[Any]) -> list[Payout]:
        told = {"payouts": [payout_json(payout, BUSINESS) for payout in payouts]}
        return read_payouts(decode_object(msgspec.json.encode(told), ANSWER_BYTES_MAX), len(payouts))


def _decimal(amount_uusd: int) -> Any:

    return Decimal(format_usd(amount_uusd).removeprefix("$"))
