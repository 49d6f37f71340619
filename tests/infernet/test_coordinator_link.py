"""The node's relation with a real coordinator process: registration, link, pinned key, clocks, restarts."""

from __future__ import annotations

import contextlib
import functools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket

from infernet.carriers.link import LinkCarrier
from infernet.config import Config
from infernet.coordinator_client import CoordinatorError, RequestSigner, fetch_key
from infernet.driver import wall_ms
from infernet.node import Node
from infernet.transport.libp2p_host import Libp2pTransport
from protocol.constants import PROTOCOLS
from protocol.effects import JobDone
from protocol.envelope import SigningKey
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.records import Role
from tests.helpers_engine import PacedEngine
from tests.helpers_market import Coordinator
from tests.helpers_node import ask, config_of_nobody, key_of, question

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path / "coordinator")
    yield running
    running.close()


def make_node(
    coordinator: Coordinator,
    *,
    pinned: NodeId | None = None,
    ahead_ms: int = 0,
    role: Role = Role.PROVIDER,
    listen_hosts: tuple[str, ...] | None = None,
) -> Node:
    """A node, with a paced engine if a provider. Without `listen_hosts` the link is its only connection."""
    nowhere = Path("/nonexistent")
    config = Config(
        config_dir=nowhere,
        state_dir=nowhere,
        data_dir=nowhere,
        name="test",
        role=role,
        coordinator_url=coordinator.url,
        coordinator_key=pinned or coordinator.key,
        p2p_enabled=False,
    )
    key = SigningKey(secrets.token_bytes(32), secrets.token_bytes)
    engine = PacedEngine(tokens_per_s=200) if role is Role.PROVIDER else None
    transport = None
    if listen_hosts is not None:
        transport = Libp2pTransport(
            key.secret_bytes(),
            agent="test",
            protocols=PROTOCOLS,
            randomness=random.Random(1),
            listen_hosts=listen_hosts,
            port=0,
            allow_private=True,
        )
    return Node(
        config,
        key,
        transport=transport,
        engine=engine,
        clock_ms=lambda: wall_ms() + ahead_ms,
        rng=random.Random(secrets.randbits(32)),
    )


def link(node: Node) -> dict[str, str]:
    status: dict[str, str] = node.status()["coordinator"]
    return status


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(time.sleep, 0.02)


async def chat(coordinator: Coordinator) -> list[str]:
    """Ask over HTTP; the names of the events of the stream."""
    body = {"messages": [{"role": "user", "content": "hello"}], "maxTokens": 5}
    async with httpx.AsyncClient(base_url=coordinator.url, timeout=30) as http:
        answer = await http.post("/api/chat", json=body)
        assert answer.status_code == 200, answer.text
        stream = await http.get(answer.json()["streamUrl"])
    return [line.partition(": ")[2] for line in stream.text.splitlines() if line.startswith("event: ")]


async def test_a_linked_node_is_listed_and_answers_the_public_chat(coordinator: Coordinator) -> None:
    node = make_node(coordinator)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await until(lambda: link(node)["state"] == "connected")
        async with httpx.AsyncClient(base_url=coordinator.url, timeout=30) as http:
            while not (rows := (await http.get("/api/models")).json()["data"]):
                await trio.lowlevel.checkpoint()
        assert [row["name"] for row in rows] == ["paced"]
        names = await chat(coordinator)
        assert names[:2] == ["job", "meta"]
        assert names[-1] == "done"
        assert "token" in names
        await until(lambda: node.status()["jobs_running"] == 0)
        await until(lambda: node.status()["open_streams"] == 0)
        node.stop()


async def test_a_client_finds_a_provider_by_the_coordinators_list_and_asks_it_directly(
    coordinator: Coordinator,
) -> None:
    provider = make_node(coordinator, listen_hosts=("127.0.0.1",))
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await until(lambda: coordinator.models() == ["paced"])
        client = make_node(coordinator, role=Role.CLIENT, listen_hosts=())
        await nursery.start(client.run)
        await until(lambda: provider.node_id.hex() in [peer["node_id"] for peer in client.peers()])
        assert client.status()["coordinator"] is None, "a client needs no link"
        assert client.status()["coordinator_url"] == coordinator.url, "but has its money there"
        events = await ask(client, question(max_tokens=3))
        assert isinstance(events[-1], JobDone)
        assert events[-1].receipt.provider == provider.node_id
        nursery.cancel_scope.cancel()


async def test_the_link_comes_back_when_the_coordinator_does(coordinator: Coordinator) -> None:
    node = make_node(coordinator)
    times_told: list[bool] = []
    node.on_linked = lambda: times_told.append(node.is_linked)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await until(lambda: link(node)["state"] == "connected")
        assert node.is_linked
        coordinator.kill()
        await until(lambda: link(node)["state"] != "connected")
        assert link(node)["last_error"]
        assert node.status()["peers"] == 0
        coordinator.start()
        await until(lambda: link(node)["state"] == "connected")
        assert times_told == [True, True]
        assert (await chat(coordinator))[-1] == "done"
        node.stop()


async def test_another_key_than_the_pinned_one_is_refused(coordinator: Coordinator) -> None:
    node = make_node(coordinator, pinned=key_of(1).node)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await until(lambda: bool(link(node)["last_error"]))
        assert link(node)["state"] != "connected"
        assert link(node)["last_error"].endswith("is --coordinator-key its key?")
        assert node.status()["peers"] == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("ahead_ms", "words"), [(300_000, "300 s ahead"), (-300_000, "300 s behind")])
async def test_a_wrong_clock_is_named_with_what_to_do(coordinator: Coordinator, ahead_ms: int, words: str) -> None:
    node = make_node(coordinator, ahead_ms=ahead_ms)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await until(lambda: bool(link(node)["last_error"]))
        assert words in link(node)["last_error"]
        assert "set it" in link(node)["last_error"]
        nursery.cancel_scope.cancel()


async def test_the_key_that_is_pinned_at_init_is_the_one_served(coordinator: Coordinator) -> None:
    assert await fetch_key(coordinator.url) == coordinator.key


async def test_no_coordinator_there_is_one_line() -> None:
    with pytest.raises(CoordinatorError, match=r"cannot be reached") as refused:
        await fetch_key("http://127.0.0.1:9")
    assert "\n" not in str(refused.value)


class ScriptedLink:
    """The other end of a link on a port of its own: sends these messages to whoever comes, then waits."""

    def __init__(self, *messages: bytes | str) -> None:
        self._messages = messages

    async def serve(self, request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept()
        for message in self._messages:
            await socket.send_message(message)
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            await socket.get_message()


@pytest.mark.parametrize("message", [b"", b"\x90", b"\xc1" * 100, "text", bytes(70_000)])
async def test_a_hello_that_proves_nothing_ends_the_link(message: bytes | str) -> None:
    node = Node(config_of_nobody(), key_of(2), transport=None, engine=None)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(
                trio_websocket.serve_websocket, ScriptedLink(message).serve, "127.0.0.1", 0, ssl_context=None
            )
        )
        url = f"http://127.0.0.1:{server.port}"
        signer = RequestSigner(key_of(2), key_of(1).node, wall_ms)
        carrier = LinkCarrier(url, signer, node.driver, random.Random(1), dict)
        with pytest.raises((RemoteProtocolError, trio_websocket.ConnectionClosed)), trio.fail_after(10):
            await carrier.connect_once()
        assert not carrier.connected
        nursery.cancel_scope.cancel()
