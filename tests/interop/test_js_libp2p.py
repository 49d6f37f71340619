"""A peer of another make, js-libp2p, finds in us a libp2p node like any other, and a node that keeps to specs/.

Its side of the protocol is written in JavaScript from the pages of the specification and its vectors alone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import infernet
from infernet.assembly import run_node
from infernet.config import Config
from infernet.engines.contract import Engine
from infernet.node import Node
from protocol.constants import PROTOCOLS
from protocol.envelope import SigningKey
from protocol.errors import Refusal
from protocol.ids import node_id_from_peer_id, peer_id
from protocol.records import Role
from tests.helpers_engine import EMBEDDING_DIMENSIONS, WORDS, PacedEngine
from tests.helpers_interop import ROOT, js_command

pytestmark = [pytest.mark.anyio, pytest.mark.interop, pytest.mark.slow]

PEER_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def js_peer() -> list[str]:
    """The command that runs the peer, installed from the lock when this checkout has not done so yet."""
    return js_command("peer.mjs")


async def run_peer(command: list[str], *words: str) -> Any:
    """What the peer prints."""
    with trio.fail_after(PEER_TIMEOUT_S):
        done = await trio.run_process([*command, *words], capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@asynccontextmanager
async def provider(folder: Path, engine: Engine | None = None) -> AsyncIterator[Node]:
    """A running node that offers itself as a provider; no model is needed to be met."""

    async def engine_of(_: Config) -> Engine | None:
        return engine

    key = SigningKey(random.Random(1).randbytes(32), random.Random(2).randbytes)
    config = Config(
        config_dir=folder,
        state_dir=folder,
        data_dir=folder,
        role=Role.PROVIDER,
        name="provider-of-the-test",
        engine="none",
        free_for="all",
        listen_hosts=("127.0.0.1",),
        p2p_port=0,
    )
    async with trio.open_nursery() as nursery:
        node = await nursery.start(partial(run_node, engine_of=engine_of), config, key)
        yield node
        node.stop()


async def test_a_js_libp2p_peer_dials_identifies_pings_and_says_hello(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path) as node:
        [address] = node.addresses()
        seen = await run_peer(js_peer, "dial", address)

        assert seen["peerId"] == peer_id(node.node_id)
        assert seen["agent"] == f"infernet/{infernet.__version__}"
        assert seen["encryption"] == "/noise"
        assert seen["multiplexer"] == "/yamux/1.0.0"
        assert {*PROTOCOLS, "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"} <= set(seen["protocols"])
        assert 0 <= seen["pingMs"] < 5000

        hello = seen["hello"]
        assert (hello["answers"], hello["type"], hello["version"]) == (1, 2, 1)
        assert hello["agent"] == f"infernet/{infernet.__version__}"
        assert hello["observedAddress"].startswith("/ip4/127.0.0.1/tcp/")
        assert abs(hello["clockErrorMs"]) < 5000

        # Its signature has been verified over there, BIP-340 by another library.
        heartbeat = hello["heartbeat"]
        assert heartbeat["node"] == node.node_id.hex()
        assert (heartbeat["version"], heartbeat["role"]) == (1, Role.PROVIDER)
        assert heartbeat["name"] == "provider-of-the-test"
        assert heartbeat["issuedAtMs"] <= time.time_ns() // 1_000_000 < heartbeat["expiresAtMs"]

        assert node.status()["bad_frames"] == 0


async def test_a_js_libp2p_peer_finds_out_who_serves_a_model(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path, PacedEngine("model-a")) as node:
        [address] = node.addresses()

        [found] = await run_peer(js_peer, "find", address, "model-a")
        assert found["node"] == node.node_id.hex()
        assert [model["name"] for model in found["models"]] == ["model-a"]
        assert found["sealingKey"] is not None

        assert await run_peer(js_peer, "find", address, "model-b") == []
        assert node.status()["bad_frames"] == 0


async def ask_from_js(js_peer: list[str], node: Node, **question: object) -> Any:
    """What the peer saw of a job; it has compared everything that is signed, sealed, counted and chained."""
    [address] = node.addresses()
    seen = await run_peer(js_peer, "ask", address, json.dumps({"model": "model-a", "maxTokens": 32, **question}))
    assert node.status()["bad_frames"] == 0
    with trio.fail_after(PEER_TIMEOUT_S):
        await node.driver.wait_for(lambda: node.driver.peer.statistics().jobs_running == 0)
    return seen


CHAT = [{"role": "user", "content": "Größe von Zürich?"}]


async def test_a_js_libp2p_peer_has_a_job_done(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path, PacedEngine("model-a", tokens_per_s=100, answer_tokens=20)) as node:
        seen = await ask_from_js(js_peer, node, messages=CHAT)

        assert seen["text"] == "".join(WORDS * 2)
        assert (seen["promptTokens"], seen["outputTokens"]) == (3, 20)
        assert seen["chunks"] > 1, "it came in pieces"
        assert seen["receipt"]["outcome"] == "stop"
        assert seen["receipt"]["code"] == 0


async def test_a_long_prompt_goes_in_parts(js_peer: list[str], tmp_path: Path) -> None:
    words = 13_000
    engine = PacedEngine("model-a", context_tokens=2 * words, answer_tokens=1)
    async with provider(tmp_path, engine) as node:
        messages = [{"role": "user", "content": "abcdefghi " * words}]
        seen = await ask_from_js(js_peer, node, messages=messages, promptTokensMax=words)

        assert seen["promptTokens"] == words, "every word of 130 kB arrived"
        assert seen["receipt"]["outcome"] == "stop"


async def test_a_js_libp2p_peer_cancels_a_job(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path, PacedEngine("model-a", tokens_per_s=50)) as node:
        seen = await ask_from_js(js_peer, node, messages=CHAT, maxTokens=5000, cancelAfterChunks=2)

        assert seen["receipt"]["outcome"] == "cancelled"
        assert seen["outputTokens"] < 5000
        assert seen["text"].startswith("every word ")


async def test_a_js_libp2p_peer_gets_embeddings(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path, PacedEngine("model-a")) as node:
        seen = await ask_from_js(js_peer, node, inputs=["one", "two"])

        assert [index for index, _ in seen["vectors"]] == [0, 1]
        assert all(len(vector) == 2 * 4 * EMBEDDING_DIMENSIONS for _, vector in seen["vectors"])
        assert seen["outputTokens"] == 0


async def test_a_js_libp2p_peer_is_refused_with_a_reason(js_peer: list[str], tmp_path: Path) -> None:
    async with provider(tmp_path, PacedEngine("model-a")) as node:
        seen = await ask_from_js(js_peer, node, messages=CHAT, model="model-b")

        assert seen["rejection"]["code"] == Refusal.NO_MODEL
        assert seen["rejection"]["text"]


async def test_vectors_and_conversations_mean_the_same_in_another_language(js_peer: list[str]) -> None:
    *node, peer = js_peer
    result = await run_peer([*node, str(Path(peer).with_name("vectors.mjs"))], str(ROOT / "specs"))

    assert result["wrong"] == []
    assert result["checked"].keys() >= {"sealing", "chunks", "records", "job-conversation", "conversations/hello"}
    assert all(count > 3 for count in result["checked"].values()), result["checked"]
    # Those whose integers a JavaScript number cannot hold.
    assert result["leftOut"] < 20


async def test_js_libp2p_computes_the_same_peer_ids(js_peer: list[str]) -> None:
    rng = random.Random(3)
    nodes = [SigningKey(rng.randbytes(32), rng.randbytes).node for _ in range(20)]

    theirs = await run_peer(js_peer, "peer-ids", *(node.hex() for node in nodes))

    assert theirs == [peer_id(node) for node in nodes]
    assert [node_id_from_peer_id(text) for text in theirs] == nodes
