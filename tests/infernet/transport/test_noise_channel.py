"""The secure channel: who is who, and that nobody in between can change a bit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from infernet.transport import multistream
from infernet.transport.channel import ChannelBroken
from infernet.transport.libp2p_library import NOISE_PROTOCOL, HandshakeFailed, Identity
from infernet.transport.noise_channel import (
    RECORD_PLAIN_BYTES_MAX,
    NoiseChannel,
    _HandshakeIO,
    secure_inbound,
    secure_outbound,
)
from infernet.transport.yamux_frames import PROTOCOL as YAMUX_PROTOCOL
from tests.helpers_transport import identity, secret

pytestmark = pytest.mark.anyio

MemoryStream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[NoiseChannel, NoiseChannel, MemoryStream]]:
    """Two ends that have shaken hands, and the bare stream below the first."""
    left, right = trio.testing.memory_stream_pair()
    ends: list[NoiseChannel] = []

    async def answer() -> None:
        ends.append(await secure_inbound(right, Identity(secret(2))))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            dialled = await secure_outbound(left, Identity(secret(1)), identity(2))
        yield dialled, ends[0], left


async def read_exactly(channel: NoiseChannel, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = await channel.receive()
        assert piece
        received += piece
    return received


async def test_both_ends_know_each_other() -> None:
    async with channels() as (left, right, _):
        assert (left.peer, right.peer) == (identity(2), identity(1))


async def test_another_identity_is_refused_by_the_dialer() -> None:
    left, right = trio.testing.memory_stream_pair()

    async def answer() -> None:
        with pytest.raises(ChannelBroken):
            await secure_inbound(right, Identity(secret(3)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with pytest.raises(HandshakeFailed, match="another identity answers there"):
            await secure_outbound(left, Identity(secret(1)), identity(2))
        await left.aclose()


@pytest.mark.parametrize(
    "size", [1, RECORD_PLAIN_BYTES_MAX - 1, RECORD_PLAIN_BYTES_MAX, RECORD_PLAIN_BYTES_MAX + 1, 10**6]
)
async def test_pieces_of_any_size_come_whole(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    async with channels() as (left, right, _):
        for source, target in ((left, right), (right, left)):
            await source.send(data)
            assert await read_exactly(target, size) == data
        assert left.bytes_out == right.bytes_in > size


async def test_bytes_that_dribble_in_are_put_together() -> None:
    async with channels() as (left, right, bare):
        wire = await held_back(bare, left, b"one", b"two")
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await read_exactly(right, 6))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for byte in wire:
                await trio.testing.wait_all_tasks_blocked()
                right_end(right).put_data(bytes([byte]))
        assert received == [b"onetwo"]


async def held_back(bare: MemoryStream, channel: NoiseChannel, *pieces: bytes) -> bytearray:
    """Cut the wire and send; returns what did not arrive."""
    bare.send_stream.send_all_hook = None
    for piece in pieces:
        await channel.send(piece)
    return bytearray(bare.send_stream.get_data_nowait())


def right_end(channel: NoiseChannel) -> trio.testing.MemoryReceiveStream:
    stream = channel._stream
    assert isinstance(stream, trio.StapledStream)
    assert isinstance(stream.receive_stream, trio.testing.MemoryReceiveStream)
    return stream.receive_stream


async def test_a_changed_bit_ends_the_channel() -> None:
    async with channels() as (left, right, bare):
        record = await held_back(bare, left, b"pay 1")
        record[-1] ^= 1
        right_end(right).put_data(record)
        with pytest.raises(ChannelBroken, match="altered"):
            await right.receive()


async def test_a_record_sent_twice_ends_the_channel() -> None:
    async with channels() as (left, right, bare):
        record = await held_back(bare, left, b"pay 1")
        right_end(right).put_data(record)
        assert await right.receive() == b"pay 1"
        right_end(right).put_data(record)
        with pytest.raises(ChannelBroken, match="altered"):
            await right.receive()


async def test_a_record_too_short_to_be_one_ends_the_channel() -> None:
    async with channels() as (_, right, bare):
        await bare.send_all(b"\x00\x03abc")
        with pytest.raises(ChannelBroken, match="altered"):
            await right.receive()


async def test_an_empty_record_is_no_end() -> None:
    async with channels() as (left, right, bare):
        empty = left._ciphers.encrypt(b"")
        await bare.send_all(len(empty).to_bytes(2, "big") + empty)
        await left.send(b"more")
        assert await right.receive() == b"more"


async def test_closing_is_the_end_for_the_other_side() -> None:
    async with channels() as (left, right, _):
        await left.send(b"last")
        await left.aclose()
        assert await right.receive() == b"last"
        assert await right.receive() == b""
        with pytest.raises(ChannelBroken):
            await left.send(b"x")
        with pytest.raises(ChannelBroken):
            await left.receive()


async def test_what_follows_the_handshake_in_one_piece_is_not_lost() -> None:
    left, right = trio.testing.memory_stream_pair()
    received: list[bytes] = []

    async def answer() -> None:
        channel = await secure_inbound(right, Identity(secret(2)))
        received.append(await channel.receive())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            # A dialer that does not wait for the listener to agree on yamux.
            channel = await shake_only(left)
            await channel.send(multistream.proposal(YAMUX_PROTOCOL) + b"eager")
    assert received == [b"eager"]


async def shake_only(stream: trio.abc.Stream) -> NoiseChannel:
    """A Noise handshake, and nothing after it."""
    io = _HandshakeIO(stream, NOISE_PROTOCOL)
    await io.write(multistream.proposal(NOISE_PROTOCOL))
    ciphers = await Identity(secret(1)).prove_outbound(io, identity(2))
    return NoiseChannel(stream, ciphers, io.reader.rest(), identity(2))
