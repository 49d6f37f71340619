"""What a node remembers. On the real clock: a virtual one jumps ahead while a thread writes to the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.store import Store
from tests.helpers_engine import PacedEngine
from tests.helpers_node import settle, world

pytestmark = pytest.mark.anyio


async def test_peers_are_remembered_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite3"
    async with world() as w:
        provider = await w.start(PacedEngine())
        client = await w.start(None, provider, store=Store(path))
        await settle(client, lambda: client.status()["records"] == 2)
        client.stop()
        await settle(provider, lambda: provider.status()["peers"] == 0)
        again = await w.start(None, store=Store(path))
        await settle(again, lambda: provider.node_id.hex() in [peer["node_id"] for peer in again.peers()])
        assert again.status()["discovered"] == {"saved": 1}
        (peer,) = [peer for peer in Store(path).peers() if peer.node == provider.node_id]
        assert peer.reached_at_ms > 0, "the client dialled it"
