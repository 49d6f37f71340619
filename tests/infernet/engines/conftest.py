"""Engines to test: one loaded for a whole file, because loading takes longer than most tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio

from infernet.engines.contract import Engine, EngineConfig, EngineState
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.models import STARTER
from protocol.effects import RunEngine
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import RunId
from protocol.records import JobRequest, Kind, Sampling
from tests.helpers_engine import GREEDY, Recorder

SLOTS = 4
# Small, so that its end is soon reached; llama.cpp gives no slot less.
CONTEXT_TOKENS = 256


@dataclass
class Bench:
    """A running engine, and its reports."""

    engine: Engine
    recorder: Recorder
    changes: list[int]
    numbers: count[int] = field(default_factory=lambda: count(1))
    changed: trio.Event = field(default_factory=trio.Event)

    def on_change(self) -> None:
        """What the engine is given to call."""
        self.changes.append(len(self.engine.models()))
        self.changed.set()
        self.changed = trio.Event()

    async def until_state(self, state: EngineState) -> None:
        """Wait for a state that comes with a change of what is offered."""
        with trio.fail_after(10):
            while self.engine.statistics().state is not state:
                await self.changed.wait()

    @property
    def model(self) -> str:
        """The name of the model that is served."""
        return self.engine.models()[0].name

    def start(
        self,
        kind: Kind,
        request: JobRequest,
        tokens: int = 16,
        sampling: Sampling = GREEDY,
        prompt_tokens_max: int = 1_000_000,
        model: str | None = None,
    ) -> int:
        """Start a run with the next number."""
        order = self.order(kind, request, tokens, sampling, prompt_tokens_max, model)
        self.engine.start(order)
        return order.run

    def order(
        self,
        kind: Kind,
        request: JobRequest,
        tokens: int = 16,
        sampling: Sampling = GREEDY,
        prompt_tokens_max: int = 1_000_000,
        model: str | None = None,
        *,
        holds: bool = False,
    ) -> RunEngine:
        """An order with the next number."""
        name = self.model if model is None else model
        number = RunId(next(self.numbers))
        return RunEngine(number, kind, name, request, sampling, prompt_tokens_max, tokens, holds)

    async def do(
        self, kind: Kind, request: JobRequest, tokens: int = 16, sampling: Sampling = GREEDY
    ) -> tuple[str, EngineFinished]:
        """Do a run that must succeed, and give its text and its end."""
        run = self.start(kind, request, tokens, sampling)
        end = await self.recorder.end_of(run)
        assert isinstance(end, EngineFinished), end
        return self.recorder.answer(run), end

    async def refusal(self, kind: Kind, request: JobRequest, **limits: int | str) -> EngineFailed:
        """Start a run that must be refused."""
        run = self.start(kind, request, **limits)  # type: ignore[arg-type] # the tests name the right ones
        end = await self.recorder.end_of(run)
        assert isinstance(end, EngineFailed), end
        assert self.recorder.of(run) == [end]
        return end


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Bench]:
    """Run an engine until the block is left."""
    bench = Bench(engine, Recorder(), [])
    engine.on_change = bench.on_change
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run, bench.recorder.report)
        yield bench
        nursery.cancel_scope.cancel()


def starter_config(path: Path, **changes: object) -> EngineConfig:
    """The starter model as the tests load it."""
    config = STARTER.engine_config(path, slots=SLOTS, threads=1)
    return msgspec.structs.replace(config, context_tokens=CONTEXT_TOKENS, **changes)


@pytest.fixture(scope="module")
async def llama(starter_model_path: Path) -> AsyncIterator[Bench]:
    """The starter model in a process of its own."""
    async with running(IsolatedEngine(starter_config(starter_model_path))) as bench:
        yield bench
