"""What really happened around a ledger: who signed what, what was paid, when the coordinator was away.

Kept by those who did it, and never asked of the ledger: the checkers hold one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.book import Book
from protocol.ids import LeaseId, NodeId
from protocol.ledger import AnyCommand, Posting, Verdict


@dataclass(slots=True)
class Asked:
    """A lease as its client asked for it, and the most that its payer has signed since."""

    account: str
    payer: NodeId
    provider: NodeId
    relay: NodeId | None
    relay_bps: int
    fee_bps: int
    cap_uusd: int
    serve_until_ms: int
    claim_by_ms: int
    signed_uusd: int = 0
    is_granted: bool = False
    is_closed: bool = False


@dataclass(slots=True)
class Payment:
    """A payment that the gateway has confirmed."""

    key: NodeId
    credit_uusd: int
    is_held: bool


@dataclass(slots=True)
class Ordered:
    """A payout that somebody ordered."""

    key: NodeId
    amount_uusd: int


@dataclass(slots=True)
class History:
    """The truth about one ledger. Times in milliseconds."""

    now_ms: int
    leases: dict[LeaseId, Asked] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    payouts: dict[bytes, Ordered] = field(default_factory=dict)
    budgets: dict[int, int] = field(default_factory=dict)
    absences: list[tuple[int, int]] = field(default_factory=list)
    # Whose accounts only deposits, leases and payouts move: they neither provide nor relay.
    clients: frozenset[str] = frozenset()

    def reachable_ms(self, since_ms: int) -> int:
        """For how long the coordinator could be reached between then and now."""
        away_ms = sum(max(0, end_ms - max(start_ms, since_ms)) for start_ms, end_ms in self.absences)
        return self.now_ms - since_ms - away_ms


@dataclass(slots=True)
class Step:
    """One command that reached the ledger, and what became of it.

    `is_repeat`: the same signed message was carried out before. `owed_uusd`: what a lease must have been claimed for
    afterwards, when this is an honest claim. `is_nonsense`: something in it is no amount.
    """

    book: Book
    command: AnyCommand
    verdict: Verdict
    head_before: bytes
    postings: tuple[Posting, ...] = ()
    is_repeat: bool = False
    state_before: object = None
    owed_uusd: int | None = None
    must_succeed: bool = False
    is_nonsense: bool = False


def state_of(book: Book) -> tuple[object, ...]:
    """All that repeating a message could change."""
    return (
        dict(book.accounts),
        dict(book.leases),
        dict(book.payouts),
        dict(book.references),
        book.downtime_ms,
        book.head,
    )
