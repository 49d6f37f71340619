"""The judges of money: each knows one or two of the invariants of specs/06, and nothing of the machines' insides.

They read what is sent off the bytes, and what the ledger did off its postings. None of them uses `accounts`, `leases`,
`purse` or `till`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

from protocol.codec import decode_record
from protocol.effects import RequestLease, Send, SendClaim, StoreVoucher
from protocol.ids import JobId, LeaseId
from protocol.ledger import Claim, Entry, ExpireLease, OpenLease, Resume
from protocol.messages import Chunk, JobAccept, JobOpen, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord
from protocol.sim.bank import Bank
from protocol.sim.checkers import Checker, Ending, Seen
from protocol.sim.reading import sent

_OUTSIDE = ("gateway", "treasury", "fx")


class LedgerChanged(Struct, frozen=True):
    """Not an event of the protocol: the coordinator carried out this entry, at this time of its clock."""

    entry: Entry
    at_ms: int


@dataclass(slots=True)
class _Lease:
    cap_uusd: int
    account: str
    receivers: set[str]
    is_closed: bool = False


class Balanced(Checker):
    """I1, I2, I3, I10, I12: postings sum to zero, nobody is below zero, and a lease pays whom it names, once."""

    def __init__(self) -> None:
        super().__init__()
        self._balances: defaultdict[str, int] = defaultdict(int)
        self._leases: dict[str, _Lease] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {LedgerChanged: self._on_change}

    def _on_change(self, seen: Seen) -> None:
        entry: Entry = seen.item.entry
        command = entry.command
        if sum(posting.amount for posting in entry.postings if posting.asset == "credit"):
            self.blame(seen.at_s, f"I1: {type(command).__name__} does not balance")
        if isinstance(command, OpenLease):
            receivers = {f"available:{command.provider.hex()}", "fee"}
            if command.relay is not None:
                receivers.add(f"available:{command.relay.hex()}")
            source = next(posting.account for posting in entry.postings if posting.amount < 0)
            lease = _Lease(command.cap_uusd, source, receivers)
            self._leases[f"lease:{command.lease.hex()}"] = lease
        for posting in entry.postings:
            self._balances[posting.account] += posting.amount
            if self._balances[posting.account] < 0 and not posting.account.startswith(_OUTSIDE):
                self.blame(seen.at_s, f"I2: {posting.account[:20]} is below zero")
        if isinstance(command, (Claim, ExpireLease)):
            self._on_claim(seen, entry, f"lease:{command.lease.hex()}")

    def _on_claim(self, seen: Seen, entry: Entry, name: str) -> None:
        lease = self._leases[name]
        if lease.is_closed:
            self.blame(seen.at_s, "I12: a lease moves money after its end")
        gains = {posting.account for posting in entry.postings if posting.amount > 0}
        if not gains <= lease.receivers | {lease.account}:
            self.blame(seen.at_s, "I10: a lease pays somebody whom it does not name")
        if self._balances[name] > lease.cap_uusd:
            self.blame(seen.at_s, "I3: a lease grows")
        if not isinstance(entry.command, Claim) or entry.command.is_final:
            lease.is_closed = True
            if self._balances[name]:
                self.blame(seen.at_s, "I3: a lease is closed with money in it")


class OnlySigned(Checker):
    """I4: a provider gets no more of a lease than its payer has signed for in all."""

    def __init__(self) -> None:
        super().__init__()
        self._signed: defaultdict[LeaseId, int] = defaultdict(int)
        self._taken: defaultdict[str, int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, LedgerChanged: self._on_change}

    def _on_send(self, seen: Seen) -> None:
        if (message := sent(seen.item.data, Voucher)) is not None:
            voucher = decode_record(message.voucher.body, VoucherRecord)
            self._signed[voucher.lease] = max(self._signed[voucher.lease], voucher.paid_uusd)

    def _on_change(self, seen: Seen) -> None:
        entry: Entry = seen.item.entry
        command = entry.command
        if not isinstance(command, Claim):
            return
        provider = f"available:{command.provider.hex()}"
        lease = f"lease:{command.lease.hex()}"
        gained = sum(posting.amount for posting in entry.postings if posting.account == provider)
        self._taken[lease] += gained
        if self._taken[lease] > self._signed[command.lease]:
            self.blame(seen.at_s, f"I4: {self._taken[lease]} claimed and {self._signed[command.lease]} signed")


@dataclass(slots=True)
class _Job:
    order: JobOpenRecord
    acceptance: JobAcceptRecord | None = None
    owed_uusd: int = 0


class OneWindow(Checker):
    """I5 and I6: a provider is owed no more than one window, and an asker signs for nothing that was not sent."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[tuple[JobId, int], _Job] = {}
        self._held: defaultdict[LeaseId, int] = defaultdict(int)
        self._signed: defaultdict[LeaseId, int] = defaultdict(int)
        # Output tokens that were signed for, by lease and job.
        self._vouched: defaultdict[LeaseId, dict[tuple[JobId, int], int]] = defaultdict(dict)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, StoreVoucher: self._on_voucher}

    def _on_voucher(self, seen: Seen) -> None:
        kept: StoreVoucher = seen.item
        self._held[kept.lease] = max(self._held[kept.lease], kept.paid_uusd)
        if kept.voucher is not None:
            voucher = decode_record(kept.voucher.body, VoucherRecord)
            vouched = self._vouched[kept.lease]
            key = (voucher.job, voucher.attempt)
            vouched[key] = max(vouched.get(key, 0), voucher.output_tokens)

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (opening := sent(data, JobOpen)) is not None:
            order = decode_record(opening.order.body, JobOpenRecord)
            if order.lease is not None:
                self._jobs[order.job, order.attempt] = _Job(order)
        elif (message := sent(data, JobAccept)) is not None:
            record = decode_record(message.acceptance.body, JobAcceptRecord)
            if (job := self._jobs.get((record.job, record.attempt))) is not None:
                job.acceptance, job.owed_uusd = record, record.prefill_uusd
        elif (chunk := sent(data, Chunk)) is not None:
            self._on_chunk(seen, chunk)
        elif (voucher := sent(data, Voucher)) is not None:
            self._on_signed(seen, decode_record(voucher.voucher.body, VoucherRecord))

    def _on_chunk(self, seen: Seen, chunk: Chunk) -> None:
        job = self._jobs.get((chunk.job, chunk.attempt))
        if job is None or job.acceptance is None or job.order.lease is None or seen.node != job.order.provider:
            return
        job.owed_uusd = chunk.owed_uusd
        paid_uusd = self._held[job.order.lease]
        # What the acceptance says of the window is the provider's word, and it is the provider that is judged.
        tokens = max(8, sum(self._vouched[job.order.lease].values()))
        one_token, all_of_them = (-(-count * job.order.price_out_uusd // 1_000_000) for count in (1, tokens))
        window = max(one_token, min(all_of_them, max(1_000, paid_uusd // 16)))
        ahead = job.acceptance.paid_before_uusd + chunk.owed_uusd - paid_uusd
        if ahead > window:
            self.blame(seen.at_s, f"I5: {ahead} delivered ahead of payment, in a window of {window}")

    def _on_signed(self, seen: Seen, voucher: VoucherRecord) -> None:
        job = self._jobs.get((voucher.job, voucher.attempt))
        if job is None or job.acceptance is None:
            self.blame(seen.at_s, "I6: signed for a job that was not accepted")
            return
        # What was signed before, and got lost on its way to a provider that crashed, may be signed again.
        before_uusd = self._signed[voucher.lease]
        self._signed[voucher.lease] = max(before_uusd, voucher.paid_uusd)
        if voucher.paid_uusd > max(job.acceptance.paid_before_uusd + job.owed_uusd, before_uusd):
            self.blame(seen.at_s, f"I6: {voucher.paid_uusd} signed for what cost less")


class Grace(Checker):
    """I11: no lease is closed by the coordinator before its provider had all its time, outages not counted."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[LeaseId, int] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {LedgerChanged: self._on_change}

    def _on_change(self, seen: Seen) -> None:
        command, at_ms = seen.item.entry.command, seen.item.at_ms
        if isinstance(command, OpenLease):
            self._open[command.lease] = command.claim_by_ms
        elif isinstance(command, Resume):
            for lease in self._open:
                self._open[lease] += command.gap_ms
        elif isinstance(command, ExpireLease) and at_ms <= self._open[command.lease]:
            self.blame(seen.at_s, "I11: a lease was closed before its time")


class NothingTwice(Checker):
    """I7: whatever was asked of the coordinator, asked again, in any order, changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[RequestLease | SendClaim] = []

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {RequestLease: self._on_asked, SendClaim: self._on_asked}

    def _on_asked(self, seen: Seen) -> None:
        self._asked.append(seen.item)

    def finish(self, ending: Ending, /) -> None:
        if ending.bank is None or ending.bank.is_away:
            return
        bank = ending.bank.copy()
        # Those that never arrived the first time are news: they are asked once before it counts.
        for effect in self._asked:
            self._ask_again(bank, effect, ending.wall_ms)
        settled = (bank.book.head, dict(bank.book.accounts))
        again = [*self._asked, *self._asked]
        random.Random(len(again)).shuffle(again)  # noqa: S311 - to be repeated is what it is for
        for effect in again:
            self._ask_again(bank, effect, ending.wall_ms)
        if (bank.book.head, dict(bank.book.accounts)) != settled:
            self.blame(0.0, "I7: a repeated request moves money")

    @staticmethod
    def _ask_again(bank: Bank, effect: RequestLease | SendClaim, wall_ms: int) -> None:
        if isinstance(effect, RequestLease):
            bank.open_lease(effect, wall_ms)
        else:
            bank.claim(effect, wall_ms)


def money_checkers() -> list[Checker]:
    """All of them."""
    return [Balanced(), OnlySigned(), OneWindow(), Grace(), NothingTwice()]
