"""What a payment can be, and what two pieces of news about it make together.

Webhooks come twice, late and in any order, and one of them may be wrong: a gateway that cannot reach its chain for a
moment calls a paid payment expired. So news is joined, not obeyed. A payment has gone as far as the furthest that was
ever said of it, and that it has ended is remembered beside that and undoes nothing. A join does not depend on order
or repetition, and it passes the line of "paid" at most once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class PaymentStatus(StrEnum):
    """The states of a payment that we tell apart."""

    PENDING = "pending"
    DETECTED = "detected"
    CONFIRMED = "confirmed"
    FORWARDED = "forwarded"
    EXPIRED = "expired"
    FAILED = "failed"


# SPEC 06: The coordinator MUST take a payment for confirmed by an exact list of states, and MUST NOT undo a credit
#   when a later message says that the payment has expired or failed.
# Exactly these words, in exactly this case (docs/API.md and packages/sdk of the gateway). Never a part of a word:
# `unpaid`, `underpaid`, `unconfirmed` and `unsuccessful` all contain one that means the opposite.
_LISTED: Final = {
    "pending": PaymentStatus.PENDING,
    "detected": PaymentStatus.DETECTED,
    "confirming": PaymentStatus.DETECTED,
    "confirmed": PaymentStatus.CONFIRMED,
    "forwarding": PaymentStatus.CONFIRMED,
    "forwarded": PaymentStatus.FORWARDED,
    "expired": PaymentStatus.EXPIRED,
    "failed": PaymentStatus.FAILED,
}


def payment_status(word: str) -> PaymentStatus | None:
    """What a gateway's word for a status means; None for any word that is not on the list."""
    return _LISTED.get(word)


class Progress(IntEnum):
    """How far a payment ever came."""

    PENDING = 0
    DETECTED = 1
    CONFIRMED = 2
    FORWARDED = 3


_PROGRESS: Final = {
    PaymentStatus.PENDING: Progress.PENDING,
    PaymentStatus.DETECTED: Progress.DETECTED,
    PaymentStatus.CONFIRMED: Progress.CONFIRMED,
    PaymentStatus.FORWARDED: Progress.FORWARDED,
}


@dataclass(frozen=True, slots=True)
class PaymentState:
    """All that was ever said of a payment, joined."""

    progress: Progress = Progress.PENDING
    expired: bool = False
    failed: bool = False

    @property
    def is_paid(self) -> bool:
        """Whether it was ever said to be confirmed: a claim, to be checked before anything is credited."""
        return self.progress >= Progress.CONFIRMED

    @property
    def shown(self) -> PaymentStatus:
        """The one word for people: having been paid outweighs any end."""
        if not self.is_paid and (self.failed or self.expired):
            return PaymentStatus.FAILED if self.failed else PaymentStatus.EXPIRED
        return PaymentStatus[self.progress.name]


@dataclass(frozen=True, slots=True)
class News:
    """The state after some news, and whether this very news made the payment one to be checked for credit."""

    state: PaymentState
    check_credit: bool


def join(state: PaymentState, status: PaymentStatus | None) -> News:
    """The state with one more status heard. None, a word that is not listed, changes nothing."""
    if status is None:
        return News(state, check_credit=False)
    joined = PaymentState(
        max(state.progress, _PROGRESS.get(status, Progress.PENDING)),
        state.expired or status is PaymentStatus.EXPIRED,
        state.failed or status is PaymentStatus.FAILED,
    )
    return News(joined, check_credit=joined.is_paid and not state.is_paid)
