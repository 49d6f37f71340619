"""The model of an engine keeps the contract of Engine* events, at its pace."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from protocol.effects import CancelEngine, RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.ids import RunId
from protocol.records import ChatMessage, JobRequest, Kind, Outcome
from protocol.sim.engine import EngineEvent, SimulatedEngine
from protocol.sim.scenario import EngineProfile
from tests.helpers_machines import chat

ORDER = RunEngine(RunId(1), Kind.CHAT, "m", chat().request, chat().sampling, 1000, 10_000)


def engine_of(**changes: float) -> SimulatedEngine:
    return SimulatedEngine(EngineProfile(**changes), random.Random(1))


def run_all(engine: SimulatedEngine, until_s: float = 10_000.0) -> list[tuple[float, EngineEvent]]:
    events: list[tuple[float, EngineEvent]] = []
    while (deadline := engine.next_deadline()) is not None and deadline <= until_s:
        events += [(deadline, event) for event in engine.on_deadline(deadline)]
        following = engine.next_deadline()
        assert following is None or following > deadline
    return events


def test_a_run_starts_writes_and_finishes_once() -> None:
    engine = engine_of()
    engine.start(ORDER, 0.0)
    events = [event for _, event in run_all(engine)]
    assert isinstance(events[0], EngineStarted)
    texts = [event for event in events if isinstance(event, EngineText)]
    assert [text.output_tokens for text in texts] == list(range(1, len(texts) + 1))
    assert events[-1] == EngineFinished(RunId(1), Outcome.STOP, len(texts))
    assert sum(isinstance(event, (EngineFinished, EngineFailed)) for event in events) == 1
    assert engine.active == 0


def test_the_pace_is_that_of_the_profile() -> None:
    engine = engine_of(start_s=0.5, prompt_tokens_per_s=10.0, tokens_per_s=4.0)
    engine.start(replace(ORDER, request=JobRequest(messages=(ChatMessage("user", "x" * 80),))), 0.0)
    events = run_all(engine)
    assert events[0] == (0.5, EngineStarted(RunId(1), 20))
    progress = [event.done_tokens for _, event in events if isinstance(event, EngineProgress)]
    assert progress == [5, 10, 15]
    times = [at_s for at_s, event in events if isinstance(event, EngineText)]
    assert times[0] == 0.5 + 2.0 + 0.25
    assert times[1] - times[0] == pytest.approx(0.25)


def test_the_limit_of_the_order_is_kept() -> None:
    engine = engine_of(output_tokens_mean=1000.0)
    engine.start(replace(ORDER, output_tokens_max=5), 0.0)
    assert run_all(engine)[-1][1] == EngineFinished(RunId(1), Outcome.LENGTH, 5)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    engine = engine_of()
    engine.start(replace(ORDER, prompt_tokens_max=1), 0.0)
    ((_, event),) = run_all(engine)
    assert isinstance(event, EngineFailed)
    assert event.code is Refusal.CONTEXT_EXCEEDED


def test_embeddings_come_one_per_input() -> None:
    engine = engine_of()
    engine.start(replace(ORDER, kind=Kind.EMBEDDING, request=JobRequest(inputs=("a", "b", "c"))), 0.0)
    events = [event for _, event in run_all(engine)]
    assert [event.index for event in events if isinstance(event, EngineVector)] == [0, 1, 2]
    assert events[-1] == EngineFinished(RunId(1), Outcome.STOP, 0)


@pytest.mark.parametrize("at_s", [0.0, 0.01, 1.0])
def test_a_cancel_ends_the_run_in_time_wherever_it_is(at_s: float) -> None:
    engine = engine_of(cancel_s=0.25, output_tokens_mean=10_000.0)
    engine.start(ORDER, 0.0)
    run_all(engine, at_s)
    engine.cancel(CancelEngine(RunId(1)), at_s)
    engine.cancel(CancelEngine(RunId(1)), at_s + 0.1)
    at, event = run_all(engine)[-1]
    assert at == at_s + 0.25
    assert isinstance(event, EngineFinished)
    assert event.outcome is Outcome.CANCELLED
    engine.cancel(CancelEngine(RunId(1)), 5.0)
    assert engine.next_deadline() is None


def test_runs_wait_for_a_slot_in_turn() -> None:
    engine = engine_of(slots=1)
    for number in (1, 2, 3):
        engine.start(replace(ORDER, run=RunId(number)), 0.0)
    engine.cancel(CancelEngine(RunId(2)), 0.0)
    events = run_all(engine)
    started = [event.run for _, event in events if isinstance(event, EngineStarted)]
    finished = {event.run: at_s for at_s, event in events if isinstance(event, EngineFinished)}
    assert started == [1, 3]
    assert finished[RunId(2)] < finished[RunId(1)] < finished[RunId(3)]


def test_failures_and_hangs_come_at_their_rates() -> None:
    engine = engine_of(slots=1000, failure_rate=0.3, hang_rate=0.2)
    for number in range(1000):
        engine.start(replace(ORDER, run=RunId(number)), 0.0)
    events = [event for _, event in run_all(engine)]
    assert 250 < sum(isinstance(event, EngineFailed) for event in events) < 350
    assert 150 < engine.active < 250
    for number in range(1000):
        engine.cancel(CancelEngine(RunId(number)), 9999.0)
    run_all(engine)
    assert engine.active == 0
