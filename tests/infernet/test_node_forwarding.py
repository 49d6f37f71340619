"""An aggregator between real nodes in one process: what it passes on, what it sees of it, and how its end is told."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from infernet import log
from infernet.answers import AskOptions
from infernet.engines.contract import Report
from infernet.node import Node
from infernet.store import Store
from protocol import events as e
from protocol.effects import Effect, JobAccepted, JobDone, JobFailed, JobText, RunEngine
from protocol.errors import Refusal
from protocol.ids import JobId
from protocol.records import ChatMessage, Outcome
from tests.helpers_engine import PacedEngine
from tests.helpers_log import logging_restored
from tests.helpers_node import World, ask, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class Market:
    """A provider and an asker that are connected with nobody but an aggregator between them."""

    def __init__(self, provider: Node, aggregator: Node, asker: Node) -> None:
        self.provider, self.aggregator, self.asker = provider, aggregator, asker

    @classmethod
    async def open(cls, w: World, engine: PacedEngine, store: Store | None = None, **config: Any) -> Market:
        aggregator = await w.start(None, forward=True, store=store)
        provider = await w.start(engine, aggregator, **config)
        asker = await w.start(None, aggregator)
        await settle(asker, lambda: bool(asker.driver.peer.directory.get(provider.node_id)))
        return cls(provider, aggregator, asker)

    @property
    def carried(self) -> dict[str, int]:
        status: dict[str, int] = self.aggregator.status()["jobs_forwarded"]
        return status

    async def ask(self, **options: Any) -> list[Any]:
        options = {"max_tokens": 40, "via": self.aggregator.node_id, "provider": self.provider.node_id, **options}
        return await ask(self.asker, question(**options))


async def test_an_answer_comes_by_way_of_an_aggregator_and_is_counted_there() -> None:
    async with world() as w:
        market = await Market.open(w, PacedEngine(answer_tokens=100))
        events = await market.ask()
        assert isinstance(events[0], JobAccepted)
        assert events[0].via == market.aggregator.node_id
        done = events[-1]
        assert isinstance(done, JobDone)
        assert (done.receipt.outcome, done.receipt.output_tokens) == (Outcome.LENGTH, 40)
        assert market.provider.node_id not in market.asker.driver.connected_peers()
        await settle(market.aggregator, lambda: market.carried["active"] == 0)
        assert (market.carried["carried"], market.carried["failed"]) == (1, 0)
        [pair] = market.aggregator.status()["jobs_forwarded"]["pairs"]
        assert (pair["asker"], pair["provider"]) == (market.asker.node_id.hex(), market.provider.node_id.hex())
        assert (pair["jobs"], pair["bytes"]) == (1, market.carried["bytes"])
        assert market.carried["bytes"] > 2_000
        assert market.asker.status()["jobs_forwarded"] is None


async def test_nobody_else_is_found_without_the_user_saying_so() -> None:
    """The provider publishes no address, and the asker names no aggregator: it finds the one way that there is."""
    async with world() as w:
        market = await Market.open(w, PacedEngine(answer_tokens=10))
        events = await market.ask(via=None, provider=None)
        assert isinstance(events[-1], JobDone)
        assert events[0].via == market.aggregator.node_id


async def test_a_user_who_leaves_stops_the_engine_behind_the_aggregator() -> None:
    async with world() as w:
        engine = PacedEngine(tokens_per_s=10)
        market = await Market.open(w, engine)
        options = question(max_tokens=1000, via=market.aggregator.node_id)
        async with market.asker.ask(options) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
        left_s = trio.current_time()
        await settle(market.provider, lambda: engine.statistics().runs_active == 0)
        assert trio.current_time() - left_s < 1.0
        await settle(market.aggregator, lambda: market.carried["active"] == 0)


@pytest.mark.parametrize("who", ["provider", "aggregator"])
async def test_a_death_on_the_way_is_a_failure_and_never_an_end(who: str) -> None:
    async with world() as w:
        market = await Market.open(w, PacedEngine(tokens_per_s=10))
        seen: list[Any] = []
        options = question(max_tokens=1000, via=market.aggregator.node_id, provider=market.provider.node_id)
        async with market.asker.ask(options) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, JobText) and sum(isinstance(each, JobText) for each in seen) == 3:
                    w.kill(getattr(market, who))
        failed = seen[-1]
        assert isinstance(failed, JobFailed)
        assert failed.code in (Refusal.PEER_LOST, Refusal.NO_ROUTE, Refusal.DEADLINE)


async def test_a_provider_knows_the_asker_behind_an_aggregator_and_nobody_else() -> None:
    async with world() as w:
        market = await Market.open(w, PacedEngine(answer_tokens=5), free_for="known")
        refused = (await market.ask())[-1]
        assert isinstance(refused, JobFailed)
        assert refused.code is Refusal.NOT_FREE
        market.provider.driver.command(e.Allow(frozenset({market.aggregator.node_id})))
        assert isinstance((await market.ask())[-1], JobFailed)
        market.provider.driver.command(e.Allow(frozenset({market.asker.node_id})))
        assert isinstance((await market.ask())[-1], JobDone)


async def test_a_long_prompt_passes_whole() -> None:
    async with world() as w:
        market = await Market.open(w, PacedEngine(answer_tokens=5, context_tokens=10**6))
        text = "word " * 40_000
        options = AskOptions(messages=(ChatMessage("user", text),), via=market.aggregator.node_id)
        events = await ask(market.asker, options)
        assert isinstance(events[-1], JobDone)
        assert events[-1].receipt.prompt_tokens == 40_000


# ---------------------------------------------------------------- what it sees


class Parrot(PacedEngine):
    """Answers every question with one word that only this question has as its answer."""

    def start(self, run: RunEngine) -> None:
        assert self._report is not None
        report: Report = self._report
        (message,) = run.request.messages
        report(e.EngineStarted(run.run, 1))
        report(e.EngineText(run.run, answer_to(message.content), 1))
        report(e.EngineFinished(run.run, Outcome.STOP, 1))


def answer_to(mark: str) -> str:
    return hashlib.sha256(mark.encode()).hexdigest()


def spellings(mark: str) -> list[bytes]:
    """Ways in which a text could stand in a capture."""
    data = mark.encode()
    return [data, data.hex().encode(), base64.b64encode(data), repr(data).encode()]


def contents(folder: Path) -> bytes:
    """All files of a folder."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


class Capture:
    """Everything that goes into a node's peer and comes out of it."""

    def __init__(self, node: Node) -> None:
        self.data = bytearray()
        peer = node.driver.peer
        handle = peer.handle

        def captured(event: e.Event, now: e.Now) -> list[Effect]:
            effects = handle(event, now)
            for item in (event, *effects):
                # Not by its repr, which hides texts on purpose.
                self.data += msgspec.msgpack.encode(item)
            return effects

        peer.handle = captured  # type: ignore[method-assign]  # the driver calls it by this name


@pytest.mark.parametrize("jobs", [200, pytest.param(1000, marks=pytest.mark.nightly)])
async def test_an_aggregator_sees_neither_questions_nor_answers(tmp_path: Path, jobs: int) -> None:
    asked: dict[str, JobId] = {}
    with logging_restored():
        written = io.StringIO()
        log.configure("debug", stream=written)
        store = Store(tmp_path / "node.sqlite3")
        async with world() as w:
            market = await Market.open(w, Parrot(), store=store)
            capture, control = Capture(market.aggregator), Capture(market.provider)
            for number in range(jobs):
                mark = f"canary-{hashlib.sha256(str(number).encode()).hexdigest()}"
                options = AskOptions(messages=(ChatMessage("user", mark),), via=market.aggregator.node_id)
                events = await ask(market.asker, options)
                assert [event.text for event in events if isinstance(event, JobText)] == [answer_to(mark)]
                asked[mark] = events[0].job
                await trio.sleep(0.2)
            await settle(market.aggregator, lambda: market.carried["active"] == 0)
            assert market.carried["carried"] == jobs
            market.aggregator.stop()
            await trio.sleep(60)  # it saves what it knows of others
        store.close()
    stored = contents(tmp_path)
    everything = bytes(capture.data) + written.getvalue().encode() + stored
    # The capture is one: every job is in it, and who served it is in the store.
    assert all(everything.find(job) >= 0 for job in asked.values())
    assert stored.find(market.provider.node_id) >= 0
    assert len(capture.data) > jobs * 2_000
    for mark in asked:
        for text in (mark, answer_to(mark)):
            assert control.data.find(text.encode()) >= 0
            assert not [spelling for spelling in spellings(text) if spelling in everything]
