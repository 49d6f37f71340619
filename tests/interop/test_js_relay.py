"""Circuit relay v2 with js-libp2p in each part: dialling, reached, and relaying."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from protocol.ids import node_id_from_peer_id, peer_id
from protocol.locality import is_circuit
from tests.helpers_interop import js_command
from tests.helpers_relay import Place, circuit, node, relay_world
from tests.helpers_transport import ECHO, eventually, read_to_end

pytestmark = [pytest.mark.anyio, pytest.mark.interop, pytest.mark.slow]

PEER_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def js() -> list[str]:
    return js_command("relay.mjs")


@asynccontextmanager
async def running(command: list[str], *words: str) -> AsyncIterator[dict[str, Any]]:
    """A js-libp2p node that goes on until the block ends; gives the line that it says when it is ready."""
    start = partial(trio.run_process, check=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(start, [*command, *words])
        said = b""
        with trio.fail_after(PEER_TIMEOUT_S):
            while not said.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, f"it ended, saying {said!r}"
                said += piece
        yield json.loads(said)
        await process.stdin.aclose()


async def test_js_dials_a_node_of_ours_through_our_relay(js: list[str]) -> None:
    async with circuit() as c:
        [address] = c.addresses
        with trio.fail_after(PEER_TIMEOUT_S):
            done = await trio.run_process([*js, "dial", address, "hello from js"], capture_stdout=True)
        seen = json.loads(done.stdout)
        assert seen["peerId"] == peer_id(c.hidden.node_id)
        assert seen["address"] == address
        assert seen["echo"] == "hello from js"
        assert seen["pingMs"] < 5000
        # It was told what the relay carries, and counts down from there.
        assert 7000 < seen["seconds"] <= 7200
        assert 100_000_000 < int(seen["bytes"]) <= 128 * 1024 * 1024


async def test_js_holds_a_place_at_our_relay_and_is_reached_there(js: list[str]) -> None:
    async with circuit() as c, running(js, "reached", c.relay.addresses()[0]) as theirs:
        peer = node_id_from_peer_id(theirs["peerId"])
        assert is_circuit(theirs["address"])
        assert peer_id(c.relay.node_id) in theirs["address"]
        assert c.relay.relay_statistics().places == 2

        await c.asker.dial(peer, [theirs["address"]])
        stream = await c.asker.open_stream(peer, ECHO)
        await stream.send(b"hello js")
        assert await stream.receive() == b"hello js"
        assert is_circuit(c.asker_handler.infos[-1].remote_address)


async def test_our_nodes_reach_each_other_through_a_relay_of_js(js: list[str]) -> None:
    async with running(js, "relay") as theirs, relay_world() as world:
        relay = node_id_from_peer_id(theirs["peerId"])
        hidden, asker = node(12, listens=False), node(13, listens=False)
        await world.run(hidden)
        handler = await world.run(asker)
        await hidden.dial(relay, [theirs["address"]])
        place = Place()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.keep_at, hidden, relay)
            await eventually(lambda: place.heard or place.lost)
            assert place.lost == []
            await asker.dial(hidden.node_id, place.heard[0])
            stream = await asker.open_stream(hidden.node_id, ECHO)
            # Its relay carries 128 KiB in each direction, and we keep within that.
            await stream.send(bytes(50_000))
            await stream.finish()
            assert await read_to_end(stream) == bytes(50_000)
            assert is_circuit(handler.infos[-1].remote_address)
            nursery.cancel_scope.cancel()
