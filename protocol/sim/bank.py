"""A coordinator's money side in the simulator: a ledger in memory behind the same checks as the real one.

It is asked and answers at once; the host delays both ways, and loses them while the coordinator is away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from protocol.book import Book
from protocol.claims import Terms, claim_command, lease_record, open_claim, open_lease_request
from protocol.effects import RequestLease, SendClaim
from protocol.envelope import SigningKey, sign_record
from protocol.errors import RemoteProtocolError
from protocol.events import ClaimAnswered, ClaimFailed, LeaseDenied, LeaseGranted
from protocol.ids import LeaseId, NodeId
from protocol.ledger import AnyCommand, Deposit, Entry, ExpireLease, MoneyRefusal, Refused, Resume, Verdict
from protocol.money_records import ClaimAckRecord, Credited
from protocol.records import Signed

# What a node takes for the last word about a claim.
_REFUSED_FOR_GOOD = (MoneyRefusal.LEASE_CLOSED, MoneyRefusal.WRONG_PROVIDER)


class Bank:
    """The state. Times are its own wall clock, in milliseconds."""

    def __init__(self, key: SigningKey, terms: Terms | None = None) -> None:
        self.key = key
        self.book = Book()
        self.is_away = False
        #: Hears of every entry, and when by the coordinator's clock.
        self.on_entry: Callable[[Entry, int], None] | None = None
        self.terms = terms or Terms()
        self._granted: dict[LeaseId, Signed] = {}
        self._deposits = 0

    @property
    def node(self) -> NodeId:
        return self.key.node

    def copy(self) -> Bank:
        """Another one that knows the same, and to which nobody listens."""
        other = Bank(self.key, self.terms)
        other.book = copy.deepcopy(self.book)
        other._granted, other._deposits = dict(self._granted), self._deposits
        return other

    def command(self, command: AnyCommand, now_ms: int) -> Verdict:
        """Have the ledger decide, and tell who listens."""
        verdict = self.book.command(command, now_ms)
        if isinstance(verdict, Entry) and self.on_entry is not None:
            self.on_entry(verdict, now_ms)
        return verdict

    def deposit(self, client: NodeId, amount_uusd: int, now_ms: int) -> None:
        """Credit somebody, as if a payment had arrived."""
        self._deposits += 1
        self.command(Deposit(f"simulated-{self._deposits}", client, "USDC", amount_uusd, amount_uusd, 0), now_ms)

    def resume(self, gap_ms: int, now_ms: int) -> None:
        """It was away for so long, and is back."""
        self.is_away = False
        self.command(Resume(gap_ms), now_ms)

    def open_lease(self, effect: RequestLease, now_ms: int) -> LeaseGranted | LeaseDenied:
        """Answer a request for a lease."""
        if self.is_away:
            return LeaseDenied(effect.request, "the coordinator does not answer", is_final=False)
        try:
            request, command = open_lease_request(effect.signed, self.node, self.terms, now_ms)
        except RemoteProtocolError as error:
            return LeaseDenied(effect.request, str(error), is_final=True)
        verdict = self.command(command, now_ms)
        if isinstance(verdict, Refused):
            return LeaseDenied(effect.request, verdict.text, is_final=True)
        if isinstance(verdict, Entry):
            record = lease_record(request, command, self.node, len(self.book.entries), now_ms)
            self._granted[command.lease] = sign_record(record, self.key)
        return LeaseGranted(effect.request, self._granted[command.lease])

    def claim(self, effect: SendClaim, now_ms: int) -> ClaimAnswered | ClaimFailed:
        """Answer a claim."""
        if self.is_away:
            return ClaimFailed(effect.lease, "the coordinator does not answer", is_final=False)
        try:
            claim = open_claim(effect.claim)
            lease = self.book.lease(claim.lease)
            if lease is None:
                return ClaimFailed(effect.lease, "no such lease", is_final=False)
            verdict = self.command(claim_command(claim, lease), now_ms)
        except RemoteProtocolError as error:
            return ClaimFailed(effect.lease, str(error), is_final=False)
        if isinstance(verdict, Refused):
            return ClaimFailed(effect.lease, verdict.text, is_final=verdict.code in _REFUSED_FOR_GOOD)
        return ClaimAnswered(effect.lease, self._acknowledge(claim.lease, now_ms))

    def _acknowledge(self, lease_id: LeaseId, now_ms: int) -> Signed:
        lease = self.book.leases[lease_id]
        credited = Credited(
            lease=lease_id,
            claimed_uusd=lease.claimed_uusd,
            is_closed=int(lease.is_closed),
            entry=len(self.book.entries),
            head=self.book.head,
            credited_at_ms=now_ms,
        )
        return sign_record(ClaimAckRecord(1, self.node, (credited,), ()), self.key)

    def expire(self, now_ms: int) -> None:
        """Close the leases on which nobody may claim any more."""
        for lease in list(self.book.leases.values()):
            if not lease.is_closed:
                self.command(ExpireLease(lease.lease), now_ms)
