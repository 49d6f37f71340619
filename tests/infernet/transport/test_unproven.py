"""How much a stranger may say before the proof."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from infernet.transport import multistream
from infernet.transport.libp2p_library import NOISE_PROTOCOL, HandshakeFailed, Identity
from infernet.transport.noise_channel import secure_inbound, secure_outbound
from infernet.transport.unproven import UNPROVEN_BYTES_MAX, TooMuchSaid, UnprovenStream
from tests.helpers_transport import identity, secret

pytestmark = pytest.mark.anyio


async def test_no_more_is_read_than_a_handshake_has() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = UnprovenStream(ours)
    await theirs.send_all(bytes(UNPROVEN_BYTES_MAX + 1))
    assert len(await stream.receive_some(1000)) == 1000
    assert len(await stream.receive_some()) == UNPROVEN_BYTES_MAX - 1000
    with pytest.raises(TooMuchSaid):
        await stream.receive_some()
    assert await ours.receive_some() == bytes(1), "the rest is left where it is"


async def test_it_sends_and_closes_as_the_stream_below() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = UnprovenStream(ours)
    await stream.wait_send_all_might_not_block()
    await stream.send_all(b"hello")
    assert await theirs.receive_some() == b"hello"
    await stream.aclose()
    assert await theirs.receive_some() == b""


async def test_a_listener_hears_out_no_stranger() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    # A key, and a payload that the handshake allows in its first message; then as much in its last one.
    long_first = b"\xff\xff" + secret(1) + bytes(65_535 - 32)
    await theirs.send_all(multistream.proposal(NOISE_PROTOCOL) + long_first + b"\xff\xff" + bytes(65_535))
    with trio.fail_after(20), pytest.raises(TooMuchSaid):
        await secure_inbound(ours, Identity(secret(1)))


async def test_a_dialler_hears_out_no_stranger_either() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"\x80\x08" + bytes(1023) + b"\n")
    with trio.fail_after(20), pytest.raises(HandshakeFailed):
        await secure_outbound(ours, Identity(secret(1)), identity(2))


async def test_what_an_honest_peer_sends_ahead_is_not_lost() -> None:
    left, right = trio.testing.memory_stream_pair()
    ahead = bytes(range(256)) * 1024
    received = b""

    async def answer() -> None:
        nonlocal received
        channel = await secure_inbound(right, Identity(secret(2)))
        while len(received) < len(ahead):
            received += await channel.receive()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            channel = await secure_outbound(left, Identity(secret(1)), identity(2))
            await channel.send(ahead)
    assert received == ahead
