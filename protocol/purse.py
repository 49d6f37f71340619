"""The asker's leases: which there are, which is used by what job, and how new ones are got.

Leases stay after a job, for the next one at the same provider: so the coordinator is on no job's way for long, and may
be away for a while. Before anything is signed for a job, the most that it can cost is put on disk as a mark.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from protocol import constants as c
from protocol.claims import lease_id
from protocol.effects import Effect, Note, RequestLease, StoreMark
from protocol.envelope import Signer, open_record, sign_record
from protocol.errors import RemoteProtocolError
from protocol.events import LeaseDenied, LeaseGranted, MarkStored, Now, RestorePayer
from protocol.ids import JobId, LeaseId, NodeId
from protocol.leases import SEQUENCE_STEP_AFTER_RESTART, PayerSide, most_uusd, prices
from protocol.money_records import LeaseRecord, LeaseRequestRecord, VoucherRecord
from protocol.records import JobOpenRecord, ModelOffer, Signed

# Some jobs' worth: enough that most questions find a lease, little enough that nobody misses what lies in it.
LEASE_UUSD: Final = 20_000
# As long as a coordinator may be away without being missed. Longer would lock the money of whoever was lured to a
# provider that takes no orders: it comes back an hour after this.
LEASE_SERVE_S: Final = 2 * 60 * 60
# For so long after it has not answered the coordinator is not asked where a lease is at hand somewhere.
CUT_OFF_S: Final = 60.0
# Leases cost nothing but the money in them; nobody has so many providers.
LEASES_MAX: Final = 4096


@dataclass(slots=True)
class _Request:
    """A lease that we have asked for, and what for."""

    record: LeaseRequestRecord
    signed: Signed
    job: JobId
    needed_uusd: int


class Purse:
    """The state machine."""

    def __init__(self, signer: Signer, rng: random.Random) -> None:
        self._signer = signer
        self._rng = rng
        #: Who holds our money; None: nothing can be paid.
        self.coordinator: NodeId | None = None
        self._leases: dict[LeaseId, PayerSide] = {}
        self._requests: dict[bytes, _Request] = {}
        self._numbers: dict[LeaseId, bytes] = {}
        self._effects: list[Effect] = []
        self._cut_off_until_s = -math.inf

    def __len__(self) -> int:
        return len(self._leases)

    def sides(self) -> list[PayerSide]:
        """Every lease that we hold."""
        return list(self._leases.values())

    # ------------------------------------------------------------ finding and getting

    def find(self, provider: NodeId, offer: ModelOffer, needed_uusd: int, until_ms: int, now: Now) -> PayerSide | None:
        """A lease at hand on which this much can be signed until then, the fullest of them."""
        self._forget_old(now)
        fitting = [
            side
            for side in self._usable()
            if side.record.provider == provider
            and (side.record.model, side.record.fingerprint) == (offer.name, offer.fingerprint)
            and prices(side.record) == prices(offer)
            and side.left_uusd >= needed_uusd
            and until_ms <= side.record.serve_until_ms
        ]
        return max(fitting, key=lambda side: side.left_uusd, default=None)

    def _usable(self) -> list[PayerSide]:
        """Leases on which a job may begin: what another coordinator holds, or one that we left, is of no use to it."""
        return [
            side
            for side in self._leases.values()
            if side.job is None and not side.is_closing and side.record.coordinator == self.coordinator
        ]

    def funded(self, now: Now) -> list[NodeId]:
        """While the coordinator does not answer: the providers whom we can pay all the same."""
        if now.monotonic_s >= self._cut_off_until_s:
            return []
        return list(dict.fromkeys(side.record.provider for side in self._usable()))

    def request(
        self, job: JobId, provider: NodeId, offer: ModelOffer, needed_uusd: int, now: Now, *, exactly: bool = False
    ) -> list[Effect]:
        """Ask for a lease that this job can be paid from."""
        assert self.coordinator is not None
        number = self._rng.randbytes(16)
        record = LeaseRequestRecord(
            version=1,
            coordinator=self.coordinator,
            request=number,
            client=self._signer.node,
            payer=self._signer.payer(number).node,
            provider=provider,
            relay=None,
            relay_bps=0,
            # A job may need nothing under an offer that has a price, such as one for output where none is asked for.
            cap_uusd=max(1, needed_uusd) if exactly else max(needed_uusd, LEASE_UUSD),
            model=offer.name,
            fingerprint=offer.fingerprint,
            price_in_uusd=offer.price_in_uusd,
            price_out_uusd=offer.price_out_uusd,
            price_job_uusd=offer.price_job_uusd,
            serve_s=LEASE_SERVE_S,
            created_at_ms=now.wall_ms,
            extensions=(),
        )
        signed = sign_record(record, self._signer)
        self._requests[number] = _Request(record, signed, job, needed_uusd)
        return [RequestLease(number, record.coordinator, signed)]

    def waits_for(self, request: bytes) -> JobId | None:
        """The job that waits for the answer to this request."""
        asked = self._requests.get(request)
        return asked.job if asked is not None else None

    def on_granted(self, event: LeaseGranted, now: Now) -> JobId | None:
        """The job that waited for it. Raises RemoteProtocolError for a lease that is not what we asked for."""
        request = self._requests.pop(event.request, None)
        if request is None:
            return None
        self._cut_off_until_s = -math.inf
        record = open_record(event.signed, LeaseRecord)
        asked = request.record
        # SPEC 06: The asker MUST NOT use a lease that is not what it asked for, or not signed by its coordinator.
        if (record.coordinator, record.payer, record.provider, record.relay, record.relay_bps) != (
            *(asked.coordinator, asked.payer, asked.provider),
            *(asked.relay, asked.relay_bps),
        ):
            raise RemoteProtocolError("the coordinator's lease is not what we asked for")
        if (record.cap_uusd, record.model, record.fingerprint, prices(record)) != (
            *(asked.cap_uusd, asked.model),
            *(asked.fingerprint, prices(asked)),
        ):
            raise RemoteProtocolError("the coordinator's lease is for something else than we asked for")
        # Another number could be that of a lease that we hold, and have signed on.
        if record.lease != lease_id(request.signed.body):
            raise RemoteProtocolError("the coordinator's lease has another number than its request")
        # SPEC 06: The asker MUST refuse a lease that is over when it comes, that is served for longer than was asked,
        #   or that cannot be claimed on until it is over.
        latest_ms = asked.created_at_ms + 1000 * asked.serve_s + c.CLOCK_SKEW_MS_MAX
        if not now.wall_ms < record.serve_until_ms <= min(latest_ms, record.claim_by_ms):
            raise RemoteProtocolError("the coordinator's lease is over, or lasts for another time than we asked for")
        self._numbers[record.lease] = event.request
        side = self._leases[record.lease] = PayerSide(record, event.signed, self._signer.payer(event.request))
        # Used or not, it holds our money.
        self._store(side, 0)
        self._forget_old(now)
        return request.job

    def on_denied(self, event: LeaseDenied, now: Now) -> tuple[JobId | None, list[Effect]]:
        """The job that waited and goes on without; no job where we ask once more, for no more than is needed."""
        request = self._requests.pop(event.request, None)
        if request is None:
            return None, []
        self._cut_off_until_s = -math.inf if event.is_final else now.monotonic_s + CUT_OFF_S
        asked = request.record
        # Our coordinator may have become another one, or none, while it was asked.
        is_ours = asked.coordinator == self.coordinator
        if event.is_final and is_ours and asked.cap_uusd > max(1, request.needed_uusd):
            offer = ModelOffer(
                asked.model,
                asked.fingerprint,
                (),
                0,
                1,
                asked.price_in_uusd,
                asked.price_out_uusd,
                asked.price_job_uusd,
            )
            return None, self.request(request.job, asked.provider, offer, request.needed_uusd, now, exactly=True)
        return request.job, []

    def abandon(self, job: JobId) -> None:
        """The job is over; a lease that still comes is for the next one."""
        for request in self._requests.values():
            if request.job == job:
                request.job = JobId(b"")

    # ------------------------------------------------------------ using

    def begin(self, side: PayerSide, order: JobOpenRecord) -> None:
        """The lease is this job's from now on: put on disk what it can come to."""
        side.job = order.job
        # SPEC 06: The asker MUST put on disk how far it may sign before it signs that far.
        self._store(side, min(side.record.cap_uusd, side.signed_uusd + most_uusd(order)))

    def end(self, side: PayerSide) -> None:
        """The job is over: from now on the mark is what was signed."""
        side.job = None
        side.mark_uusd = side.signed_uusd
        self._store(side, side.signed_uusd)

    def close(self, lease: LeaseId) -> None:
        """Our user wants the rest of this lease back: no job begins on it any more."""
        side = self._leases.get(lease)
        if side is not None:
            side.is_closing = True

    def take_effects(self) -> list[Effect]:
        """What is to be done since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def on_mark_stored(self, event: MarkStored) -> JobId | None:
        """We may sign that far now; the job that uses the lease."""
        side = self._leases.get(event.lease)
        if side is None or side.job is None:
            return None
        side.mark_uusd = max(side.mark_uusd, event.mark_uusd)
        return side.job

    def _store(self, side: PayerSide, mark_uusd: int) -> None:
        lease = side.record.lease
        number = self._numbers.get(lease)
        if number is not None:
            self._effects.append(StoreMark(lease, number, side.signed, mark_uusd, side.voucher))

    # ------------------------------------------------------------ keeping

    def restore(self, event: RestorePayer) -> list[Effect]:
        """Take up a lease from before a restart. What does not hold is left, and noted."""
        try:
            record = open_record(event.signed, LeaseRecord)
            voucher = open_record(event.voucher, VoucherRecord) if event.voucher is not None else None
        except RemoteProtocolError as error:
            return [Note("lease.not_restored", None, str(error))]
        side = PayerSide(record, event.signed, self._signer.payer(event.request))
        if side.signer.node != record.payer:
            return [Note("lease.not_restored", record.provider, "it is not paid with this node's key")]
        side.sequence = SEQUENCE_STEP_AFTER_RESTART
        if voucher is not None and event.voucher is not None:
            if (voucher.lease, voucher.payer) != (record.lease, record.payer):
                return [Note("lease.not_restored", record.provider, "its voucher is of another lease")]
            side.recall(voucher, event.voucher)
        self._leases[record.lease] = side
        self._numbers[record.lease] = event.request
        return []

    def _forget_old(self, now: Now) -> None:
        """Leases on which nothing can be ordered any more; the oldest where there are too many."""
        idle = [side for side in self._leases.values() if side.job is None]
        old = [side for side in idle if side.record.serve_until_ms < now.wall_ms - c.CLOCK_SKEW_MS_MAX]
        old += idle[: max(0, len(self._leases) - LEASES_MAX)]
        for side in old:
            self._leases.pop(side.record.lease, None)
            self._numbers.pop(side.record.lease, None)
