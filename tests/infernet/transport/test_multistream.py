"""multistream-select: bytes as the specification shows them, and bounds on what strangers say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.transport import multistream
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.multistream import MultistreamError, ProtocolRefused, confirm, encode, respond

pytestmark = pytest.mark.anyio

HEADER = b"\x13/multistream/1.0.0\n"


def reader_of(data: bytes, piece_bytes: int = 1) -> ByteReader:
    """A reader whose flow brings so many bytes at a time, then ends."""
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]

    async def receive() -> bytes:
        return pieces.pop(0) if pieces else b""

    return ByteReader(receive)


def collector(said: bytearray) -> Callable[[bytes], Awaitable[None]]:
    async def send(data: bytes) -> None:
        said.extend(data)

    return send


def test_tokens_have_a_length_and_a_newline() -> None:
    assert multistream.proposal("/noise") == HEADER + b"\x07/noise\n"
    assert encode("x" * 199) == b"\xc8\x01" + b"x" * 199 + b"\n"
    with pytest.raises(ValueError, match="1024"):
        encode("x" * 1024)


async def test_a_protocol_that_we_speak_is_echoed() -> None:
    said = bytearray()
    reader = reader_of(HEADER + b"\x03/a\n" + b"data")
    assert await respond(reader, collector(said), {"/a"}) == "/a"
    assert said == HEADER + b"\x03/a\n"
    assert await reader.read(4) == b"data"


async def test_others_are_not_available_until_one_is() -> None:
    said = bytearray()
    reader = reader_of(HEADER + b"\x03/b\n" + b"\x03ls\n" + b"\x03/a\n")
    assert await respond(reader, collector(said), {"/a"}) == "/a"
    assert said == HEADER + b"\x03na\n" * 2 + b"\x03/a\n"


async def test_guessing_has_an_end() -> None:
    said = bytearray()
    with pytest.raises(MultistreamError, match="speak none"):
        await respond(reader_of(HEADER + b"\x03/b\n" * 100), collector(said), {"/a"})
    assert said.count(b"na") == multistream.PROPOSALS_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"\x13/multistream/2.0.0\n",
        b"\x0a/noise",
        HEADER + b"\x04\xff\xfe\xfd\n",
        HEADER + b"\x00",
        HEADER + b"\x03/ab",
        HEADER + b"\x81\x08",
        HEADER + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["version", "cut", "utf-8", "empty", "newline", "1 KiB", "2^63", "http", "tls"],
)
async def test_broken_tokens_raise_only_what_is_declared(data: bytes) -> None:
    with pytest.raises((MultistreamError, ChannelBroken)):
        await respond(reader_of(data, 1000), collector(bytearray()), {"/a"})


async def test_the_dialer_checks_the_answer() -> None:
    await confirm(reader_of(HEADER + b"\x03/a\n"), "/a")
    with pytest.raises(ProtocolRefused, match="does not speak /a"):
        await confirm(reader_of(HEADER + b"\x03na\n"), "/a")
    with pytest.raises(MultistreamError, match="answered '/b'"):
        await confirm(reader_of(HEADER + b"\x03/b\n"), "/a")


@given(st.binary(max_size=200), st.integers(1, 50))
async def test_random_bytes_raise_only_what_is_declared(data: bytes, piece_bytes: int) -> None:
    for prefix in (b"", HEADER):
        with pytest.raises((MultistreamError, ChannelBroken)):
            await respond(reader_of(prefix + data, piece_bytes), collector(bytearray()), set())
