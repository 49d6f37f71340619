"""The messages of circuit relay v2: as others write them, and as nobody should."""

from __future__ import annotations

import random

import pytest
import trio

from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.relay import wire
from infernet.transport.relay.wire import Answer, ConnectRequest, Limit, MalformedMessage, ReserveRequest, Status
from protocol.ids import peer_id
from tests.helpers_transport import identity

pytestmark = pytest.mark.anyio

PEER = identity(7)
LIMIT = Limit(duration_s=120, data_bytes=131072)
ADDRESS = f"/ip4/203.0.113.7/tcp/46337/p2p/{peer_id(PEER)}"


def body(message: bytes) -> bytes:
    """A message without its length, which is below 128."""
    assert message[0] == len(message) - 1
    return message[1:]


def test_requests_survive_the_wire() -> None:
    assert wire.decode_hop_request(body(wire.encode_reserve())) == ReserveRequest()
    assert wire.decode_hop_request(body(wire.encode_hop_connect(PEER))) == ConnectRequest(PEER)
    assert wire.decode_stop_request(body(wire.encode_stop_connect(PEER, LIMIT))) == ConnectRequest(PEER, LIMIT)


def test_answers_survive_the_wire() -> None:
    granted = wire.encode_hop_answer(Status.OK, limit=LIMIT, expires_at_s=1_800_000_000, addresses=[ADDRESS])
    assert wire.decode_hop_answer(body(granted)) == Answer(100, LIMIT, 1_800_000_000, (ADDRESS,))
    refused = wire.encode_hop_answer(Status.NO_RESERVATION)
    assert wire.decode_hop_answer(body(refused)) == Answer(204)
    assert wire.decode_stop_answer(body(wire.encode_stop_answer(Status.OK))) == Answer(100)


def test_the_bytes_are_those_of_the_specification() -> None:
    # HopMessage{type: RESERVE}, HopMessage{type: CONNECT, peer: {id}}, StopMessage{type: STATUS, status: OK}
    assert wire.encode_reserve() == bytes.fromhex("020800")
    raw_id = bytes.fromhex("00250802122102") + PEER
    assert wire.encode_hop_connect(PEER) == bytes.fromhex("2d08011229" + "0a27") + raw_id
    assert wire.encode_stop_answer(Status.OK) == bytes.fromhex("0408012064")


@pytest.mark.parametrize(
    "data",
    [
        b"",  # no type
        b"\x08\x01",  # CONNECT with nobody
        b"\x08\x02",  # a status is no request
        b"\x08\x63",  # a type that there is not
        b"\xff\xff\xff",
        b"\x08\x01\x12\x05\x0a\x03abc",  # no peer id
        b"\x08\x01\x12\x02\x0a\x00",
        b"\x08\x01\x12\x7f",
    ],
)
def test_what_is_no_request_is_malformed(data: bytes) -> None:
    for decode in (wire.decode_hop_request, wire.decode_stop_request):
        with pytest.raises(MalformedMessage):
            decode(data)


@pytest.mark.parametrize("data", [b"", b"\x08\x00", b"\x08\x02", b"\x08\x02\x28", b"\x00"])
def test_what_is_no_answer_is_malformed(data: bytes) -> None:
    for decode in (wire.decode_hop_answer, wire.decode_stop_answer):
        with pytest.raises(MalformedMessage):
            decode(data)


def test_addresses_that_are_none_are_left_out() -> None:
    granted = wire.encode_hop_answer(Status.OK, expires_at_s=1, addresses=[ADDRESS])
    # The first byte of the address says ip4; now it says a protocol that there is not.
    spoilt = bytearray(body(granted))
    spoilt[spoilt.index(bytes((4, 203, 0, 113, 7)))] = 0x7F
    assert wire.decode_hop_answer(bytes(spoilt)).addresses == ()


def test_no_bytes_raise_anything_else() -> None:
    rng = random.Random(8)
    seeds = [
        body(wire.encode_hop_connect(PEER)),
        body(wire.encode_stop_connect(PEER, LIMIT)),
        body(wire.encode_hop_answer(Status.OK, limit=LIMIT, expires_at_s=2**40, addresses=[ADDRESS])),
        body(wire.encode_stop_answer(Status.OK)),
    ]
    understood = 0
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        data += rng.randbytes(rng.choice((0, 0, 3)))
        for decode in (
            wire.decode_hop_request,
            wire.decode_hop_answer,
            wire.decode_stop_request,
            wire.decode_stop_answer,
        ):
            try:
                decode(bytes(data))
            except MalformedMessage:
                continue
            understood += 1
    assert understood > 1000, "the mutations are too wild to reach anything"


async def read(data: bytes) -> bytes:
    pieces = [data[i : i + 3] for i in range(0, len(data), 3)]

    async def receive() -> bytes:
        await trio.lowlevel.checkpoint()
        return pieces.pop(0) if pieces else b""

    return await wire.read_message(ByteReader(receive))


async def test_a_message_is_read_in_pieces_of_any_size() -> None:
    assert await read(b"\x02\x08\x00") == b"\x08\x00"
    assert await read(bytes((0x80 | 300 & 0x7F, 300 >> 7)) + bytes(300)) == bytes(300)


@pytest.mark.parametrize("length", [b"\x81\x20", b"\xff\xff\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"])
async def test_a_message_that_claims_more_than_4_kib_is_refused_before_it_is_read(length: bytes) -> None:
    with pytest.raises(MalformedMessage, match="4096"):
        await read(length + bytes(10_000))


async def test_a_message_that_ends_early_is_a_broken_channel() -> None:
    with pytest.raises(ChannelBroken):
        await read(b"\x05abc")
