"""The provider's leases: which orders they pay, the best voucher of each, and when it is redeemed.

A lease is checked offline, against the coordinators whose leases this node takes. Every voucher that is better than the
one before goes to the disk; claims follow a while after each job, go on until the coordinator has answered, and give up
the rest of a lease that is not served any more.
"""

from __future__ import annotations

from typing import Final

from protocol import constants as c
from protocol.effects import Effect, Note, SendClaim, StoreClaimed, StoreClosing, StoreVoucher
from protocol.envelope import Signer, open_record, sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import ClaimAnswered, ClaimFailed, CloseLease, ClosingStored, Now, Offer, RestoreProvider
from protocol.ids import LeaseId, NodeId, StreamId
from protocol.leases import Meter, ProviderSide, Why, lease_refusal, most_uusd
from protocol.messages import Voucher
from protocol.money_records import ClaimAckRecord, ClaimRecord, Credited, LeaseRecord
from protocol.records import JobOpenRecord, ModelOffer, ReceiptRecord, Signed
from protocol.timers import Timers

# Each holds somebody's locked money; memory is the only reason for a bound.
LEASES_MAX: Final = 4096
# Those that are given up have room of their own: whoever throws leases away takes none from others.
GIVEN_UP_MAX: Final = 4096
# How long the payer's last voucher is waited for, after the receipt.
LAST_VOUCHER_S: Final = 5.0
# A claim soon after a job: others of the same lease may still come.
CLAIM_DELAY_S: Final = 5.0
# While a job runs for long, what it has paid is redeemed now and then.
CLAIM_INTERVAL_S: Final = 60.0
# A claim without an answer is sent again, ever later.
CLAIM_ANSWER_S: Final = 30.0
CLAIM_RETRY_S_MAX: Final = 300.0
# All that a coordinator may owe us before we take no more of its leases: ten dollars.
UNCLAIMED_UUSD_MAX: Final = 10_000_000


class Till:
    """The state machine."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._sides: dict[LeaseId, ProviderSide] = {}
        # By coordinator, when the newest lease was issued of those that had to be forgotten before their time.
        self._forgotten_until_ms: dict[NodeId, int] = {}
        # The lease of the order that is looked at: it is kept if that is taken.
        self._candidate: ProviderSide | None = None
        # Jobs whose last voucher has not come, by the stream on which it may.
        self._settling: dict[StreamId, Meter] = {}
        self._sent: dict[LeaseId, int] = {}
        # Leases that we give up, and what was paid on each, until the disk knows both.
        self._keeping: dict[LeaseId, int] = {}
        self._tries: dict[LeaseId, int] = {}
        self._timers: Timers[tuple[str, LeaseId | StreamId]] = Timers()

    def __len__(self) -> int:
        return len(self._sides)

    def sides(self) -> list[ProviderSide]:
        """Every lease that was given to us."""
        return list(self._sides.values())

    @property
    def claims_sent(self) -> int:
        """How many claims are on their way, or have an answer that was not looked at yet."""
        return len(self._sent)

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    # ------------------------------------------------------------ orders

    def refusal(
        self, order: JobOpenRecord, signed: Signed | None, offer: Offer, model: ModelOffer, now: Now
    ) -> Why | None:
        """Why this lease does not pay this order here. A new one is kept once the order begins."""
        if not offer.coordinators:
            return Refusal.LEASE, "this node takes no paid jobs"
        if order.lease is None or signed is None:
            return Refusal.LEASE, "this model is not free here: send a lease with the order"
        side = self._sides.get(order.lease)
        if side is None or side.signed != signed:
            # SPEC 06: The provider MUST check the coordinator's signature of a lease itself, and take none of a
            #   coordinator that it does not use.
            try:
                record = open_record(signed, LeaseRecord)
            except RemoteProtocolError as error:
                return Refusal.LEASE, f"the lease does not hold: {error}"
            if record.lease != order.lease:
                return Refusal.LEASE, "the lease is another one than ordered"
            if side is not None:
                return Refusal.LEASE, "the coordinator signed two leases with one number"
            # SPEC 06: A provider that cannot remember them all MUST refuse what it does not know and what was issued no
            #   later than a lease that it has forgotten.
            if record.issued_at_ms <= self._forgotten_until_ms.get(record.coordinator, -1):
                return Refusal.LEASE, "this lease is older than this node can remember: get another one"
            side = ProviderSide(record, signed)
        # Those that we have served before, too: the owner may have left their coordinator since.
        if side.record.coordinator not in offer.coordinators:
            return Refusal.LEASE, "the lease is of a coordinator that is not used here"
        self._candidate = side
        return lease_refusal(side.record, order, model, now.wall_ms) or self._side_refusal(side, order)

    def _side_refusal(self, side: ProviderSide, order: JobOpenRecord) -> Why | None:
        # SPEC 06: The provider MUST run one job at a time for each lease.
        if side.in_use:
            return Refusal.LEASE, "a job of this lease is running here: one at a time"
        if side.is_given_up:
            return Refusal.LEASE, "this lease is closed: get another one"
        # SPEC 06: The provider MUST NOT take another order under a lease before all that was delivered under it is
        #   paid.
        # Otherwise there were a window to be had for nothing with each job.
        if side.is_in_debt:
            return Refusal.LEASE, "what came under this lease is not paid: get another one"
        # SPEC 06: The provider MUST refuse an order that can cost more than is left of its lease.
        if most_uusd(order) > side.record.cap_uusd - side.settled_uusd:
            return Refusal.LEASE, "the order can cost more than is left of its lease: get a larger one"
        if side.record.lease not in self._sides and self._is_full() and self._least_served() is None:
            return Refusal.BUSY, "this node holds as many leases as it can"
        if sum(other.unclaimed_uusd for other in self._sides.values()) > UNCLAIMED_UUSD_MAX:
            return Refusal.LEASE, "the coordinator owes this node too much already: free jobs only, for now"
        return None

    def _served(self) -> list[ProviderSide]:
        return [side for side in self._sides.values() if not side.is_given_up]

    def _is_full(self) -> bool:
        return len(self._served()) >= LEASES_MAX

    def _least_served(self) -> ProviderSide | None:
        """Of the leases that no job uses, the one that has paid least, and of those the oldest."""
        return min((side for side in self._served() if not side.in_use), key=lambda side: side.paid_uusd, default=None)

    def _make_room(self, now: Now) -> list[Effect]:
        """For another lease. Nothing is lost: what was paid is redeemed, what was not can be used elsewhere."""
        effects: list[Effect] = []
        least = self._least_served() if self._is_full() else None
        if least is not None and least.is_untouched:
            self._drop(least)
        elif least is not None:
            least.is_final_wanted = True
            effects += self._claim(least, now)
        return effects + self._forget_given_up()

    def _forget_given_up(self) -> list[Effect]:
        """Keep those that are given up in their room: first without those that hold nothing for us, the oldest first,
        and then, where no coordinator answers, without the smallest.
        """
        given_up = [side for side in self._sides.values() if side.is_given_up and not side.in_use]
        effects: list[Effect] = []
        if len(given_up) <= GIVEN_UP_MAX:
            return effects
        for side in sorted(given_up, key=_worth)[: len(given_up) - GIVEN_UP_MAX]:
            record = side.record
            fence_ms = self._forgotten_until_ms.get(record.coordinator, -1)
            self._forgotten_until_ms[record.coordinator] = max(fence_ms, record.issued_at_ms)
            if not side.is_closed and side.unclaimed_uusd:
                text = f"lease {record.lease.hex()[:8]}: {side.unclaimed_uusd} micro-USD are claimed after a restart"
                effects.append(Note("claim.put_off", None, text))
            self._drop(side)
        return effects

    def _keep(self, side: ProviderSide, now: Now) -> None:
        lease = side.record.lease
        if lease not in self._sides:
            self._sides[lease] = side
            left_s = (side.record.serve_until_ms + c.LEASE_SKEW_MS - now.wall_ms) / 1000
            self._timers.set(("served", lease), now.monotonic_s + max(0.0, left_s))

    def begin(self, order: JobOpenRecord, now: Now) -> tuple[ProviderSide, list[Effect]]:
        """An order that was not refused begins."""
        side = self._candidate
        assert side is not None, "an order begins that nobody has looked at"
        assert side.record.lease == order.lease, "an order begins under another lease than its own"
        self._candidate = None
        effects = self._make_room(now) if order.lease not in self._sides else []
        self._keep(side, now)
        side.in_use = True
        self._timers.set(("claim", side.record.lease), now.monotonic_s + CLAIM_INTERVAL_S)
        return side, [*effects, self._store(side)]

    def end(self, meter: Meter, stream: StreamId | None, now: Now) -> None:
        """The job is over; on its stream what is missing may still come.

        Until then the next job of the lease waits, or it would begin with the money of this one.
        """
        side, lease = meter.side, meter.side.record.lease
        if meter.is_prompt_paid:  # before that nothing is done for it
            side.owed_uusd = max(side.owed_uusd, meter.total_uusd)
        if stream is not None and side.paid_uusd < meter.total_uusd:
            self._settling[stream] = meter
            self._timers.set(("settle", stream), now.monotonic_s + LAST_VOUCHER_S)
        else:
            side.in_use = False
        self._timers.set(("claim", lease), now.monotonic_s + CLAIM_DELAY_S)
        self._forget_if_over(side)

    def distrust(self, side: ProviderSide) -> None:
        """Its payer has let a job wait for money: no other one begins on this lease."""
        side.is_final_wanted = True

    def took(self, side: ProviderSide) -> list[Effect]:
        """A better voucher has come."""
        return [self._store(side)]

    def receipt(self, side: ProviderSide, receipt: ReceiptRecord, signed: Signed) -> list[Effect]:
        """The job ends with this receipt."""
        side.take_receipt(receipt, signed)
        return [self._store(side)]

    def settles(self, stream: StreamId) -> bool:
        """Whether the last voucher of a job may come here."""
        return stream in self._settling

    def on_last_voucher(self, stream: StreamId, message: Voucher, now: Now) -> list[Effect]:
        """The payer signs for what the receipt says, at once or in the steps that were under way. Raises
        RemoteProtocolError.
        """
        meter = self._settling[stream]
        pays_more = meter.take(message.voucher, now.monotonic_s)
        if meter.side.paid_uusd >= meter.total_uusd:
            self.on_stream_dropped(stream)
        if not pays_more:
            return []
        # It may come long after the job, when all before it is redeemed and no claim is due any more.
        if not self._timers.is_set(("claim", meter.side.record.lease)):
            self._timers.set(("claim", meter.side.record.lease), now.monotonic_s + CLAIM_DELAY_S)
        return self.took(meter.side)

    def on_stream_dropped(self, stream: StreamId) -> None:
        """Nothing comes on this stream any more, or nothing that is missing."""
        if self._timers.is_set(("settle", stream)):
            self._timers.cancel(("settle", stream))
            self._free(stream)
        self._settling.pop(stream, None)

    def _free(self, stream: StreamId) -> None:
        """The job on this stream is waited for no longer. What it owes can still be paid there, and nothing else."""
        meter = self._settling[stream]
        if not meter.side.is_in_debt:
            del self._settling[stream]
        meter.side.in_use = False
        self._forget_if_over(meter.side)

    @staticmethod
    def _store(side: ProviderSide) -> StoreVoucher:
        return StoreVoucher(side.record.lease, side.signed, side.voucher, side.receipt, side.paid_uusd)

    # ------------------------------------------------------------ claims

    def claim_now(self, now: Now) -> list[Effect]:
        """Redeem whatever can be redeemed."""
        return [effect for side in self.sides() for effect in self._claim(side, now)]

    def on_close_wanted(self, event: CloseLease, now: Now) -> list[Effect]:
        """The payer wants no more of its lease."""
        side = self._sides.get(event.lease)
        if side is None:
            return []
        side.is_final_wanted = True
        return [] if side.in_use else self._claim(side, now)

    def _claim(self, side: ProviderSide, now: Now) -> list[Effect]:
        lease = side.record.lease
        # SPEC 06: The provider SHOULD give up the rest of a lease that it does not serve any more.
        is_final = side.is_final_wanted and not side.in_use
        if lease in self._sent or side.is_closed or not (side.unclaimed_uusd or is_final):
            return []
        if is_final and side.given_up_uusd != side.paid_uusd:
            # SPEC 06: The provider MUST have on disk that it gives up a lease, and the best voucher of it, before it
            #   sends the last claim.
            # Its coordinator closes it then, and we may crash before we hear of that.
            if self._keeping.get(lease) != side.paid_uusd:
                self._keeping[lease] = side.paid_uusd
                self._timers.set(("claim", lease), now.monotonic_s + CLAIM_DELAY_S)
                return [StoreClosing(lease, side.paid_uusd)]
            # The disk takes its time: what is not the last word can be claimed meanwhile.
            is_final = False
            if not side.unclaimed_uusd:
                return []
        claim = ClaimRecord(
            version=1,
            provider=self._signer.node,
            lease=lease,
            voucher=side.voucher,
            receipt=side.receipt,
            is_final=int(is_final),
            claimed_at_ms=now.wall_ms,
            extensions=(),
        )
        self._sent[lease] = side.paid_uusd
        self._timers.set(("answer", lease), now.monotonic_s + CLAIM_ANSWER_S)
        return [SendClaim(lease, side.record.coordinator, sign_record(claim, self._signer))]

    def on_closing_stored(self, event: ClosingStored, now: Now) -> list[Effect]:
        """The disk knows that we give up a lease."""
        side = self._sides.get(event.lease)
        if side is None:
            return []
        if self._keeping.get(event.lease) == event.paid_uusd:
            del self._keeping[event.lease]
        side.given_up_uusd = event.paid_uusd
        return self._claim(side, now) if side.is_final_wanted else []

    def on_answered(self, event: ClaimAnswered, now: Now) -> list[Effect]:
        """The coordinator has credited a claim, or says that it had."""
        side = self._sides.get(event.lease)
        claimed_uusd = self._sent.pop(event.lease, None)
        if side is None or claimed_uusd is None:
            return []
        self._timers.cancel(("answer", event.lease))
        try:
            credited = self._credited(open_record(event.acknowledgement, ClaimAckRecord), side, claimed_uusd)
        except RemoteProtocolError as error:
            return self._retry(side, f"the coordinator's answer does not hold: {error}", now)
        self._tries.pop(event.lease, None)
        side.claimed_uusd = max(side.claimed_uusd, credited.claimed_uusd)
        side.is_closed |= bool(credited.is_closed)
        effects: list[Effect] = [
            StoreClaimed(event.lease, side.claimed_uusd, side.is_closed, event.acknowledgement),
        ]
        if side.is_closed:
            if side.unclaimed_uusd:
                lost = f"lease {event.lease.hex()[:8]} was closed with {side.unclaimed_uusd} micro-USD unclaimed"
                effects.append(Note("claim.lost", None, lost))
            self._forget_if_over(side)
        elif side.unclaimed_uusd or side.is_final_wanted:
            self._timers.set(("claim", event.lease), now.monotonic_s + CLAIM_DELAY_S)
        return effects

    @staticmethod
    def _credited(record: ClaimAckRecord, side: ProviderSide, claimed_uusd: int) -> Credited:
        credited = record.of(side.record.lease)
        if record.coordinator != side.record.coordinator or credited is None:
            raise RemoteProtocolError("it is for another lease")
        # SPEC 06: The provider MUST NOT take an acknowledgement for less than it claimed as one.
        if credited.claimed_uusd < claimed_uusd:
            raise RemoteProtocolError(f"it credits {credited.claimed_uusd} of {claimed_uusd} micro-USD")
        return credited

    def on_failed(self, event: ClaimFailed, now: Now) -> list[Effect]:
        """No answer, or a refusal."""
        side = self._sides.get(event.lease)
        if side is None or self._sent.pop(event.lease, None) is None:
            return []
        self._timers.cancel(("answer", event.lease))
        if not event.is_final:
            return self._retry(side, event.text, now)
        side.is_closed = True
        note = Note("claim.refused", None, f"lease {event.lease.hex()[:8]}: {event.text}")
        self._forget_if_over(side)
        return [note, StoreClaimed(event.lease, side.claimed_uusd, True, None)]

    def _retry(self, side: ProviderSide, text: str, now: Now) -> list[Effect]:
        lease = side.record.lease
        # SPEC 06: The provider SHOULD claim soon after each job, and MUST try again until it is answered, or until
        #   the lease is closed.
        tries = self._tries[lease] = self._tries.get(lease, 0) + 1
        delay_s = min(CLAIM_RETRY_S_MAX, 2.0 ** min(tries, 16))
        self._timers.set(("claim", lease), now.monotonic_s + delay_s)
        return [Note("claim.failed", None, f"lease {lease.hex()[:8]}: {text}")]

    def _forget_if_over(self, side: ProviderSide) -> None:
        """Forget a lease that is closed and cannot be ordered under any more."""
        lease = side.record.lease
        # SPEC 06: The provider MUST remember a lease that is closed for as long as it could be ordered under,
        if side.in_use or not side.is_closed or self._timers.is_set(("served", lease)):
            return
        self._drop(side)

    def _drop(self, side: ProviderSide) -> None:
        lease = side.record.lease
        self._sides.pop(lease, None)
        self._tries.pop(lease, None)
        self._sent.pop(lease, None)
        self._keeping.pop(lease, None)
        for name in ("claim", "answer", "served"):
            self._timers.cancel((name, lease))

    # ------------------------------------------------------------ keeping

    def restore(self, event: RestoreProvider, now: Now) -> list[Effect]:
        """Take up a lease from before a restart, and redeem what it holds. What does not hold is left, and noted."""
        try:
            record = open_record(event.signed, LeaseRecord)
            # SPEC 06: The provider MUST leave alone what it holds of leases that name another key than its own:
            if record.provider != self._signer.node:
                raise RemoteProtocolError("it is made out to another key than this node's")
            side = ProviderSide(
                record,
                event.signed,
                receipt=event.receipt,
                claimed_uusd=event.claimed_uusd,
                # Whether its coordinator has closed it, the answer to another final claim says.
                is_final_wanted=event.is_closing,
                is_closed=event.is_closed,
            )
            if event.voucher is not None:
                side.take(event.voucher)
            # SPEC 06: The provider MUST remember a lease that is closed for as long as it could be ordered under, over
            #   restarts too.
            side.given_up_uusd = side.paid_uusd if event.is_closing else None
        except RemoteProtocolError as error:
            return [Note("lease.not_restored", None, str(error))]
        self._keep(side, now)
        self._timers.set(("claim", record.lease), now.monotonic_s + CLAIM_DELAY_S)
        return self._forget_given_up()

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for name, key in self._timers.pop_due(now.monotonic_s):
            if isinstance(key, int):
                self._free(StreamId(key))
                continue
            side = self._sides.get(LeaseId(key))
            if side is None:
                continue
            if name == "answer":
                self._sent.pop(side.record.lease, None)
                effects += self._retry(side, "no answer came", now)
                continue
            if name == "served":
                side.is_final_wanted = True
                self._forget_if_over(side)
            elif side.in_use:
                self._timers.set(("claim", side.record.lease), now.monotonic_s + CLAIM_INTERVAL_S)
            effects += self._claim(side, now)
        return effects


def _worth(side: ProviderSide) -> tuple[int, int]:
    """What a lease that is given up holds for us, and when it was issued."""
    return 0 if side.is_closed else side.unclaimed_uusd, side.record.issued_at_ms
