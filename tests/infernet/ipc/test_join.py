"""Joining over the node's socket: what is asked, what is refused, and real nodes that are connected afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.daemon import handlers
from infernet.ipc import client as ipc
from infernet.ipc.server import JoinRequest
from protocol.errors import LocalProtocolError
from protocol.ids import peer_id
from tests.helpers_ipc import FakeNode, served
from tests.helpers_node import world
from tests.helpers_records import PROVIDER

pytestmark = pytest.mark.anyio

ADDRESS = f"/ip4/127.0.0.1/tcp/46337/p2p/{peer_id(PROVIDER.node)}"


async def ask(path: Path, payload: object) -> Any:
    """What the client's side gets, from a thread of its own."""
    return await trio.to_thread.run_sync(lambda: ipc.call(path, "join", payload))


async def test_the_node_is_asked_and_its_results_come_back(tmp_path: Path) -> None:
    node = FakeNode()
    node.join_results = {PROVIDER.node.hex(): "", "aa": "connection refused"}
    path = tmp_path / "private" / "daemon.sock"
    async with served(node, path):
        assert await ask(path, {"peers": [ADDRESS]}) == node.join_results
    assert node.joined == [JoinRequest((ADDRESS,))]


@pytest.mark.parametrize("payload", [None, {}, {"peers": []}, {"peers": "x"}, {"peers": [1]}, {"peers": ["x"] * 65}])
async def test_a_payload_that_is_wrong_is_refused(tmp_path: Path, payload: object) -> None:
    node = FakeNode()
    path = tmp_path / "private" / "daemon.sock"
    async with served(node, path):
        with pytest.raises(ipc.Refused, match="bad-payload"):
            await ask(path, payload)
    assert node.joined == []


async def test_a_node_joins_another_one_and_says_why_it_does_not_join_others() -> None:
    async with world() as w:
        first, second = await w.start(None), await w.start(None)
        there = f"/memory/1/p2p/{peer_id(first.node_id)}"
        results = await second.join({first.node_id: [there], PROVIDER.node: [ADDRESS]})
        assert results[first.node_id] == ""
        assert "nobody runs there" in results[PROVIDER.node]
        assert first.node_id in second.driver.connected_peers()


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/x"])
async def test_what_is_no_full_address_is_refused(address: str) -> None:
    async with world() as w:
        node = await w.start(None)
        with pytest.raises(LocalProtocolError, match="peer must be like"):
            await handlers(node).join(JoinRequest((address,)))
