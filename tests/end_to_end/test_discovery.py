"""Whole nodes that were told nothing of each other: on one network, and in one DHT, they meet all the same."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from infernet.assembly import run_node
from infernet.config import Config
from infernet.discovery import dht, mdns
from infernet.engines.contract import Engine
from infernet.host.files import make_private_directory
from infernet.node import Node
from protocol.effects import JobDone
from protocol.envelope import SigningKey
from protocol.records import Role
from tests.helpers_cli import Home
from tests.helpers_end_to_end import chat
from tests.helpers_engine import PacedEngine
from tests.helpers_processes import free_port, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FOUND_S = 60.0


def config(folder: Path, **changes: Any) -> Config:
    """A node on this machine that finds others only in the ways that a test allows."""
    fields: dict[str, Any] = {
        "role": Role.CLIENT,
        "name": folder.name,
        "engine": "none",
        "p2p_port": 0,
        "listen_hosts": ("127.0.0.1",),
        "mdns": False,
        "free_for": "all",
    } | changes
    made = Config(config_dir=folder / "config", state_dir=folder / "state", data_dir=folder / "data", **fields)
    make_private_directory(made.state_dir)
    return made


async def no_engine(_: Config) -> Engine | None:
    return None


async def paced_engine(_: Config) -> Engine | None:
    return PacedEngine(tokens_per_s=1000)


EngineOf = Callable[[Config], Awaitable[Engine | None]]


async def start(nursery: trio.Nursery, folder: Path, engine_of: EngineOf = no_engine, **changes: Any) -> Node:
    """A real node in this process: transport, store and all its sources."""
    key = SigningKey(os.urandom(32), os.urandom)
    node: Node = await nursery.start(partial(run_node, config(folder, **changes), key, engine_of=engine_of))
    return node


async def until(condition: Callable[[], object], what: str) -> None:
    with trio.move_on_after(FOUND_S):
        while True:
            if condition():
                return
            await trio.sleep(0.02)
    raise AssertionError(f"not within {FOUND_S:g} s: {what}")


# ---------------------------------------------------------------- an invite


@pytest.mark.nightly
def test_with_an_invite_two_nodes_that_know_nobody_meet() -> None:
    settings = ("--role", "aggregator", "--listen-hosts", "127.0.0.1", "--p2p-port", "0")
    with TemporaryDirectory(prefix="infernet-") as one, TemporaryDirectory(prefix="infernet-") as other:
        host, guest = Home(Path(one)), Home(Path(other))
        assert host.run("init", "--yes").code == 0
        with host.started(*settings) as status:
            line = host.run("invite").out.strip()
            # Before the guest's node runs, on a machine where there is none yet.
            assert guest.run("join", line, "--yes").code == 0
            with guest.started(*settings):
                wait_until(lambda: _names(guest, status["node_id"]), "the invite of the file is used")
                # While it runs, and with one that somebody has mistyped.
                outcome = guest.run("join", line, "--json")
                assert outcome.code == 0
                assert [node["connected"] for node in outcome.json["nodes"]] == [True]
                assert "checksum" in guest.run("join", line[:-1] + ("q" if line[-1] != "q" else "p")).complaint
        # The host is gone: what is left is to say so.
        with guest.started(*settings):
            outcome = guest.run("join", line)
            assert outcome.code == 1
            assert "nobody in this invite answered" in outcome.complaint


def _names(home: Home, node_id: str) -> bool:
    known = home.run("peers", "--json").json["peers"]
    return any(peer["node_id"] == node_id and peer["connected"] for peer in known)


# ---------------------------------------------------------------- the local network


def why_no_local_network() -> str | None:
    """Why multicast does not work in the networks of this machine, or None when it does."""
    here = mdns.links()
    if not here:
        return "this machine is on no network"
    try:
        with mdns._joined(here, free_port()) as sock:
            sock.settimeout(1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here[0].address.ip.packed)
            sock.sendto(b"hello", (mdns.GROUP, sock.getsockname()[1]))
            sock.recv(100)
    except OSError as error:
        return f"no multicast in the networks of this machine ({error})"
    return None


REASON = why_no_local_network()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
async def test_two_nodes_of_one_network_connect_without_being_told_of_each_other(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        everywhere = {"listen_hosts": ("0.0.0.0",), "mdns": True, "advertise": True, "role": Role.AGGREGATOR}
        first = await start(nursery, tmp_path / "first", **everywhere)
        second = await start(nursery, tmp_path / "second", **everywhere)
        # It asks, answers nothing and listens nowhere; and is connected all the same.
        hidden = await start(nursery, tmp_path / "hidden", mdns=True, listen_hosts=(), advertise=False)
        # On the same network, and told to keep out of it.
        apart = await start(nursery, tmp_path / "apart", **everywhere | {"mdns": False})
        together = {first.node_id, second.node_id, hidden.node_id}
        for node in (first, second):
            await until(lambda node=node: together <= {node.node_id, *node.driver.connected_peers()}, "they meet")
            assert node.status()["discovered"]["mdns"] >= 1
        assert hidden.addresses() == []
        assert apart.driver.connected_peers() == frozenset()
        for node in (first, second, hidden, apart):
            node.stop()


# ---------------------------------------------------------------- the DHT


@pytest.fixture
def quick_dht(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed is back soon, and may be asked again and again."""
    monkeypatch.setattr(dht, "RESTART_S_MIN", 0.05)
    monkeypatch.setattr(dht, "SEARCH_PAUSE_S", 0.5)


async def test_a_provider_that_nobody_knows_is_found_in_the_dht(tmp_path: Path, quick_dht: None) -> None:
    in_dht = {"dht": True, "dht_port": 0, "allow_private": True}
    async with trio.open_nursery() as nursery:
        found = {"address": "127.0.0.1", "advertise": True}
        first = await start(nursery, tmp_path / "first", role=Role.AGGREGATOR, **found, **in_dht)
        await until(lambda: first.status()["dht"]["addresses"], "the DHT has begun")
        peers = tuple(first.status()["dht"]["addresses"])
        provider = await start(
            nursery,
            tmp_path / "provider",
            paced_engine,
            role=Role.PROVIDER,
            engine="llama",
            dht_peers=peers,
            **found,
            **in_dht,
        )
        asker = await start(nursery, tmp_path / "asker", advertise=False, listen_hosts=(), dht_peers=peers, **in_dht)
        assert asker.status()["dht"]["addresses"] == []
        model = provider.status()["models"][0]
        await _ask_until_answered(asker, model, provider)
        # A process that dies costs the node nothing, and is back.
        pid = provider.status()["dht"]["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: provider.status()["dht"]["pid"] not in (None, pid), "the process is started again")
        assert provider.status()["dht"]["restarts"] == 1
        await _ask_until_answered(asker, model, provider)
        for node in (first, provider, asker):
            node.stop()


async def _ask_until_answered(asker: Node, model: str, provider: Node) -> None:
    """Ask for a model by its name, again while nobody is found: a provider has to be published first."""
    with trio.fail_after(FOUND_S):
        while True:
            async with asker.ask(replace(chat("why", 4), model=model)) as events:
                collected = [event async for event in events]
            if isinstance(collected[-1], JobDone):
                assert collected[-1].receipt.provider == provider.node_id
                return
