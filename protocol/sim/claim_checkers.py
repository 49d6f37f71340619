"""The judges of leases: under which a job is ordered and served, and what becomes of their vouchers (specs/06).

As those of money they read what is sent off its bytes, and use nothing of `leases`, `purse` and `till`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.codec import decode_record
from protocol.effects import ResetStream, StoreVoucher
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.events import CloseLease, DeadlineReached, PeerDisconnected, SetOffer, StreamBroken
from protocol.ids import LeaseId, NodeId, StreamId
from protocol.jobs import Priced
from protocol.ledger import Claim, ExpireLease, OpenLease, Resume
from protocol.messages import JobOpen
from protocol.money_records import LeaseRecord, LeaseRequestRecord, VoucherRecord
from protocol.records import JobOpenRecord, ReceiptRecord
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.lease_checkers import Attempt, Key, OfAttempts
from protocol.sim.money_checkers import LedgerChanged

# A voucher is on disk after this long (specs/06), and claimed after that: claims are tried again within five minutes.
STORED_S = 0.25
CLAIMED_S = 600.0


@dataclass(slots=True)
class _Lease:
    command: OpenLease
    request: LeaseRequestRecord
    is_closed: bool = False


class _OfLeases(Checker):
    """What the judges below know of every lease: what was granted, and whether the ledger has closed it."""

    def __init__(self) -> None:
        super().__init__()
        self._leases: dict[LeaseId, _Lease] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {LedgerChanged: self._on_change}

    def _on_change(self, seen: Seen) -> None:
        command = seen.item.entry.command
        if isinstance(command, OpenLease):
            self._leases[command.lease] = _Lease(command, decode_record(command.request.body, LeaseRequestRecord))
        elif isinstance(command, ExpireLease) or (isinstance(command, Claim) and command.is_final):
            self._leases[command.lease].is_closed = True


class Granted(_OfLeases, OfAttempts):
    """Orders are made and served under open leases, of those whom they name and on their terms."""

    def __init__(self) -> None:
        super().__init__()
        self._coordinators: dict[LeaseId, NodeId] = {}
        self._offers: dict[NodeId, SetOffer] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**OfAttempts.interests(self), **_OfLeases.interests(self), SetOffer: self._on_offer}

    def _on_offer(self, seen: Seen) -> None:
        self._offers[seen.node] = seen.item

    def _on_order(self, seen: Seen, order: JobOpenRecord, opening: JobOpen) -> None:
        assert order.lease is not None
        if opening.lease is not None:
            self._coordinators[order.lease] = decode_record(opening.lease.body, LeaseRecord).coordinator
        lease = self._leases.get(order.lease)
        if lease is None:
            self.blame(seen.at_s, "an order under a lease that nobody granted")
        elif _terms(order) != _terms(lease.request):
            self.blame(seen.at_s, "an order on other terms than those of its lease")

    def _on_accept(self, seen: Seen, attempt: Attempt) -> None:
        order, offer = attempt.order, self._offers[seen.node].offer
        assert order.lease is not None
        lease = self._leases.get(order.lease)
        if lease is None or lease.is_closed:
            self.blame(seen.at_s, "a job under a lease that is not open")
        elif lease.command.payer != order.asker or lease.command.provider != seen.node:
            self.blame(seen.at_s, "a job under a lease between others")
        if self._coordinators.get(order.lease) not in offer.coordinators:
            self.blame(seen.at_s, "a job under a lease of a coordinator that is not used here")
        asked = next((model for model in offer.models if model.name == order.model), None)
        if asked is None or any(map(int.__lt__, _prices(order), _prices(asked))):
            self.blame(seen.at_s, "a job for less than is asked")


def _terms(of: JobOpenRecord | LeaseRequestRecord) -> tuple[object, ...]:
    return of.model, of.fingerprint, of.provider, _prices(of)


def _prices(of: Priced) -> tuple[int, int, int]:
    return of.price_in_uusd, of.price_out_uusd, of.price_job_uusd


class OneAtATime(OfAttempts):
    """A provider runs one job of a lease at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[LeaseId, tuple[NodeId, StreamId, Key]] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        on_stream, on_gone = self._on_stream, self._on_gone
        mine = {ResetStream: on_stream, StreamBroken: on_stream, Crashed: on_gone, PeerDisconnected: on_gone}
        return super().interests() | mine

    def _on_accept(self, seen: Seen, attempt: Attempt) -> None:
        order = attempt.order
        assert order.lease is not None
        if order.lease in self._open:
            self.blame(seen.at_s, "two jobs of one lease at once")
        self._open[order.lease] = (seen.node, seen.item.stream, (order.job, order.attempt))

    def _on_receipt(self, seen: Seen, receipt: ReceiptRecord) -> None:
        ended = (receipt.job, receipt.attempt)
        self._open = {lease: job for lease, job in self._open.items() if (job[0], job[2]) != (seen.node, ended)}

    def _on_stream(self, seen: Seen) -> None:
        gone = (seen.node, seen.item.stream)
        self._open = {lease: job for lease, job in self._open.items() if job[:2] != gone}

    def _on_gone(self, seen: Seen) -> None:
        self._open = {lease: job for lease, job in self._open.items() if job[0] != seen.node}


class FreshKeys(_OfLeases):
    """Each lease is paid with a key of its own, which is nobody's name."""

    def _on_change(self, seen: Seen) -> None:
        command = seen.item.entry.command
        if isinstance(command, OpenLease):
            others = {lease.command.payer for lease in self._leases.values()}
            if command.payer in others or command.payer == command.client:
                self.blame(seen.at_s, "a payer that is known by its key")
        super()._on_change(seen)


class Redeemable(_OfLeases):
    """What a provider keeps of a lease is its payer's signature for that lease, for as much as it says and can pay."""

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**super().interests(), StoreVoucher: self._on_stored}

    def _on_stored(self, seen: Seen) -> None:
        kept: StoreVoucher = seen.item
        lease = self._leases.get(kept.lease)
        if kept.voucher is None or lease is None:
            return
        try:
            voucher = open_record(kept.voucher, VoucherRecord)
        except RemoteProtocolError as error:
            self.blame(seen.at_s, f"a voucher is kept that does not hold: {error}")
            return
        if (voucher.lease, voucher.payer) != (kept.lease, lease.command.payer):
            self.blame(seen.at_s, "a voucher is kept that is not of its lease")
        elif voucher.paid_uusd != kept.paid_uusd or voucher.paid_uusd > lease.command.cap_uusd:
            self.blame(seen.at_s, f"{kept.paid_uusd} is taken for paid by a voucher of {voucher.paid_uusd}")


class _Late(Checker):
    """Judges what has not happened after a long time in which it could have."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._back_s = 0.0

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {DeadlineReached: self._on_time, LedgerChanged: self._on_change}

    def _on_time(self, seen: Seen) -> None:
        self._now_s = seen.at_s

    def _on_change(self, seen: Seen) -> None:
        if isinstance(seen.item.entry.command, Resume):
            self._back_s = seen.at_s

    def _is_late(self, since_s: float) -> bool:
        return self._now_s > max(since_s, self._back_s) + CLAIMED_S


@dataclass(slots=True)
class _Kept:
    """What a provider has of a lease: on disk, since when, and what is on its way there."""

    node: NodeId
    stored_uusd: int = 0
    since_s: float = 0.0
    under_way: deque[tuple[float, int]] = field(default_factory=deque)

    def settle(self, now_s: float) -> None:
        while self.under_way and self.under_way[0][0] + STORED_S <= now_s:
            since_s, paid_uusd = self.under_way.popleft()
            if paid_uusd > self.stored_uusd:
                self.stored_uusd, self.since_s = paid_uusd, since_s


class AllClaimed(_Late):
    """Every voucher that was on disk is redeemed in the end, unless its provider does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[LeaseId, _Kept] = {}
        self._down: set[NodeId] = set()

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        mine = {StoreVoucher: self._on_stored, Crashed: self._on_crash, SetOffer: self._on_start}
        return super().interests() | mine

    def _on_stored(self, seen: Seen) -> None:
        kept = self._kept.setdefault(seen.item.lease, _Kept(seen.node))
        kept.settle(seen.at_s)
        kept.under_way.append((seen.at_s, seen.item.paid_uusd))

    def _on_crash(self, seen: Seen) -> None:
        self._down.add(seen.node)
        for kept in self._kept.values():
            if kept.node == seen.node:
                kept.settle(seen.at_s)
                kept.under_way.clear()

    def _on_start(self, seen: Seen) -> None:
        self._down.discard(seen.node)

    def finish(self, ending: Ending, /) -> None:
        if ending.bank is None or ending.bank.is_away:
            return
        for lease_id, kept in self._kept.items():
            kept.settle(self._now_s)
            lease = ending.bank.book.lease(lease_id)
            if lease is None or kept.node in self._down or not self._is_late(kept.since_s):
                continue
            # That a voucher above the cap is not taken is for another judge.
            if lease.claimed_uusd < min(kept.stored_uusd, lease.cap_uusd):
                self.blame(self._now_s, f"{kept.stored_uusd} on disk and {lease.claimed_uusd} claimed")


class Closed(_Late):
    """Whoever wants the rest of a lease back gets it."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: dict[LeaseId, float] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {**super().interests(), CloseLease: self._on_wish}

    def _on_wish(self, seen: Seen) -> None:
        self._wanted[seen.item.lease] = seen.at_s

    def finish(self, ending: Ending, /) -> None:
        if ending.bank is None or ending.bank.is_away:
            return
        for lease_id, since_s in self._wanted.items():
            lease = ending.bank.book.lease(lease_id)
            if lease is not None and not lease.is_closed and self._is_late(since_s):
                self.blame(self._now_s, "a lease is open that its payer has given up")


def lease_checkers() -> list[Checker]:
    """All of them."""
    return [Granted(), OneAtATime(), FreshKeys(), Redeemable(), AllClaimed(), Closed()]
