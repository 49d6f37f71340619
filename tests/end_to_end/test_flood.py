"""S4: a flood of connections, of readers that stand still and of streams costs those who behave next to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import pytest
import trio

from infernet import identity
from infernet.answers import AskOptions
from infernet.assembly import client_node
from infernet.config import Config
from infernet.ipc import client as ipc
from infernet.node import Node
from infernet.transport.addresses import parse_tcp
from infernet.transport.channel import ChannelBroken
from infernet.transport.libp2p_library import Identity
from infernet.transport.noise_channel import secure_outbound
from protocol.effects import JobDone, JobFailed, JobText
from protocol.envelope import SigningKey
from protocol.records import ChatMessage, Role
from tests.helpers_cli import ROOT, Home
from tests.helpers_end_to_end import until
from tests.helpers_flood import Attacker, flooding
from tests.helpers_processes import wait_until

pytestmark = pytest.mark.anyio

MODEL = "paced"
# Twenty words at this speed: the time that a small model takes for them. It costs no CPU here, so what is measured is
# the node and not the engine's share of a busy machine.
PROMPT = " ".join(["word"] * 20)
PROMPT_TOKENS_PER_S = 100.0
STOP_S = 20.0

MEMORY_BYTES_MAX = 512 * 1024 * 1024
RECOVERY_S = 10.0
NEWCOMER_S = 3.0
SLOWDOWN_MAX = 2.0
# The attacker has to make its connections first.
HEIGHT_S = 120.0


@dataclass
class FloodedNode:
    """A node's process with an engine double."""

    process: subprocess.Popen[bytes]
    socket: Path
    address: str

    def status(self) -> dict[str, Any]:
        """What `infernet status` would print."""
        status: dict[str, Any] = ipc.call(self.socket, "status")
        return status

    def memory_bytes(self) -> int:
        """Resident bytes now."""
        held: int = psutil.Process(self.process.pid).memory_info().rss
        return held


@contextmanager
def node(path: Path, asker: SigningKey) -> Iterator[FloodedNode]:
    """A node to which programs of this machine are strangers, but for one that its owner knows."""
    home = Home(path)
    outcome = home.run("init", "--role", "provider", "--name", "flooded", "--yes")
    assert outcome.code == 0, outcome.err
    words = ["--paced", MODEL, "--prompt-tokens-per-s", str(PROMPT_TOKENS_PER_S), "--answer-tokens", "3"]
    settings = ["--listen-hosts", "127.0.0.1", "--p2p-port", "0", "--allow", asker.node.hex(), "--no-allow-private"]
    log = (path / "test.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers_paced_node", *words, *settings, "--no-mdns"],
        cwd=ROOT,
        env=home.environment(PYTHONPATH=f"{ROOT}:{ROOT / 'scripts'}"),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        socket = home.config.socket_path
        wait_until(lambda: process.poll() is not None or ipc.is_alive(socket), "the node is up")
        assert process.poll() is None, (path / "test.log").read_text()
        [address] = ipc.call(socket, "status")["addresses"]
        yield FloodedNode(process, socket, address)
    finally:
        process.terminate()
        process.wait(STOP_S)
        log.close()


async def first_token_s(asker: Node) -> float:
    """Ask, and give the time to the first token of the answer."""
    options = AskOptions(messages=(ChatMessage("user", PROMPT),), max_tokens=3, temperature=0.0, timeout_s=30.0)
    start_s, first_s = trio.current_time(), 0.0
    async with asker.ask(options) as events:
        async for event in events:
            assert not isinstance(event, JobFailed), event.text
            if isinstance(event, JobText) and not first_s:
                first_s = trio.current_time() - start_s
            if isinstance(event, JobDone):
                return first_s
    raise AssertionError("no answer")


async def greet_s(address: str) -> float:
    """How long somebody whom nobody knows takes to connect, with as many tries as that needs."""
    endpoint = parse_tcp(address)
    assert endpoint.peer is not None
    start_s = trio.current_time()
    with trio.fail_after(RECOVERY_S):
        while True:
            with suppress(OSError, ChannelBroken):
                stream = await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address="127.77.7.7")
                async with stream:
                    await secure_outbound(stream, Identity(identity.generate().secret_bytes()), endpoint.peer)
                    return trio.current_time() - start_s


async def measure(asker: Node, count: int) -> list[float]:
    """The times of so many questions, one after the other."""
    return [await first_token_s(asker) for _ in range(count)]


def say(text: str) -> None:
    """Figures for whoever runs this with `-s`."""
    sys.stdout.write(text + "\n")


def p95(times_s: list[float]) -> float:
    return quantiles(times_s, n=20)[-1]


class Watch:
    """The most memory that a process had."""

    def __init__(self, flooded: FloodedNode) -> None:
        self._flooded = flooded
        self.most_bytes = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.most_bytes = max(self.most_bytes, self._flooded.memory_bytes())
            await trio.sleep(0.05)


@dataclass(frozen=True)
class Sizes:
    """How large a flood is, and how many questions are asked before it and at its height."""

    half_open: int
    stalled: int
    streams: int
    asked: int


@dataclass
class UnderFlood:
    """What was seen while a node was flooded, from the first packet on."""

    times_s: list[float]
    newcomer_s: float
    height: dict[str, Any]


async def flood(target: FloodedNode, asker: Node, sizes: Sizes, *, at_once: bool) -> UnderFlood:
    """Flood a node, and ask all the time. Its peers misbehave first, then strangers, or all of them at once."""
    times_s: list[float] = []

    async def ask_until(attacker: Attacker, **done: int) -> None:
        nursery.start_soon(attacker.listen)
        with trio.fail_after(HEIGHT_S):
            while any(attacker.said.get(name, 0) < count for name, count in done.items()):
                times_s.extend(await measure(asker, 1))

    async with trio.open_nursery() as nursery:
        with ExitStack() as stack:
            peers = stack.enter_context(flooding(target.address, stalled=sizes.stalled, streams=sizes.streams))
            if not at_once:
                await ask_until(peers, stalled=sizes.stalled, streams_sent=sizes.streams)
            strangers = stack.enter_context(flooding(target.address, half_open=sizes.half_open))
            if at_once:
                await ask_until(peers, stalled=sizes.stalled, streams_sent=sizes.streams)
            await ask_until(strangers, opened=sizes.half_open)
            times_s += await measure(asker, sizes.asked)
            newcomer_s = await greet_s(target.address)
            transport = (await trio.to_thread.run_sync(target.status))["transport"]
            height = {"peers": peers.said, "strangers": strangers.said, **transport}
    return UnderFlood(times_s, newcomer_s, height)


async def judge(target: FloodedNode, asker: Node, sizes: Sizes, baseline_s: list[float]) -> None:
    """Flood a node, and hold what is seen against what is promised."""
    with trio.CancelScope() as watching:
        async with trio.open_nursery() as nursery:
            watch = Watch(target)
            nursery.start_soon(watch.run)
            seen = await flood(target, asker, sizes, at_once=sizes.half_open < 5000)
            ended_s = trio.current_time()
            await until(lambda: target.status()["transport"]["connections"] <= 1, "they are gone", 3 * RECOVERY_S)
            recovery_s = trio.current_time() - ended_s
            after_s = await measure(asker, sizes.asked)
            watching.cancel()
    say(
        f"first token, p95: {p95(baseline_s):.3f} s without, {p95(seen.times_s):.3f} s with (worst "
        f"{max(seen.times_s):.3f} s of {len(seen.times_s)}), {p95(after_s):.3f} s after; newcomer served after "
        f"{seen.newcomer_s:.3f} s; memory {watch.most_bytes / 2**20:.0f} MiB; recovered after {recovery_s:.2f} s; "
        f"at its height {seen.height}"
    )
    assert p95(seen.times_s) <= SLOWDOWN_MAX * p95(baseline_s)
    assert p95(after_s) <= SLOWDOWN_MAX * p95(baseline_s)
    assert watch.most_bytes <= MEMORY_BYTES_MAX
    assert recovery_s <= RECOVERY_S
    assert seen.newcomer_s <= NEWCOMER_S


@asynccontextmanager
async def asking(address: str, key: SigningKey) -> AsyncIterator[Node]:
    """Somebody who behaves, and is connected."""
    nowhere = Path("/nonexistent")
    config = Config(config_dir=nowhere, state_dir=nowhere, data_dir=nowhere, role=Role.CLIENT, name="asker")
    async with client_node(config, key, peers=[address]) as asker:
        await measure(asker, 3)
        yield asker


@pytest.mark.slow
async def test_a_small_flood_costs_those_who_behave_next_to_nothing(tmp_path: Path) -> None:
    sizes = Sizes(half_open=400, stalled=24, streams=1000, asked=6)
    key = identity.generate()
    with node(tmp_path, key) as target:
        async with asking(target.address, key) as asker:
            await judge(target, asker, sizes, await measure(asker, sizes.asked))


@pytest.mark.nightly
async def test_a_flood_costs_those_who_behave_next_to_nothing(tmp_path: Path) -> None:
    """S4, although the attacker works on the same machine and slows down everybody on it."""
    sizes = Sizes(half_open=5000, stalled=500, streams=1000, asked=60)
    key = identity.generate()
    with node(tmp_path, key) as target:
        async with asking(target.address, key) as asker:
            await judge(target, asker, sizes, await measure(asker, sizes.asked))
