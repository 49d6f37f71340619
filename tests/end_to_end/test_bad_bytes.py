"""Whatever strangers and peers send to a running node, it stays up and answers the next real question."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import psutil
import pytest
import trio

from infernet.own_addresses import peer_of
from infernet.transport.contract import ConnectionInfo, Stream, StreamBroken
from infernet.transport.libp2p_host import HANDSHAKE_TIMEOUT_S, Libp2pTransport
from protocol import constants as c
from protocol.codec import encode_message
from protocol.envelope import SigningKey
from protocol.ids import JobId, NodeId
from protocol.messages import Cancel, Chunk, Digest, Find, Message
from protocol.records import Kind
from tests.helpers_end_to_end import NOTICED_S, NodeProcess, answer_of, until

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]

# What a node may grow by while it is lied to about gigabytes; serving the real question takes some of it.
GROWTH_BYTES_MAX = 32 * 1024 * 1024
RNG = random.Random(20)
JOB = JobId(bytes(16))


def memory_bytes(node: NodeProcess) -> int:
    """What the node's process holds now."""
    held: int = psutil.Process(node.process.pid).memory_info().rss
    return held


# ---------------------------------------------------------------- strangers on the port

MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"
STRANGE_BYTES = {
    "nothing at all": b"",
    "noise of another kind": RNG.randbytes(4096),
    "a web browser": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "the start of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + RNG.randbytes(500),
    "half of the greeting": MULTISTREAM[:7],
    "a greeting that claims four gigabytes": b"\xff\xff\xff\xff\x0f" + bytes(1000),
    "a length that never ends": b"\xff" * 1000,
    "a security that nobody has": MULTISTREAM + b"\x0d/plaintext/1\n",
    "half of a handshake": MULTISTREAM + NOISE + b"\xff\xff" + RNG.randbytes(100),
    "a handshake of rubbish": MULTISTREAM + NOISE + b"\xff\xff" + RNG.randbytes(0xFFFF),
}


async def be_strange(port: int, data: bytes) -> None:
    """Send bytes to the port and wait until the node closes the connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        try:
            await stream.send_all(data)
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # a reset is as good an end as any


async def test_strangers_bytes_on_the_port_cost_the_node_nothing(shared_provider: NodeProcess) -> None:
    before_bytes = memory_bytes(shared_provider)
    with trio.fail_after(HANDSHAKE_TIMEOUT_S + NOTICED_S):
        async with trio.open_nursery() as nursery:
            for data in STRANGE_BYTES.values():
                nursery.start_soon(be_strange, shared_provider.port, data)
            # While all of them are at it, a real peer is served.
            assert "Paris" in await answer_of(shared_provider)

    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)
    assert memory_bytes(shared_provider) - before_bytes < GROWTH_BYTES_MAX


# ---------------------------------------------------------------- peers with an identity and no manners


def frame(body: bytes) -> bytes:
    """A frame with its true length."""
    return len(body).to_bytes(c.FRAME_HEADER_BYTES, "big") + body


def message(*fields: object) -> bytes:
    """A frame of any array."""
    return frame(msgpack.packb(list(fields)))


def sent(wrong: Message) -> bytes:
    """A message that is right in itself."""
    return encode_message(wrong)


BAD_FRAMES = {
    "a frame of four gigabytes": (c.JOB_PROTOCOL, b"\xff\xff\xff\xff"),
    "a frame one byte too long": (c.JOB_PROTOCOL, (c.JOB_FRAME_BYTES_MAX + 1).to_bytes(4, "big")),
    "a control frame one byte too long": (c.GOSSIP_PROTOCOL, (c.CONTROL_FRAME_BYTES_MAX + 1).to_bytes(4, "big")),
    "an empty frame": (c.HELLO_PROTOCOL, frame(b"")),
    "an array in an array in an array ...": (c.JOB_PROTOCOL, frame(b"\x91" * 100_000 + b"\xc0")),
    "an array that claims four billion items": (c.JOB_PROTOCOL, frame(b"\xdd\xff\xff\xff\xff")),
    "a map": (c.HELLO_PROTOCOL, frame(b"\x82\x01\x02\x03\x04")),
    "a byte that MessagePack does not have": (c.FIND_PROTOCOL, frame(b"\xc1")),
    "half a frame": (c.JOB_PROTOCOL, message(64, [b"body", bytes(64)], b"sealed")[:-5]),
    "an unknown type that must be understood": (c.JOB_PROTOCOL, message(1000, 1, 2, 3)),
    "a message of the wrong shape": (c.HELLO_PROTOCOL, message(2, "one", "two")),
    "an order that nobody signed": (c.JOB_PROTOCOL, message(64, [bytes(300), bytes(64)], bytes(1024))),
    "a cancel of nothing": (c.JOB_PROTOCOL, sent(Cancel(JOB, 1, 0))),
    "what only a provider says": (c.JOB_PROTOCOL, sent(Chunk(JOB, 1, 1, 1, 0, bytes(32)))),
    "a question about providers in the gossip": (
        c.GOSSIP_PROTOCOL,
        sent(Find(1, None, Kind.CHAT, 0, None, None, 1)),
    ),
    "gossip in the hello": (c.HELLO_PROTOCOL, sent(Digest(NodeId(bytes(32)), NodeId(bytes(32)), ()))),
}


class Deaf:
    """A handler that wants nothing of its peers."""

    def connected(self, info: ConnectionInfo) -> None: ...

    def disconnected(self, peer: NodeId) -> None: ...

    async def stream_opened(self, stream: Stream) -> None: ...


@asynccontextmanager
async def rude_peer(provider: NodeProcess) -> AsyncIterator[Libp2pTransport]:
    """A libp2p host with a proven identity that is connected to the provider, and speaks as the test likes."""
    key = SigningKey(os.urandom(32), os.urandom)
    transport = Libp2pTransport(
        key.secret_bytes(),
        agent="rude",
        protocols=c.PROTOCOLS,
        randomness=random.Random(0),
        listen_hosts=(),
        allow_private=True,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, Deaf())
        with trio.fail_after(NOTICED_S):
            await transport.dial(peer_of(provider.address), [provider.address])
        yield transport
        nursery.cancel_scope.cancel()


async def say(transport: Libp2pTransport, provider: NodeProcess, protocol: str, data: bytes) -> bytes:
    """Say something on a stream of its own, and no more; what the node answers before it ends the stream."""
    stream = await transport.open_stream(peer_of(provider.address), protocol)
    heard = b""
    with trio.fail_after(NOTICED_S):
        try:
            await stream.send(data)
            await stream.finish()
            while piece := await stream.receive():
                heard += piece
        except StreamBroken:
            pass
    return heard


async def test_a_bad_frame_ends_its_stream_and_nothing_else(shared_provider: NodeProcess) -> None:
    before, before_bytes = shared_provider.status()["bad_frames"], memory_bytes(shared_provider)
    for protocol, data in BAD_FRAMES.values():
        async with rude_peer(shared_provider) as peer:
            await say(peer, shared_provider, protocol, data)
            # The same connection is still good for another stream, and the next message is understood.
            found = await say(peer, shared_provider, c.FIND_PROTOCOL, sent(Find(7, None, Kind.CHAT, 0, None, None, 1)))
            assert found[c.FRAME_HEADER_BYTES :].startswith(b"\x93\x22\x07"), "[34, 7, ..."

    assert shared_provider.status()["bad_frames"] == before + len(BAD_FRAMES)
    assert memory_bytes(shared_provider) - before_bytes < GROWTH_BYTES_MAX
    assert "Paris" in await answer_of(shared_provider)
    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)


async def test_what_is_merely_unknown_is_nobody_s_fault(shared_provider: NodeProcess) -> None:
    before = shared_provider.status()["bad_frames"]
    async with rude_peer(shared_provider) as peer:
        find = sent(Find(8, None, Kind.CHAT, 0, None, None, 1))
        heard = await say(peer, shared_provider, c.FIND_PROTOCOL, message(1001, "of a later version") + find)
        assert heard[c.FRAME_HEADER_BYTES :].startswith(b"\x93\x22\x08"), "[34, 8, ..."
        assert await say(peer, shared_provider, "/nobody/speaks/1", b"hello?") == b""

    assert shared_provider.status()["bad_frames"] == before
    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)


async def test_a_peer_that_does_not_stop_is_hung_up_on(shared_provider: NodeProcess) -> None:
    async with rude_peer(shared_provider) as peer:
        for _ in range(c.BAD_FRAMES_MAX):
            await say(peer, shared_provider, c.JOB_PROTOCOL, frame(b"\xc1"))
        await until(lambda: not peer.peers(), "the node hangs up", NOTICED_S)

    assert "Paris" in await answer_of(shared_provider)
    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)
