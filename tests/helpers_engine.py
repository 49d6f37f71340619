"""A test double of an engine, and what tests of engines share.

`PacedEngine` keeps the contract of engines without a model: its text, its pace and its counts are known beforehand.
It exists for tests and benchmarks alone; nothing outside of them may offer it to anybody.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from msgspec.structs import replace

from infernet.engines.contract import (
    EngineEvent,
    EnginePart,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    loading_for,
)
from infernet.engines.stops import StopMatcher
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.ids import RunId
from protocol.records import ChatMessage, JobRequest, Kind, ModelOffer, Outcome, Sampling

GREEDY = Sampling(
    temperature_milli=0,
    top_p_milli=1000,
    min_p_milli=0,
    top_k=0,
    presence_penalty_milli=0,
    frequency_penalty_milli=0,
    repetition_penalty_milli=1000,
    seed=0,
)
WORDS = ("every ", "word ", "of ", "this ", "änswer ", "is ", "one ", "token ", "🙂 ", "and\n")
EMBEDDING_DIMENSIONS = 8


def chat(text: str, **others: Any) -> JobRequest:
    """A chat of one question, and what else is asked."""
    return JobRequest(messages=(ChatMessage("user", text),), **others)


class Recorder:
    """Takes an engine's reports, and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._news = trio.Event()

    def report(self, event: EngineEvent) -> None:
        """What the engine is given to call."""
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    def of(self, run: int) -> list[EngineEvent]:
        """The reports on one run."""
        return [event for event in self.events if event.run == run]

    def texts(self, run: int) -> list[EngineText]:
        """The pieces of one run's answer."""
        return [event for event in self.of(run) if isinstance(event, EngineText)]

    def answer(self, run: int) -> str:
        """The text of one run."""
        return "".join(event.text for event in self.texts(run))

    def ends(self) -> Counter[RunId]:
        """How often each run ended."""
        return Counter(event.run for event in self.events if isinstance(event, EngineFinished | EngineFailed))

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until a condition holds, which only reports can change."""
        with trio.fail_after(timeout_s):
            while not condition():
                await self._news.wait()

    async def end_of(self, run: int, timeout_s: float = 30.0) -> EngineFinished | EngineFailed:
        """Wait for the end of a run."""
        await self.until(lambda: self.ends()[RunId(run)] > 0, timeout_s)
        end = self.of(run)[-1]
        assert isinstance(end, EngineFinished | EngineFailed), "a report came after the end of its run"
        return end


class PacedEngine:
    """Test double: answers with the same words again and again, each of them one token, at a fixed pace.

    Prompt tokens are words. A continuation of k words is followed by what comes after the first k words of the
    answer. `answer_tokens` is where an answer ends by itself.
    """

    def __init__(
        self,
        name: str = "paced",
        tokens_per_s: float = 1000.0,
        prompt_tokens_per_s: float = math.inf,
        slots: int = 4,
        answer_tokens: int = 100_000,
        context_tokens: int = 2048,
        prices: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.offer = ModelOffer(
            name=name,
            fingerprint=hashlib.sha256(name.encode()).digest(),
            kinds=(Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING),
            context_tokens=context_tokens,
            concurrency=slots,
            price_in_uusd=prices[0],
            price_out_uusd=prices[1],
            price_job_uusd=prices[2],
        )
        self._token_s = 1 / tokens_per_s
        self._prompt_token_s = 1 / prompt_tokens_per_s
        self._answer_tokens = answer_tokens
        self._state = EngineState.STOPPED
        self._report: Report | None = None
        self._nursery: trio.Nursery | None = None
        self._runs: dict[RunId, trio.CancelScope] = {}
        self._held: dict[RunId, trio.Event] = {}
        self._broken: dict[RunId, EngineFailed] = {}
        self._runs_total = 0
        self._restarts = 0

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        self._report = report
        try:
            async with trio.open_nursery() as self._nursery:
                self._become(EngineState.READY)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._become(EngineState.STOPPED)

    def start(self, run: RunEngine) -> None:
        """Start a run, or refuse it."""
        assert self._report is not None
        assert self._nursery is not None
        self._runs_total += 1
        refusal = self._refusal(run)
        if refusal is not None:
            self._report(EngineFailed(run.run, *refusal))
            return
        self._runs[run.run] = trio.CancelScope()
        if run.holds:
            self._held[run.run] = trio.Event()
        self._nursery.start_soon(self._serve, run, self._runs[run.run])

    def cancel(self, run: RunId) -> None:
        """Stop a run."""
        if run in self._runs:
            self._runs[run].cancel()

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that holds."""
        if run in self._held:
            self._held.pop(run).set()

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment."""
        return (self.offer,) if self._state is EngineState.READY else ()

    def statistics(self) -> EngineStatistics:
        """What the engine did so far."""
        return EngineStatistics(self._state, len(self._runs), self._runs_total, self._restarts, 0, "")

    def break_down(self) -> None:
        """Be broken, as if the engine process had died: runs fail, nothing is offered until `recover`."""
        text = "the engine broke down during the answer"
        for run, scope in self._runs.items():
            self._broken[run] = EngineFailed(run, Refusal.ENGINE_FAILED, text)
            scope.cancel()
        self._become(EngineState.WAITING)

    def recover(self) -> None:
        """Be ready again."""
        self._restarts += 1
        self._become(EngineState.READY)

    def _become(self, state: EngineState) -> None:
        self._state = state
        self.on_change()

    def _refusal(self, run: RunEngine) -> tuple[Refusal, str] | None:
        prompt_tokens = _count_prompt(run.request)
        if self._state is not EngineState.READY:
            return Refusal.ENGINE_UNAVAILABLE, "the engine broke and is being restarted: try again in a few seconds"
        if run.model != self.offer.name:
            return Refusal.NO_MODEL, f"this engine serves {self.offer.name}"
        if len(self._runs) >= self.offer.concurrency:
            return Refusal.BUSY, f"all {self.offer.concurrency} slots of the engine are in use"
        if prompt_tokens == 0:
            return Refusal.BAD_REQUEST, "the prompt is empty"
        if any(message.role not in ("system", "user", "assistant") for message in run.request.messages):
            return Refusal.BAD_REQUEST, "a message has a role other than system, user or assistant"
        if prompt_tokens >= self.offer.context_tokens:
            held = self.offer.context_tokens
            text = f"the prompt has {prompt_tokens} tokens, and the context of this model holds {held}"
            return Refusal.CONTEXT_EXCEEDED, text
        if prompt_tokens > run.prompt_tokens_max:
            text = f"the prompt has {prompt_tokens} tokens, and the order allows {run.prompt_tokens_max}"
            return Refusal.TOO_LARGE, text
        return None

    async def _serve(self, run: RunEngine, scope: trio.CancelScope) -> None:
        assert self._report is not None
        prompt_tokens = _count_prompt(run.request)
        self._report(EngineStarted(run.run, prompt_tokens))
        answer = _Answer(run, self._report)
        end: EngineFinished | EngineFailed = EngineFailed(run.run, Refusal.SHUTDOWN, "the node is stopping")
        try:
            with scope:
                if run.run in self._held:
                    await self._held[run.run].wait()
                await trio.sleep(prompt_tokens * self._prompt_token_s)
                self._report(EngineProgress(run.run, prompt_tokens, prompt_tokens))
                end = EngineFinished(run.run, await self._answer(run, answer), answer.output_tokens)
            if scope.cancelled_caught:
                cancelled = EngineFinished(run.run, Outcome.CANCELLED, answer.output_tokens)
                end = self._broken.pop(run.run, cancelled)
        finally:
            del self._runs[run.run]
            self._held.pop(run.run, None)
            self._report(end)

    async def _answer(self, run: RunEngine, answer: _Answer) -> Outcome:
        if run.kind is Kind.EMBEDDING:
            for index, text in enumerate(run.request.inputs):
                await trio.lowlevel.checkpoint()
                answer.report(EngineVector(run.run, index, _vector(text)))
            return Outcome.STOP
        next_at_s = trio.current_time()
        said = len(run.request.continuation.split())
        while answer.output_tokens < run.output_tokens_max:
            if said + answer.output_tokens >= self._answer_tokens:
                answer.finish()
                return Outcome.STOP
            next_at_s += self._token_s
            await trio.sleep_until(next_at_s)
            if answer.say(WORDS[(said + answer.output_tokens) % len(WORDS)]):
                return Outcome.STOP
        answer.finish()
        return Outcome.LENGTH


class LateEngine(PacedEngine):
    """Test double: a paced engine that loads until the test lets it, or has it fail."""

    def __init__(self, name: str = "late", **others: Any) -> None:
        super().__init__(name, **others)
        self._may_end = trio.Event()
        self._failure = ""
        self._since_s = 0.0
        #: Set once it loads, and once that was cancelled.
        self.loads = trio.Event()
        self.left = trio.Event()

    def load(self) -> None:
        """Have loaded the model."""
        self._may_end.set()

    def fail(self, why: str) -> None:
        """Be unable to load it."""
        self._failure = why
        self._may_end.set()

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load for as long as the test says, then serve until cancelled."""
        self._since_s = trio.current_time()
        self._become(EngineState.STARTING)
        self.loads.set()
        try:
            await self._may_end.wait()
        except trio.Cancelled:
            self.left.set()
            raise
        if self._failure:
            raise EngineUnavailable(self._failure)
        await super().run(report, task_status=task_status)

    def statistics(self) -> EngineStatistics:
        """What the engine did so far."""
        return replace(super().statistics(), loading_s=loading_for(self._state, self._since_s))

    def parts(self) -> tuple[EnginePart, ...]:
        """Its one model."""
        told = self.statistics()
        runs, restarts = told.runs_active, told.restarts
        return (EnginePart("late", (self.offer.name,), told.state, "here", runs, restarts, "", told.loading_s),)


class _Answer:
    def __init__(self, run: RunEngine, report: Report) -> None:
        self._run = run.run
        self._stops = StopMatcher(run.request.stop)
        self.report = report
        self.output_tokens = 0

    def say(self, word: str) -> bool:
        self.output_tokens += 1
        self._pass_on(self._stops.feed(word))
        return self._stops.stopped

    def finish(self) -> None:
        self._pass_on(self._stops.finish())

    def _pass_on(self, text: str) -> None:
        if text:
            self.report(EngineText(self._run, text, self.output_tokens))


def _count_prompt(request: JobRequest) -> int:
    texts = (*(message.content for message in request.messages), request.prompt, *request.inputs, request.continuation)
    return sum(len(text.split()) for text in texts)


def _vector(text: str) -> bytes:
    numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:EMBEDDING_DIMENSIONS]]
    length = math.sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{EMBEDDING_DIMENSIONS}f", *(number / length for number in numbers))
