"""The socket's commands about money: what they take, what they give, and what a node without money says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.coordinator_client import CoordinatorRefused, CoordinatorUnreachable
from infernet.daemon import handlers
from infernet.ipc import client as ipc
from infernet.ipc.client import Refused
from infernet.ipc.server import ChatRequest, ChatTurn, serve
from infernet.node import Node
from infernet.store import StoreError
from protocol.errors import LocalProtocolError
from protocol.records import Role
from tests.helpers_ipc import FakeNode, served
from tests.helpers_node import config_of_nobody, key_of

pytestmark = pytest.mark.anyio


async def call(path: Path, command: str, payload: object = None) -> Any:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(lambda: ipc.call(path, command, payload, timeout_s=10))


@pytest.mark.parametrize(
    ("error", "text", "cause"),
    [
        (CoordinatorRefused(402, "too little", "insufficient_funds"), "too little", "insufficient_funds"),
        (CoordinatorRefused(500, "odd"), "odd", "refused"),
        (CoordinatorUnreachable("nobody there"), "nobody there", "unreachable"),
        (LocalProtocolError("no"), "no", "bad_request"),
        (StoreError("full"), "full", "bad_request"),
        (CoordinatorRefused(400, "two\nlines\x1b[31m", "c\nd"), "two lines", "c d"),
    ],
)
async def test_what_goes_wrong_is_one_line_with_a_name(tmp_path: Path, error: Exception, text: str, cause: str) -> None:
    node = FakeNode()
    node.money_answers = {"wallet": error}
    async with served(node, tmp_path / "s"):
        with pytest.raises(Refused) as raised:
            await call(tmp_path / "s", "money", {"ask": "wallet", "fields": {}})
    assert raised.value.code.startswith(text)
    assert "\n" not in raised.value.code
    assert raised.value.cause == cause


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        ("money", None),
        ("money", {"ask": "wallet"}),
        ("money", {"ask": 5, "fields": {}}),
        ("money", {"ask": "x" * 33, "fields": {}}),
        ("money", {"ask": "wallet", "fields": {"a": 1.5}}),
        ("money", {"ask": "wallet", "fields": {"a": []}}),
        ("close-leases", {"lease": "abc"}),
        ("close-leases", {"lease": "ab" * 31}),
        ("close-leases", {"lease": 5}),
        ("close-leases", {"other": 5}),
        ("close-leases", []),
    ],
)
async def test_a_payload_that_is_none_is_refused(tmp_path: Path, command: str, payload: object) -> None:
    node = FakeNode()
    async with served(node, tmp_path / "s"):
        with pytest.raises(Refused, match="bad-payload"):
            await call(tmp_path / "s", command, payload)
    assert (node.money_asked, node.closed) == ([], [])


async def test_a_node_without_a_coordinator_says_so(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(config_of_nobody(role=Role.CLIENT), key_of(1), transport=None, engine=None)
        await nursery.start(node.run)
        await nursery.start(serve, tmp_path / "s", handlers(node))
        for command, payload in (
            ("money", {"ask": "wallet", "fields": {}}),
            ("claim", None),
            ("close-leases", None),
        ):
            with pytest.raises(Refused, match="no coordinator holds money"):
                await call(tmp_path / "s", command, payload)
        with pytest.raises(Refused, match="can be asked for wallet"):
            await call(tmp_path / "s", "money", {"ask": "anything", "fields": {}})
        nursery.cancel_scope.cancel()


async def test_a_chat_may_cost_what_was_said_and_else_what_the_node_is_set_to(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(config_of_nobody(role=Role.CLIENT, spend_usd_max=5), key_of(1), transport=None, engine=None)
        await nursery.start(node.run)
        request = ChatRequest((ChatTurn("user", "hi"),), timeout_s=0.1)
        # Nothing can be paid here, so what the node is set to is not asked for, and what was said is refused.
        async with handlers(node).chat(request):
            pass
        with pytest.raises(LocalProtocolError, match="no coordinator holds money"):
            async with handlers(node).chat(ChatRequest(request.messages, spend_uusd_max=5)):
                pass
        nursery.cancel_scope.cancel()
