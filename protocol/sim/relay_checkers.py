"""The judges of what goes by way of others: slots that are held, jobs handed on, streams passed on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocol import constants as c
from protocol.codec import JOB_LIMITS, decode_message, decode_record
from protocol.effects import FinishStream, OpenStream, RunEngine, Send
from protocol.events import BytesReceived, EngineFailed, EngineFinished, SetOffer, StreamFinished, StreamOpened
from protocol.ids import JobId, NodeId, RunId, StreamId
from protocol.messages import Forward, JobOpen, JobReject, Reserve, Reserved
from protocol.records import JobOpenRecord, ReservationRecord
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.reading import sent


class Slots(Checker):
    """No provider ever runs more jobs of a model at once than it offers slots, however many it has held for others."""

    def __init__(self) -> None:
        super().__init__()
        self._slots: dict[tuple[int, str], int] = {}
        self._runs: dict[tuple[int, RunId], str] = {}
        self.most = 0

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            SetOffer: self._on_offer,
            RunEngine: self._on_run,
            EngineFinished: self._on_end,
            EngineFailed: self._on_end,
            Crashed: self._on_crash,
        }

    def _on_offer(self, seen: Seen) -> None:
        for model in seen.item.offer.models:
            self._slots[seen.index, model.name] = model.concurrency

    def _on_run(self, seen: Seen) -> None:
        run: RunEngine = seen.item
        self._runs[seen.index, run.run] = run.model
        running = sum(index == seen.index and model == run.model for (index, _), model in self._runs.items())
        self.most = max(self.most, running)
        if running > self._slots[seen.index, run.model]:
            self.blame(seen.at_s, f"peer {seen.index} runs {running} jobs of {run.model} at once")

    def _on_end(self, seen: Seen) -> None:
        self._runs.pop((seen.index, seen.item.run), None)

    def _on_crash(self, seen: Seen) -> None:
        for key in [key for key in self._runs if key[0] == seen.index]:
            del self._runs[key]


class Handoffs(Checker):
    """Only orders whose asker agrees are shown to others, and a slot is held for one order of the asker it names."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[JobId, ReservationRecord] = {}
        self._ordered: defaultdict[JobId, set[tuple[JobId, int]]] = defaultdict(set)
        #: How often something was seen: questions, slots held, refusals, refusals with a slot, orders with one.
        self.counts: Counter[str] = Counter()

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send}

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (question := sent(data, Reserve)) is not None:
            self._on_question(seen, decode_record(question.order.body, JobOpenRecord))
        elif (answer := sent(data, Reserved)) is not None:
            if answer.reservation is not None:
                self.counts["held"] += 1
                record = decode_record(answer.reservation.body, ReservationRecord)
                self._held[record.reservation] = record
        elif (refusal := sent(data, JobReject)) is not None:
            self.counts["refusals"] += 1
            self.counts["refusals with a slot"] += refusal.reservation is not None
        elif (opening := sent(data, JobOpen)) is not None:
            order = decode_record(opening.order.body, JobOpenRecord)
            if order.asker == seen.node and order.reservation is not None:
                self._on_order(seen, order, order.reservation)

    def _on_question(self, seen: Seen, order: JobOpenRecord) -> None:
        self.counts["questions"] += 1
        if order.provider != seen.node or all(number != 1 for number, _ in order.extensions):
            self.blame(seen.at_s, f"peer {seen.index} shows an order to others that it may not show")

    def _on_order(self, seen: Seen, order: JobOpenRecord, reservation: JobId) -> None:
        self.counts["orders with a slot"] += 1
        held = self._held.get(reservation)
        if held is None or (held.asker, held.job, held.provider) != (order.asker, order.job, order.provider):
            self.blame(seen.at_s, f"peer {seen.index} asks for a slot that is not held for its order")
        self._ordered[reservation].add((order.job, order.attempt))
        if len(self._ordered[reservation]) > 1:
            self.blame(seen.at_s, f"peer {seen.index} asks for a slot twice")


@dataclass(slots=True)
class _Passed:
    """One stream of an aggregator: what came in, and what went out."""

    is_ours: bool
    received: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    has_heard_end: bool = False
    has_ended: bool = False


class PassedOn(Checker):
    """What an aggregator passes on arrives as it came, both ways; an end is passed on only where there was one.

    It watches the machines that are aggregators, and knows the two streams of a job by the order on them.
    """

    def __init__(self, aggregators: Callable[[], frozenset[NodeId]]) -> None:
        super().__init__()
        self._aggregators = aggregators
        self._streams: dict[tuple[int, int, StreamId], _Passed] = {}
        self.jobs = 0
        self.bytes = 0

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            StreamOpened: self._on_open,
            OpenStream: self._on_open,
            BytesReceived: self._on_received,
            Send: self._on_sent,
            StreamFinished: self._on_heard_end,
            FinishStream: self._on_ended,
        }

    def _on_open(self, seen: Seen) -> None:
        if seen.item.protocol == c.JOB_PROTOCOL and seen.node in self._aggregators():
            self._streams[seen.index, seen.life, seen.item.stream] = _Passed(isinstance(seen.item, OpenStream))

    def _stream(self, seen: Seen) -> _Passed | None:
        return self._streams.get((seen.index, seen.life, seen.item.stream))

    def _on_received(self, seen: Seen) -> None:
        if (stream := self._stream(seen)) is not None:
            stream.received += seen.item.data

    def _on_sent(self, seen: Seen) -> None:
        if (stream := self._stream(seen)) is not None:
            stream.sent += seen.item.data

    def _on_heard_end(self, seen: Seen) -> None:
        if (stream := self._stream(seen)) is not None:
            stream.has_heard_end = True

    def _on_ended(self, seen: Seen) -> None:
        if (stream := self._stream(seen)) is not None:
            stream.has_ended = True

    def finish(self, _ending: Ending, /) -> None:
        for index in {key[0] for key in self._streams}:
            streams = [stream for key, stream in self._streams.items() if key[0] == index]
            askers: defaultdict[bytes, list[tuple[_Passed, bytes]]] = defaultdict(list)
            for stream in streams:
                rest = _forwarded(stream.received)
                askers[_first_frame(rest)].append((stream, rest))
            for provider in streams:
                if provider.is_ours and (order := _first_frame(provider.sent)):
                    self._judge(index, provider, askers[order])

    def _judge(self, index: int, provider: _Passed, askers: list[tuple[_Passed, bytes]]) -> None:
        """One of these must be its asker: a stream that was replayed has the same order twice."""
        self.jobs += 1
        self.bytes += len(provider.sent) + len(provider.received)
        wrong = [_difference(asker, rest, provider) for asker, rest in askers] or ["made an order up"]
        if all(wrong):
            self.blame(0.0, f"peer {index} {wrong[0]}")


def _difference(asker: _Passed, rest: bytes, provider: _Passed) -> str:
    """What is wrong if these two are the streams of one job; nothing if nothing is."""
    if not rest.startswith(provider.sent):
        return "sent a provider something else than the asker said"
    if provider.has_ended and (bytes(provider.sent) != rest or not asker.has_heard_end):
        return "ended a provider's stream early"
    common = min(len(asker.sent), len(provider.received))
    if asker.sent[:common] != provider.received[:common]:
        return "sent an asker something else than the provider said"
    if asker.has_ended and (asker.sent != provider.received or not provider.has_heard_end):
        return "ended an asker's stream as if its answer had ended"
    return ""


def _first_frame(data: bytes | bytearray) -> bytes:
    """The first frame, which is the order and different for every stream; nothing when it is not whole."""
    end = c.FRAME_HEADER_BYTES + int.from_bytes(data[: c.FRAME_HEADER_BYTES], "big")
    return bytes(data[:end]) if c.FRAME_HEADER_BYTES < end <= len(data) else b""


def _forwarded(data: bytearray) -> bytes:
    """What follows `Forward`, if the stream begins with it."""
    first = _first_frame(data)
    if not first:
        return b""
    message: Any = decode_message(first[c.FRAME_HEADER_BYTES :], JOB_LIMITS)
    return bytes(data[len(first) :]) if isinstance(message, Forward) else b""
