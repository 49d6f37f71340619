"""Nodes that tell each other what they decided, on a virtual clock: what an owner and an asker see afterwards."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.ipc.why import WhyRequest
from infernet.node import Node
from protocol import events as e
from protocol.effects import JobFailed
from protocol.reporting import REPORT_INTERVAL_S
from tests.helpers_engine import PacedEngine
from tests.helpers_node import World, ask, question, settle, world

pytestmark = pytest.mark.anyio

JOBS = 60
ROUND_S = 1.5 * REPORT_INTERVAL_S


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def market(w: World, **asker: object) -> tuple[Node, Node, Node]:
    """A fast provider, one that takes ten times as long, and an asker that knows both."""
    fast = await w.start(PacedEngine(tokens_per_s=50))
    slow = await w.start(PacedEngine(tokens_per_s=5))
    client = await w.start(None, fast, slow, **asker)
    await settle(client, lambda: client.status()["records"] == 3)
    return fast, slow, client


@pytest.mark.slow
async def test_owners_learn_why_jobs_went_elsewhere_and_askers_whom_they_prefer() -> None:
    async with world() as w:
        fast, slow, client = await market(w)
        for _ in range(JOBS):
            await ask(client, question(max_tokens=15))
        asking = client.why(WhyRequest())["asking"]
        assert [node["node_id"] for node in asking["nodes"][:2]] == [fast.node_id.hex(), slow.node_id.hex()]
        assert client.why(WhyRequest())["serving"] is None
        best = asking["nodes"][0]
        assert best["own_ok"] > JOBS / 2
        assert 35 < best["tokens_per_s"] < 60

        before = slow.why(WhyRequest())["serving"]
        assert before["summary"].startswith("nobody has told this node yet")
        await trio.sleep(ROUND_S)
        said = slow.why(WhyRequest())["serving"]
        assert said["hour"]["askers"] == 1
        assert said["hour"]["considered"] >= JOBS
        assert said["reasons"][0]["name"] == "outranked"
        preferred = fast.why(WhyRequest())["serving"]["hour"]
        assert preferred["chosen"] > 3 * max(1, said["hour"]["chosen"])
        assert preferred["jobs_done"] == preferred["chosen"]
        assert preferred["jobs_done"] + said["hour"]["jobs_done"] == JOBS


@pytest.mark.slow
async def test_a_provider_that_no_asker_reaches_hears_of_it_by_way_of_others() -> None:
    """The asker and the provider never meet: the report comes along the tree."""
    async with world() as w:
        hub = await w.start(None)
        provider = await w.start(PacedEngine(), hub)
        asker = await w.start(None, hub)
        await settle(asker, lambda: asker.status()["records"] == 3)
        assert isinstance((await ask(asker, question()))[-1], JobFailed)
        (verdict,) = [
            node for node in asker.why(WhyRequest())["asking"]["nodes"] if node["node_id"] == provider.node_id.hex()
        ]
        assert verdict["reason"]["name"] == "unreachable"
        await trio.sleep(ROUND_S)
        assert asker.node_id not in provider.driver.connected_peers()
        heard = provider.why(WhyRequest())["serving"]
        assert heard["hour"]["askers"] == 1
        (reason,) = heard["reasons"]
        assert (reason["name"], reason["hour"]) == ("unreachable", 1)
        assert "link a coordinator" in reason["advice"]


async def test_whoever_is_told_not_to_report_does_not() -> None:
    async with world() as w:
        fast, slow, client = await market(w, reports=False)
        await ask(client, question(max_tokens=20))
        await trio.sleep(ROUND_S)
        for provider in (fast, slow):
            assert provider.why(WhyRequest())["serving"]["day"]["askers"] == 0


async def test_a_provider_that_serves_nothing_yet_says_why() -> None:
    async with world() as w:
        node = await w.start(PacedEngine(), free_for="nobody")
        node.driver.command(e.Drain())
        texts = [fact["text"] for fact in node.why(WhyRequest())["serving"]["facts"]]
        assert texts == [
            "it takes no new jobs: it is stopping",
            "nobody is connected to it",
            "it publishes no address, so only who is connected can ask it",
            "it runs free jobs for nobody, and nothing can be paid yet",
        ]
