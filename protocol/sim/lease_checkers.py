"""The judges of paid jobs: what asker and provider owe each other before the ledger hears of it (specs/06).

As those of money they read what is sent off its bytes, and use nothing of `leases`, `purse` and `till`. Each is named
for what it holds to be true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from protocol.codec import JOB_LIMITS, FrameReader, decode_record
from protocol.effects import ContinueEngine, FinishStream, RunEngine, Send, StoreVoucher
from protocol.events import Ask, MarkStored
from protocol.ids import JobId, LeaseId, NodeId, RunId, StreamId
from protocol.jobs import order_hash, running_hash
from protocol.messages import Chunk, JobAccept, JobOpen, Receipt, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord, Outcome, ReceiptRecord
from protocol.sim.checkers import Checker, Seen
from protocol.sim.reading import sent

Key = tuple[JobId, int]


@dataclass(slots=True)
class Attempt:
    order: JobOpenRecord
    acceptance: JobAcceptRecord | None = None
    owed_uusd: int = 0
    signed_uusd: int = 0


class OfAttempts(Checker):
    """What the judges below know of every paid order: what was accepted, sent and signed."""

    def __init__(self) -> None:
        super().__init__()
        self._attempts: dict[Key, Attempt] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send}

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (chunk := sent(data, Chunk)) is not None:
            attempt = self._attempts.get((chunk.job, chunk.attempt))
            if attempt is not None and seen.node == attempt.order.provider:
                attempt.owed_uusd = chunk.owed_uusd
                self._on_chunk(seen, attempt)
        elif (voucher := sent(data, Voucher)) is not None:
            self._on_voucher(seen, decode_record(voucher.voucher.body, VoucherRecord))
        elif (opening := sent(data, JobOpen)) is not None:
            order = decode_record(opening.order.body, JobOpenRecord)
            # Whoever passes it on, or sends it again, orders nothing.
            if order.lease is not None and (order.job, order.attempt) not in self._attempts:
                self._attempts[order.job, order.attempt] = Attempt(order)
                self._on_order(seen, order, opening)
        elif (accepting := sent(data, JobAccept)) is not None:
            record = decode_record(accepting.acceptance.body, JobAcceptRecord)
            attempt = self._attempts.get((record.job, record.attempt))
            if attempt is not None and seen.node == record.provider:
                attempt.acceptance, attempt.owed_uusd = record, record.prefill_uusd
                self._on_accept(seen, attempt)
        elif (ending := sent(data, Receipt)) is not None:
            receipt = decode_record(ending.receipt.body, ReceiptRecord)
            if receipt.lease is not None and seen.node == receipt.provider:
                self._on_receipt(seen, receipt)

    def _on_order(self, seen: Seen, order: JobOpenRecord, opening: JobOpen) -> None:
        """An asker orders."""

    def _on_accept(self, seen: Seen, attempt: Attempt) -> None:
        """A provider has counted the prompt."""

    def _on_chunk(self, seen: Seen, attempt: Attempt) -> None:
        """A provider sends."""

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:
        """An asker signs."""

    def _on_receipt(self, seen: Seen, receipt: ReceiptRecord) -> None:
        """A provider has ended a job."""


class Stored(OfAttempts):
    """Nothing is signed above the mark that is on the asker's disk."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: defaultdict[LeaseId, int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**super().interests(), MarkStored: self._on_mark}

    def _on_mark(self, seen: Seen) -> None:
        self._marks[seen.item.lease] = max(self._marks[seen.item.lease], seen.item.mark_uusd)

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:
        if voucher.paid_uusd > self._marks[voucher.lease]:
            self.blame(seen.at_s, f"{voucher.paid_uusd} signed, and {self._marks[voucher.lease]} on disk")


class Delivered(OfAttempts):
    """An asker signs for no more on a lease than its jobs delivered in all, whatever a provider says of before."""

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:
        jobs = [attempt for attempt in self._attempts.values() if attempt.order.lease == voucher.lease]
        delivered_uusd = sum(attempt.owed_uusd for attempt in jobs)
        if voucher.paid_uusd > delivered_uusd:
            self.blame(seen.at_s, f"{voucher.paid_uusd} signed on a lease for {delivered_uusd}")


class Spent(OfAttempts):
    """A job costs no more than its user allowed, at however many providers."""

    def __init__(self) -> None:
        super().__init__()
        self._limits: dict[JobId, int] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**super().interests(), Ask: self._on_ask}

    def _on_ask(self, seen: Seen) -> None:
        self._limits[seen.item.job] = seen.item.spend_uusd_max

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:
        attempt = self._attempts.get((voucher.job, voucher.attempt))
        if attempt is None or attempt.acceptance is None:
            return
        attempt.signed_uusd = max(attempt.signed_uusd, voucher.paid_uusd - attempt.acceptance.paid_before_uusd)
        jobs = [each for each in self._attempts.values() if each.order.job == voucher.job]
        spent_uusd = sum(each.signed_uusd for each in jobs)
        if spent_uusd > self._limits.get(voucher.job, spent_uusd):
            self.blame(seen.at_s, f"{spent_uusd} signed for a job that may cost {self._limits[voucher.job]}")


class Prepaid(OfAttempts):
    """A provider reads no prompt that is not paid."""

    def __init__(self) -> None:
        super().__init__()
        self._held: defaultdict[LeaseId, int] = defaultdict(int)
        self._runs: dict[tuple[NodeId, int, RunId], int] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        mine = {StoreVoucher: self._on_stored, RunEngine: self._on_run, ContinueEngine: self._on_continue}
        return super().interests() | mine

    def _on_stored(self, seen: Seen) -> None:
        self._held[seen.item.lease] = max(self._held[seen.item.lease], seen.item.paid_uusd)

    def _latest(self, provider: NodeId, seed: int) -> Attempt | None:
        """A job is known to the engine by its seed alone."""
        orders = (each for each in self._attempts.values() if each.order.provider == provider)
        return next((each for each in reversed(list(orders)) if each.order.sampling.seed == seed), None)

    def _on_run(self, seen: Seen) -> None:
        self._runs[seen.node, seen.life, seen.item.run] = seen.item.sampling.seed
        if not seen.item.holds and self._latest(seen.node, seen.item.sampling.seed) is not None:
            self.blame(seen.at_s, "a prompt is read before it is paid")

    def _on_continue(self, seen: Seen) -> None:
        attempt = self._latest(seen.node, self._runs[seen.node, seen.life, seen.item.run])
        if attempt is None or attempt.acceptance is None or attempt.order.lease is None:
            return
        due_uusd = attempt.acceptance.paid_before_uusd + attempt.acceptance.prefill_uusd
        if self._held[attempt.order.lease] < due_uusd:
            self.blame(seen.at_s, "a prompt is read before all of it is paid")


class PaidInFull(OfAttempts):
    """Whoever has taken a receipt has signed for all that it says, however the job ended."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[tuple[NodeId, int, StreamId], Key] = {}
        self._receipts: dict[Key, ReceiptRecord] = {}
        self._signed: defaultdict[LeaseId, int] = defaultdict(int)
        self._marks: defaultdict[LeaseId, int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**super().interests(), MarkStored: self._on_mark, FinishStream: self._on_finish}

    def _on_mark(self, seen: Seen) -> None:
        self._marks[seen.item.lease] = max(self._marks[seen.item.lease], seen.item.mark_uusd)

    def _on_order(self, seen: Seen, order: JobOpenRecord, opening: JobOpen) -> None:  # noqa: ARG002  # a hook
        self._streams[seen.node, seen.life, seen.item.stream] = (order.job, order.attempt)

    def _on_receipt(self, seen: Seen, receipt: ReceiptRecord) -> None:  # noqa: ARG002  # a hook
        self._receipts[receipt.job, receipt.attempt] = receipt

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:  # noqa: ARG002  # a hook
        self._signed[voucher.lease] = max(self._signed[voucher.lease], voucher.paid_uusd)

    def _on_finish(self, seen: Seen) -> None:
        """An asker ends its half of the stream when it has the last word: the receipt, if there is one."""
        key = self._streams.get((seen.node, seen.life, seen.item.stream))
        receipt = self._receipts.get(key) if key is not None else None
        if receipt is None or receipt.lease is None:
            return
        due_uusd = receipt.paid_before_uusd + receipt.owed_uusd
        if self._signed[receipt.lease] < due_uusd <= self._marks[receipt.lease]:
            self.blame(seen.at_s, f"{self._signed[receipt.lease]} signed and {due_uusd} received")


class CoSigned(OfAttempts):
    """A provider completes no answer of which its payer has signed another hash or count than of what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self._hashes: dict[Key, list[bytes]] = {}
        self._counts: dict[Key, list[int]] = {}
        self._denied: set[Key] = set()

    def _on_send(self, seen: Seen) -> None:
        if sent(seen.item.data, Chunk) is not None:
            for message in FrameReader(JOB_LIMITS).feed(seen.item.data):
                if isinstance(message, Chunk) and (message.job, message.attempt) in self._hashes:
                    hashes = self._hashes[message.job, message.attempt]
                    figures = (message.number, message.output_tokens, message.owed_uusd)
                    if message.number == len(hashes):
                        hashes.append(running_hash(hashes[-1], *figures, message.sealed))
                        self._counts[message.job, message.attempt].append(message.output_tokens)
        else:
            super()._on_send(seen)

    def _on_order(self, seen: Seen, order: JobOpenRecord, opening: JobOpen) -> None:  # noqa: ARG002  # a hook
        self._hashes[order.job, order.attempt] = [order_hash(opening.order.body)]
        self._counts[order.job, order.attempt] = [0]

    def _on_voucher(self, seen: Seen, voucher: VoucherRecord) -> None:  # noqa: ARG002  # a hook
        key = (voucher.job, voucher.attempt)
        hashes = self._hashes.get(key, [])
        if voucher.chunks < len(hashes):
            sent_ = (hashes[voucher.chunks], self._counts[key][voucher.chunks])
            if (voucher.running_hash, voucher.output_tokens) != sent_:
                self._denied.add(key)

    def _on_receipt(self, seen: Seen, receipt: ReceiptRecord) -> None:
        is_whole = receipt.outcome in (Outcome.STOP, Outcome.LENGTH)
        if is_whole and (receipt.job, receipt.attempt) in self._denied:
            self.blame(seen.at_s, "an answer is completed that its payer has signed otherwise")


def job_checkers() -> list[Checker]:
    """All of them."""
    return [Stored(), Delivered(), Spent(), Prepaid(), PaidInFull(), CoSigned()]
