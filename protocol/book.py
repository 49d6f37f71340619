"""A ledger in memory: for the simulator, and for tests that compare the coordinator's store with it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from protocol.accounts import apply
from protocol.ids import LeaseId
from protocol.ledger import (
    GENESIS_HEAD,
    AnyCommand,
    Entry,
    Lease,
    Payout,
    Verdict,
    digest,
    entry_body,
    next_head,
)


@dataclass(slots=True)
class Book:
    """The state, and the chain of entries that led to it; `keeps_entries` is off where there are too many."""

    accounts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    payouts: dict[bytes, Payout] = field(default_factory=dict)
    references: dict[str, bytes] = field(default_factory=dict)
    downtime_ms: int = 0
    entries: list[bytes] = field(default_factory=list)
    number: int = 0
    head: bytes = GENESIS_HEAD
    keeps_entries: bool = True

    def balance(self, account: str) -> int:
        return self.accounts.get(account, 0)

    def lease(self, lease: LeaseId) -> Lease | None:
        return self.leases.get(lease)

    def payout(self, intent: bytes) -> Payout | None:
        return self.payouts.get(intent)

    def recorded(self, reference: str) -> bytes | None:
        return self.references.get(reference)

    def command(self, command: AnyCommand, at_ms: int) -> Verdict:
        """Decide a command and carry out what comes of it."""
        verdict = apply(self, command, at_ms)
        if isinstance(verdict, Entry):
            self._carry_out(verdict, at_ms)
        return verdict

    def _carry_out(self, entry: Entry, at_ms: int) -> None:
        for posting in entry.postings:
            self.accounts[posting.account] += posting.amount
        if entry.lease is not None:
            self.leases[entry.lease.lease] = entry.lease
        if entry.payout is not None:
            self.payouts[entry.payout.intent] = entry.payout
        if entry.reference is not None:
            self.references[entry.reference] = digest(entry.command)
        self.downtime_ms += entry.downtime_ms
        self.number += 1
        body = entry_body(self.number, at_ms, entry)
        if self.keeps_entries:
            self.entries.append(body)
        self.head = next_head(self.head, body)
