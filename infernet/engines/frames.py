"""What the node and its engine process say to each other over the process's standard input and output.

A frame is `u32 length ‖ u8 kind ‖ MessagePack body`; the body is one struct, and the kind says which. The engine
process runs native code on strangers' prompts, so the node treats what it says like everything from outside: sizes
are limited, and a frame that does not decode is a `BadWorkerFrame`.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from infernet.confinement.contract import Protection
from infernet.engines.contract import EngineConfig
from protocol.effects import CancelEngine, ContinueEngine, RunEngine
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector

# The largest command is a prompt of the size that may be sealed (1 MiB), the largest report an embedding.
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
DEVICES_MAX: Final = 64
_HEADER: Final = struct.Struct(">IB")


class BadWorkerFrame(Exception):
    """What the other process sent is no frame of ours."""


class Load(Struct, frozen=True):
    """First command: load this model. `directory` is private to this process, for its socket."""

    config: EngineConfig
    directory: str


class Look(Struct, frozen=True):
    """Instead of `Load`: tell which GPUs llama.cpp sees. The process serves nothing."""


class Ping(Struct, frozen=True):
    """Answer with `Pong` of the same number."""

    number: int


class Probe(Struct, frozen=True):
    """Say with `Probed` whether the library of this engine can be loaded."""

    engine: str


class Ready(Struct, frozen=True):
    """The model is loaded; each slot has a context of this many tokens. Whether GPUs have a part in it; what the kernel
    keeps the process from.
    """

    context_tokens: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    on_cards: bool = False
    protections: Annotated[tuple[Protection, ...], Meta(max_length=16)] = ()


class LoadFailed(Struct, frozen=True):
    """The model cannot be loaded; one line for people."""

    text: str


class Device(Struct, frozen=True):
    """A GPU that llama.cpp can use: its name there (`CUDA0`), and the memory that it has of its own."""

    name: Annotated[str, Meta(max_length=64)]
    memory_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Seen(Struct, frozen=True):
    """The GPUs that llama.cpp sees."""

    devices: Annotated[tuple[Device, ...], Meta(max_length=DEVICES_MAX)]


class Pong(Struct, frozen=True):
    """The process is alive."""

    number: int


class Probed(Struct, frozen=True):
    """The library's version, or one line for people about why it cannot be loaded."""

    problem: str
    version: str


class Idle(Struct, frozen=True):
    """No run is active, and this many slots of the engine are busy nevertheless."""

    slots_busy: Annotated[int, Meta(ge=0)]


WorkerCommand = Load | Probe | RunEngine | ContinueEngine | CancelEngine | Ping | Look
WorkerReport = (
    Ready
    | LoadFailed
    | Seen
    | Pong
    | Probed
    | Idle
    | EngineStarted
    | EngineProgress
    | EngineText
    | EngineVector
    | EngineFinished
    | EngineFailed
)

_KINDS: Final[dict[int, type[WorkerCommand | WorkerReport]]] = {
    1: Load,
    2: RunEngine,
    3: CancelEngine,
    4: Ping,
    5: ContinueEngine,
    6: Look,
    7: Probe,
    16: Ready,
    17: LoadFailed,
    18: Pong,
    19: Idle,
    20: Seen,
    21: Probed,
    32: EngineStarted,
    33: EngineProgress,
    34: EngineText,
    35: EngineVector,
    36: EngineFinished,
    37: EngineFailed,
}
_KIND_OF: Final = {type_: kind for kind, type_ in _KINDS.items()}
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(type_) for kind, type_ in _KINDS.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: WorkerCommand | WorkerReport) -> bytes:
    """The frame of a message. Raises UnicodeEncodeError for text that is not Unicode (a lone surrogate)."""
    body = _ENCODER.encode(message)
    assert len(body) <= FRAME_BYTES_MAX, "a message to the engine is larger than any prompt may be"
    return _HEADER.pack(len(body), _KIND_OF[type(message)]) + body


class FrameReader:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[WorkerCommand | WorkerReport]:
        """Take the next bytes; give the messages that are complete. Raises BadWorkerFrame."""
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, kind = _HEADER.unpack_from(self._buffer, start)
            if length > FRAME_BYTES_MAX or kind not in _DECODERS:
                raise BadWorkerFrame(f"a frame of kind {kind} and {length} bytes")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(_DECODERS[kind].decode(bytes(self._buffer[start + _HEADER.size : end])))
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise BadWorkerFrame(f"a frame of kind {kind} that does not decode") from error
            start = end
        del self._buffer[:start]
        return messages
