"""A node's entry at a real coordinator, from `register` to `remove`; nothing of a hidden node is published."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers_cli import Home, Outcome
from tests.helpers_coordinator import Served, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
ADDRESS = "198.51.100.7"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="infernet-") as path:
        yield Home(Path(path) / "home", {"XDG_CONFIG_HOME": str(Path(path) / "xdg")})


async def command(home: Home, *words: str) -> Outcome:
    return await asyncio.to_thread(home.run, *words)


async def entries(served: Served) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await served.http.get("/api/nodes")).json()["data"]
    return rows


async def test_an_entry_is_made_hidden_and_removed(tmp_path: Path, home: Home) -> None:
    async with serving(tmp_path) as served:
        words = ("--url", served.url, "--coordinator-key", served.key.node.hex(), "--address", ADDRESS)
        assert (await command(home, "init", "--yes", *words)).code == 0
        registered = await command(home, "register", "--json")
        assert registered.code == 0, registered.err
        row = registered.json["row"]
        assert (row["address"], row["port"], row["status"]) == (ADDRESS, 46337, "offline")
        assert [entry["node_id"] for entry in await entries(served)] == [row["node_id"]]

        assert (await command(home, "config", "set", "--no-advertise")).code == 0
        for verb in ("register", "update", "register"):
            hidden = await command(home, verb, "--json")
            assert (hidden.json["row"]["address"], hidden.json["row"]["port"]) == (None, None)
        wallet = await command(home, "wallet", "--json")
        assert wallet.json["available_uusd"] == 0, wallet.err

        removed = await command(home, "remove", "--yes", "--json")
        assert removed.code == 0, removed.err
        assert (removed.json["deregistered"], removed.json["lost_uusd"]) == (True, 0)
        assert await entries(served) == []
    assert not home.path.exists()


async def test_a_node_that_runs_is_drained_counted_and_removed(tmp_path: Path, home: Home) -> None:
    async with serving(tmp_path) as served:
        words = ("--url", served.url, "--coordinator-key", served.key.node.hex(), "--p2p-port", "0")
        assert (await command(home, "init", "--yes", *words)).code == 0
        settings = ("--engine", "none", "--listen-hosts", "127.0.0.1", "--no-mdns")
        assert (await command(home, "config", "set", *settings)).code == 0
        assert (await command(home, "start")).code == 0
        try:
            stats = await command(home, "stats", "--json")
            assert (stats.json["jobs"]["taken"], stats.json["heartbeats"]["signed"] > 0) == (0, True)
            registered = await command(home, "register", "--json")
            assert (registered.json["running"], registered.json["row"]["status"]) == (True, "available")
            assert "node.started" in (await command(home, "logs")).out
            removed = await command(home, "remove", "--yes", "--json")
        finally:
            await command(home, "stop", "--force")
        assert removed.code == 0, removed.err
        assert removed.json["stopped"] == stats.json["pid"]
        assert await entries(served) == []
    assert not home.path.exists()
