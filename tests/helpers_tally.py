"""Who lost how much in a simulation: what every job delivered, and what was paid for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from protocol.codec import decode_record
from protocol.effects import Send, StoreVoucher
from protocol.ids import JobId, LeaseId, NodeId
from protocol.messages import Chunk, JobAccept, JobOpen, Voucher
from protocol.money_records import VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord
from protocol.sim.checkers import Checker, Seen
from protocol.sim.reading import sent


@dataclass(slots=True)
class Account:
    """One attempt: who, what it came to, and what was paid for it, in micro-USD."""

    provider: NodeId
    lease: LeaseId
    base_uusd: int = 0
    prefill_uusd: int = 0
    window_uusd: int = 0
    delivered_uusd: int = 0
    held_uusd: int = 0
    signed_uusd: int = 0
    vouched_chunks: int = 0

    @property
    def provider_loss_uusd(self) -> int:
        """Delivered, and no voucher for it."""
        return max(0, self.base_uusd + self.delivered_uusd - max(self.held_uusd, self.base_uusd))

    @property
    def asker_loss_uusd(self) -> int:
        """Paid for the prompt, and nothing came."""
        paid_uusd = max(0, self.signed_uusd - self.base_uusd)
        return min(paid_uusd, self.prefill_uusd) if not self.vouched_chunks else 0


class Tally(Checker):
    """Judges nobody; adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[tuple[JobId, int], Account] = {}
        self._of_lease: defaultdict[LeaseId, list[Account]] = defaultdict(list)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send, StoreVoucher: self._on_voucher}

    def _on_voucher(self, seen: Seen) -> None:
        # The lease has one job at a time: what comes is the last one's.
        if accounts := self._of_lease.get(seen.item.lease):
            accounts[-1].held_uusd = max(accounts[-1].held_uusd, seen.item.paid_uusd)

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (chunk := sent(data, Chunk)) is not None:
            account = self.accounts.get((chunk.job, chunk.attempt))
            if account is not None and seen.node == account.provider:
                account.delivered_uusd = chunk.owed_uusd
        elif (voucher := sent(data, Voucher)) is not None:
            record = decode_record(voucher.voucher.body, VoucherRecord)
            if (account := self.accounts.get((record.job, record.attempt))) is not None:
                account.signed_uusd = max(account.signed_uusd, record.paid_uusd)
                account.vouched_chunks = max(account.vouched_chunks, record.chunks)
        elif (opened := sent(data, JobOpen)) is not None:
            order = decode_record(opened.order.body, JobOpenRecord)
            if order.lease is not None:
                self.accounts[order.job, order.attempt] = Account(order.provider, order.lease)
        elif (message := sent(data, JobAccept)) is not None:
            acceptance = decode_record(message.acceptance.body, JobAcceptRecord)
            if (account := self.accounts.get((acceptance.job, acceptance.attempt))) is not None:
                account.base_uusd, account.prefill_uusd = acceptance.paid_before_uusd, acceptance.prefill_uusd
                account.window_uusd = acceptance.window_uusd
                self._of_lease[account.lease].append(account)
