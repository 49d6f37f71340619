"""A model of an engine: takes the effects for an engine, answers with paced Engine* events, computes nothing.

A state machine like those of the protocol: time and randomness come in, events come out. A run waits for a slot,
reads its prompt at one rate, writes at another, and may fail or hang as its profile says. What it writes, and how much,
depends on the seed of the order alone: so an answer that another engine continues is the answer that one would have
given.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from protocol.effects import CancelEngine, ContinueEngine, RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.ids import RunId
from protocol.records import JobRequest, Kind, Outcome
from protocol.sim.scenario import EngineProfile
from protocol.timers import Timers

EngineEvent = EngineStarted | EngineProgress | EngineText | EngineVector | EngineFinished | EngineFailed

CHARACTERS_PER_TOKEN: Final = 4
VECTOR_FLOATS: Final = 8
_WORD: Final = " word"
# How often the prompt's progress is reported.
PROGRESS_S: Final = 0.5


def word(number: int) -> str:
    """The piece of every answer with this number, from 1."""
    return f"{_WORD}{number}"


@dataclass(slots=True)
class _Run:
    order: RunEngine
    prompt_tokens: int
    before: int
    length: int
    ends_badly_at: int | None
    hangs: bool
    holds: bool
    has_slot: bool = False
    is_started: bool = False
    is_cancelled: bool = False
    prompt_done: float = 0.0
    produced: int = 0


class SimulatedEngine:
    """The state machine."""

    def __init__(self, profile: EngineProfile, rng: random.Random) -> None:
        self._profile = profile
        self._rng = rng
        self._runs: dict[RunId, _Run] = {}
        self._waiting: deque[RunId] = deque()
        self._timers: Timers[RunId] = Timers()

    @property
    def active(self) -> int:
        """Runs that were started and have not ended."""
        return len(self._runs)

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    def start(self, order: RunEngine, now_s: float) -> None:
        """Take a run; what becomes of it comes out of `on_deadline`."""
        profile = self._profile
        seeded = random.Random(order.sampling.seed)  # noqa: S311 - a model of a sampler, seeded like one
        before = order.request.continuation.count(_WORD)
        length = max(0, 1 + round(seeded.expovariate(1 / profile.output_tokens_mean)) - before)
        breaks = self._rng.random()
        ends_badly_at = self._rng.randrange(length or 1) if breaks < profile.failure_rate + profile.hang_rate else None
        hangs = breaks >= profile.failure_rate
        run = _Run(order, _tokens(order.request), before, length, ends_badly_at, hangs, order.holds)
        self._runs[order.run] = run
        self._waiting.append(order.run)
        self._fill_slots(now_s)

    def cancel(self, order: CancelEngine, now_s: float) -> None:
        run = self._runs.get(order.run)
        if run is not None and not run.is_cancelled:
            run.is_cancelled = True
            self._timers.set(order.run, now_s + self._profile.cancel_s)

    def proceed(self, order: ContinueEngine, now_s: float) -> None:
        run = self._runs.get(order.run)
        if run is None or not run.holds:
            return
        run.holds = False
        if run.is_started and not run.is_cancelled:
            self._timers.set(order.run, now_s + self._prompt_step_s(run))

    def on_deadline(self, now_s: float) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for run_id in self._timers.pop_due(now_s):
            events += self._step(run_id, self._runs[run_id], now_s)
        return events

    def _fill_slots(self, now_s: float) -> None:
        held = sum(run.has_slot for run in self._runs.values())
        while self._waiting and held < self._profile.slots:
            run_id = self._waiting.popleft()
            run = self._runs.get(run_id)
            if run is None or run.is_cancelled:
                continue
            run.has_slot = True
            held += 1
            self._timers.set(run_id, now_s + self._profile.start_s)

    def _step(self, run_id: RunId, run: _Run, now_s: float) -> list[EngineEvent]:
        if run.is_cancelled:
            return self._end(run_id, EngineFinished(run_id, Outcome.CANCELLED, run.produced), now_s)
        if not run.is_started:
            return self._begin(run_id, run, now_s)
        if run.prompt_done < run.prompt_tokens:
            return self._read_prompt(run_id, run, now_s)
        if run.produced == run.ends_badly_at:
            if run.hangs:
                return []  # no timer: only a cancel ends it
            return self._end(run_id, EngineFailed(run_id, Refusal.ENGINE_FAILED, "the engine broke"), now_s)
        if run.order.kind is Kind.EMBEDDING:
            return self._embed(run_id, run, now_s)
        return self._write(run_id, run, now_s)

    def _begin(self, run_id: RunId, run: _Run, now_s: float) -> list[EngineEvent]:
        if run.prompt_tokens > run.order.prompt_tokens_max:
            refused = EngineFailed(run_id, Refusal.CONTEXT_EXCEEDED, "the prompt is longer than the context")
            return self._end(run_id, refused, now_s)
        run.is_started = True
        if not run.holds:
            self._timers.set(run_id, now_s + self._prompt_step_s(run))
        return [EngineStarted(run_id, run.prompt_tokens)]

    def _prompt_step_s(self, run: _Run) -> float:
        return min(PROGRESS_S, (run.prompt_tokens - run.prompt_done) / self._profile.prompt_tokens_per_s)

    def _read_prompt(self, run_id: RunId, run: _Run, now_s: float) -> list[EngineEvent]:
        run.prompt_done += self._prompt_step_s(run) * self._profile.prompt_tokens_per_s
        if run.prompt_tokens - run.prompt_done < 0.5:
            run.prompt_done = run.prompt_tokens
            self._timers.set(run_id, now_s + 1 / self._profile.tokens_per_s)
            return []
        self._timers.set(run_id, now_s + self._prompt_step_s(run))
        return [EngineProgress(run_id, int(run.prompt_done), run.prompt_tokens)]

    def _write(self, run_id: RunId, run: _Run, now_s: float) -> list[EngineEvent]:
        limit = run.order.output_tokens_max
        if run.produced < min(run.length, limit):
            run.produced += 1
            self._timers.set(run_id, now_s + 1 / self._profile.tokens_per_s)
            return [EngineText(run_id, word(run.before + run.produced), run.produced)]
        outcome = Outcome.LENGTH if run.produced == limit else Outcome.STOP
        return self._end(run_id, EngineFinished(run_id, outcome, run.produced), now_s)

    def _embed(self, run_id: RunId, run: _Run, now_s: float) -> list[EngineEvent]:
        if run.produced == len(run.order.request.inputs):
            return self._end(run_id, EngineFinished(run_id, Outcome.STOP, 0), now_s)
        vector = struct.pack(f"<{VECTOR_FLOATS}f", *[self._rng.random() for _ in range(VECTOR_FLOATS)])
        run.produced += 1
        self._timers.set(run_id, now_s + 1 / self._profile.tokens_per_s)
        return [EngineVector(run_id, run.produced - 1, vector)]

    def _end(self, run_id: RunId, event: EngineFinished | EngineFailed, now_s: float) -> list[EngineEvent]:
        del self._runs[run_id]
        self._timers.cancel(run_id)
        self._fill_slots(now_s)
        return [event]


def _tokens(request: JobRequest) -> int:
    characters = len(request.prompt) + len(request.continuation) + sum(map(len, request.inputs))
    characters += sum(len(message.content) for message in request.messages)
    return max(1, -(-characters // CHARACTERS_PER_TOKEN))
