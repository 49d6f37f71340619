"""A provider that cannot take an order looks for one that can, and has a slot held there, before it refuses.

Only with the asker's consent, which the order states: without it nothing about the asker leaves this node. All this
takes half a second at most, and then the refusal goes out as it would have, with or without a reservation in it. The
asker decides; it seals anew for whoever gets the order, so the prompt goes nowhere by this.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from protocol import constants as c
from protocol.admission import Why
from protocol.codec import encode_message
from protocol.directory import Directory
from protocol.effects import Dial, Effect, FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import open_record
from protocol.errors import Refusal, RemoteProtocolError, UnknownVersion
from protocol.events import Now
from protocol.ids import NodeId, StreamId
from protocol.jobs import is_free, may_hand_off
from protocol.messages import Message, Reserve, Reserved
from protocol.rates import Rates
from protocol.records import JobOpenRecord, ModelOffer, ReservationRecord, Signed
from protocol.routing import RouteRequest, exclusion
from protocol.timers import Timers

# The asker waits this much longer for a refusal; it must still reach the next provider within two seconds.
HANDOFF_DEADLINE_S: Final = 0.4
# Somebody else is asked, too, when the first does not answer within this long.
ANSWER_DEADLINE_S: Final = 0.2
ASKED_MAX: Final = 2
# Of all providers of the model this many are looked at.
SAMPLE: Final = 32
# A stranger whose orders are refused costs others up to two signatures each.
HANDOFFS_PER_S: Final = 2.0
HANDOFFS_BURST: Final = 8
HANDOFFS_MAX: Final = 64
CODES: Final = frozenset(
    {Refusal.BUSY, Refusal.DRAINING, Refusal.NO_MODEL, Refusal.ENGINE_UNAVAILABLE, Refusal.CONTEXT_EXCEEDED}
)


@dataclass(frozen=True, slots=True)
class Unwanted:
    """An order that we do not take, on which stream it came, and what its asker is told."""

    stream: StreamId
    order: JobOpenRecord
    signed: Signed
    why: Why
    retry_after_ms: int = 0


#: Sends the refusal, with a reservation if there is one.
Refuse = Callable[[Unwanted, Signed | None], list[Effect]]


@dataclass(slots=True)
class _Handoff:
    """An order that is about to be refused. `candidates` are those who were not asked yet, the best one last."""

    unwanted: Unwanted
    candidates: list[NodeId]
    asked: dict[StreamId, NodeId] = field(default_factory=dict)
    dialling: NodeId | None = None
    has_dialled: bool = False

    @property
    def stream(self) -> StreamId:
        return self.unwanted.stream


class HandingOff:
    """The state machine. `connected` and `addresses` are the peer's knowledge of the network."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        rng: random.Random,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        next_stream: Callable[[], StreamId],
        refuse: Refuse,
    ) -> None:
        self._node = node
        self._directory = directory
        self._rng = rng
        self._connected = connected
        self._addresses = addresses
        self._next_stream = next_stream
        self._refuse = refuse
        #: By the asker's stream, and by those of the questions.
        self._handoffs: dict[StreamId, _Handoff] = {}
        self._by_question: dict[StreamId, _Handoff] = {}
        self._rates: Rates[NodeId] = Rates(HANDOFFS_PER_S, HANDOFFS_BURST)
        self._timers: Timers[tuple[str, StreamId]] = Timers()

    # ------------------------------------------------------------ what others ask of it

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    def is_pending(self, stream: StreamId) -> bool:
        """Whether the order on this stream is about to be refused."""
        return stream in self._handoffs

    def owns(self, stream: StreamId) -> bool:
        """Whether this is the stream of a question of ours."""
        return stream in self._by_question

    # ------------------------------------------------------------ the beginning

    def begin(self, unwanted: Unwanted, offer: ModelOffer | None, now: Now) -> list[Effect] | None:
        """Look for somebody before this order is refused; None when there is no use in it.

        `offer` is what we serve under the model's name.
        """
        order, code = unwanted.order, unwanted.why[0]
        # SPEC 05: A provider MUST NOT tell anybody about an order whose asker does not agree to it.
        if code not in CODES or not may_hand_off(order) or len(self._handoffs) >= HANDOFFS_MAX:
            return None
        candidates = self._candidates(order, code, offer, now)
        if not candidates or not self._rates.take(order.asker, now.monotonic_s):
            return None
        handoff = _Handoff(unwanted, candidates)
        self._handoffs[unwanted.stream] = handoff
        self._timers.set(("end", unwanted.stream), now.monotonic_s + HANDOFF_DEADLINE_S)
        return self._ask_next(handoff, now)

    def _candidates(self, order: JobOpenRecord, code: Refusal, offer: ModelOffer | None, now: Now) -> list[NodeId]:
        """Who might take it, the best one last: connected ones, and the least loaded of those and of all others."""
        context = order.output_tokens_max
        if code is Refusal.CONTEXT_EXCEEDED and offer is not None:
            context = max(context, offer.context_tokens + 1)
        request = RouteRequest(
            order.model,
            order.kind,
            context_tokens=context,
            prompt_bytes=order.sealed_bytes,
            free=is_free(order),
            fingerprint=order.fingerprint if order.fingerprint is not None and any(order.fingerprint) else None,
        )
        known = self._directory.providers_of(order.model)
        ranked: list[tuple[bool, int, float, NodeId]] = []
        for node in self._rng.sample(known, min(SAMPLE, len(known))):
            entry = self._directory.get(node)
            load, wait_ms = self._directory.load_of(node)
            if entry is None or (load >= c.LOAD_STEPS or wait_ms):
                continue
            if entry.offer(order.model) is None:
                continue  # it has an alias of this name, and is asked by its own
            against = exclusion(
                entry,
                request,
                now.wall_ms,
                ourselves=self._node,
                tried=(order.asker,),
                connected=self._connected,
                has_address=lambda node: bool(self._addresses(node)),
            )
            if against is None:
                ranked.append((self._connected(node), -load, self._rng.random(), node))
        return [node for *_, node in sorted(ranked)]

    # ------------------------------------------------------------ asking

    def _ask_next(self, handoff: _Handoff, now: Now) -> list[Effect]:
        """Ask the next candidate, or refuse when nobody is left of whom there is hope."""
        while handoff.candidates and len(handoff.asked) + (handoff.dialling is not None) < ASKED_MAX:
            node = handoff.candidates.pop()
            if self._connected(node):
                return self._ask(handoff, node, now)
            if not handoff.has_dialled:
                handoff.dialling, handoff.has_dialled = node, True
                self._timers.set(("next", handoff.stream), now.monotonic_s + ANSWER_DEADLINE_S)
                return [Dial(node, self._addresses(node))]
        return [] if self._has_hope(handoff) else self._end(handoff, None)

    def _has_hope(self, handoff: _Handoff) -> bool:
        """Whether somebody may still answer."""
        return handoff.dialling is not None or any(stream in self._by_question for stream in handoff.asked)

    def _ask(self, handoff: _Handoff, node: NodeId, now: Now) -> list[Effect]:
        stream = self._next_stream()
        handoff.asked[stream] = node
        self._by_question[stream] = handoff
        self._timers.set(("next", handoff.stream), now.monotonic_s + ANSWER_DEADLINE_S)
        return [
            OpenStream(stream, node, c.JOB_PROTOCOL),
            Send(stream, encode_message(Reserve(handoff.unwanted.signed))),
            FinishStream(stream),
        ]

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for handoff in list(self._handoffs.values()):
            if handoff.dialling == peer:
                handoff.dialling = None
                effects += self._ask(handoff, peer, now)
        return effects

    def on_unreachable(self, peer: NodeId, now: Now) -> list[Effect]:
        """Dialling a peer failed."""
        effects: list[Effect] = []
        for handoff in list(self._handoffs.values()):
            if handoff.dialling == peer:
                handoff.dialling = None
                effects += self._ask_next(handoff, now)
        return effects

    # ------------------------------------------------------------ answers

    def on_message(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """Take the answer to a question of ours. Raises RemoteProtocolError; the stream is then lost."""
        handoff = self._by_question[stream]
        if not isinstance(message, Reserved) or message.job != handoff.unwanted.order.job:
            raise RemoteProtocolError("an answer to another question than whether a slot can be held")
        if message.reservation is not None:
            try:
                self._check(handoff, handoff.asked[stream], message.reservation)
            except UnknownVersion:
                pass  # the asker could not read it either
            else:
                self._by_question.pop(stream)
                return self._end(handoff, message.reservation)
        self._by_question.pop(stream)
        return self._ask_next(handoff, now)

    @staticmethod
    def _check(handoff: _Handoff, asked: NodeId, signed: Signed) -> None:
        record = open_record(signed, ReservationRecord)
        order = handoff.unwanted.order
        if (record.provider, record.asker, record.job, record.model) != (asked, order.asker, order.job, order.model):
            raise RemoteProtocolError("a reservation for another order")

    def on_stream_lost(self, stream: StreamId, now: Now) -> list[Effect]:
        """The stream of a question is gone without an answer."""
        handoff = self._by_question.pop(stream, None)
        return self._ask_next(handoff, now) if handoff is not None else []

    # ------------------------------------------------------------ the end

    def stop(self, stream: StreamId, why: Why) -> list[Effect]:
        """Refuse the order on this stream at once, for another reason."""
        handoff = self._handoffs[stream]
        handoff.unwanted = replace(handoff.unwanted, why=why, retry_after_ms=0)
        return self._end(handoff, None)

    def on_asker_lost(self, stream: StreamId) -> list[Effect]:
        """Nobody waits for the refusal on this stream any more."""
        handoff = self._handoffs.get(stream)
        return self._leave(handoff) if handoff is not None else []

    def shut_down(self, why: Why) -> list[Effect]:
        effects: list[Effect] = []
        for stream in list(self._handoffs):
            effects += self.stop(stream, why)
        return effects

    def _end(self, handoff: _Handoff, reservation: Signed | None) -> list[Effect]:
        return self._leave(handoff) + self._refuse(handoff.unwanted, reservation)

    def _leave(self, handoff: _Handoff) -> list[Effect]:
        del self._handoffs[handoff.stream]
        for name in ("next", "end"):
            self._timers.cancel((name, handoff.stream))
        open_questions = [stream for stream in handoff.asked if self._by_question.pop(stream, None) is not None]
        return [ResetStream(stream, "the answer is not needed any more") for stream in open_questions]

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for name, stream in self._timers.pop_due(now.monotonic_s):
            handoff = self._handoffs.get(stream)
            if handoff is None:
                continue
            effects += self._end(handoff, None) if name == "end" else self._ask_next(handoff, now)
        return effects
