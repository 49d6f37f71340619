"""The rules of a lease that asker and provider both run: who is paid how much, when, and what each risks.

`PayerSide` is one lease as its payer keeps it, `ProviderSide` as its provider does. Vouchers state totals over the
whole lease; a job begins at what was paid before it. The prompt is paid before it is read, the answer after it has
come, in small steps: whoever is cheated loses no more than one window (specs/06).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocol import constants as c
from protocol.envelope import Signer, open_record, sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.ids import JobId
from protocol.jobs import Priced, cost_uusd
from protocol.money_records import LeaseRecord, VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord, ModelOffer, ReceiptRecord, Signed

Why = tuple[Refusal, str]

# What goes on in a lease's name after a crash is numbered beyond all that went before.
SEQUENCE_STEP_AFTER_RESTART: Final = 2**20


def prices(priced: Priced) -> tuple[int, int, int]:
    """Prompt tokens, output tokens, job."""
    return priced.price_in_uusd, priced.price_out_uusd, priced.price_job_uusd


def window_uusd(order: Priced, window_tokens: int, paid_uusd: int) -> int:
    """How much may be delivered and not yet paid, when so much was paid on the lease before.

    Worth `window_tokens` output tokens, but no more than a fixed small amount, or a share of what this payer has paid
    already; and always one token, or nothing could ever be sent.
    """
    # SPEC 06: The window is worth `window_tokens` output tokens, at most the larger of 1,000 micro-USD and a sixteenth
    #   of what was paid on this lease, and at least one token.
    one, all_of_them = (-(-tokens * order.price_out_uusd // 1_000_000) for tokens in (1, window_tokens))
    return max(one, min(all_of_them, max(c.WINDOW_UUSD_MIN, paid_uusd // c.WINDOW_PAID_SHARE)))


def lease_refusal(lease: LeaseRecord, order: JobOpenRecord, offer: ModelOffer, wall_ms: int) -> Why | None:
    """Why an order cannot be run under this lease at this offer; the lease's own signature has been checked."""
    # SPEC 06: The provider MUST refuse an order whose payer, provider, model, weights or prices are not those of its
    #   lease.
    if (order.asker, order.provider) != (lease.payer, lease.provider):
        return Refusal.LEASE, "the lease is for another payer or another provider"
    if (order.model, prices(order)) != (lease.model, prices(lease)):
        return Refusal.LEASE, "the lease is for another model or other prices than the order"
    if lease.fingerprint != offer.fingerprint:
        return Refusal.LEASE, "the lease is for other weights than are served here now"
    # SPEC 06: The provider MUST refuse an order whose prices, less the relay's part, are lower than it asks, and a
    #   lease whose cuts are more than the whole.
    if lease.fee_bps + lease.relay_bps > c.BASIS_POINTS or (lease.relay is None and lease.relay_bps):
        return Refusal.LEASE, "the cuts of this lease are more than the whole, or nobody's: get another one"
    left_bps = c.BASIS_POINTS - lease.relay_bps
    pairs = zip(prices(order), prices(offer), strict=True)
    # SPEC 06: The provider MUST refuse an order at a lower price than it asks now.
    if any(ordered * left_bps < asked * c.BASIS_POINTS for ordered, asked in pairs):
        text = "the price has risen since the lease was made: look at the new heartbeat"
        if lease.relay_bps:
            text = "what the relay of the lease gets comes on top of the price here: look at the new heartbeat"
        return Refusal.PRICE, text
    # SPEC 06: The provider MUST refuse an order that may outlive the time in which its lease is served.
    if order.expires_at_ms > lease.serve_until_ms:
        return Refusal.LEASE, "the order may take longer than its lease is served: get another lease"
    if lease.issued_at_ms > wall_ms + c.CLOCK_SKEW_MS_MAX:
        return Refusal.CLOCK_SKEW, "the lease comes from the future by this node's clock"
    return None


def most_uusd(order: JobOpenRecord) -> int:
    """The most that an order can cost: its prepaid prompt, and all output tokens that it allows."""
    output_uusd = -(-order.output_tokens_max * order.price_out_uusd // 1_000_000)
    return order.prepay_max_uusd + output_uusd


# ---------------------------------------------------------------- the payer


@dataclass(slots=True)
class PayerSide:
    """One lease as its payer keeps it; `signer` is the key that was made for it.

    `signed_uusd` is the highest total that we have signed, `mark_uusd` the highest that we may sign without storing a
    higher mark first. `base_uusd` is what had been paid when the present job was accepted, `vouched_tokens` the
    output that we have signed for, or more, and `job_tokens` that of the job that `voucher_job` names.
    """

    record: LeaseRecord
    signed: Signed
    signer: Signer
    sequence: int = 0
    signed_uusd: int = 0
    mark_uusd: int = 0
    voucher: Signed | None = None
    voucher_job: tuple[JobId, int] | None = None
    job: JobId | None = None
    base_uusd: int = 0
    vouched_tokens: int = 0
    job_tokens: int = 0
    is_closing: bool = False

    @property
    def left_uusd(self) -> int:
        """What can still be signed for."""
        return self.record.cap_uusd - self.signed_uusd

    @property
    def window_tokens_max(self) -> int:
        """The largest window that a provider may take by what we have signed for."""
        return max(c.WINDOW_TOKENS_MIN, self.vouched_tokens)

    @property
    def reach_uusd(self) -> int:
        """How far the cost of the present job may go now: what is signed of it, and one window."""
        return self.signed_uusd - self.base_uusd + window_uusd(self.record, self.window_tokens_max, self.signed_uusd)

    def recall(self, voucher: VoucherRecord, signed: Signed) -> None:
        """Take up what we signed before and did not know any more: for how many tokens, only the money tells.

        What went on after it and was lost has numbers as well, and nobody is to see two totals under one.
        """
        self.signed_uusd, self.voucher = voucher.paid_uusd, signed
        self.sequence = max(self.sequence, voucher.sequence + SEQUENCE_STEP_AFTER_RESTART)
        price_uusd = max(1, self.record.price_out_uusd)
        self.vouched_tokens = max(self.vouched_tokens, voucher.paid_uusd * 1_000_000 // price_uusd)

    def accept(self, order: JobOpenRecord, record: JobAcceptRecord, proof: Signed | None) -> None:
        """Check what the provider says was paid before, and what it wants for the prompt. Raises RemoteProtocolError.

        Where we have forgotten what we signed (a crash), our own last voucher comes with the acceptance.
        """
        if proof is not None:
            self._remember(proof)
        # SPEC 06: The asker MUST refuse an acceptance that says more was paid than it has signed.
        if record.paid_before_uusd > self.signed_uusd:
            raise RemoteProtocolError("an acceptance that claims more was paid than we have signed")
        # SPEC 06: The asker MUST refuse an acceptance whose price for the prompt is not the cost by the order, or more
        #   than its `prepay_max_uusd`.
        if record.prefill_uusd != cost_uusd(order, record.prompt_tokens, 0):
            raise RemoteProtocolError("an acceptance with another price for the prompt than was ordered")
        if record.prefill_uusd > order.prepay_max_uusd:
            raise RemoteProtocolError("an acceptance that wants more in advance than was ordered")
        # SPEC 06: The asker MUST refuse an acceptance whose window is larger than these rules make it by what the asker
        #   has signed.
        most_tokens = self.window_tokens_max
        if record.window_tokens > most_tokens or record.window_uusd > window_uusd(order, most_tokens, self.signed_uusd):
            raise RemoteProtocolError("an acceptance with a larger window than was earned")
        self.base_uusd = record.paid_before_uusd

    def _remember(self, proof: Signed) -> None:
        voucher = open_record(proof, VoucherRecord)
        if (voucher.lease, voucher.payer) != (self.record.lease, self.signer.node):
            raise RemoteProtocolError("a voucher of another lease with the acceptance")
        if voucher.paid_uusd > self.signed_uusd:
            self.recall(voucher, proof)

    def pay(
        self, order: JobOpenRecord, owed_uusd: int, chunks: int, output_tokens: int, running_hash: bytes
    ) -> Signed | None:
        """The voucher for what the present job has cost so far; None where our mark does not allow to sign it yet.

        `owed_uusd` is the cost of what has arrived; for the prompt alone, before anything has, it is the price of that.
        """
        total_uusd = self.base_uusd + owed_uusd
        # SPEC 06: The asker MUST NOT sign above the cap of the lease, nor a lower total than before.
        total_uusd = max(total_uusd, self.signed_uusd)
        if total_uusd > min(self.mark_uusd, self.record.cap_uusd):
            return None
        self.sequence += 1
        voucher = VoucherRecord(
            version=1,
            lease=self.record.lease,
            payer=self.signer.node,
            sequence=self.sequence,
            paid_uusd=total_uusd,
            job=order.job,
            attempt=order.attempt,
            chunks=chunks,
            output_tokens=output_tokens,
            running_hash=running_hash,
            extensions=(),
        )
        before_tokens = self.job_tokens if self.voucher_job == (order.job, order.attempt) else 0
        self.vouched_tokens += max(0, output_tokens - before_tokens)
        self.job_tokens = output_tokens
        self.signed_uusd = total_uusd
        self.voucher_job = (order.job, order.attempt)
        self.voucher = sign_record(voucher, self.signer)
        return self.voucher


# ---------------------------------------------------------------- the provider


@dataclass(slots=True)
class ProviderSide:
    """One lease as its provider keeps it: the best voucher, and how much of it the coordinator has credited.

    `owed_uusd` is the total that its jobs came to since we started. `round_trip_s` and `tokens_per_s` are what earlier
    jobs on it took, for the first window of the next one, and `vouched_tokens` the output that its payer has signed for
    since we started.
    """

    record: LeaseRecord
    signed: Signed
    voucher: Signed | None = None
    paid_uusd: int = 0
    owed_uusd: int = 0
    receipt: Signed | None = None
    claimed_uusd: int = 0
    is_closed: bool = False
    is_final_wanted: bool = False
    #: What was paid when the disk knew that it is given up; None: it does not know.
    given_up_uusd: int | None = None
    in_use: bool = False
    round_trip_s: float = 0.0
    tokens_per_s: float = 0.0
    vouched_tokens: int = 0

    @property
    def settled_uusd(self) -> int:
        """What a job begins at: what was paid, or credited for vouchers that we do not have any more."""
        return min(self.record.cap_uusd, max(self.paid_uusd, self.claimed_uusd))

    @property
    def unclaimed_uusd(self) -> int:
        # A coordinator may have credited more than we know of: its word is older than our disk, or not true.
        return max(0, self.paid_uusd - self.claimed_uusd)

    @property
    def is_given_up(self) -> bool:
        """Whether no job begins on it any more."""
        return self.is_closed or self.is_final_wanted

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever delivered or paid on it: then it can be forgotten, and come again as new."""
        return self.voucher is None and not self.owed_uusd and not self.claimed_uusd

    @property
    def is_in_debt(self) -> bool:
        """Whether something was delivered and is not paid."""
        return self.owed_uusd > self.paid_uusd

    def take(self, signed: Signed) -> None:
        """Check a voucher and keep it if it is the best. Raises RemoteProtocolError."""
        self.keep(self.check(signed), signed)

    def check(self, signed: Signed) -> VoucherRecord:
        """Whether a voucher can be redeemed, whatever it is for. Raises RemoteProtocolError."""
        voucher = open_record(signed, VoucherRecord)
        # SPEC 06: The provider MUST refuse a voucher that is not for this lease, not its payer's, or above its cap.
        if (voucher.lease, voucher.payer) != (self.record.lease, self.record.payer):
            raise RemoteProtocolError("a voucher of another lease, or not of its payer")
        if voucher.paid_uusd > self.record.cap_uusd:
            raise RemoteProtocolError("a voucher above the cap of its lease")
        return voucher

    def keep(self, voucher: VoucherRecord, signed: Signed) -> None:
        """Keep a voucher that was checked, if it is the best."""
        # SPEC 06: The provider MUST keep the highest voucher of each lease, and ignore lower ones.
        if voucher.paid_uusd > self.paid_uusd or self.voucher is None:
            self.paid_uusd, self.voucher = voucher.paid_uusd, signed

    def take_receipt(self, receipt: ReceiptRecord, signed: Signed) -> None:
        """Our own account of the last job, which goes with the claim."""
        if receipt.lease == self.record.lease:
            self.receipt = signed


@dataclass(slots=True)
class Meter:
    """The provider's view of one paid job: what was delivered, what of it is paid, and whether more may be sent."""

    side: ProviderSide
    order: JobOpenRecord
    base_uusd: int = 0
    prefill_uusd: int = 0
    promised_uusd: int = 0
    delivered_uusd: int = 0
    round_trip_s: float = 0.0
    tokens_per_s: float = 0.0
    _vouchers: int = 0
    _vouched_tokens: int = 0
    # What was sent and not vouched for yet, oldest first: number, running hash, output tokens, when.
    _sent: deque[tuple[int, bytes, int, float]] = field(default_factory=deque)

    def accept(self, prefill_uusd: int, running_hash: bytes, now_s: float) -> None:
        """The prompt is counted: from now on its price is waited for."""
        self.base_uusd = self.side.settled_uusd
        self.prefill_uusd = prefill_uusd
        self.round_trip_s, self.tokens_per_s = self.side.round_trip_s, self.side.tokens_per_s
        self.promised_uusd = self.window_uusd
        self.delivered_uusd = prefill_uusd
        self._sent = deque([(0, running_hash, 0, now_s)])

    @property
    def total_uusd(self) -> int:
        """What the lease comes to with this job."""
        return self.base_uusd + self.delivered_uusd

    @property
    def paid_uusd(self) -> int:
        """What this job has been paid so far."""
        return self.side.paid_uusd - self.base_uusd

    @property
    def is_prompt_paid(self) -> bool:
        # SPEC 06: The provider MUST NOT read the prompt before it is paid.
        return self.paid_uusd >= self.prefill_uusd

    @property
    def window_tokens(self) -> int:
        """Two round trips at the rate of the engine, as far as both are known, and the payer has earned it."""
        # SPEC 06: The window holds 8 tokens. It grows to as many as two round trips take, but to no more than the payer
        #   has signed for on this lease before.
        two_round_trips = math.ceil(2 * self.round_trip_s * self.tokens_per_s)
        return max(c.WINDOW_TOKENS_MIN, min(two_round_trips, self.side.vouched_tokens))

    @property
    def window_uusd(self) -> int:
        """It never shrinks while a job goes on: by what the acceptance says the payer reckons when to sign."""
        now_uusd = window_uusd(self.order, self.window_tokens, self.side.paid_uusd)
        self.promised_uusd = max(self.promised_uusd, now_uusd)
        return self.promised_uusd

    def may_send(self, owed_uusd: int) -> bool:
        """Whether the debt may grow to this."""
        # SPEC 06: The provider MUST NOT let what it has delivered exceed what is paid by more than the window,
        return self.is_prompt_paid and owed_uusd - self.paid_uusd <= self.window_uusd

    def tokens_that_fit(self, prompt_tokens: int, output_tokens: int, wanted_tokens: int) -> int:
        """How many of the tokens up to those wanted may be counted now, from those counted already."""
        low, high = output_tokens, wanted_tokens
        while low < high:
            middle = (low + high + 1) // 2
            if self.may_send(cost_uusd(self.order, prompt_tokens, middle)):
                low = middle
            else:
                high = middle - 1
        return low

    def sent(self, number: int, running_hash: bytes, output_tokens: int, owed_uusd: int, now_s: float) -> None:
        """A chunk is on its way: the hash of all so far, their tokens, and what they cost with the prompt."""
        self.delivered_uusd = owed_uusd
        assert owed_uusd - self.paid_uusd <= self.window_uusd, "I5: more delivered than paid for and one window"
        self._sent.append((number, running_hash, output_tokens, now_s))

    def take(self, signed: Signed, now_s: float) -> bool:
        """Take a voucher of this job; whether it pays more than before. Raises RemoteProtocolError."""
        # Each costs a verification: nobody needs more than one for each thing that it was sent.
        self._vouchers += 1
        if self._vouchers > 2 * (self._sent[-1][0] if self._sent else 0) + 4:
            raise RemoteProtocolError("more vouchers than there is to pay for")
        voucher = self.side.check(signed)
        self._compare(voucher, now_s)
        before_uusd = self.side.paid_uusd
        self.side.keep(voucher, signed)
        return self.side.paid_uusd > before_uusd

    def _compare(self, voucher: VoucherRecord, now_s: float) -> None:
        """The voucher says what has arrived: it must be what was sent."""
        # SPEC 06: The provider MUST treat a voucher as a broken protocol, and keep nothing of it, that is not for the
        #   job of its stream, or whose running hash or number of tokens is not that of its chunk.
        if (voucher.job, voucher.attempt) != (self.order.job, self.order.attempt):
            raise RemoteProtocolError("a voucher for another job than that of its stream")
        while self._sent and self._sent[0][0] < voucher.chunks:
            self._sent.popleft()
        if not self._sent:
            raise RemoteProtocolError("a voucher for chunks that were not sent")
        number, running_hash, output_tokens, sent_at_s = self._sent[0]
        if number != voucher.chunks:
            # It says no more than the last one did, or its payer has paid for what came later and goes back.
            if voucher.paid_uusd > self.side.paid_uusd:
                raise RemoteProtocolError("a voucher that pays more for less")
            return
        if (voucher.running_hash, voucher.output_tokens) != (running_hash, output_tokens):
            raise RemoteProtocolError("a voucher for another answer than was sent")
        self.side.vouched_tokens += max(0, output_tokens - self._vouched_tokens)
        self._vouched_tokens = max(self._vouched_tokens, output_tokens)
        took_s = now_s - sent_at_s
        self.round_trip_s = took_s if not self.round_trip_s else 0.75 * self.round_trip_s + 0.25 * took_s
        self.side.round_trip_s = self.round_trip_s

    def measure(self, output_tokens: int, since_s: float) -> None:
        """The engine has made so many tokens in so long."""
        if since_s > 0:
            self.tokens_per_s = self.side.tokens_per_s = output_tokens / since_s
