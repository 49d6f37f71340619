"""A node whose engine is somebody else's server: from a question over the protocol to the server and back."""

from __future__ import annotations

import pytest

from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine, Patience
from protocol.effects import JobAccepted, JobDone, JobText
from protocol.records import Outcome
from tests.helpers_node import ask, assert_idle, question, settle, world
from tests.helpers_openai_servers import ANSWER, PROMPT_TOKENS, Asked, OddServer, Reply, answer_once, is_probe, ollama

pytestmark = pytest.mark.anyio

QUICK = Patience(look_interval_s=0.05, doubt_s=1.0, again_first_s=0.05)


def engine_on(server: OddServer) -> OpenAiEngine:
    return OpenAiEngine(OpenAiConfig(server.url), QUICK)


def text_of(events: list[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, JobText))


async def test_an_answer_comes_with_the_counts_of_the_server() -> None:
    async with ollama().running() as server, world() as w:
        provider = await w.start(engine_on(server))
        client = await w.start(None, provider)
        await settle(client, lambda: client.status()["records"] == 2)
        events = await ask(client, question(max_tokens=40))
        done = events[-1]
        assert isinstance(done, JobDone)
        assert text_of(events) == "".join(ANSWER)
        assert (done.receipt.outcome, done.receipt.output_tokens) == (Outcome.STOP, len(ANSWER))
        assert done.receipt.prompt_tokens == PROMPT_TOKENS
        await assert_idle(provider, client)


async def test_a_server_that_breaks_costs_the_attempt_and_another_provider_answers() -> None:
    async def breaks(asked: Asked, reply: Reply) -> None:
        if not is_probe(asked):
            await reply.json({"error": "out of memory"}, 500)
        else:
            await answer_once(asked, reply)

    bad = ollama()
    bad.pages["/v1/chat/completions"] = breaks
    async with bad.running(), ollama().running() as good, world() as w:
        broken = await w.start(engine_on(bad))
        client = await w.start(None, broken)
        await settle(client, lambda: client.status()["records"] == 2)
        # Known later, so that the first is asked first.
        whole = await w.start(engine_on(good), client)
        await settle(client, lambda: client.status()["records"] == 3)
        for _ in range(4):
            events = await ask(client, question(max_tokens=40))
            done = events[-1]
            assert isinstance(done, JobDone), done
            assert done.receipt.provider == whole.node_id
            assert text_of(events) == "".join(ANSWER)
            if any(isinstance(event, JobAccepted) and event.provider == broken.node_id for event in events):
                break
        else:
            raise AssertionError("the provider whose server breaks was never asked")
        await assert_idle(whole, client)


async def test_a_server_that_is_gone_is_not_in_the_heartbeat_and_is_again_when_it_is_back() -> None:
    async with ollama().running() as server, world() as w:
        provider = await w.start(engine_on(server))
        pages = dict(server.pages)
        assert provider.status()["models"] == ["qwen2.5:7b"]
        server.pages.clear()
        await settle(provider, lambda: provider.status()["models"] == [])
        assert "status 404" in provider.status()["engine"]["last_error"]
        server.pages.update(pages)
        await settle(provider, lambda: provider.status()["models"] == ["qwen2.5:7b"])
