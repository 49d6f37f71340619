"""What the fake gateway keeps: payments, payouts, what was paid on its imaginary chains, and all that ever happened.

A double of CoinPayPortal as its public documentation and code describe it: a payment is confirmed when at least 99 %
of the coins asked for have arrived, whatever the amount then is; what comes in another coin is not seen; a payment
that waits too long expires, and one that was paid afterwards is confirmed all the same; two payouts with the same
metadata are two payouts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal
from typing import Any

import msgspec

EXPIRES_AFTER_S = 900
TOLERANCE = Decimal("0.99")
# What comes out of an exact payment in the end; the difference is the gateway's fee.
MERCHANT_SHARE = Decimal("0.99")
STEPS = ("pending", "detected", "confirmed", "forwarding", "forwarded")
# Dollars for one coin, and the decimals of its chain.
COINS = {
    "BTC": (Decimal(64_000), 8),
    "BCH": (Decimal(400), 8),
    "DOGE": (Decimal("0.125"), 8),
    "ETH": (Decimal(3_000), 18),
    "POL": (Decimal("0.5"), 18),
    "BNB": (Decimal(600), 18),
    "SOL": (Decimal(150), 9),
    "XRP": (Decimal("0.6"), 6),
    "ADA": (Decimal("0.4"), 6),
    **{f"{coin}{chain}": (Decimal(1), 6) for coin in ("USDT", "USDC") for chain in ("", "_ETH", "_POL", "_SOL")},
    "USDC_BASE": (Decimal(1), 6),
}


class Refused(Exception):
    """The gateway says no: a status, and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class Payment:
    """One payment; amounts of coins are exact decimals."""

    id: str
    blockchain: str
    amount_usd: Decimal
    amount: Decimal
    address: str
    created_s: int
    metadata: dict[str, Any]
    status: str = "pending"
    received: Decimal = Decimal(0)
    tx_hash: str | None = None

    @property
    def is_funded(self) -> bool:
        return self.received >= self.amount * TOLERANCE


@dataclass
class Payout:
    """One payout; it has left the gateway when `sent`."""

    id: str
    blockchain: str
    amount_usd: Decimal
    amount: Decimal
    address: str
    created_s: int
    metadata: dict[str, Any]
    status: str = "completed"
    sent: bool = True

    @property
    def tx_hash(self) -> str | None:
        return _hash("payout", self.id) if self.sent else None


@dataclass
class Book:
    """Everything the fake knows, and the list of all that happened, in order."""

    business_id: str
    seed: int
    payments: dict[str, Payment] = field(default_factory=dict)
    payouts: dict[str, Payout] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, **about: Any) -> None:
        """Write down what happened; by these notes tests compare to the unit what was paid."""
        self.history.append({"n": len(self.history), "what": what, **about})

    def create_payment(self, body: dict[str, Any], now_s: int) -> Payment:
        """As `POST /payments/create`. Raises Refused."""
        if body.get("business_id") != self.business_id:
            raise Refused(403, "business_id does not match API key scope")
        usd, blockchain = _dollars(body.get("amount")), str(body.get("blockchain", "")).upper()
        if usd is None or not 0 < usd <= 1_000_000:
            raise Refused(400, "Invalid or missing payment amount")
        if blockchain not in COINS:
            raise Refused(400, "Invalid or missing cryptocurrency type")
        identity = self._id("pay", len(self.payments))
        address = self._address(blockchain, identity)
        metadata = dict(body.get("metadata") or {})
        payment = Payment(identity, blockchain, usd, coins_for(blockchain, usd), address, now_s, metadata)
        self.payments[identity] = payment
        self.note("payment_created", payment_id=identity, blockchain=blockchain, amount=str(payment.amount))
        return payment

    def payment(self, identity: str) -> Payment:
        """Raises Refused."""
        if identity not in self.payments:
            raise Refused(404, "Payment not found")
        return self.payments[identity]

    def pay(self, identity: str, amount: str, coin: str | None = None) -> Payment:
        """Coins arrive on the chain: `exact`, `under` (half), `over` (twice), or a number of them."""
        payment = self.payment(identity)
        known = {"exact": payment.amount, "under": payment.amount / 2, "over": payment.amount * 2}
        coins = _whole_units(known[amount] if amount in known else Decimal(amount), payment.blockchain)
        payment.tx_hash = _hash("tx", identity, str(len(self.history)))
        right = coin is None or coin == payment.blockchain
        if right:
            payment.received += coins
        self.note("paid", payment_id=identity, blockchain=coin or payment.blockchain, amount=str(coins), counts=right)
        return payment

    def advance(self, identity: str, status: str | None, now_s: int) -> Payment:
        """Let the gateway look at the chain once, or say a status of the test's choice, right or wrong."""
        payment = self.payment(identity)
        before = payment.status
        payment.status = self._next(payment, now_s) if status is None else status
        if payment.status != before:
            self.note("status", payment_id=identity, status=payment.status)
        return payment

    def _next(self, payment: Payment, now_s: int) -> str:
        if payment.status in ("pending", "expired") and not payment.is_funded:
            return "expired" if now_s - payment.created_s > EXPIRES_AFTER_S else payment.status
        if payment.status == "expired":
            return "confirmed"
        step = STEPS.index(payment.status) if payment.status in STEPS else len(STEPS)
        return STEPS[step + 1] if step + 1 < len(STEPS) else payment.status

    def create_payout(self, body: dict[str, Any], now_s: int, outcome: str | None) -> Payout:
        """As `POST /businesses/<id>/payouts`: coins leave here, each time it is called. Raises Refused."""
        usd, address = _dollars(body.get("amount_usd")), str(body.get("recipient_wallet") or "")
        if "@" not in str(body.get("recipient_email") or "") or not address or not usd:
            raise Refused(400, "recipient_email, recipient_wallet, and amount_usd are required")
        blockchain = str(body.get("cryptocurrency") or "USDT").upper()
        if usd <= 0 or blockchain not in COINS or len(address) < 20:
            raise Refused(400, f"Invalid wallet address format for {blockchain}")
        identity = self._id("out", len(self.history))
        metadata = dict(body.get("metadata") or {})
        payout = Payout(identity, blockchain, usd, coins_for(blockchain, usd), address, now_s, metadata)
        payout.status = outcome or "completed"
        payout.sent = payout.status in ("completed", "processing", "indeterminate")
        self.payouts[identity] = payout
        self.note(
            "payout",
            payout_id=identity,
            intent_id=metadata.get("intent_id"),
            blockchain=blockchain,
            amount_usd=str(usd),
            sent=payout.sent,
        )
        return payout

    def move(self, count: int, now_s: int) -> None:
        """Put so many payouts of others on the list, or take the newest from it, as between two pages."""
        body = {"recipient_email": "a@example.org", "recipient_wallet": "0x" + "2" * 40, "amount_usd": Decimal(1)}
        for _ in range(count):
            self.create_payout(body, now_s, None)
        for _ in range(-count):
            self.payouts.popitem()

    def summary(self) -> dict[str, Any]:
        """What tests compare with: coins received for each payment, and sends for each intent."""
        sends: dict[str, int] = {}
        for payout in self.payouts.values():
            if payout.sent:
                intent = str(payout.metadata.get("intent_id"))
                sends[intent] = sends.get(intent, 0) + 1
        payments = {
            payment.id: {
                "blockchain": payment.blockchain,
                "received": str(payment.received),
                "status": payment.status,
                "order_id": payment.metadata.get("order_id"),
            }
            for payment in self.payments.values()
        }
        return {"payments": payments, "sends_of_intent": sends}

    def _id(self, kind: str, number: int) -> str:
        return f"{kind}_{_hash(str(self.seed), kind, str(number))[:24]}"

    def _address(self, blockchain: str, identity: str) -> str:
        digest = _hash(str(self.seed), blockchain, identity)
        return f"0x{digest[:40]}" if blockchain.startswith(("ETH", "POL", "BNB", "USD")) else f"fake{digest[:36]}"


def coins_for(blockchain: str, usd: Decimal) -> Decimal:
    """Coins for dollars, up to a whole unit of the chain."""
    return _whole_units(usd / COINS[blockchain][0], blockchain)


def payment_json(payment: Payment, *, public: bool, business_id: str) -> dict[str, Any]:
    """A payment as it is told: as documented, with what arrived; or only what the public code tells."""
    fields: dict[str, Any] = {
        "id": payment.id,
        "amount": number(payment.amount_usd),
        "currency": "USD",
        "blockchain": payment.blockchain,
        "status": payment.status,
        "crypto_amount": number(payment.amount) if public else plain(payment.amount),
        "crypto_currency": payment.blockchain.partition("_")[0],
        "payment_address": payment.address,
        "created_at": timestamp(payment.created_s),
        "expires_at": timestamp(payment.created_s + EXPIRES_AFTER_S),
        "tx_hash": payment.tx_hash,
    }
    if not public:
        fields |= {"business_id": business_id, "metadata": payment.metadata}
        if payment.received:
            fields["customer_paid_amount"] = plain(payment.received)
    return fields


def payout_json(payout: Payout, business_id: str) -> dict[str, Any]:
    """A payout as it is told; both amounts are numbers."""
    return {
        "id": payout.id,
        "business_id": business_id,
        "recipient_email": "operator@example.org",
        "recipient_wallet": payout.address,
        "cryptocurrency": payout.blockchain,
        "amount_usd": number(payout.amount_usd),
        "amount_crypto": number(payout.amount),
        "tx_hash": payout.tx_hash if payout.status == "completed" else None,
        "status": payout.status,
        "error_message": None,
        "metadata": payout.metadata,
        "created_at": timestamp(payout.created_s),
        "completed_at": timestamp(payout.created_s) if payout.status == "completed" else None,
    }


def plain(value: Decimal) -> str:
    """A decimal without exponent."""
    return format(value.normalize(), "f")


def number(value: Decimal) -> msgspec.Raw:
    """A decimal as a number of JSON."""
    return msgspec.Raw(plain(value).encode())


def timestamp(now_s: int) -> str:
    """As JavaScript writes it."""
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _dollars(value: object) -> Decimal | None:
    return Decimal(str(value)) if isinstance(value, Decimal | int) and not isinstance(value, bool) else None


def _whole_units(coins: Decimal, blockchain: str) -> Decimal:
    return coins.quantize(Decimal(1).scaleb(-COINS[blockchain][1]), rounding=ROUND_UP)


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
