"""infernet/daemon.py: what the socket asks reaches the node, and nothing of a job reaches the log.

The process itself, with its signals, is tested in cli/test_start_stop.py.
"""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from infernet import log
from infernet.answers import AnswerEvent
from infernet.daemon import handlers, status_of, until_loaded
from infernet.host.notify import Notifier
from infernet.ipc.server import ChatRequest, ChatTurn
from infernet.node import Node
from protocol.effects import JobAccepted, JobDone, JobFailed
from protocol.errors import LocalProtocolError
from protocol.ids import npub, peer_id
from tests.helpers_engine import LateEngine, PacedEngine
from tests.helpers_log import logging_restored
from tests.helpers_node import key_of, world

pytestmark = pytest.mark.anyio

QUESTION = "canary-in-the-question"
SYSTEM = "canary-in-the-instructions"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def request(**changes: object) -> ChatRequest:
    turns = (ChatTurn("system", SYSTEM), ChatTurn("user", QUESTION))
    fields = {"messages": turns, "max_tokens": 20, **changes}
    return ChatRequest(**fields)  # type: ignore[arg-type]  # the fields are the test's


async def chat(node: Node, asked: ChatRequest) -> list[AnswerEvent]:
    async with handlers(node).chat(asked) as events:
        return [event async for event in events]


async def test_a_chat_is_asked_as_the_request_says() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(name="one"))
        other = await w.start(PacedEngine(name="two"))
        client = await w.start(None, provider, other)
        for node, name in ((provider, "one"), (other, "two")):
            for asked in (request(provider=npub(node.node_id)), request(provider=node.node_id.hex(), model=name)):
                events = await chat(client, asked)
                assert isinstance(events[0], JobAccepted)
                assert (events[0].provider, events[0].model) == (node.node_id, name)
                assert isinstance(events[-1], JobDone)
                assert events[-1].receipt.output_tokens == 20


async def test_a_chat_goes_the_way_that_the_request_says() -> None:
    async with world() as w:
        aggregator = await w.start(None, forward=True)
        provider = await w.start(PacedEngine(answer_tokens=5), aggregator)
        client = await w.start(None, aggregator, provider)
        for via in (npub(aggregator.node_id), f"/ip4/192.0.2.1/tcp/1/p2p/{peer_id(aggregator.node_id)}"):
            events = await chat(client, request(via=via))
            assert isinstance(events[0], JobAccepted)
            assert (events[0].provider, events[0].via) == (provider.node_id, aggregator.node_id)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"provider": "somebody"}, "provider must be a public key"),
        ({"peer": "127.0.0.1:46337"}, "peer must be like /ip4/"),
        ({"peer": "/ip4/127.0.0.1/tcp/46337"}, "/p2p/ part"),
        ({"via": "somebody"}, "via must be a public key"),
        ({"via": "/ip4/127.0.0.1/tcp/46337"}, "/p2p/ part"),
    ],
)
async def test_who_is_to_answer_must_be_named_properly(changes: dict[str, object], complaint: str) -> None:
    async with world() as w:
        client = await w.start(None)
        with pytest.raises(LocalProtocolError, match=complaint):
            await chat(client, request(**changes))


async def test_status_peers_and_shutdown_are_the_nodes() -> None:
    async with world() as w:
        node = await w.start(PacedEngine())
        asked = handlers(node)
        assert asked.status() == status_of(node) == {"pid": os.getpid(), **node.status()}
        assert [peer["ourselves"] for peer in asked.peers()] == [True]
        asked.shutdown()


async def test_a_service_manager_hears_that_a_node_is_ready_which_loads_and_what(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        notifier = Notifier(str(tmp_path / "notify"))
        loading, answers = trio.Event(), list[bool]()

        async def wait(node: Node) -> None:
            answers.append(await until_loaded(node, "provider one", notifier, loading.set))

        async with world() as w, trio.open_nursery() as nursery:
            engine = LateEngine("large")
            nursery.start_soon(wait, await w.start(engine, until_loaded=False))
            await loading.wait()
            assert "READY=1" in (said := manager.recv(4096).decode().splitlines())
            assert "STATUS=provider one, loading large" in said
            assert not answers
            engine.load()
            await trio.testing.wait_all_tasks_blocked()
            assert answers == [True]
            assert manager.recv(4096).decode() == "STATUS=provider one"
            loading = trio.Event()
            await wait(await w.start(PacedEngine()))
            assert manager.recv(4096).decode().splitlines()[-1] == "STATUS=provider one"
            assert not loading.is_set()


async def test_nothing_of_a_job_reaches_the_log_of_anybody() -> None:
    output = io.StringIO()
    with logging_restored():
        log.configure("debug", stream=output)
        async with world() as w:
            provider = await w.start(PacedEngine(answer_tokens=500))
            client = await w.start(None, provider)
            answered = await chat(client, request())
            refused = await chat(client, request(model="no such model", timeout_s=20))
            w.kill(provider)
            failed = await chat(client, request(provider=provider.node_id.hex(), timeout_s=20))
    assert isinstance(answered[-1], JobDone)
    assert isinstance(refused[-1], JobFailed)
    assert isinstance(failed[-1], JobFailed)
    written = output.getvalue()
    assert written.count("\n") > 0
    secrets = (QUESTION, SYSTEM, "änswer", *(key_of(number).secret_bytes().hex() for number in (1, 2)))
    for secret in secrets:
        assert secret not in written
