"""Slots that a provider holds for orders that another provider could not take, until they come or some seconds pass.

A `Reserve` carries the refused order, signed by its asker, so it goes through the same admission as if the asker had
come itself. A slot that is held counts as taken. Whoever reserves and lets it lapse can soon hold less: each
reservation costs a token that comes back when the order comes, and otherwise only slowly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.admission import Held, Why
from protocol.codec import encode_message, record_job
from protocol.effects import Effect, FinishStream, Note, Send
from protocol.envelope import Signer, open_record, sign_record
from protocol.errors import Refusal, RemoteProtocolError, UnknownVersion
from protocol.events import Now
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import may_hand_off
from protocol.messages import Reserve, Reserved
from protocol.rates import Rates
from protocol.records import JobOpenRecord, ModelOffer, ReservationRecord, Signed
from protocol.timers import Timers

# Held at once by one peer, and by one asker. What lapses comes back at one per half minute: so the most that one peer
# can keep from others is a third of a slot.
RESERVATIONS_PER_PEER_MAX: Final = 4
RESERVATIONS_PER_ASKER_MAX: Final = 2
LAPSED_FORGIVEN_PER_S: Final = 1 / 30
# Each costs a tenth of a millisecond for its signature, whatever comes of it.
REQUESTS_PER_S: Final = 30.0
REQUESTS_BURST: Final = 60
RESERVATION_LIFETIME_S: Final = c.RESERVATION_LIFETIME_MS_MAX / 1000


def reservation_for(order: JobOpenRecord, signed: Signed, now: Now) -> ReservationRecord | None:
    """What the asker makes of a reservation in the refusal of its order: None when it holds nothing for it."""
    # SPEC 05: The asker MUST ignore a reservation that its provider did not sign, that is for another asker, job or
    #   model, that does not hold now, or that it did not agree to.
    try:
        record = open_record(signed, ReservationRecord)
    except RemoteProtocolError:
        return None  # whoever passed it on is not to blame
    is_ours = (record.asker, record.job, record.model) == (order.asker, order.job, order.model)
    lifetime_ms = record.expires_at_ms - record.issued_at_ms
    # By whose clock it lives is not known; it was made a moment ago, so clocks alone can speak against it.
    is_fresh = abs(now.wall_ms - record.issued_at_ms) <= c.CLOCK_SKEW_MS_MAX + c.RESERVATION_LIFETIME_MS_MAX
    is_short = 0 < lifetime_ms <= c.RESERVATION_LIFETIME_MS_MAX
    is_elsewhere = record.provider not in (order.provider, order.asker)
    return record if is_ours and is_fresh and is_short and is_elsewhere and may_hand_off(order) else None


@dataclass(frozen=True, slots=True)
class _Reservation:
    """A slot that is held; `peer` asked for it."""

    record: ReservationRecord
    peer: NodeId

    @property
    def held(self) -> Held:
        return Held(self.record.asker, self.peer, self.record.model)


class Reserving:
    """The state machine. `judge` says as what an order for another provider would be admitted here, or why not."""

    def __init__(
        self,
        signer: Signer,
        rng: random.Random,
        judge: Callable[[JobOpenRecord, NodeId, Now], ModelOffer | Why],
    ) -> None:
        self._signer = signer
        self._rng = rng
        self._judge = judge
        self._reservations: dict[JobId, _Reservation] = {}
        self._timers: Timers[JobId] = Timers()
        self._requests: Rates[NodeId] = Rates(REQUESTS_PER_S, REQUESTS_BURST)
        self._peers: Rates[NodeId] = Rates(LAPSED_FORGIVEN_PER_S, RESERVATIONS_PER_PEER_MAX)
        self._askers: Rates[NodeId] = Rates(LAPSED_FORGIVEN_PER_S, RESERVATIONS_PER_ASKER_MAX)
        self.lapsed = 0

    # ------------------------------------------------------------ what others ask of it

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    def __len__(self) -> int:
        return len(self._reservations)

    def held(self, order: JobOpenRecord | None = None) -> list[Held]:
        """All slots that are held, but for the one that is held for this order."""
        own = self._own(order) if order is not None else None
        return [each.held for each in self._reservations.values() if each is not own]

    def is_expected(self, order: JobOpenRecord) -> bool:
        """Whether a slot is held for this order."""
        return self._own(order) is not None

    def use(self, order: JobOpenRecord) -> None:
        """The order is admitted; if a slot was held for it, that is now its own."""
        own = self._own(order)
        if own is None:
            return
        # SPEC 05: A provider MUST take a reservation for one order only.
        self._forget(own)
        self._peers.give_back(own.peer)
        self._askers.give_back(own.record.asker)

    def _own(self, order: JobOpenRecord) -> _Reservation | None:
        """The reservation that an order names, if it is its own."""
        held = self._reservations.get(order.reservation) if order.reservation is not None else None
        if held is None or (held.record.asker, held.record.job, held.record.model) != (
            *(order.asker, order.job),
            order.model,
        ):
            return None
        return held

    def _forget(self, reservation: _Reservation) -> None:
        del self._reservations[reservation.record.reservation]
        self._timers.cancel(reservation.record.reservation)

    # ------------------------------------------------------------ requests

    def on_reserve(self, stream: StreamId, peer: NodeId, message: Reserve, now: Now) -> list[Effect]:
        """Answer a provider that looks for somebody to take an order. Raises RemoteProtocolError."""
        job, reservation, code = self._reserve(peer, message.order, now)
        answer = Reserved(job, reservation, 0 if code is None else int(code))
        note = Note("job.reserved" if code is None else "job.not_reserved", peer, code.name.lower() if code else "")
        return [Send(stream, encode_message(answer)), FinishStream(stream), note]

    def _reserve(self, peer: NodeId, signed: Signed, now: Now) -> tuple[JobId, Signed | None, Refusal | None]:
        named = record_job(signed.body)
        if named is None:
            raise RemoteProtocolError("a reservation for what is no order")
        job = JobId(named[0])
        if not self._requests.take(peer, now.monotonic_s):
            return job, None, Refusal.RATE_LIMITED
        try:
            order = open_record(signed, JobOpenRecord)
        except UnknownVersion:
            return job, None, Refusal.UNSUPPORTED
        # SPEC 05: The receiver of `Reserve` MUST refuse an order that is not for the sender, or whose asker does not
        #   agree to a handoff.
        if order.provider != peer or not may_hand_off(order):
            raise RemoteProtocolError("a reservation for an order that its sender may not hand on")
        against = self._against(order, peer, now)
        if against is not None:
            return job, None, against
        record = self._hold(order, peer, now)
        return job, sign_record(record, self._signer), None

    def _against(self, order: JobOpenRecord, peer: NodeId, now: Now) -> Refusal | None:
        # SPEC 05: The receiver of `Reserve` MUST judge the order by the rules for one of its own, sent by that peer;
        model = self._judge(order, peer, now)
        if not isinstance(model, ModelOffer):
            return model[0]
        records = [each.record for each in self._reservations.values()]
        if any((record.asker, record.job) == (order.asker, order.job) for record in records):
            return Refusal.DUPLICATE
        # SPEC 05: The provider MUST NOT hold more than half of a model's slots, or its only one, in reserve.
        if sum(record.model == model.name for record in records) >= max(1, model.concurrency // 2):
            return Refusal.BUSY
        # SPEC 05: The provider MUST let a peer or an asker whose reservations lapse hold fewer for a while.
        if not self._peers.take(peer, now.monotonic_s):
            return Refusal.RATE_LIMITED
        if not self._askers.take(order.asker, now.monotonic_s):
            self._peers.give_back(peer)
            return Refusal.RATE_LIMITED
        return None

    def _hold(self, order: JobOpenRecord, peer: NodeId, now: Now) -> ReservationRecord:
        record = ReservationRecord(
            version=1,
            reservation=JobId(self._rng.randbytes(16)),
            provider=self._signer.node,
            asker=order.asker,
            job=order.job,
            model=order.model,
            issued_at_ms=now.wall_ms,
            expires_at_ms=now.wall_ms + c.RESERVATION_LIFETIME_MS_MAX,
            extensions=(),
        )
        # SPEC 05: The provider MUST hold the slot until the reservation expires, at most 10 seconds later, and count it
        #   as taken.
        self._reservations[record.reservation] = _Reservation(record, peer)
        self._timers.set(record.reservation, now.monotonic_s + RESERVATION_LIFETIME_S)
        return record

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> bool:
        """Let go of what nobody came for; whether that was anything."""
        lapsed = self._timers.pop_due(now.monotonic_s)
        for reservation in lapsed:
            del self._reservations[reservation]
        self.lapsed += len(lapsed)
        return bool(lapsed)
