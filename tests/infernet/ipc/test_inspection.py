"""What a node tells its owner of itself: what is there now, and nothing that is not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.ipc.why import WhyRequest
from protocol.effects import JobText
from protocol.ids import npub, peer_id
from tests.helpers_node import ask, assert_idle, pair, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_jobs_are_counted_while_they_run_on_both_sides() -> None:
    async with world() as w:
        provider, paced, client = await pair(w, slots=1, tokens_per_s=10)
        async with client.ask(question()) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
            serving, asking = provider.status(), client.status()
            assert (serving["jobs_running"], serving["jobs_asked"]) == (1, 0)
            assert (asking["jobs_running"], asking["jobs_asked"]) == (0, 1)
            assert serving["engine"]["runs_active"] == paced.statistics().runs_active == 1
            assert asking["engine"] is None
        await assert_idle(provider, client)
        assert provider.status()["engine"]["runs_total"] == 1


async def test_it_says_who_it_is_and_for_how_long() -> None:
    async with world() as w:
        provider, _, _ = await pair(w)
        started_s = trio.current_time() - provider.status()["uptime_s"]
        await trio.sleep(100)
        status = provider.status()
        assert status["uptime_s"] == pytest.approx(trio.current_time() - started_s, abs=0.1)
        node = provider.node_id
        assert (status["node_id"], status["npub"], status["peer_id"]) == (node.hex(), npub(node), peer_id(node))
        assert (status["role"], status["addresses"]) == ("provider", provider.addresses())
        assert (status["coordinator"], status["coordinator_url"]) == (None, None), "it has none"


async def test_everybody_known_is_listed_with_whether_it_is_connected() -> None:
    async with world() as w:
        provider, _, client = await pair(w)
        await settle(client, lambda: any(not peer["ourselves"] for peer in client.peers()))
        [other] = [peer for peer in client.peers() if not peer["ourselves"]]
        assert (other["node_id"], other["connected"], other["role"]) == (provider.node_id.hex(), True, "provider")
        assert other["models"] == provider.status()["models"]
        assert other["says"] == {}
        assert client.status()["peers_known"] == 1, "its own record is no peer"


async def test_only_a_provider_says_why_it_gets_no_jobs() -> None:
    async with world() as w:
        provider, _, client = await pair(w)
        await ask(client, question(max_tokens=5))
        assert client.why(WhyRequest())["serving"] is None
        assert provider.why(WhyRequest())["serving"] is not None
