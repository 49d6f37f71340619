"""What the coordinator needs of whoever takes and sends coins for it. One real implementation: `coinpayportal`.

GatewayError                 nothing came of a call, or nobody knows what
├── GatewayRefused           it has certainly had no effect; the same may be tried again later
│   └── GatewayUnreachable   ... because not a byte of it was sent
└── GatewayUnclear           it may have had its effect: find out, and never send it again blindly

No call is ever repeated in here. A call that is cancelled is as unclear as one that timed out.

`code` and `network` name an asset on its chain, such as `USDC` on `base`. Amounts of coins are integers in the units
of our ledger, dollars are µUSD; beside an integer stands the text from which it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coordinator.payments.status import PaymentStatus


class GatewayError(Exception):
    """A call did not end as it should. `reason` is a stable code, `status` that of HTTP where there was one.

    `detail` is for the operator: what the gateway itself said, made harmless and cut.
    """

    def __init__(self, reason: str, *, status: int | None = None, detail: str = "") -> None:
        words = [reason, f"HTTP {status}" if status else "", detail]
        super().__init__("the gateway: " + ", ".join(word for word in words if word))
        self.reason = reason
        self.status = status
        self.detail = detail


class GatewayRefused(GatewayError):
    """It had no effect. `retry_after_s` where the gateway says when to come again."""

    def __init__(
        self, reason: str, *, status: int | None = None, detail: str = "", retry_after_s: int | None = None
    ) -> None:
        super().__init__(reason, status=status, detail=detail)
        self.retry_after_s = retry_after_s


class GatewayUnreachable(GatewayRefused):
    """No connection came about, so nothing was sent."""


class GatewayUnclear(GatewayError):
    """It may have had its effect: no answer, half an answer, or one that cannot be right."""


@dataclass(frozen=True, slots=True)
class InvoiceRequest:
    """What a client wants to pay. `order_id` is ours, and comes back in the metadata of the payment."""

    order_id: str
    amount_uusd: int
    code: str
    network: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """A payment as the gateway tells of it. What it does not tell is None.

    `status` is None for a word that is not on the list, and then `status_text` says which. `received` is what arrived,
    in ledger units, rounded down; it is None until something did, and the gateway may never say.
    """

    gateway_id: str
    code: str
    network: str
    address: str
    status: PaymentStatus | None
    status_text: str
    amount: int
    amount_raw: str
    received: int | None
    received_raw: str | None
    amount_uusd: int | None
    business_id: str | None
    order_id: str | None
    expires_at_ms: int | None
    tx_hash: str | None


@dataclass(frozen=True, slots=True)
class PayoutRequest:
    """Coins to send. `intent_id` is ours and travels in the metadata: by it a payout is found again."""

    intent_id: str
    amount_uusd: int
    code: str
    network: str
    address: str


class PayoutStatus(StrEnum):
    """How a payout stands with the gateway. INDETERMINATE: it does not know itself whether it was sent."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    INDETERMINATE = "indeterminate"


@dataclass(frozen=True, slots=True)
class Payout:
    """A payout as the gateway tells of it. `status` is None for a word that is not on the list.

    `intent_id` is None for payouts that were not ours. Two with the same intent can exist: a person who lets the
    gateway retry a failed one makes another with the same metadata. `amount_raw` is the number of coins as it was
    sent, for the records: it may be in a form that is no exact amount.
    """

    gateway_id: str
    intent_id: str | None
    code: str
    network: str
    address: str
    amount_uusd: int
    amount_raw: str | None
    status: PayoutStatus | None
    status_text: str
    created_at_ms: int | None
    tx_hash: str | None


@dataclass(frozen=True, slots=True)
class PayoutListing:
    """Payouts, the newest first. `complete`: since the instant that was asked for there are no others than these."""

    payouts: tuple[Payout, ...]
    complete: bool


class Gateway(Protocol):
    """Takes and sends coins. Every method raises GatewayRefused or GatewayUnclear, and nothing else.

    ValueError where the arguments are ones that must not be sent: that is a fault of the caller.
    """

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        """Ask for an address to pay to. After GatewayUnclear there may be an invoice that nobody will pay."""
        ...

    async def get_invoice(self, gateway_id: str) -> Invoice:
        """One payment as it stands now."""
        ...

    async def create_payout(self, request: PayoutRequest) -> Payout:
        """Send coins, at most once. Look at the status: a payout that comes back may have failed, or be unclear."""
        ...

    async def list_payouts(self, *, since_ms: int = 0, at_most: int = ...) -> PayoutListing:
        """The newest payouts, page after page: back to an instant of the gateway's clock, and at most so many.

        Whoever looks for a payout leaves a margin, because that clock is not ours.
        """
        ...
