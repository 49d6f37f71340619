"""One run by itself: what the engine reports, what leaves for the asker, and who hears of the end.

Whole jobs with their seals and counts are in test_providing.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameReader
from protocol.effects import CancelEngine, Effect, Note, RunEngine, Send
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText
from protocol.ids import RunId, StreamId
from protocol.jobs import JobState, order_hash
from protocol.messages import Chunk, JobAccept, Message, Progress, Receipt
from protocol.records import ChatMessage, JobRequest, Outcome, SealedPrompt
from protocol.running import Run, Running
from protocol.till import Till
from tests.helpers_machines import now
from tests.helpers_records import ASKER, NOW_MS, OFFER, PROVIDER, order

RUN = RunId(5)
PROMPT = SealedPrompt(bytes(32), JobRequest(messages=(ChatMessage("user", "hello"),)))


@dataclass
class Bench:
    """A run, and everything that comes of it."""

    at_s: float = 0.0
    refused: list[tuple[Refusal, str]] = field(default_factory=list)
    ended: list[RunId] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = Running(PROVIDER, Till(PROVIDER), refused=self._refuse, freed=self._free, ended=self._end)
        record = order(created_at_ms=NOW_MS, expires_at_ms=NOW_MS + 60_000)
        signed = sign_record(record, ASKER)
        hash_ = order_hash(signed.body)
        self.run = Run(RUN, StreamId(2), ASKER.node, record, signed, hash_, OFFER, True, True, running_hash=hash_)
        self._reader = FrameReader(JOB_LIMITS)
        self.take(self.machine.start(self.run, PROMPT, now()))

    def _refuse(self, run: Run, code: Refusal, text: str, _now: object) -> list[Effect]:
        assert run is self.run
        self.refused.append((code, text))
        return []

    def _free(self, run: Run, _now: object) -> None:
        run.has_slot = False

    def _end(self, run: Run, _now: object) -> None:
        self.ended.append(run.run)

    def take(self, effects: list[Effect]) -> None:
        self.effects = effects
        self.said += [m for effect in effects if isinstance(effect, Send) for m in self._reader.feed(effect.data)]

    def feed(self, *events: EngineStarted | EngineProgress | EngineText | EngineFinished | EngineFailed) -> None:
        for event in events:
            self.take(self.machine.on_engine(event, now(self.at_s)))

    def wait(self, seconds: float) -> None:
        end_s = self.at_s + seconds
        while (deadline := self.machine.next_deadline()) is not None and deadline <= end_s:
            self.at_s = deadline
            self.take(self.machine.on_deadline(now(self.at_s)))
            following = self.machine.next_deadline()
            assert following is None or following > self.at_s
        self.at_s = end_s

    def kinds(self) -> list[type]:
        return [type(message) for message in self.said]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    (begun,) = bench.effects
    assert isinstance(begun, RunEngine)
    assert (begun.run, begun.request) == (RUN, PROMPT.request)
    return bench


def test_a_run_is_accepted_answered_and_accounted_for(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3), EngineText(RUN, "a", 1), EngineFinished(RUN, Outcome.STOP, 1))
    assert bench.kinds() == [JobAccept, Chunk, Receipt]
    assert (bench.ended, bench.refused, bench.run.state) == ([RUN], [], JobState.DONE)
    assert bench.machine.next_deadline() is None


def test_signs_of_life_begin_before_the_engine_has_counted_the_prompt(bench: Bench) -> None:
    bench.wait(2.5)
    assert [(m.done_tokens, m.total_tokens) for m in bench.said if isinstance(m, Progress)] == [(0, 0)] * 2
    bench.feed(EngineStarted(RUN, 40), EngineProgress(RUN, 16, 40))
    bench.wait(1.0)
    assert bench.kinds() == [Progress, Progress, JobAccept, Progress]
    last = bench.said[-1]
    assert isinstance(last, Progress)
    assert (last.done_tokens, last.total_tokens) == (16, 40)


def test_there_are_never_more_signs_than_one_a_second(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3))
    for number in range(1, 40):
        bench.feed(EngineText(RUN, "x", number))
        bench.wait(0.3)
    assert bench.kinds() == [JobAccept, *[Chunk] * 39]
    bench.wait(10.0)
    assert bench.kinds().count(Progress) == 10


@pytest.mark.parametrize("end", [EngineFinished(RUN, Outcome.STOP, 0), EngineFailed(RUN, Refusal.BAD_REQUEST, "no")])
def test_a_run_that_never_started_is_refused(bench: Bench, end: EngineFinished | EngineFailed) -> None:
    bench.feed(end)
    assert [code for code, _ in bench.refused] == [end.code if isinstance(end, EngineFailed) else Refusal.ENGINE_FAILED]
    assert (bench.said, bench.ended) == ([], [RUN])


def test_whoever_is_stopped_says_nothing_but_the_receipt(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3), EngineText(RUN, "a", 1), EngineText(RUN, "b", 2))
    bench.take(bench.machine.stop(bench.run, Refusal.CANCELLED, now(bench.at_s)))
    assert bench.effects == [CancelEngine(RUN)]
    assert bench.machine.stop(bench.run, Refusal.SHUTDOWN, now(bench.at_s)) == []
    bench.feed(EngineText(RUN, "c", 3), EngineProgress(RUN, 3, 3))
    bench.wait(c.CANCEL_DEADLINE_S)
    (note,) = bench.effects
    assert isinstance(note, Note)
    assert note.event == "engine.slow_cancel"
    bench.wait(5.0)
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 3))
    assert bench.kinds() == [JobAccept, Chunk, Receipt]
    assert (bench.ended, bench.run.state) == ([RUN], JobState.CANCELLED)


def test_a_run_whose_asker_is_gone_ends_without_a_word(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3))
    bench.run.stream = None
    bench.take(bench.machine.stop(bench.run, Refusal.PEER_LOST, now(bench.at_s)))
    bench.wait(3.0)
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    assert bench.kinds() == [JobAccept]
    assert bench.ended == [RUN]


def test_an_order_that_expires_is_stopped(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3))
    bench.wait(60.0)
    assert CancelEngine(RUN) in bench.effects
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    assert bench.kinds()[-1] is Receipt
    assert bench.run.state is JobState.FAILED


def test_reports_on_runs_that_are_over_are_dropped(bench: Bench) -> None:
    bench.feed(EngineStarted(RUN, 3), EngineFinished(RUN, Outcome.STOP, 0))
    before = list(bench.said)
    bench.feed(EngineText(RUN, "late", 1), EngineFinished(RUN, Outcome.STOP, 1), EngineStarted(RunId(9), 1))
    assert bench.said == before
    assert bench.ended == [RUN]
