"""Orders as the asker writes them: signed, sealed for one provider, cut into messages.

Nothing here decides or waits. What an order says is fixed when it is signed, so everything that it depends on is
looked at here: the provider's record, the job, and the time.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from protocol import constants as c
from protocol.asked import Job
from protocol.attempt import Attempt
from protocol.codec import encode_message
from protocol.directory import Entry
from protocol.effects import Effect, OpenStream, Send
from protocol.envelope import Signer, sign_record
from protocol.events import Now
from protocol.ids import StreamId
from protocol.jobs import FEATURE_ACKNOWLEDGES, cost_uusd, order_extensions, order_hash, parts
from protocol.leases import PayerSide, prices
from protocol.messages import Forward, JobOpen, Part
from protocol.records import JobOpenRecord, ModelOffer, SealedPrompt, Signed
from protocol.sealing import ChunkCipher, Sealer, seal_context, seal_prompt


class Ordering:
    """What it takes to write an order. `next_stream` numbers the streams we open."""

    def __init__(self, signer: Signer, sealer: Sealer, rng: random.Random, next_stream: Callable[[], StreamId]) -> None:
        self._signer = signer
        self._sealer = sealer
        self._rng = rng
        self._next_stream = next_stream

    def order(
        self, job: Job, entry: Entry, offer: ModelOffer, side: PayerSide | None, now: Now
    ) -> tuple[Attempt, list[Effect]]:
        """Order the job from this provider: the attempt, and what is to be sent. Raises SealError for its key.

        With a lease the order is its payer's: who that is stays between us and the coordinator.
        """
        ask, request = job.ask, job.request()
        heartbeat = entry.heartbeat
        assert heartbeat.sealing_key is not None
        # SPEC 05: The asker MUST give every order of one job a higher attempt number than all before it, whoever it
        #   goes to.
        number = job.attempts + 1
        signer = self._signer if side is None else side.signer
        lease = side.record.lease if side is not None else None
        price_in_uusd, price_out_uusd, price_job_uusd = prices(offer) if side is not None else (0, 0, 0)
        prompt_tokens_max = job.prompt_tokens_max(offer) if side is not None else offer.context_tokens
        context = seal_context(ask.job, number, signer.node, heartbeat.node, lease)
        # SPEC 05: The asker MUST draw a new response key for each order, and seal anew for each provider.
        response_key = self._rng.randbytes(32)
        sealed = seal_prompt(SealedPrompt(response_key, request), self._sealer, heartbeat.sealing_key, context)
        job.attempts = number
        held = job.reservation
        order = JobOpenRecord(
            version=1,
            job=ask.job,
            attempt=number,
            asker=signer.node,
            provider=heartbeat.node,
            lease=lease,
            reservation=held.reservation if held is not None and held.provider == heartbeat.node else None,
            kind=ask.kind,
            # SPEC 05: The asker MUST name the provider, and as its model and fingerprint what the provider's heartbeat
            #   offers.
            model=offer.name,
            fingerprint=offer.fingerprint,
            sampling=ask.sampling,
            prompt_tokens_max=prompt_tokens_max,
            output_tokens_max=job.output_tokens_left,
            # SPEC 05: The asker MUST repeat the prices of the offer; for a free job all three are 0 and there is no
            #   lease.
            price_in_uusd=price_in_uusd,
            price_out_uusd=price_out_uusd,
            price_job_uusd=price_job_uusd,
            # SPEC 06: The asker MUST state in `prepay_max_uusd` the most that it pays for the prompt, and order no
            #   more than its lease can pay:
            prepay_max_uusd=cost_uusd(offer, prompt_tokens_max, 0) if side is not None else 0,
            sealed_hash=hashlib.sha256(sealed).digest(),
            sealed_bytes=len(sealed),
            created_at_ms=now.wall_ms,
            expires_at_ms=now.wall_ms + max(1, round((job.deadline_s - now.monotonic_s) * 1000)),
            extensions=order_extensions(
                # A slot held for one payer is of no use to the payer of the next lease.
                may_hand_off=ask.may_hand_off and ask.provider is None and side is None,
                queue_wait_ms=job.queue_wait_ms,
            ),
        )
        signed = sign_record(order, signer)
        stream = self._next_stream()
        hash_ = order_hash(signed.body)
        cipher = ChunkCipher(response_key, hash_)
        acknowledges = FEATURE_ACKNOWLEDGES in heartbeat.features
        key = heartbeat.sealing_key
        attempt = Attempt(stream, order, hash_, cipher, len(request.inputs), hash_, key, acknowledges, job.via)
        if side is not None:
            attempt.side, attempt.signed_before_uusd = side, side.signed_uusd
        return attempt, self._messages(attempt, signed, sealed)

    @staticmethod
    def _messages(attempt: Attempt, signed: Signed, sealed: bytes) -> list[Effect]:
        stream, order = attempt.stream, attempt.order
        first, rest = parts(sealed)
        effects: list[Effect] = [OpenStream(stream, attempt.via or order.provider, c.JOB_PROTOCOL)]
        if attempt.via is not None:
            effects.append(Send(stream, encode_message(Forward(order.provider))))
        lease = attempt.side.signed if attempt.side is not None else None
        effects.append(Send(stream, encode_message(JobOpen(signed, first, lease))))
        for index, data in enumerate(rest):
            effects.append(Send(stream, encode_message(Part(order.job, order.attempt, index, data))))
        return effects
