"""The processes of the forwarding benchmark: a provider, an aggregator, and an asker that goes either way.

Their keys are made from names, so that the provider knows the askers before they come. The paced engine is the tests'
double; it can be had here and nowhere in the product.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from _relay_worker import Stream, ask_all, question, run, say, serve

from infernet.answers import AskOptions
from infernet.config import Config
from infernet.driver import wall_ms
from infernet.node import AGENT, Node
from infernet.own_addresses import peer_of
from infernet.transport.contract import ConnectionInfo
from infernet.transport.contract import Stream as Carried
from infernet.transport.libp2p_host import Libp2pTransport
from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameReader, encode_message
from protocol.effects import JobDone, JobFailed, JobText
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.ids import JobId, NodeId
from protocol.jobs import default_sampling, order_extensions
from protocol.messages import JobOpen, JobReject, Message, Progress
from protocol.records import ChatMessage, JobOpenRecord, Kind, ReservationRecord, Role
from tests.helpers_engine import PacedEngine

TOKENS_PER_S: Final = 20.0
SLOTS: Final = 64
# Who has its orders handed on: another one every time, because each is held to two a second.
STRANGERS: Final = 64
SEALED: Final = bytes(1_072)
# A provider answers so many questions of one peer, and no more.
HANDOFF_PAUSE_S: Final = 0.1


def key_of(name: str) -> SigningKey:
    """The key of somebody in this benchmark."""
    return SigningKey(hashlib.sha256(f"benchmark {name}".encode()).digest(), os.urandom)


def known() -> tuple[NodeId, ...]:
    """Whose jobs the provider runs."""
    return (key_of("asker").node, *(key_of(f"stranger {number}").node for number in range(STRANGERS)))


def transport_of(key: SigningKey, *, listens: bool) -> Libp2pTransport:
    """A transport on loopback."""
    return Libp2pTransport(
        key.secret_bytes(),
        agent=AGENT,
        protocols=c.PROTOCOLS,
        randomness=random.SystemRandom(),
        listen_hosts=("127.0.0.1",) if listens else (),
        port=0,
        allow_private=True,
    )


@asynccontextmanager
async def node_of(part: str, home: Path, peers: list[str]) -> AsyncIterator[Node]:
    """A node that plays this part."""
    key = key_of(part)
    config = Config(
        config_dir=home,
        state_dir=home,
        data_dir=home,
        name=part,
        role=Role[{"asker": "client"}.get(part, part).upper()],
        peers=tuple(peers),
        allow=known(),
        forward=part == "aggregator",
    )
    engine = PacedEngine(tokens_per_s=TOKENS_PER_S, slots=SLOTS) if part == "provider" else None
    node = Node(config, key, transport=transport_of(key, listens=part != "asker"), engine=engine)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        node.stop()


# ---------------------------------------------------------------- asking


async def ask(node: Node, request: dict[str, Any], index: int) -> Stream:
    """Put a question to the provider, directly or through the aggregator."""
    stream = Stream()
    options = AskOptions(
        messages=(ChatMessage("user", question(request, index)),),
        provider=key_of("provider").node,
        via=key_of("aggregator").node if request["forwarded"] else None,
        max_tokens=request["max_tokens"],
        temperature=0.0,
        seed=1,
    )
    async with node.ask(options) as events:
        async for event in events:
            if isinstance(event, JobText):
                stream.piece()
            elif isinstance(event, JobDone):
                stream.done(event.receipt.output_tokens)
            else:
                assert not isinstance(event, JobFailed), event.text
    return stream


# ---------------------------------------------------------------- being handed on


class Bystander:
    """The handler of a transport that only opens streams."""

    def connected(self, info: ConnectionInfo) -> None:
        """Nothing follows from it."""

    def disconnected(self, peer: NodeId) -> None:
        """Nothing follows from it."""

    async def stream_opened(self, stream: Carried) -> None:
        """A greeting, which nobody here answers."""
        stream.reset()


async def exchange(transport: Libp2pTransport, peer: NodeId, opening: JobOpen) -> tuple[Message, float]:
    """Send an order, and give the first answer and how many milliseconds it took."""
    started_s = time.perf_counter()
    stream = await transport.open_stream(peer, c.JOB_PROTOCOL)
    await stream.send(encode_message(opening))
    reader = FrameReader(JOB_LIMITS)
    while True:
        data = await stream.receive()
        assert data, "the stream ended without an answer"
        for message in reader.feed(data):
            elapsed_ms = (time.perf_counter() - started_s) * 1000
            stream.reset()
            return message, elapsed_ms


def order_of(key: SigningKey, provider: NodeId, attempt: int, **changes: Any) -> JobOpen:
    """An order whose prompt nobody can open: it is about the answer to the order alone."""
    now_ms = wall_ms()
    fields: dict[str, Any] = {"reservation": None, "extensions": (), **changes}
    record = JobOpenRecord(
        version=1,
        attempt=attempt,
        asker=key.node,
        provider=provider,
        lease=None,
        kind=Kind.CHAT,
        model="paced",
        fingerprint=None,
        sampling=default_sampling(1),
        prompt_tokens_max=2_048,
        output_tokens_max=64,
        price_in_uusd=0,
        price_out_uusd=0,
        price_job_uusd=0,
        prepay_max_uusd=0,
        sealed_hash=hashlib.sha256(SEALED).digest(),
        sealed_bytes=len(SEALED),
        created_at_ms=now_ms,
        expires_at_ms=now_ms + 60_000,
        **fields,
    )
    return JobOpen(sign_record(record, key), SEALED)


async def hand_on(aggregator: str, provider: str, repeats: int) -> dict[str, float]:
    """Order from a node that runs nothing, in turns with and without consent; and go where a slot is held."""
    transport = transport_of(key_of("bystander"), listens=False)
    times: dict[str, list[float]] = {"refused": [], "handed_on": [], "taken": []}
    full, other = peer_of(aggregator), peer_of(provider)
    strangers = itertools.cycle(range(STRANGERS))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, Bystander())
        for address in (aggregator, provider):
            await transport.dial(peer_of(address), (address,))
        for turn in range(-1, repeats):
            key, job = key_of(f"stranger {next(strangers)}"), JobId(os.urandom(16))
            answer, refused_ms = await exchange(transport, full, order_of(key, full, 1, job=job))
            assert isinstance(answer, JobReject)
            assert answer.reservation is None
            extensions = order_extensions(may_hand_off=True, queue_wait_ms=0)
            answer, handed_ms = await exchange(transport, full, order_of(key, full, 2, job=job, extensions=extensions))
            assert isinstance(answer, JobReject)
            assert answer.reservation is not None, answer
            held = open_record(answer.reservation, ReservationRecord).reservation
            again = order_of(key, other, 3, job=job, reservation=held)
            answer, taken_ms = await exchange(transport, other, again)
            assert isinstance(answer, Progress), answer
            if turn >= 0:
                times["refused"].append(refused_ms)
                times["handed_on"].append(handed_ms)
                times["taken"].append(taken_ms)
            await trio.sleep(HANDOFF_PAUSE_S)
        nursery.cancel_scope.cancel()
    figures = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    added = [b - a for a, b in zip(times["refused"], times["handed_on"], strict=True)]
    return {**figures, "added_ms": statistics.median(added), "added_p95_ms": statistics.quantiles(added, n=20)[-1]}


# ---------------------------------------------------------------- the process


async def work(arguments: argparse.Namespace) -> None:
    """Run the node, and answer requests about it."""
    async with node_of(arguments.part, arguments.home, arguments.peer) as node:

        async def handle(request: dict[str, Any]) -> dict[str, Any]:
            if request["do"] == "status":
                return node.status()
            if request["do"] == "wait":
                with trio.fail_after(30):
                    await node.driver.wait_for(
                        lambda: node.driver.peer.directory.get(key_of("provider").node) is not None
                    )
                return {}
            if request["do"] == "hand on":
                return {**await hand_on(request["aggregator"], request["provider"], request["repeats"])}
            return await ask_all(request, lambda index: ask(node, request, index))

        say({"address": next(iter(node.addresses()), None)})
        await serve(handle)


def main() -> None:
    """Read the command line and play a part until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["provider", "aggregator", "asker"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[])
    arguments = parser.parse_args()
    run(partial(work, arguments), None)


if __name__ == "__main__":
    main()
