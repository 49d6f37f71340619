"""Trying an engine out: a real answer of each model that it offers, and how long that took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

import trio
from msgspec import Struct

from infernet.engines.contract import ChecksFiles, Engine, EngineEvent, EngineState, TellsParts
from protocol.effects import RunEngine
from protocol.events import EngineFailed, EngineFinished, EngineStarted, EngineText
from protocol.ids import RunId
from protocol.records import ChatMessage, JobRequest, Kind, ModelOffer, Sampling

QUESTION: Final = "What is the capital of France?"
_GREEDY: Final = Sampling(
    temperature_milli=0,
    top_p_milli=1000,
    min_p_milli=0,
    top_k=0,
    presence_penalty_milli=0,
    frequency_penalty_milli=0,
    repetition_penalty_milli=1000,
    seed=0,
)


# Files that were read before, and did not change, are not read again: there is nothing to say of them.
_QUIET_S: Final = 1.0


class TrialFailed(Exception):
    """An engine did not answer; one line for people."""


class Patience(Struct, frozen=True):
    """How long is waited, in seconds, once the files are checked: for the engine, and for an answer.

    `advice` is what to do when that was too short.
    """

    start_s: float
    answer_s: float
    advice: str


class Trial(Struct, frozen=True):
    """One answer. `prompt_s` is from the prompt to the first text; the rate is of what came after that.

    The rate is None where one piece was all.
    """

    model: str
    context_tokens: int
    text: str
    prompt_tokens: int
    output_tokens: int
    prompt_s: float
    tokens_per_s: float | None


async def try_engine(
    engine: Engine,
    requests: Callable[[ModelOffer], Sequence[JobRequest]],
    output_tokens: int,
    patience: Patience,
    say: Callable[[str], None],
) -> list[Trial]:
    """Start an engine, have each of its models answer each request within the time, and end it. What takes long without
    a limit is said.

    Raises EngineUnavailable when it does not start, TrialFailed when a model does not answer.
    """
    await _check_files(engine, say)
    reports = _Reports()
    trials: list[Trial] = []
    failure: TrialFailed | None = None
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(patience.start_s) as starting:
            await nursery.start(engine.run, reports.take)
        if starting.cancelled_caught:
            failure = TrialFailed(f"the engine was not ready within {patience.start_s:.0f} s: {patience.advice}")
        try:
            _check_all_serve(engine)
            numbers = count(1)
            for offer in engine.models():
                for request in requests(offer):
                    run = RunId(next(numbers))
                    trials.append(await _ask(engine, reports, offer, run, request, output_tokens, patience))
        except TrialFailed as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is None and not trials:
        failure = TrialFailed("the engine offers no model")
    if failure is not None:
        raise failure
    return trials


async def _check_files(engine: Engine, say: Callable[[str], None]) -> None:
    """Have the files read first, however long that takes: a limit to it would have the next try begin from zero."""
    checks: object = engine
    if not isinstance(checks, ChecksFiles):
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_say_soon, say, _names(engine))
        await checks.check()
        nursery.cancel_scope.cancel()


async def _say_soon(say: Callable[[str], None], names: str) -> None:
    await trio.sleep(_QUIET_S)
    say(f"reading {names} whole to check it, once for each file: that takes as long as the disk needs")


def _names(engine: object) -> str:
    parts = engine.parts() if isinstance(engine, TellsParts) else ()
    return ", ".join(", ".join(part.models) for part in parts if part.models) or "the model"


def _check_all_serve(engine: Engine) -> None:
    """One of several that is down must not hide behind the others. Raises TrialFailed."""
    told: object = engine
    parts = told.parts() if isinstance(told, TellsParts) else ()
    for part in parts:
        if part.state is not EngineState.READY and part.trouble:
            raise TrialFailed(f"{', '.join(part.models) or part.engine} is not served: {part.trouble}")


async def _ask(
    engine: Engine,
    reports: _Reports,
    offer: ModelOffer,
    run: RunId,
    request: JobRequest,
    output_tokens: int,
    patience: Patience,
) -> Trial:
    asked_at_s = trio.current_time()
    reports.clear()
    engine.start(RunEngine(run, Kind.CHAT, offer.name, request, _GREEDY, offer.context_tokens, output_tokens))
    with trio.move_on_after(patience.answer_s):
        await reports.until_end()
    events = reports.events
    end = events[-1][1] if events else None
    if isinstance(end, EngineFailed):
        raise TrialFailed(f"{offer.name} did not answer: {end.text}")
    if not isinstance(end, EngineFinished):
        engine.cancel(run)
        raise TrialFailed(f"{offer.name} had not answered after {patience.answer_s:.0f} s: {patience.advice}")
    texts = [(at_s, event) for at_s, event in events if isinstance(event, EngineText)]
    if not texts:
        raise TrialFailed(f"{offer.name} answered with nothing")
    (first_s, first), (last_s, last) = texts[0], texts[-1]
    after, took_s = last.output_tokens - first.output_tokens, last_s - first_s
    return Trial(
        model=offer.name,
        context_tokens=offer.context_tokens,
        text="".join(event.text for _, event in texts),
        prompt_tokens=next(event.prompt_tokens for _, event in events if isinstance(event, EngineStarted)),
        output_tokens=end.output_tokens,
        prompt_s=first_s - asked_at_s,
        tokens_per_s=after / took_s if after > 0 and took_s > 0 else None,
    )


class _Reports:
    def __init__(self) -> None:
        self.events: list[tuple[float, EngineEvent]] = []
        self._ended = trio.Event()

    def clear(self) -> None:
        self.events = []
        self._ended = trio.Event()

    def take(self, event: EngineEvent) -> None:
        self.events.append((trio.current_time(), event))
        if isinstance(event, EngineFinished | EngineFailed):
            self._ended.set()

    async def until_end(self) -> None:
        await self._ended.wait()


def question(texts: Sequence[str] = (QUESTION,)) -> JobRequest:
    """A chat of one message."""
    return JobRequest(messages=(ChatMessage("user", "\n".join(texts)),))
