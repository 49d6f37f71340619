"""What the node and its DHT process say to each other over the process's standard input and output.

A frame is `u32 length ‖ MessagePack map` of one struct, whose `type` says which. The process runs a library that
talks to strangers, so the node treats what it says like everything from outside: sizes are limited, a frame that does
not decode is a `BadDhtFrame`, and every record in it is verified again.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from protocol import constants as c
from protocol.records import Address, Hash, NodeKey

# A command names at most all models of a heartbeat and holds its record; a report is smaller.
FRAME_BYTES_MAX: Final = 64 * 1024
ADDRESSES_MAX: Final = 32
_HEADER: Final = struct.Struct(">I")

Record = Annotated[bytes, Meta(min_length=1, max_length=c.RECORD_BYTES_MAX + 256)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
Number = Annotated[int, Meta(ge=0, le=c.INTEGER_MAX)]


class BadDhtFrame(Exception):
    """What the other process sent is no frame of ours."""


class Frame(Struct, frozen=True, tag_field="type"):
    """Base of all that is said."""


class Begin(Frame, frozen=True, tag=True):
    """First command: take part in the DHT, beginning with these peers.

    It listens on `listen_hosts` at `port` and tells others that it is at `announced_hosts`; without any of either it
    only asks. `allow_private`: addresses of no Internet host are dialled, too.
    """

    listen_hosts: tuple[str, ...]
    port: Annotated[int, Meta(ge=0, le=65535)]
    announced_hosts: tuple[str, ...]
    peers: Addresses
    allow_private: bool


class Meet(Frame, frozen=True, tag=True):
    """More peers of the DHT to begin with."""

    peers: Addresses


class Publish(Frame, frozen=True, tag=True):
    """From now on say, now and then, that this node is at these addresses and provides what these keys stand for.

    No keys: say nothing any more.
    """

    node: NodeKey
    addresses: Annotated[tuple[Address, ...], Meta(max_length=c.HEARTBEAT_ADDRESSES_MAX)]
    record: Record
    keys: Annotated[tuple[Hash, ...], Meta(max_length=c.HEARTBEAT_MODELS_MAX)]


class Search(Frame, frozen=True, tag=True):
    """Who provides what this key stands for? Answered by `Found` for each node."""

    key: Hash


class Ping(Frame, frozen=True, tag=True):
    """Answer with `Pong` of the same number."""

    number: Number


class Begun(Frame, frozen=True, tag=True):
    """It takes part, under these full multiaddrs; none when it only asks."""

    addresses: Addresses


class NotBegun(Frame, frozen=True, tag=True):
    """It cannot take part; one line for people."""

    reason: Annotated[str, Meta(max_length=c.TEXT_CHARACTERS_MAX)]


class Found(Frame, frozen=True, tag=True):
    """A node that may provide what was searched for: where it may be, and its heartbeat if that was found."""

    node: NodeKey
    addresses: Annotated[tuple[Address, ...], Meta(max_length=c.HEARTBEAT_ADDRESSES_MAX)]
    record: Record | None


class Pong(Frame, frozen=True, tag=True):
    """The process is alive, and knows some peers of the DHT: worth remembering."""

    number: Number
    peers: Addresses


Command = Begin | Meet | Publish | Search | Ping
Report = Begun | NotBegun | Found | Pong

_ENCODER: Final = msgspec.msgpack.Encoder()
_COMMANDS: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)
_REPORTS: Final[msgspec.msgpack.Decoder[Report]] = msgspec.msgpack.Decoder(Report)


def encode(frame: Command | Report) -> bytes:
    """The bytes of a frame."""
    body = _ENCODER.encode(frame)
    assert len(body) <= FRAME_BYTES_MAX, "a frame that the other side would refuse"
    return _HEADER.pack(len(body)) + body


class FrameCutter:
    """Bytes in, bodies of frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; give the bodies that are complete. Raises BadDhtFrame."""
        self._buffer += data
        bodies = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise BadDhtFrame(f"a frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
        return bodies


def read_command(body: bytes) -> Command:
    """What the node says. Raises BadDhtFrame."""
    try:
        return _COMMANDS.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadDhtFrame("a command that does not decode") from error


def read_report(body: bytes) -> Report:
    """What the DHT process says. Raises BadDhtFrame."""
    try:
        return _REPORTS.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadDhtFrame("a report that does not decode") from error
