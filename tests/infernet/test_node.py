"""Nodes against each other in one process, on a virtual clock: the driver, the carrier and the node as one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.own_addresses import multiaddr, peer_of
from protocol import constants as c
from protocol.effects import JobAccepted, JobDone, JobFailed, JobQueued, JobResumed, JobText
from protocol.errors import LocalProtocolError, Refusal
from protocol.ids import peer_id
from protocol.records import Outcome
from tests.helpers_engine import PacedEngine
from tests.helpers_node import ask, assert_idle, key_of, pair, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def text_of(events: list[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, JobText))


async def test_an_answer_streams_and_ends_with_a_receipt() -> None:
    async with world() as w:
        provider, _, client = await pair(w, answer_tokens=50)
        events = await ask(client, question(max_tokens=40))
        assert isinstance(events[0], JobAccepted)
        assert events[0].provider == provider.node_id
        done = events[-1]
        assert isinstance(done, JobDone)
        assert (done.receipt.outcome, done.receipt.output_tokens) == (Outcome.LENGTH, 40)
        assert text_of(events).startswith("every word of this änswer is one token 🙂 and\nevery")
        await assert_idle(provider, client)


async def test_a_killed_provider_without_a_substitute_is_told_of_after_a_search() -> None:
    async with world() as w:
        provider, _, client = await pair(w, tokens_per_s=10)
        async with client.ask(question()) as events:
            collected = []
            async for event in events:
                collected.append(event)
                if isinstance(event, JobText) and len(collected) == 5:
                    w.kill(provider)
                    killed_s = trio.current_time()
        assert isinstance(collected[-1], JobFailed)
        assert collected[-1].code is Refusal.PEER_LOST
        assert trio.current_time() - killed_s < c.SEARCH_DEADLINE_S + 1
        await assert_idle(client)


async def test_a_provider_that_is_killed_in_the_middle_is_replaced_and_the_answer_is_whole() -> None:
    async with world() as w:
        providers = [await w.start(PacedEngine(tokens_per_s=20)) for _ in range(2)]
        client = await w.start(None, *providers)
        await settle(client, lambda: client.status()["records"] == 3)
        collected: list[object] = []
        killed_s = 0.0
        async with client.ask(question(max_tokens=60)) as events:
            async for event in events:
                collected.append(event)
                if isinstance(event, JobText) and not killed_s and event.output_tokens >= 20:
                    killed_s = trio.current_time()
                    w.kill(next(node for node in providers if node.node_id == collected[0].provider))
                if isinstance(event, JobResumed):
                    assert trio.current_time() - killed_s < 1
        done = collected[-1]
        assert isinstance(done, JobDone)
        assert text_of(collected) == text_of(await ask(client, question(max_tokens=60)))
        assert sum(part.output_tokens for part in done.served) == 60
        assert [part.provider for part in done.served] == [collected[0].provider, done.receipt.provider]
        await assert_idle(client)


async def test_a_node_that_drains_finishes_what_runs_and_then_ends() -> None:
    async with world() as w:
        provider, paced, client = await pair(w, tokens_per_s=10)
        events = []
        async with client.ask(question(max_tokens=50)) as answer:
            async for event in answer:
                events.append(event)
                if isinstance(event, JobText) and event.output_tokens == 5:
                    assert provider.status()["ends_in_s"] is None
                    provider.drain(30.0)
                    assert 29 < provider.status()["ends_in_s"] <= 30
                    refused = (await ask(client, question(provider=provider.node_id)))[-1]
                    assert isinstance(refused, JobFailed)
                    assert refused.code is Refusal.DRAINING
                    assert provider.jobs_left().running == 1
                    assert 29 < provider.jobs_left().ends_in_s <= 30
        assert isinstance(events[-1], JobDone)
        await settle(client, lambda: not client.driver.connected_peers())
        assert paced.statistics().runs_active == 0


async def test_a_node_that_drains_takes_no_question_of_its_own() -> None:
    async with world() as w:
        node = await w.start(PacedEngine())
        node.drain(30.0)
        with pytest.raises(LocalProtocolError, match="stopping"):
            await ask(node, question())


async def test_jobs_that_do_not_end_are_cut_at_the_limit_of_draining() -> None:
    async with world() as w:
        provider, _, client = await pair(w, tokens_per_s=10)
        began_s = 0.0
        async with client.ask(question(timeout_s=60.0)) as events:
            async for event in events:
                if isinstance(event, JobText) and not began_s:
                    began_s = trio.current_time()
                    provider.drain(100.0)
                    provider.drain(8.0)
                    provider.drain(50.0)
        assert isinstance(event, JobFailed)
        assert event.code is Refusal.SHUTDOWN
        assert 8 <= trio.current_time() - began_s < 8 + c.SEARCH_DEADLINE_S + 1


async def test_a_killed_asker_frees_the_slot() -> None:
    async with world() as w:
        provider, paced, client = await pair(w, tokens_per_s=10)
        async with client.ask(question()) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
            w.kill(client)
            await settle(provider, lambda: provider.status()["jobs_running"] == 0)
            assert paced.statistics().runs_active == 0


async def test_a_broken_engine_fails_its_jobs_and_not_the_node() -> None:
    async with world() as w:
        provider, paced, client = await pair(w, tokens_per_s=10)
        async with client.ask(question()) as events:
            collected = []
            async for event in events:
                collected.append(event)
                if isinstance(event, JobText) and len(collected) == 3:
                    paced.break_down()
        assert isinstance(collected[-1], JobFailed)
        assert collected[-1].code is Refusal.ENGINE_FAILED
        assert provider.status()["models"] == []
        paced.recover()
        await settle(client, lambda: any(peer["models"] for peer in client.peers()))
        events = await ask(client, question(max_tokens=5, provider=provider.node_id))
        assert isinstance(events[-1], JobDone)
        await assert_idle(provider, client)


async def test_before_the_first_token_the_next_provider_takes_over() -> None:
    async with world() as w:
        providers = [await w.start(PacedEngine(prompt_tokens_per_s=0.05)) for _ in range(2)]
        client = await w.start(None, *providers)
        await settle(client, lambda: client.status()["records"] == 3)
        accepted: dict[bytes, float] = {}
        async with client.ask(question(max_tokens=5)) as events:
            async for event in events:
                if isinstance(event, JobAccepted):
                    accepted[event.provider] = trio.current_time()
                    if len(accepted) == 1:
                        w.kill(next(node for node in providers if node.node_id == event.provider))
        assert isinstance(event, JobDone)
        first_s, second_s = accepted.values()
        assert second_s - first_s < 2


async def test_stopping_ends_running_jobs_with_a_reason() -> None:
    async with world() as w:
        provider, _, client = await pair(w, tokens_per_s=10)
        async with client.ask(question()) as events:
            collected = []
            async for event in events:
                collected.append(event)
                if isinstance(event, JobText):
                    provider.stop()
        assert isinstance(collected[-1], JobFailed)
        assert collected[-1].code is Refusal.SHUTDOWN


async def test_nobody_serves_is_said_within_seconds() -> None:
    async with world() as w:
        client = await w.start(None)
        events = await ask(client, question(model="nobody-has-this"))
        assert isinstance(events[-1], JobFailed)
        assert events[-1].code is Refusal.NO_PROVIDER
        assert "nobody-has-this" in events[-1].text
        assert trio.current_time() < 10


async def test_a_full_provider_says_so() -> None:
    async with world() as w:
        provider, _, client = await pair(w, slots=1, tokens_per_s=10)
        async with client.ask(question()) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
            failed = (await ask(client, question(provider=provider.node_id, timeout_s=5.0)))[-1]
        assert isinstance(failed, JobFailed)
        assert failed.code is Refusal.BUSY
        assert failed.retry_after_ms > 5_000


async def test_a_question_to_a_full_provider_waits_and_hears_where_it_stands() -> None:
    async with world() as w:
        provider, _, client = await pair(w, slots=1, tokens_per_s=10)
        answers: dict[int, list[object]] = {}

        async def one(number: int) -> None:
            answers[number] = await ask(client, question(max_tokens=40))

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(one, number)
        assert all(isinstance(events[-1], JobDone) for events in answers.values())
        queued = [event for events in answers.values() for event in events if isinstance(event, JobQueued)]
        assert queued
        assert {event.position for event in queued} == {0}
        assert queued[-1].wait_ms < queued[0].wait_ms
        await assert_idle(provider, client)


async def test_strangers_jobs_are_refused_unless_free_for_all() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), free_for="known")
        client = await w.start(None, provider)
        failed = (await ask(client, question()))[-1]
        assert isinstance(failed, JobFailed)
        assert failed.code is Refusal.NOT_FREE


async def test_those_on_the_allow_list_are_served() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), free_for="known", allow=(key_of(2).node,))
        client = await w.start(None, provider)
        assert isinstance((await ask(client, question(max_tokens=3)))[-1], JobDone)


async def test_a_lost_connection_to_a_wanted_peer_comes_back() -> None:
    async with world() as w:
        provider, _, client = await pair(w)
        await settle(client, lambda: client.status()["peers"] == 1)
        w.network.cut(provider.node_id, client.node_id)
        await settle(client, lambda: client.status()["peers"] == 0)
        w.network.heal(provider.node_id, client.node_id)
        await settle(client, lambda: client.status()["peers"] == 1)


def test_addresses_name_their_node() -> None:
    node = key_of(1).node
    assert peer_of(multiaddr("192.0.2.1", 46337, node)) == node
    assert multiaddr("2001:db8::1", 1, node).startswith("/ip6/2001:db8::1/tcp/1/p2p/16Uiu2HA")
    assert multiaddr("node.example", 1, node) == f"/dns/node.example/tcp/1/p2p/{peer_id(node)}"


@pytest.mark.parametrize("address", ["", "192.0.2.1:46337", "/ip4/192.0.2.1/tcp/46337", "/ip4/1.2.3.4/tcp/1/p2p/Qm"])
def test_an_address_without_a_node_is_refused(address: str) -> None:
    with pytest.raises(LocalProtocolError):
        peer_of(address)
