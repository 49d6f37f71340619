"""A node that answers its owner itself: over the real protocol, for nothing, first, and seen by nobody else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from msgspec.structs import asdict
from trio.testing import MockClock

from infernet.ipc.why import WhyRequest
from infernet.node import Node
from infernet.settings.models import ModelSettings
from protocol.constants import JOB_PROTOCOL
from protocol.counting import JobCounts
from protocol.effects import JobAccepted, JobDone, JobFailed, JobQueued, JobText
from protocol.errors import Refusal
from protocol.records import Role
from tests.helpers_engine import PacedEngine
from tests.helpers_node import (
    ask,
    assert_idle,
    config_of_nobody,
    key_of,
    pair,
    question,
    settle,
    virtual_wall_ms,
    world,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def job_bytes(node: Node) -> int:
    """Bytes of jobs that crossed a connection."""
    traffic: Any = node.status()["traffic"]
    return sum(traffic[way].get(JOB_PROTOCOL, 0) for way in ("in", "out"))


async def test_it_answers_itself_and_nobody_else_sees_a_thing() -> None:
    async with world() as w:
        node, _, client = await pair(w, answer_tokens=50)
        await settle(client, lambda: client.status()["records"] == 2)
        before = [asdict(entry.heartbeat) for entry in client.driver.peer.directory.entries()]
        for _ in range(5):
            events = await ask(node, question(max_tokens=40, provider=node.node_id))
            assert isinstance(events[0], JobAccepted)
            assert events[0].provider == node.node_id
            assert isinstance(events[-1], JobDone)
            assert sum(event.text.count(" ") for event in events if isinstance(event, JobText)) > 30
        await assert_idle(node, client)
        assert node.status()["open_streams"] == client.status()["open_streams"]
        counts = node.status()["counts"]
        assert (counts["asked"]["answered"], counts["asked"]["output_tokens"]) == (5, 200)
        assert counts["jobs"] == asdict(JobCounts())
        assert job_bytes(node) == job_bytes(client) == 0
        assert [row["ourselves"] for row in node.peers() if row["connected"]] == [False]
        assert [asdict(entry.heartbeat) for entry in client.driver.peer.directory.entries()] == before
        assert node.why(WhyRequest())["asking"]["summary"] == "this node answers chat jobs itself"


async def test_it_answers_to_the_other_names_of_its_model() -> None:
    async with world() as w:
        settings = (ModelSettings(name="m", aliases=("little",)),)
        node = await w.start(PacedEngine(name="m", answer_tokens=3), model_settings=settings)
        assert node.status()["aliases"] == {"m": ["little"]}
        events = await ask(node, question(provider=node.node_id, model="little"))
        assert isinstance(events[-1], JobDone)
        assert isinstance(events[0], JobAccepted)
        assert events[0].model == "m"


async def test_it_is_no_experience_and_nothing_to_report() -> None:
    async with world() as w:
        engine = PacedEngine(tokens_per_s=10)
        node = await w.start(engine)
        assert isinstance((await ask(node, question(max_tokens=20, provider=node.node_id)))[-1], JobDone)
        async with node.ask(question(provider=node.node_id)) as events:
            async for event in events:
                if isinstance(event, JobText):
                    engine.break_down()
        assert isinstance(event, JobFailed)
        experience = node.driver.peer.experience
        account = experience.reputation.account(node.node_id, engine.offer.name, virtual_wall_ms())
        assert (account.ok, account.bad, account.refused) == (0, 0, 0)
        assert experience.reporting.next_deadline() is None
        assert not node.driver.peer.directory.is_useful(node.node_id)


async def test_what_runs_for_the_owner_does_not_run_for_others() -> None:
    async with world() as w:
        node = await w.start(PacedEngine(tokens_per_s=10, slots=1))
        async with node.ask(question(provider=node.node_id)) as first:
            assert isinstance(await anext(first), JobAccepted)
            async with node.ask(question(provider=node.node_id)) as second:
                assert isinstance(await anext(second), JobQueued)
                status = node.status()
                assert (status["jobs_running"], status["jobs_waiting"], status["jobs_asked"]) == (0, 0, 2)
                assert (node.jobs_left().running, node.jobs_left().asked) == (0, 2)
                assert node.live()["jobs"] == []
                # The slot is taken, whoever has it.
                assert node.driver.peer.statistics().jobs_own == 2
                facts = [fact["text"] for fact in node.why(WhyRequest())["serving"]["facts"]]
                assert "all its 1 slots are taken at this moment" in facts
        await settle(node, lambda: node.driver.peer.statistics().jobs_own == 0)
        assert node.status()["counts"]["asked"]["cancelled"] == 2
        assert node.status()["counts"]["jobs"] == asdict(JobCounts())
        await assert_idle(node)


@pytest.mark.parametrize("free_for", ["nobody", "known"])
async def test_it_costs_nothing_whatever_others_pay_and_whatever_may_be_spent(free_for: str) -> None:
    async with world() as w:
        node = await w.start(PacedEngine(prices=(1_000_000, 1_000_000, 1)), free_for=free_for)
        events = await ask(node, question(max_tokens=5, provider=node.node_id, spend_uusd_max=10_000))
        assert isinstance(events[-1], JobDone)
        assert [part.paid_uusd for part in events[-1].served] == [0]


async def test_a_node_without_any_port_answers_itself_too() -> None:
    key = key_of(1)
    node = Node(
        config_of_nobody(role=Role.PROVIDER),
        key,
        transport=None,
        engine=PacedEngine(),
        clock_ms=virtual_wall_ms,
        rng=random.Random(1),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        assert isinstance((await ask(node, question(max_tokens=5, provider=node.node_id)))[-1], JobDone)
        node.stop()


async def test_a_long_question_arrives_whole() -> None:
    async with world() as w:
        node = await w.start(PacedEngine(context_tokens=200_000))
        events = await ask(node, question("word " * 40_000, max_tokens=5, provider=node.node_id))
        assert isinstance(events[0], JobAccepted)
        assert events[0].prompt_tokens == 40_000
        assert isinstance(events[-1], JobDone)


async def test_leaving_stops_the_engine_at_once() -> None:
    async with world() as w:
        engine = PacedEngine(tokens_per_s=10)
        node = await w.start(engine)
        async with node.ask(question(provider=node.node_id)) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
        left_s = trio.current_time()
        await settle(node, lambda: engine.statistics().runs_active == 0)
        assert trio.current_time() - left_s < 1
        await assert_idle(node)


async def test_the_owner_goes_before_strangers_who_wait() -> None:
    async with world() as w:
        node, _, client = await pair(w, slots=1, tokens_per_s=10)
        ends: list[str] = []

        async def keep(who: str, asker: Node) -> None:
            assert isinstance((await ask(asker, question(max_tokens=20, provider=node.node_id)))[-1], JobDone)
            ends.append(who)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "runs", client)
            await settle(node, lambda: node.status()["jobs_running"] == 1)
            nursery.start_soon(keep, "stranger", client)
            await settle(node, lambda: node.status()["jobs_waiting"] == 1)
            nursery.start_soon(keep, "owner", node)
        assert ends == ["runs", "owner", "stranger"]


async def test_hours_are_for_others() -> None:
    async with world() as w:
        # It is 22:13 on the virtual clock.
        node = await w.start(PacedEngine(), serve_hours=("00:00-07:00",), serve_zone="UTC")
        client = await w.start(None, node)
        await settle(client, lambda: client.driver.peer.directory.get(node.node_id) is not None)
        refused = (await ask(client, question(provider=node.node_id)))[-1]
        assert isinstance(refused, JobFailed)
        assert refused.code is Refusal.DRAINING
        assert isinstance((await ask(node, question(max_tokens=5, provider=node.node_id)))[-1], JobDone)


async def test_a_node_that_drains_answers_what_its_owner_has_asked_before() -> None:
    async with world() as w:
        node = await w.start(PacedEngine(slots=1, tokens_per_s=10))
        ends: list[object] = []

        async def keep() -> None:
            ends.append((await ask(node, question(max_tokens=20, provider=node.node_id)))[-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            nursery.start_soon(keep)
            await settle(node, lambda: node.driver.peer.statistics().jobs_own == 2)
            node.drain(30.0)
            assert not ends
        assert [type(end) for end in ends] == [JobDone, JobDone]
        with trio.fail_after(10):
            await node.wait_stopping()


async def test_a_model_that_it_does_not_serve_is_not_sought_elsewhere() -> None:
    async with world() as w:
        node = await w.start(PacedEngine("mine"))
        other = await w.start(PacedEngine("theirs"), node)
        await settle(node, lambda: node.status()["records"] == 2)
        failed = (await ask(node, question(model="theirs", provider=node.node_id)))[-1]
        assert isinstance(failed, JobFailed)
        assert failed.code is Refusal.NO_MODEL
        assert isinstance((await ask(node, question(model="theirs", max_tokens=3)))[-1], JobDone)
        assert other.status()["counts"]["jobs"]["taken"] == 1
