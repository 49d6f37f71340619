"""The command `subscribe`: what somebody who watches is told, how often, and what becomes of one who does not read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from infernet.ipc import server as ipc_server
from infernet.ipc.inspection import LIVE_JOBS_MAX, LIVE_PEERS_MAX
from infernet.ipc.server import SUBSCRIBERS_MAX
from protocol.effects import JobText
from tests.helpers_engine import PacedEngine
from tests.helpers_ipc import DEADLINE_S, FakeNode, Talker, served
from tests.helpers_node import pair, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s" / "daemon.sock"


class Watcher(Talker):
    """Subscribes, and reads when the test says so."""

    async def subscribe(self, payload: object = None) -> None:
        await self.send({"cmd": "subscribe", "payload": payload})


async def test_a_watcher_is_told_again_and_again_until_it_hangs_up(path: Path) -> None:
    node = FakeNode()
    async with served(node, path):
        async with await trio.open_unix_socket(path) as stream:
            watcher = Watcher(stream)
            await watcher.subscribe({"interval_s": 0.25})
            first = await watcher.reply()
            assert first == {"ok": True, "event": "snapshot", "data": node.live}
            node.live = {"status": {"name": "other"}, "jobs": [], "peers": []}
            second = await watcher.reply()
            assert second is not None
            assert second["data"]["status"]["name"] == "other"
        # Its place is free again.
        for _ in range(SUBSCRIBERS_MAX + 1):
            async with await trio.open_unix_socket(path) as stream:
                watcher = Watcher(stream)
                while True:
                    await watcher.subscribe()
                    reply = await watcher.reply()
                    if reply is not None and reply["ok"]:
                        break


@pytest.mark.parametrize(
    "payload", [{"interval_s": 0.1}, {"interval_s": 61}, {"interval_s": "often"}, {"every": 1}, [1]]
)
async def test_nobody_is_told_more_often_than_is_good_for_the_node(path: Path, payload: object) -> None:
    async with served(FakeNode(), path), await trio.open_unix_socket(path) as stream:
        watcher = Watcher(stream)
        await watcher.subscribe(payload)
        assert (await watcher.reply() or {})["error"] == "bad-payload"


async def test_there_is_a_most_of_watchers(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(served(FakeNode(), path))
        replies = []
        for _ in range(SUBSCRIBERS_MAX + 1):
            watcher = Watcher(await stack.enter_async_context(await trio.open_unix_socket(path)))
            await watcher.subscribe()
            replies.append(await watcher.reply())
        assert [reply is not None and reply["ok"] for reply in replies] == [True] * SUBSCRIBERS_MAX + [False]
        assert replies[-1] == {"ok": False, "error": "too-many-subscribers"}


async def test_one_that_does_not_read_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc_server, "SUBSCRIBER_TIMEOUT_S", 0.05)
    node = FakeNode()
    # More than the socket's buffers take.
    node.live = {"status": {}, "jobs": [], "peers": ["x" * 1000] * 2000}
    async with served(node, path), await trio.open_unix_socket(path) as stream:
        watcher = Watcher(stream)
        await watcher.subscribe({"interval_s": 0.25})
        with trio.fail_after(DEADLINE_S):
            # Nothing is read until the node has waited for longer than it does.
            await trio.testing.wait_all_tasks_blocked(0.5)
            # What was sent before is still read, and then comes the end in the middle of a line.
            with contextlib.suppress(trio.BrokenResourceError):
                while await watcher.reply() is not None:
                    pass
        async with await trio.open_unix_socket(path) as other:
            another = Watcher(other)
            node.live = {"status": {}, "jobs": [], "peers": []}
            await another.subscribe()
            assert (await another.reply() or {})["ok"]


class TestLive:
    """What a real node tells of itself, on a virtual clock."""

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, object]]:
        return ("trio", {"clock": MockClock(autojump_threshold=0)})

    async def test_a_job_that_runs_is_told_with_its_pace_and_nothing_of_its_words(self) -> None:
        async with world() as w:
            provider, _, client = await pair(w, tokens_per_s=10, slots=1)
            assert (provider.live()["jobs"], provider.live()["output_tokens"]) == ([], 0)
            async with client.ask(question("a secret", max_tokens=200)) as events:
                async for event in events:
                    if isinstance(event, JobText) and event.output_tokens >= 40:
                        break
                live = provider.live()
                (job,) = live["jobs"]
                assert (job["asker"], job["model"], job["waits"]) == (client.node_id.hex(), "paced", False)
                assert 40 <= job["output_tokens"] <= 45
                assert job["tokens_per_s"] == pytest.approx(10, rel=0.2)
                assert 3 < job["age_s"] < 10
                assert live["output_tokens"] == job["output_tokens"]
                assert "secret" not in json.dumps(live)
                assert "every" not in json.dumps(live)
                before = live["output_tokens"]
            await settle(provider, lambda: not provider.live()["jobs"])
            # What has ended still counts.
            assert provider.live()["output_tokens"] >= before - 20

    async def test_peers_are_told_with_how_they_are_connected(self) -> None:
        async with world() as w:
            provider = await w.start(PacedEngine())
            client = await w.start(None, provider)
            await settle(client, lambda: any(peer["connected"] for peer in client.live()["peers"]))
            (peer,) = client.live()["peers"]
            assert (peer["node_id"], peer["how"], peer["models"]) == (provider.node_id.hex(), "direct", ["paced"])
            assert client.live()["peers_left_out"] == client.live()["jobs_left_out"] == 0
            assert LIVE_PEERS_MAX * 1000 + LIVE_JOBS_MAX * 1000 < 256 * 1024
