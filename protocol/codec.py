"""Frames and messages: the one place where foreign bytes become typed values.

A frame is `u32 big-endian length ‖ body`, the body one MessagePack array. Whatever the bytes, decoding ends in a
message, in `None` for an optional type that this version does not know, or in `RemoteProtocolError`; nothing
else can happen, and the cost is bounded by the limits (specs/01).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

import msgpack
import msgspec

from protocol import constants as c
from protocol.errors import BadFrame, LocalProtocolError, RemoteProtocolError, UnknownVersion
from protocol.ids import JOB_ID_BYTES
from protocol.messages import AnyMessage, Message
from protocol.records import Record

_BYTES: Final = (bytes,)
# By type: msgspec prepares a class once, but a union again at every call, which costs 20 us.
_CLASSES: Final[dict[int, type[Message]]] = {cls.__struct_config__.tag: cls for cls in get_args(AnyMessage)}
RecordType = TypeVar("RecordType", bound=Record)
StructType = TypeVar("StructType", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one decoded value may hold; lengths in bytes and items."""

    total_bytes: int
    item_bytes: int
    array_items: int
    depth: int
    values: int


CONTROL_LIMITS: Final = Limits(c.CONTROL_FRAME_BYTES_MAX, c.BYTES_MAX, c.ARRAY_ITEMS_MAX, c.DEPTH_MAX, c.VALUES_MAX)
JOB_LIMITS: Final = Limits(c.JOB_FRAME_BYTES_MAX, c.BYTES_MAX, c.ARRAY_ITEMS_MAX, c.DEPTH_MAX, c.VALUES_MAX)
RECORD_LIMITS: Final = Limits(c.RECORD_BYTES_MAX, c.BYTES_MAX, c.ARRAY_ITEMS_MAX, c.DEPTH_MAX, c.VALUES_MAX)
# What a seal holds is written by one asker for one provider and is already bounded by the size of the seal.
SEALED_LIMITS: Final = Limits(
    c.SEALED_BYTES_MAX, c.SEALED_BYTES_MAX, c.SEALED_ARRAY_ITEMS_MAX, c.DEPTH_MAX, c.SEALED_VALUES_MAX
)


def limits_of_protocol(protocol: str) -> Limits:
    """The limits of a frame on a stream of this protocol."""
    return JOB_LIMITS if protocol == c.JOB_PROTOCOL else CONTROL_LIMITS


# ---------------------------------------------------------------- values


def decode_value(data: bytes | memoryview, limits: Limits) -> Any:
    """Decode one MessagePack value within limits.

    Accepts nil, integers, UTF-8 strings, binaries and arrays; refuses maps, floats, extension types and booleans,
    which no message uses. Raises BadFrame.
    """
    # SPEC 01: The receiver MUST refuse a body that holds a map, a float, a boolean or an extension type,
    #   or that exceeds a limit of its stream.
    if len(data) > limits.total_bytes:
        raise BadFrame(f"{len(data)} bytes where at most {limits.total_bytes} are allowed")
    # SPEC 01: The receiver MUST NOT let any body cost it more than a small multiple of its length in memory.
    budget = limits.values

    def spend(items: list[Any]) -> list[Any]:
        # Called as each array closes: a frame of a million empty arrays stops here, not after it was built.
        nonlocal budget
        budget -= len(items)
        if budget < 0:
            raise BadFrame(f"more than {limits.values} values")
        return items

    # SPEC 01: The receiver MUST refuse a body with bytes after its value.
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            list_hook=spend,
            strict_map_key=True,
            max_str_len=limits.item_bytes,
            max_bin_len=limits.item_bytes,
            max_array_len=limits.array_items,
            max_map_len=0,
            max_ext_len=0,
        )
    # msgpack raises ValueError subclasses for bad data, but a hostile frame may also meet RecursionError or
    # OverflowError in its depths: everything that these bytes cause is the sender's fault.
    except Exception as error:  # noqa: BLE001
        raise BadFrame(f"not MessagePack within limits: {type(error).__name__}") from None
    _check_shape(value, limits)
    return value


def _check_shape(root: Any, limits: Limits) -> None:
    """Walk a decoded value level by level and enforce depth, number of values and types. Raises BadFrame."""
    count = 1
    level = [root]
    depth = 0
    while level:
        depth += 1
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is list:
                below.extend(value)
            elif kind is int:
                if value > c.INTEGER_MAX or value < -c.INTEGER_MAX:
                    raise BadFrame("an integer does not fit in 63 bits and a sign")
            elif kind is not bytes and kind is not str and value is not None:
                raise BadFrame(f"a {kind.__name__} has no place in a message")
        if below and depth >= limits.depth:
            raise BadFrame(f"nested deeper than {limits.depth}")
        count += len(below)
        if count > limits.values:
            raise BadFrame(f"more than {limits.values} values")
        level = below


def encode_value(value: Any) -> bytes:
    """Encode in canonical form: arrays, shortest integers and lengths, `str` for text and `bin` for bytes."""
    # SPEC 01: The signer MUST encode the record in canonical form: every integer and every length in its shortest form,
    #   text as `str`, bytes as `bin`.
    try:
        data: bytes = msgpack.packb(msgspec.to_builtins(value, builtin_types=_BYTES), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot encode: {error}") from None
    return data


def decode_struct(data: bytes, cls: type[StructType], limits: Limits) -> StructType:
    """Decode an untagged struct (what is inside a seal). Raises BadFrame."""
    return _convert(decode_value(data, limits), cls)


def _convert(value: Any, cls: type[StructType]) -> StructType:
    try:
        return msgspec.convert(value, type=cls, builtin_types=_BYTES)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise BadFrame(f"not a {cls.__name__}: {error}") from None


# ---------------------------------------------------------------- records


def encode_record(record: Record) -> bytes:
    """The canonical bytes of a record: what is signed. Raises LocalProtocolError when it exceeds the limit."""
    data = encode_value(record)
    if len(data) > c.RECORD_BYTES_MAX:
        raise LocalProtocolError(f"a record of {len(data)} bytes exceeds {c.RECORD_BYTES_MAX}")
    # Building a struct checks no bounds; others check them and would blame us.
    try:
        decode_record(data, type(record))
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"this {type(record).__name__} breaks the protocol: {error}") from None
    return data


def decode_record(body: bytes, cls: type[RecordType]) -> RecordType:
    """Decode a record and check that its bytes are canonical. Does not check the signature.

    Raises BadFrame, or UnknownVersion for a record whose first field is another version.
    """
    value = decode_value(body, RECORD_LIMITS)
    # SPEC 01: The receiver of a record MUST re-encode it and refuse it when the result differs from the bytes received.
    if msgpack.packb(value, use_bin_type=True) != body:
        raise BadFrame("the record is not in canonical form")
    # SPEC 01: The receiver MUST skip a record of a version that it does not know and MUST NOT blame the sender for it.
    if type(value) is list and value and type(value[0]) is int and value[0] > 1:
        raise UnknownVersion(f"a {cls.__name__} of version {value[0]}")
    record = _convert(value, cls)
    _check_extensions(getattr(record, "extensions", ()), cls)
    return record


def _check_extensions(extensions: tuple[tuple[int, bytes], ...], cls: type[Record]) -> None:
    types = [number for number, _ in extensions]
    # SPEC 01: The receiver MUST refuse a record whose extensions are not in strictly ascending order of type.
    if types != sorted(set(types)):
        raise BadFrame("the extensions of a record are not in strictly ascending order")
    # SPEC 01: The receiver MUST NOT act on a record that carries an unknown extension of an even type.
    unknown = next((number for number in types if number % 2 == 0), None)
    if unknown is not None:
        raise UnknownVersion(f"a {cls.__name__} with the unknown mandatory extension {unknown}")


def record_job(body: bytes) -> tuple[bytes, int] | None:
    """Job id and attempt of an order of any version, or None when even those cannot be read."""
    try:
        value = decode_value(body, RECORD_LIMITS)
        job, attempt = value[1], value[2]
    except (BadFrame, TypeError, IndexError):
        return None
    if type(job) is bytes and len(job) == JOB_ID_BYTES and type(attempt) is int and 0 < attempt < 2**32:
        return job, attempt
    return None


# ---------------------------------------------------------------- messages and frames


def encode_message(message: Message) -> bytes:
    """One frame: length and body. Raises LocalProtocolError when it is larger than any stream allows."""
    body = encode_value(message)
    if len(body) > c.JOB_FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a message of {len(body)} bytes exceeds {c.JOB_FRAME_BYTES_MAX}")
    return len(body).to_bytes(c.FRAME_HEADER_BYTES, "big") + body


def decode_message(body: bytes, limits: Limits) -> Message | None:
    """The message in the body of a frame, or None for an unknown optional type. Raises BadFrame."""
    value = decode_value(body, limits)
    if type(value) is not list or not value or type(value[0]) is not int:
        raise BadFrame("a message is an array that starts with its type")
    cls = _CLASSES.get(value[0])
    if cls is None:
        # SPEC 01: The receiver MUST ignore a message of an unknown odd type and MUST close the stream on an
        #   unknown even type.
        if value[0] % 2 == 1 and value[0] > 0:
            return None
        raise BadFrame(f"unknown mandatory message type {value[0]}")
    try:
        return msgspec.convert(value, type=cls, builtin_types=_BYTES)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise BadFrame(f"message type {value[0]}: {error}") from None


class FrameReader:
    """Cuts a byte stream into messages; one per stream and direction.

    It never holds more than one frame's limit: the length is checked before the body is awaited.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished frame; not zero at the end of a stream means that it was cut."""
        return len(self._buffer)

    def take_rest(self) -> bytes:
        """Everything after the last message that was yielded: from here on somebody else reads this stream."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add received bytes; yields the messages that are complete, in order, and must be exhausted, or left for good
        with `take_rest`.

        Messages before a bad frame are yielded before BadFrame is raised, whatever the segmentation was. After it
        the stream is beyond repair, because a stream of frames has no place to resume.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= c.FRAME_HEADER_BYTES:
            length = int.from_bytes(buffer[: c.FRAME_HEADER_BYTES], "big")
            # SPEC 01: The receiver MUST refuse a frame whose length exceeds the limit of its stream before it reads
            #   the body.
            if length > self._limits.total_bytes:
                raise BadFrame(f"a frame of {length} bytes where at most {self._limits.total_bytes} are allowed")
            end = c.FRAME_HEADER_BYTES + length
            if len(buffer) < end:
                break
            body = bytes(buffer[c.FRAME_HEADER_BYTES : end])
            del buffer[:end]
            message = decode_message(body, self._limits)
            # SPEC 01: The receiver MUST deliver the messages that come before a bad frame, however the bytes were cut
            #   into segments.
            if message is not None:
                yield message


class FrameLengths:
    """Follows the frames of a byte stream without keeping or reading them: for who only passes them on."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._header = bytearray()
        self._left_bytes = 0
        self.frames = 0

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame is unfinished: only here may a stream end, or something be added to it."""
        return not self._header and not self._left_bytes

    def feed(self, data: bytes) -> None:
        """Count what these bytes complete. Raises BadFrame for a length that no receiver may take."""
        at = 0
        while at < len(data):
            if self._left_bytes:
                step = min(self._left_bytes, len(data) - at)
                at += step
                self._left_bytes -= step
                self.frames += self._left_bytes == 0
                continue
            header = data[at : at + c.FRAME_HEADER_BYTES - len(self._header)]
            at += len(header)
            self._header += header
            if len(self._header) == c.FRAME_HEADER_BYTES:
                self._left_bytes = int.from_bytes(self._header, "big")
                self._header.clear()
                if not 0 < self._left_bytes <= self._limits.total_bytes:
                    raise BadFrame(f"a frame of {self._left_bytes} bytes")
