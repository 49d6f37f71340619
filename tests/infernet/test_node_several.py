"""A node that serves several models: what others hear of them, and who answers when one of them is down."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from infernet.config import Config
from infernet.engines.contract import Engine
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine, Patience
from infernet.engines.selection import open_engine
from infernet.engines.several import Part, SeveralEngines
from infernet.node import Node
from infernet.settings.models import ModelSettings
from protocol.effects import JobDone, JobEvent, JobText
from protocol.records import ModelOffer
from tests.helpers_engine import PacedEngine
from tests.helpers_node import World, ask, assert_idle, question, settle, world
from tests.helpers_openai_servers import ANSWER, ollama

pytestmark = pytest.mark.anyio


def several(*engines: PacedEngine) -> SeveralEngines:
    return SeveralEngines([Part("paced", engine, (engine.offer.name,)) for engine in engines])


def heard(node: Node, of: Node) -> dict[str, ModelOffer]:
    """The models of one node that another has heard of."""
    entry = node.driver.peer.directory.get(of.node_id)
    return {offer.name: offer for offer in entry.heartbeat.models} if entry is not None else {}


def served(events: list[JobEvent], by: Node) -> str:
    """The text of an answer that this node gave to its end."""
    done = events[-1]
    assert isinstance(done, JobDone), done
    assert done.receipt.provider == by.node_id
    return "".join(event.text for event in events if isinstance(event, JobText))


@asynccontextmanager
async def two_nodes(engine: Engine) -> AsyncIterator[tuple[World, Node, Node]]:
    """A provider, and a client that knows it."""
    async with world() as w:
        provider = await w.start(engine)
        client = await w.start(None, provider)
        await settle(client, lambda: bool(heard(client, provider)))
        yield w, provider, client


async def test_all_models_are_in_the_heartbeat_each_at_its_own_price_and_all_answer() -> None:
    cheap, dear = PacedEngine("cheap"), PacedEngine("dear", prices=(7, 8, 9), context_tokens=4096, slots=2)
    async with two_nodes(several(cheap, dear)) as (_, provider, client):
        offers = heard(client, provider)
        assert list(offers) == ["cheap", "dear"]
        assert offers["cheap"].is_free
        told = offers["dear"]
        assert (told.price_in_uusd, told.price_out_uusd, told.price_job_uusd) == (7, 8, 9)
        assert (told.context_tokens, told.concurrency) == (4096, 2)
        for name in offers:
            assert served(await ask(client, question(model=name, max_tokens=3)), provider)
        assert (cheap.statistics().runs_total, dear.statistics().runs_total) == (1, 1)
        await assert_idle(provider, client)


async def test_a_model_that_is_down_leaves_the_heartbeat_and_the_other_answers_meanwhile() -> None:
    one, two = PacedEngine("one"), PacedEngine("two")
    async with two_nodes(several(one, two)) as (_, provider, client):
        one.break_down()
        await settle(client, lambda: list(heard(client, provider)) == ["two"])
        assert provider.status()["models"] == ["two"]
        assert served(await ask(client, question(model="two", max_tokens=3)), provider)
        one.recover()
        await settle(client, lambda: list(heard(client, provider)) == ["one", "two"])
        assert served(await ask(client, question(model="one", max_tokens=3)), provider)
        assert [part["models"] for part in provider.status()["engines"]] == [("one",), ("two",)]


async def test_a_server_and_an_engine_of_this_node_are_offered_side_by_side() -> None:
    async with ollama().running() as server:
        patience = Patience(look_interval_s=0.05, doubt_s=1.0, again_first_s=0.05)
        parts = [Part("paced", PacedEngine("own"), ("own",)), Part("openai", _server_engine(server.url, patience))]
        async with two_nodes(SeveralEngines(parts)) as (_, provider, client):
            await settle(client, lambda: list(heard(client, provider)) == ["own", "qwen2.5:7b"])
            assert served(await ask(client, question(model="qwen2.5:7b", max_tokens=40)), provider) == "".join(ANSWER)
            assert served(await ask(client, question(model="own", max_tokens=3)), provider)
            server.pages.clear()
            await settle(client, lambda: list(heard(client, provider)) == ["own"])
            assert served(await ask(client, question(model="own", max_tokens=3)), provider)


def _server_engine(url: str, patience: Patience) -> OpenAiEngine:
    return OpenAiEngine(OpenAiConfig(url), patience)


@pytest.mark.model
@pytest.mark.slow
async def test_two_real_models_answer_at_once_and_one_outlives_the_others_process(
    starter_model_path: Path, tmp_path: Path
) -> None:
    # The starter model under two names: what is real is two processes, two contexts and two loads.
    second = tmp_path / "second.gguf"
    second.symlink_to(starter_model_path)
    config = Config(
        config_dir=tmp_path,
        state_dir=tmp_path,
        data_dir=tmp_path,
        models=(str(starter_model_path), str(second)),
        model_settings=(ModelSettings(name="second", context_tokens=512, slots=1, price_job_usd=0),),
        context_tokens=256,
        slots=2,
        threads=1,
    )
    engine = await open_engine(config)
    assert isinstance(engine, SeveralEngines)
    async with two_nodes(engine) as (_, provider, client):
        offers = heard(client, provider)
        assert [(name, offer.context_tokens, offer.concurrency) for name, offer in offers.items()] == [
            ("smollm2-135m-instruct", 256, 2),
            ("second", 512, 1),
        ]
        text = "What is the capital of France?"
        answers: dict[str, str] = {}

        async def hear(model: str) -> None:
            events = await ask(client, question(text, model=model, max_tokens=16, temperature=0.0))
            answers[model] = served(events, provider)

        async with trio.open_nursery() as both:
            for model in offers:
                both.start_soon(hear, model)
        assert all(answers[model].strip() for model in offers)
        [first] = [part.engine for part in engine._parts if part.names == ("smollm2-135m-instruct",)]
        assert isinstance(first, IsolatedEngine)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        # What it signs; peers hear of it after five seconds at most, when the model may be back.
        await settle(provider, lambda: list(heard(provider, provider)) == ["second"])
        assert served(await ask(client, question(text, model="second", max_tokens=4)), provider)
        await settle(provider, lambda: len(heard(provider, provider)) == 2)
        await settle(client, lambda: len(heard(client, provider)) == 2)
        assert served(await ask(client, question(text, model="smollm2-135m-instruct", max_tokens=4)), provider)
