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

from protocol.codec import JOB_LIMITS, FrameReader, decode_record
from protocol.effects import RequestLease, Send, SendClaim, StoreVoucher
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.events import BytesReceived
from protocol.ids import JobId, LeaseId, NodeId, StreamId
from protocol.ledger import Claim, Entry, ExpireLease, OpenLease, Resume
from protocol.messages import Chunk, JobAccept, JobOpen, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord
from protocol.sim.bank import Bank
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
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
        assets: defaultdict[str, int] = defaultdict(int)
        for posting in entry.postings:
            assets[posting.asset] += posting.amount
        if any(assets.values()):
            self.blame(seen.at_s, f"I1: {type(command).__name__} does not balance")
        if isinstance(command, OpenLease):
            receivers = {f"available:{command.provider.hex()}", "fee"}
            if command.relay is not None:
                receivers.add(f"available:{command.relay.hex()}")
            source = next(posting.account for posting in entry.postings if posting.amount < 0)
            lease = _Lease(command.cap_uusd, source, receivers)
            self._leases[f"lease:{command.lease.hex()}"] = lease
        before = {name: self._balances[name] for name in self._leases}
        for posting in entry.postings:
            self._balances[posting.account] += posting.amount
            if self._balances[posting.account] < 0 and not posting.account.startswith(_OUTSIDE):
                self.blame(seen.at_s, f"I2: {posting.account[:20]} is below zero")
        touched = {posting.account for posting in entry.postings if posting.account.startswith("lease:")}
        if isinstance(command, (Claim, ExpireLease)):
            name = f"lease:{command.lease.hex()}"
            self._on_claim(seen, entry, name, before.get(name, 0))
            touched.discard(name)
        elif isinstance(command, OpenLease):
            touched.discard(f"lease:{command.lease.hex()}")
        if touched:
            self.blame(seen.at_s, f"I3: {type(command).__name__} touches a lease that it does not name")

    def _on_claim(self, seen: Seen, entry: Entry, name: str, before_uusd: int) -> None:
        lease = self._leases.get(name)
        if lease is None:
            self.blame(seen.at_s, "I10: a claim on a lease that nobody opened")
            return
        if lease.is_closed:
            self.blame(seen.at_s, "I12: a lease moves money after its end")
        gains = {posting.account for posting in entry.postings if posting.amount > 0}
        if not gains <= lease.receivers | {lease.account}:
            self.blame(seen.at_s, "I10: a lease pays somebody whom it does not name")
        if self._balances[name] > before_uusd:
            self.blame(seen.at_s, "I3: a lease grows: what was claimed falls")
        if not isinstance(entry.command, Claim) or entry.command.is_final:
            lease.is_closed = True
            if self._balances[name]:
                self.blame(seen.at_s, "I3: a lease is closed with money in it")


class OnlySigned(Checker):
    """I4: a provider gets no more of a lease than its payer has signed for in all."""

    def __init__(self) -> None:
        super().__init__()
        self._signed: defaultdict[LeaseId, int] = defaultdict(int)
        self._payers: dict[LeaseId, NodeId] = {}
        self._taken: defaultdict[str, int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, LedgerChanged: self._on_change}

    def _on_send(self, seen: Seen) -> None:
        if (message := sent(seen.item.data, Voucher)) is None:
            return
        voucher = decode_record(message.voucher.body, VoucherRecord)
        if voucher.paid_uusd <= self._signed[voucher.lease]:
            return
        # Whoever sends a voucher is not for that its payer.
        try:
            open_record(message.voucher, VoucherRecord)
        except RemoteProtocolError:
            return
        if voucher.payer == self._payers.get(voucher.lease):
            self._signed[voucher.lease] = voucher.paid_uusd

    def _on_change(self, seen: Seen) -> None:
        entry: Entry = seen.item.entry
        command = entry.command
        if isinstance(command, OpenLease):
            self._payers[command.lease] = command.payer
        if not isinstance(command, Claim):
            return
        provider = f"available:{command.provider.hex()}"
        lease = f"lease:{command.lease.hex()}"
        gained = sum(posting.amount for posting in entry.postings if posting.account == provider)
        self._taken[lease] += gained
        if self._taken[lease] > self._signed[command.lease]:
            self.blame(seen.at_s, f"I4: {self._taken[lease]} claimed and {self._signed[command.lease]} signed")


def _cost_uusd(order: JobOpenRecord, prompt_tokens: int, output_tokens: int) -> int:
    """What counts cost by the order. A judge reckons itself, whatever chunks and acceptances say."""
    millionths = prompt_tokens * order.price_in_uusd + output_tokens * order.price_out_uusd
    return order.price_job_uusd + (millionths + 999_999) // 1_000_000


@dataclass(slots=True)
class _Job:
    order: JobOpenRecord
    acceptance: JobAcceptRecord | None = None
    owed_uusd: int = 0


class _OfJobs(Checker):
    """What the two judges below know of paid orders."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[tuple[JobId, int], _Job] = {}

    def _on_order(self, opening: JobOpen) -> JobOpenRecord:
        order = decode_record(opening.order.body, JobOpenRecord)
        # Whoever passes it on, or sends it again, orders nothing: what is known of it stays.
        if order.lease is not None:
            self._jobs.setdefault((order.job, order.attempt), _Job(order))
        return order

    def _on_accept(self, message: JobAccept) -> _Job | None:
        record = decode_record(message.acceptance.body, JobAcceptRecord)
        job = self._jobs.get((record.job, record.attempt))
        if job is not None and job.acceptance is None:
            job.acceptance, job.owed_uusd = record, _cost_uusd(job.order, record.prompt_tokens, 0)
            return job
        return None

    def _job_of(self, chunk: Chunk) -> _Job | None:
        """The job of a chunk, with what it comes to by now."""
        job = self._jobs.get((chunk.job, chunk.attempt))
        if job is None or job.acceptance is None:
            return None
        job.owed_uusd = _cost_uusd(job.order, job.acceptance.prompt_tokens, chunk.output_tokens)
        return job


class OneWindow(_OfJobs):
    """I5: a provider is owed no more than one window, and serves no lease on which it is owed anything."""

    def __init__(self) -> None:
        super().__init__()
        self._held: defaultdict[LeaseId, int] = defaultdict(int)
        # Output tokens that were signed for, by lease and job.
        self._vouched: defaultdict[LeaseId, dict[tuple[JobId, int], int]] = defaultdict(dict)
        # What leases have come to, by those who serve them; whoever crashes may have forgotten it.
        self._come_to: defaultdict[NodeId, dict[LeaseId, int]] = defaultdict(dict)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, StoreVoucher: self._on_voucher, Crashed: self._on_crash}

    def _on_crash(self, seen: Seen) -> None:
        self._come_to.pop(seen.node, None)

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
            self._on_order(opening)
        elif (message := sent(data, JobAccept)) is not None:
            job = self._on_accept(message)
            if job is not None and job.order.lease is not None:
                owed_uusd = self._come_to[job.order.provider].get(job.order.lease, 0) - self._held[job.order.lease]
                if owed_uusd > 0:
                    self.blame(seen.at_s, f"I5: a job is accepted on a lease that owes {owed_uusd}")
        elif sent(data, Chunk) is not None:
            for chunk in FrameReader(JOB_LIMITS).feed(data):
                if isinstance(chunk, Chunk):
                    self._on_chunk(seen, chunk)

    def _on_chunk(self, seen: Seen, chunk: Chunk) -> None:
        job = self._jobs.get((chunk.job, chunk.attempt))
        if job is None or seen.node != job.order.provider or self._job_of(chunk) is None:
            return
        assert job.acceptance is not None
        assert job.order.lease is not None
        come_to = self._come_to[seen.node]
        paid_uusd, total_uusd = self._held[job.order.lease], job.acceptance.paid_before_uusd + job.owed_uusd
        come_to[job.order.lease] = max(total_uusd, come_to.get(job.order.lease, 0))
        # What the acceptance says of the window is the provider's word, and it is the provider that is judged.
        tokens = max(8, sum(self._vouched[job.order.lease].values()))
        one_token, all_of_them = (-(-count * job.order.price_out_uusd // 1_000_000) for count in (1, tokens))
        window = max(one_token, min(all_of_them, max(1_000, paid_uusd // 16)))
        ahead = total_uusd - paid_uusd
        if ahead > window:
            self.blame(seen.at_s, f"I5: {ahead} delivered ahead of payment, in a window of {window}")


class OnlyReceived(_OfJobs):
    """I6: an asker signs for nothing that has not arrived, at the prices of its own order."""

    def __init__(self) -> None:
        super().__init__()
        self._signed: defaultdict[LeaseId, int] = defaultdict(int)
        # What arrives on the streams on which somebody orders for money.
        self._readers: dict[tuple[NodeId, int, StreamId], FrameReader] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, BytesReceived: self._on_bytes}

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (opening := sent(data, JobOpen)) is not None:
            if self._on_order(opening).lease is not None:
                self._readers.setdefault((seen.node, seen.life, seen.item.stream), FrameReader(JOB_LIMITS))
        elif (voucher := sent(data, Voucher)) is not None:
            self._on_signed(seen, decode_record(voucher.voucher.body, VoucherRecord))

    def _on_bytes(self, seen: Seen) -> None:
        reader = self._readers.get((seen.node, seen.life, seen.item.stream))
        if reader is None:
            return
        try:
            for message in reader.feed(seen.item.data):
                if isinstance(message, JobAccept):
                    self._on_accept(message)
                elif isinstance(message, Chunk):
                    self._job_of(message)
        except RemoteProtocolError:
            pass  # whoever reads it hears of that, and signs for no more

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
        settled = _state(bank)
        again = [*self._asked, *self._asked]
        random.Random(len(again)).shuffle(again)  # noqa: S311 - to be repeated is what it is for
        for effect in again:
            self._ask_again(bank, effect, ending.wall_ms)
        if _state(bank) != settled:
            self.blame(0.0, "I7: a repeated request moves money")

    @staticmethod
    def _ask_again(bank: Bank, effect: RequestLease | SendClaim, wall_ms: int) -> None:
        if isinstance(effect, RequestLease):
            bank.open_lease(effect, wall_ms)
        else:
            bank.claim(effect, wall_ms)


def _state(bank: Bank) -> tuple[object, ...]:
    return bank.book.head, dict(bank.book.accounts), dict(bank.book.leases)


def money_checkers() -> list[Checker]:
    """All of them."""
    return [Balanced(), OnlySigned(), OneWindow(), OnlyReceived(), Grace(), NothingTwice()]
