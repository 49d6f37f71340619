"""The messages of circuit relay v2: protobuf with a varint length before it, no longer than 4 KiB.

Source: the libp2p circuit relay v2 specification. Active relaying (a relay that dials the target) is left out, as the
specification advises, and so are reservation vouchers, which nobody requires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

import base58

from infernet.transport.channel import ByteReader
from infernet.transport.libp2p_library import (
    CircuitHop,
    CircuitStatus,
    CircuitStop,
    ProtobufError,
    length_prefixed,
    multiaddr_bytes,
    multiaddr_text,
)
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id_from_peer_id, peer_id

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/stop"

# What other implementations read at most; ours are below 1 KiB.
MESSAGE_BYTES_MAX: Final = 4096
# Of the addresses in a reservation, this many are read, and sent.
ADDRESSES_MAX: Final = 8

_Message = TypeVar("_Message", CircuitHop, CircuitStop)


class MalformedMessage(Exception):
    """The other end sent what is no message of this protocol."""


class Status(IntEnum):
    """What became of a request; the numbers are the specification's."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a relay carries one circuit, and how many bytes in each direction; 0 is without limit."""

    duration_s: int = 0
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ReserveRequest:
    """To a relay: keep a place for me."""


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """To a relay: connect me with this peer. From a relay: this peer wants to be connected with you."""

    peer: NodeId
    limit: Limit = Limit()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to either. A place that is granted has an expiry (Unix seconds by the relay's clock) and addresses.

    `status` is a number that we may not know; the addresses are those of the relay, as it claims them.
    """

    status: int
    limit: Limit = Limit()
    expires_at_s: int = 0
    addresses: tuple[str, ...] = ()


async def read_message(reader: ByteReader) -> bytes:
    """The body of the next message. Raises MalformedMessage, or ChannelBroken and StreamBroken as the flow does.

    The caller owns the deadline.
    """
    length = (await reader.read(1))[0]
    if length > 0x7F:
        high = (await reader.read(1))[0]
        length = length & 0x7F | high << 7
        if high > 0x7F or length > MESSAGE_BYTES_MAX:
            raise MalformedMessage(f"a message has more than {MESSAGE_BYTES_MAX} bytes")
    return await reader.read(length)


# ---------------------------------------------------------------- hop: with a relay


def encode_reserve() -> bytes:
    """A ReserveRequest for a relay."""
    return length_prefixed(CircuitHop(type=CircuitHop.RESERVE))


def encode_hop_connect(peer: NodeId) -> bytes:
    """A ConnectRequest for a relay."""
    message = CircuitHop(type=CircuitHop.CONNECT)
    message.peer.id = _peer_bytes(peer)
    return length_prefixed(message)


def decode_hop_request(body: bytes) -> ReserveRequest | ConnectRequest:
    """What a client asks of a relay. Raises MalformedMessage."""
    message = _parse(CircuitHop, body)
    if not message.HasField("type"):
        raise MalformedMessage("the message has no type")
    if message.type == CircuitHop.RESERVE:
        return ReserveRequest()
    if message.type == CircuitHop.CONNECT and message.HasField("peer"):
        return ConnectRequest(_peer(message.peer.id))
    raise MalformedMessage("neither RESERVE nor CONNECT with a peer")


def encode_hop_answer(
    status: Status, *, limit: Limit | None = None, expires_at_s: int | None = None, addresses: Sequence[str] = ()
) -> bytes:
    """A relay's answer; with an expiry it grants a place."""
    message = CircuitHop(type=CircuitHop.STATUS, status=CircuitStatus.ValueType(status))
    if limit is not None:
        message.limit.duration = limit.duration_s
        message.limit.data = limit.data_bytes
    if expires_at_s is not None:
        message.reservation.expire = expires_at_s
        message.reservation.addrs.extend(multiaddr_bytes(address) for address in addresses[:ADDRESSES_MAX])
    return length_prefixed(message)


def decode_hop_answer(body: bytes) -> Answer:
    """What a relay answers. Raises MalformedMessage. Addresses that are none are left out."""
    message = _parse(CircuitHop, body)
    if message.type != CircuitHop.STATUS or not message.HasField("status"):
        raise MalformedMessage("not the status that was expected")
    addresses = (multiaddr_text(data) for data in message.reservation.addrs[:ADDRESSES_MAX])
    return Answer(
        message.status,
        Limit(message.limit.duration, message.limit.data),
        message.reservation.expire,
        tuple(address for address in addresses if address is not None),
    )


# ---------------------------------------------------------------- stop: with the node that is reached


def encode_stop_connect(peer: NodeId, limit: Limit) -> bytes:
    """A ConnectRequest for the node that holds a place."""
    message = CircuitStop(type=CircuitStop.CONNECT)
    message.peer.id = _peer_bytes(peer)
    message.limit.duration = limit.duration_s
    message.limit.data = limit.data_bytes
    return length_prefixed(message)


def decode_stop_request(body: bytes) -> ConnectRequest:
    """Whom a relay wants to connect us with. Raises MalformedMessage."""
    message = _parse(CircuitStop, body)
    if not message.HasField("type") or message.type != CircuitStop.CONNECT or not message.HasField("peer"):
        raise MalformedMessage("not CONNECT with a peer")
    return ConnectRequest(_peer(message.peer.id), Limit(message.limit.duration, message.limit.data))


def encode_stop_answer(status: Status) -> bytes:
    """Our answer to a relay that wants to connect us."""
    return length_prefixed(CircuitStop(type=CircuitStop.STATUS, status=CircuitStatus.ValueType(status)))


def decode_stop_answer(body: bytes) -> Answer:
    """What the reached node answers. Raises MalformedMessage."""
    message = _parse(CircuitStop, body)
    if message.type != CircuitStop.STATUS or not message.HasField("status"):
        raise MalformedMessage("not the status that was expected")
    return Answer(message.status)


# ---------------------------------------------------------------- helpers


def _parse(kind: type[_Message], body: bytes) -> _Message:
    message = kind()
    try:
        message.ParseFromString(body)
    except ProtobufError as error:
        raise MalformedMessage(f"no protobuf message: {error}") from None
    return message


def _peer_bytes(peer: NodeId) -> bytes:
    return base58.b58decode(peer_id(peer))


def _peer(data: bytes) -> NodeId:
    try:
        return node_id_from_peer_id(base58.b58encode(data).decode())
    except LocalProtocolError as error:
        raise MalformedMessage(str(error)) from None
