"""multistream-select 1.0.0: how two ends agree on a protocol, with bounds on what a stranger may say.

A token is a varint length, UTF-8 text and a newline. The dialer sends the header and the protocol it wants without
waiting for an answer (0-RTT) and checks the echo when it next reads. Source: the libp2p connections specification.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from typing import Final

from infernet.transport.channel import ByteReader

HEADER: Final = "/multistream/1.0.0"
NOT_AVAILABLE: Final = "na"

# Ours are under 40 bytes; the two-byte varint that holds this is the longest that we read.
TOKEN_BYTES_MAX: Final = 1024
# A peer names a few protocols that it knows; one that goes on guessing is cut off.
PROPOSALS_MAX: Final = 8


class MultistreamError(Exception):
    """The other end breaks a rule of multistream-select, or names nothing that we speak."""


class ProtocolRefused(MultistreamError):
    """The other end does not speak the protocol that we asked for."""


def encode(*tokens: str) -> bytes:
    """The wire form of tokens. Raises ValueError for one that is too long."""
    encoded = bytearray()
    for token in tokens:
        line = token.encode() + b"\n"
        if len(line) > TOKEN_BYTES_MAX:
            raise ValueError(f"a multistream token has at most {TOKEN_BYTES_MAX} bytes")
        if len(line) > 0x7F:
            encoded += bytes((len(line) & 0x7F | 0x80, len(line) >> 7))
        else:
            encoded.append(len(line))
        encoded += line
    return bytes(encoded)


def proposal(protocol: str) -> bytes:
    """What a dialer sends first; its own data may follow at once."""
    return encode(HEADER, protocol)


async def confirm(reader: ByteReader, protocol: str) -> None:
    """Read the answer to `proposal`. Raises ProtocolRefused, MultistreamError or ChannelBroken."""
    await _read_header(reader)
    answer = await _read_token(reader)
    if answer == NOT_AVAILABLE:
        raise ProtocolRefused(f"the peer does not speak {protocol}")
    if answer != protocol:
        raise MultistreamError(f"asked for {protocol}, the peer answered {answer[:64]!r}")


async def respond(reader: ByteReader, send: Callable[[bytes], Awaitable[None]], spoken: Container[str]) -> str:
    """Answer proposals until one names a protocol we speak, and return it.

    Raises MultistreamError after PROPOSALS_MAX of them, or ChannelBroken. The caller owns the deadline.
    """
    await _read_header(reader)
    await send(encode(HEADER))
    for _ in range(PROPOSALS_MAX):
        token = await _read_token(reader)
        if token in spoken:
            await send(encode(token))
            return token
        await send(encode(NOT_AVAILABLE))
    raise MultistreamError(f"the peer named {PROPOSALS_MAX} protocols and we speak none of them")


async def _read_header(reader: ByteReader) -> None:
    token = await _read_token(reader)
    if token != HEADER:
        raise MultistreamError(f"expected {HEADER}, the peer sent {token[:64]!r}")


async def _read_token(reader: ByteReader) -> str:
    length = (await reader.read(1))[0]
    if length > 0x7F:
        high = (await reader.read(1))[0]
        length = length & 0x7F | high << 7
        if high > 0x7F or length > TOKEN_BYTES_MAX:
            raise MultistreamError(f"a token has more than {TOKEN_BYTES_MAX} bytes")
    line = await reader.read(length)
    if not line.endswith(b"\n"):
        raise MultistreamError("a token does not end with a newline")
    try:
        return line[:-1].decode()
    except UnicodeDecodeError:
        raise MultistreamError("a token is not UTF-8") from None
