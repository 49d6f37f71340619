"""What two nodes of one owner say to each other when they run one model together (specs/11).

The head opens a stream with `Attach`, and the worker answers with `Attached` or `Refused`; the session lasts as long as
that stream. Each connection of the head's llama-server to the worker is one more stream: `Carry`, `Ready`, and then
whatever bytes llama.cpp's RPC has for each other, in both directions.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, get_args

import msgspec
from msgspec import Meta, Struct

from protocol import codec
from protocol import constants as c
from protocol.errors import BadFrame
from protocol.structs import prepare

# ---------------------------------------------------------------- specification constants

CLUSTER_PROTOCOL: Final = "/infernet/cluster/1"
CLUSTER_FRAME_BYTES_MAX: Final = 8 * 1024
DEVICES_MAX: Final = 16
# Connections that one llama-server has to one worker: two were seen, one of them while it looks for devices.
CARRIED_MAX: Final = 8
SESSION_BYTES: Final = 16
_MIB: Final = 1024 * 1024

_LIMITS: Final = codec.Limits(CLUSTER_FRAME_BYTES_MAX, 1024, DEVICES_MAX, 4, 128)
_BYTES: Final = (bytes,)

_Word = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=c.TEXT_CHARACTERS_MAX)]
_Mebibytes = Annotated[int, Meta(ge=0, le=2**40)]
_Session = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]


class Why(IntEnum):
    """Why a worker refuses."""

    UNKNOWN = 0
    OTHER_BUILD = 1
    NO_SERVER = 2
    NO_SESSION = 3
    TOO_MANY = 4


class Build(Struct, frozen=True, array_like=True):
    """Which llama.cpp it is, as its `--version` says."""

    number: Annotated[int, Meta(ge=0, le=2**31)]
    commit: _Word

    def __str__(self) -> str:
        return f"b{self.number} ({self.commit})"


class Device(Struct, frozen=True, array_like=True):
    """What a worker offers to compute with, as its RPC server says."""

    name: _Text
    total_mib: _Mebibytes
    free_mib: _Mebibytes

    @property
    def total_bytes(self) -> int:
        """All its memory, as programs are told."""
        return self.total_mib * _MIB

    @property
    def free_bytes(self) -> int:
        """What of it is free."""
        return self.free_mib * _MIB


class ClusterMessage(Struct, frozen=True, array_like=True):
    """Base of all messages; the tag of each class is its type on the wire."""


class Attach(ClusterMessage, frozen=True, tag=2):
    """The head's first word on the stream that is the session."""

    build: Build


class Attached(ClusterMessage, frozen=True, tag=4):
    """The worker's RPC server runs, and waits for connections of this session. `rpc` is its protocol's version."""

    session: _Session
    build: Build
    rpc: _Word
    devices: Annotated[tuple[Device, ...], Meta(max_length=DEVICES_MAX)]


class Refused(ClusterMessage, frozen=True, tag=6):
    """Nothing comes of it; the stream ends. `build` is the worker's, where it knows it."""

    why: Annotated[int, Meta(ge=0, le=255)]
    text: _Text
    build: Build | None


class Carry(ClusterMessage, frozen=True, tag=8):
    """The head's first word on a stream for one connection: bytes follow after `Ready`."""

    session: _Session


class Ready(ClusterMessage, frozen=True, tag=10):
    """The worker has connected with its RPC server: from the next byte on this stream is that connection."""


AnyClusterMessage = Attach | Attached | Refused | Carry | Ready
_CLASSES: Final[dict[int, type[AnyClusterMessage]]] = {
    cls.__struct_config__.tag: cls for cls in get_args(AnyClusterMessage)
}


def encode(message: AnyClusterMessage) -> bytes:
    """One frame: length and body."""
    body = codec.encode_value(message)
    assert len(body) <= CLUSTER_FRAME_BYTES_MAX, "a message that nobody may take"
    return len(body).to_bytes(c.FRAME_HEADER_BYTES, "big") + body


def body_length(header: bytes) -> int:
    """How long the body after this header is. Raises BadFrame when no receiver may take it."""
    length = int.from_bytes(header, "big")
    # SPEC 11: The receiver MUST refuse a frame whose length exceeds 8,192 bytes before it reads the body.
    if not 0 < length <= CLUSTER_FRAME_BYTES_MAX:
        raise BadFrame(f"a frame of {length} bytes")
    return length


def decode(body: bytes) -> AnyClusterMessage:
    """The message in the body of a frame. Raises BadFrame, for types that are not known, too."""
    value = codec.decode_value(body, _LIMITS)
    if type(value) is not list or not value or type(value[0]) is not int:
        raise BadFrame("a message is an array that starts with its type")
    cls = _CLASSES.get(value[0])
    if cls is None:
        # SPEC 11: The receiver MUST break the stream at a message that it does not know: there are no optional ones.
        raise BadFrame(f"unknown message type {value[0]}")
    try:
        return msgspec.convert(value, type=cls, builtin_types=_BYTES)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise BadFrame(f"message type {value[0]}: {error}") from None


def why_not_together(ours: Build, theirs: Build) -> str | None:
    """Why two builds may not work together, in one line; None when they may."""
    if ours == theirs:
        return None
    return f"its llama.cpp is {theirs}, and this node's is {ours}: use the same build on all machines of a cluster"


prepare(globals())
