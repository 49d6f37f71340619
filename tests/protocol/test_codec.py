"""protocol/codec.py: what is refused and why, exact bytes, and frames however they are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import (
    CONTROL_LIMITS,
    JOB_LIMITS,
    RECORD_LIMITS,
    SEALED_LIMITS,
    FrameLengths,
    FrameReader,
    Limits,
    decode_message,
    decode_record,
    decode_struct,
    decode_value,
    encode_message,
    encode_record,
    encode_value,
    limits_of_protocol,
    record_job,
)
from protocol.errors import BadFrame, LocalProtocolError, UnknownVersion
from protocol.ids import JobId, LeaseId, NodeId
from protocol.messages import Cancel, Chunk, Fault, Part, Progress, Want
from protocol.records import (
    Availability,
    ChatMessage,
    FreePolicy,
    Heartbeat,
    JobAcceptRecord,
    JobRequest,
    Kind,
    Record,
    Role,
)
from tests.helpers_records import JOB as JOB_OF_ORDER
from tests.helpers_records import OFFER, acceptance, heartbeat, order

JOB = JobId(b"\xab" * 16)
SMALL = Limits(total_bytes=64, item_bytes=8, array_items=4, depth=3, values=8)


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("c0", None),
        ("00", 0),
        ("7f", 127),
        ("ccff", 255),
        ("cf7fffffffffffffff", 2**63 - 1),
        ("d38000000000000001", -(2**63 - 1)),
        ("a3c3a461", "äa"),
        ("c402beef", b"\xbe\xef"),
        ("9201a0", [1, ""]),
    ],
)
def test_what_messages_are_made_of_decodes(data: str, value: object) -> None:
    assert decode_value(bytes.fromhex(data), CONTROL_LIMITS) == value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("nothing", ""),
        ("a boolean", "c3"),
        ("a float of 32 bits", "ca3f800000"),
        ("a float of 64 bits", "cb3ff0000000000000"),
        ("not a number", "cb7ff8000000000000"),
        ("an empty map", "80"),
        ("a map", "810102"),
        ("a map within an array", "9180"),
        ("a boolean within an array", "91c2"),
        ("the byte that is never used", "c1"),
        ("a fixed extension", "d40100"),
        ("a timestamp", "d6ff00000000"),
        ("an extension of no bytes", "c70001"),
        ("an integer of 64 bits", "cf8000000000000000"),
        ("the smallest integer of 64 bits", "d38000000000000000"),
        ("text that is not UTF-8", "a1ff"),
        ("text with half a surrogate pair", "a3eda080"),
        ("text cut short", "a361"),
        ("an array cut short", "9201"),
        ("a second value", "0101"),
        ("a long binary announced", "c6ffffffff"),
        ("a long array announced", "ddffffffff"),
        ("a long map announced", "dfffffffff"),
        ("a long extension announced", "c9ffffffff01"),
    ],
)
def test_everything_else_is_refused(name: str, data: str) -> None:
    with pytest.raises(BadFrame):
        decode_value(bytes.fromhex(data), CONTROL_LIMITS)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (b"\x93" + b"\xc4\x08aaaaaaaa" * 3 + b"", b"\x91\xc4\x09aaaaaaaaa"),
        (b"\xa8aaaaaaaa", b"\xa9aaaaaaaaa"),
        (b"\x94\0\0\0\0", b"\x95\0\0\0\0\0"),
        (nested(2), nested(3)),
        (b"\x92\x93\0\0\0\x92\0\0", b"\x92\x93\0\0\0\x93\0\0\0"),
    ],
)
def test_each_limit_holds_exactly(within: bytes, beyond: bytes) -> None:
    decode_value(within, SMALL)
    with pytest.raises(BadFrame):
        decode_value(beyond, SMALL)


def test_the_number_of_bytes_is_limited_before_anything_is_decoded() -> None:
    with pytest.raises(BadFrame, match="65 bytes where at most 64"):
        decode_value(b"\xc1" * 65, SMALL)


@pytest.mark.parametrize("depth", [1_000, 1_025, 60_000, 100_000])
def test_deep_nesting_is_refused_and_costs_nothing(depth: int) -> None:
    with pytest.raises(BadFrame):
        decode_value(nested(depth), SEALED_LIMITS)


@pytest.mark.parametrize("value", [object(), "\ud800", 2**64])
def test_what_cannot_be_encoded_is_our_own_fault(value: object) -> None:
    with pytest.raises(LocalProtocolError):
        encode_value([value])


def test_streams_of_jobs_have_larger_frames() -> None:
    assert limits_of_protocol(c.JOB_PROTOCOL) is JOB_LIMITS
    for protocol in (c.HELLO_PROTOCOL, c.GOSSIP_PROTOCOL, c.FIND_PROTOCOL):
        assert limits_of_protocol(protocol) is CONTROL_LIMITS
    assert RECORD_LIMITS.total_bytes < CONTROL_LIMITS.total_bytes < JOB_LIMITS.total_bytes


# ---------------------------------------------------------------- records


def test_a_record_comes_back_from_its_canonical_bytes() -> None:
    record = acceptance()
    body = encode_record(record)
    assert decode_record(body, type(record)) == record
    assert msgpack.packb(msgpack.unpackb(body)) == body


NON_CANONICAL = [
    ("a version in two bytes", lambda body: body[:1] + b"\xcc\x01" + body[2:]),
    ("an array header of three bytes", lambda body: b"\xdc\x00" + bytes([body[0] & 15]) + body[1:]),
    ("a binary with a length of two bytes", lambda body: body.replace(b"\xc4\x10" + JOB, b"\xc5\x00\x10" + JOB, 1)),
]


@pytest.mark.parametrize(("name", "rewrite"), NON_CANONICAL)
def test_a_record_has_one_encoding(name: str, rewrite: Callable[[bytes], bytes]) -> None:
    record = acceptance(job=JOB)
    body = encode_record(record)
    rewritten = rewrite(body)
    assert rewritten != body
    assert decode_value(rewritten, RECORD_LIMITS) == decode_value(body, RECORD_LIMITS)
    with pytest.raises(BadFrame, match="canonical"):
        decode_record(rewritten, type(record))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("one field less", lambda fields: fields[:-1]),
        ("one field more", lambda fields: [*fields, 0]),
        ("version nought", lambda fields: [0, *fields[1:]]),
    ],
)
def test_a_record_has_one_arity(name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    record = acceptance()
    fields = msgpack.unpackb(encode_record(record))
    with pytest.raises(BadFrame):
        decode_record(msgpack.packb(change(fields)), type(record))


@pytest.mark.parametrize("fields", [[2], [2, "anything", [b""]], [255] * 30])
def test_a_record_of_a_later_version_is_told_apart_from_a_bad_one(fields: list[object]) -> None:
    with pytest.raises(UnknownVersion):
        decode_record(msgpack.packb(fields), JobAcceptRecord)


def test_a_later_version_is_canonical_too() -> None:
    with pytest.raises(BadFrame, match="canonical"):
        decode_record(b"\x91\xcc\x02", JobAcceptRecord)


def test_unknown_odd_extensions_are_ignored_and_unknown_even_ones_keep_a_record_from_being_used() -> None:
    odd = acceptance(extensions=((1, b""), (7, b"later"), (2**63 - 1, b"\0" * 1024)))
    assert decode_record(encode_record(odd), JobAcceptRecord) == odd
    even = msgpack.packb([*msgpack.unpackb(encode_record(odd))[:-1], [[1, b""], [6, b""], [7, b""]]])
    with pytest.raises(UnknownVersion, match="extension 6"):
        decode_record(even, JobAcceptRecord)


@pytest.mark.parametrize(
    "extensions",
    [
        [[3, b""], [1, b""]],
        [[1, b""], [1, b""]],
        [[1]],
        [[1, b"", 0]],
        [[1, "text"]],
        [[-1, b""]],
        [[1, bytes(1025)]],
        [[n, b""] for n in range(1, 19, 2)],
    ],
)
def test_extensions_ascend_and_are_bounded(extensions: list[object]) -> None:
    body = msgpack.packb([*msgpack.unpackb(encode_record(acceptance()))[:-1], extensions])
    with pytest.raises(BadFrame):
        decode_record(body, JobAcceptRecord)


@pytest.mark.parametrize(
    "wrong",
    [
        acceptance(prompt_tokens=-1),
        acceptance(job=bytes(15)),
        acceptance(version=2),
        acceptance(extensions=((2, b""),)),
        heartbeat(name="x" * (c.NAME_CHARACTERS_MAX + 1)),
        heartbeat(models=(replace(OFFER, price_in_uusd=10**12 + 1),)),
        heartbeat(models=(replace(OFFER, kinds=()),)),
    ],
)
def test_we_never_sign_what_others_would_blame_us_for(wrong: Record) -> None:
    with pytest.raises(LocalProtocolError):
        encode_record(wrong)


def test_values_that_a_later_version_adds_read_as_unknown() -> None:
    fields = msgpack.unpackb(encode_record(heartbeat()))
    at = {name: index for index, name in enumerate(Heartbeat.__struct_fields__)}
    fields[at["role"]], fields[at["availability"]], fields[at["free_policy"]] = 9, 10, 255
    fields[at["models"]][0][2] = [1, 77]
    read = decode_record(msgpack.packb(fields), Heartbeat)
    assert (read.role, read.availability, read.free_policy) == (Role.UNKNOWN, Availability.UNKNOWN, FreePolicy.UNKNOWN)
    assert read.models[0].kinds == (Kind.CHAT, Kind.UNKNOWN)
    for value in (-1, 256):
        fields[at["role"]] = value
        with pytest.raises(BadFrame):
            decode_record(msgpack.packb(fields), Heartbeat)


def test_job_and_attempt_are_found_in_an_order_of_any_version() -> None:
    assert record_job(encode_record(order(attempt=3))) == (JOB_OF_ORDER, 3)
    assert record_job(msgpack.packb([9, JOB, 4, "whatever comes"])) == (JOB, 4)
    for body in (
        b"",
        b"\xc0",
        b"\x01",
        b"\xc4\x03abc",
        b"\xa3abc",
        msgpack.packb([9, JOB]),
        msgpack.packb([9, JOB, 0]),
    ):
        assert record_job(body) is None
    assert record_job(msgpack.packb([9, JOB[:15], 1])) is None


def test_a_record_is_not_larger_than_its_limit() -> None:
    models = tuple(replace(OFFER, name="é" * c.MODEL_NAME_CHARACTERS_MAX) for _ in range(60))
    with pytest.raises(LocalProtocolError, match="exceeds"):
        encode_record(heartbeat(models=models))


# ---------------------------------------------------------------- messages


def test_the_bytes_of_a_message() -> None:
    cancel = Cancel(JOB, 2, 65)
    assert encode_message(cancel).hex() == "00000016" + "94" + "4c" + "c410" + JOB.hex() + "02" + "41"


def test_unknown_trailing_fields_are_ignored() -> None:
    body = msgpack.packb([76, JOB, 2, 65, "from a later version", [1, 2]])
    assert decode_message(body, JOB_LIMITS) == Cancel(JOB, 2, 65)


def test_unknown_odd_types_are_ignored_and_unknown_even_ones_refused() -> None:
    assert decode_message(msgpack.packb([1001, "x", [b""]]), JOB_LIMITS) is None
    assert decode_message(msgpack.packb([1001]), JOB_LIMITS) is None
    with pytest.raises(BadFrame, match="unknown mandatory message type 1000"):
        decode_message(msgpack.packb([1000]), JOB_LIMITS)


@pytest.mark.parametrize("body", ["c0", "00", "90", "91c0", "91a14c", "9190", "91ff", "91d1fc17", "c44c"])
def test_a_message_is_an_array_that_starts_with_its_type(body: str) -> None:
    with pytest.raises(BadFrame):
        decode_message(bytes.fromhex(body), JOB_LIMITS)


@pytest.mark.parametrize(
    "fields",
    [
        [76, JOB, 2],
        [76, JOB[:15], 2, 65],
        [76, JOB.hex()[:16], 2, 65],
        [76, JOB, 0, 65],
        [76, JOB, 2**32, 65],
        [76, JOB, 2, 256],
        [76, JOB, 2, -1],
        [76, JOB, None, 65],
        [76, JOB, "2", 65],
        [76, JOB, [2], 65],
        [72, JOB, 1, 1, 1, 0, bytes(15)],
        [66, JOB, 1, 0, b""],
    ],
)
def test_fields_are_checked_against_the_schema(fields: list[object]) -> None:
    with pytest.raises(BadFrame, match="message type"):
        decode_message(msgpack.packb(fields), JOB_LIMITS)


def test_bytes_and_text_are_never_taken_for_each_other() -> None:
    with pytest.raises(BadFrame):
        decode_message(msgpack.packb([1, 68, b"text as bytes"]), JOB_LIMITS)
    with pytest.raises(BadFrame):
        decode_message(msgpack.packb([20, ["a" * 32]]), CONTROL_LIMITS)


def test_a_message_larger_than_any_stream_allows_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError, match="exceeds"):
        encode_message(Part(JOB, 1, 0, bytes(c.JOB_FRAME_BYTES_MAX)))


def test_what_is_sealed_may_have_many_turns_and_long_ones() -> None:
    turns = tuple(ChatMessage("user", "x" * 200) for _ in range(1000))
    request = JobRequest(messages=(*turns, ChatMessage("user", "y" * 100_000)))
    assert decode_struct(encode_value(request), JobRequest, SEALED_LIMITS) == request


def test_no_prompt_shows_in_a_repr() -> None:
    request = JobRequest(messages=(ChatMessage("user", "a secret"),), prompt="a secret", inputs=("a secret",))
    assert "a secret" not in repr(request)


# ---------------------------------------------------------------- frames

CONVERSATION = (
    Progress(JOB, 1, 3, 9),
    Chunk(JOB, 1, 1, 4, 0, bytes(range(64))),
    Chunk(JOB, 1, 2, 5, 0, b"\xff" * 300),
    Fault(68, "so long"),
)
BYTES = b"".join(map(encode_message, CONVERSATION))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, len(BYTES)])
def test_the_same_messages_come_out_however_the_bytes_were_cut(size: int) -> None:
    reader = FrameReader(JOB_LIMITS)
    found = [m for start in range(0, len(BYTES), size) for m in reader.feed(BYTES[start : start + size])]
    assert tuple(found) == CONVERSATION
    assert reader.pending_bytes == 0


def test_messages_before_a_bad_frame_arrive_even_in_the_same_segment() -> None:
    reader = FrameReader(JOB_LIMITS)
    messages = reader.feed(encode_message(CONVERSATION[0]) + b"\0\0\0\x01\xc3" + encode_message(CONVERSATION[1]))
    assert next(messages) == CONVERSATION[0]
    with pytest.raises(BadFrame):
        next(messages)


def test_a_length_beyond_the_limit_is_refused_before_the_body_arrives() -> None:
    for limits in (CONTROL_LIMITS, JOB_LIMITS):
        reader = FrameReader(limits)
        assert list(reader.feed((limits.total_bytes + 1).to_bytes(4, "big")[:3])) == []
        with pytest.raises(BadFrame, match="a frame of"):
            list(reader.feed((limits.total_bytes + 1).to_bytes(4, "big")[3:]))
        assert reader.pending_bytes <= 4


def test_a_body_at_the_limit_is_read() -> None:
    body = msgpack.packb([1001, bytes(65_000), bytes(65_536 - 65_000 - 10)])
    assert len(body) == CONTROL_LIMITS.total_bytes
    reader = FrameReader(CONTROL_LIMITS)
    assert list(reader.feed(len(body).to_bytes(4, "big") + body)) == []
    assert reader.pending_bytes == 0


def test_an_unfinished_frame_is_pending() -> None:
    reader = FrameReader(JOB_LIMITS)
    assert list(reader.feed(BYTES[:-1])) == list(CONVERSATION[:-1])
    assert reader.pending_bytes == len(encode_message(CONVERSATION[-1])) - 1


def test_an_empty_frame_is_no_message() -> None:
    with pytest.raises(BadFrame):
        list(FrameReader(CONTROL_LIMITS).feed(bytes(4)))


def test_lease_and_node_ids_are_plain_bytes_on_the_wire() -> None:
    want = Want((NodeId(b"\x01" * 32),))
    assert encode_message(want)[4:].hex() == "92" + "14" + "91" + "c420" + "01" * 32
    assert LeaseId(b"") == b""


def test_the_largest_heartbeat_that_the_schema_allows_can_be_sent() -> None:
    model = replace(OFFER, kinds=tuple(list(Kind)[1:]), name="m" * 100)
    largest = heartbeat(
        models=(model,) * c.HEARTBEAT_MODELS_MAX,
        gpus=heartbeat().gpus * c.HEARTBEAT_GPUS_MAX,
        addresses=("/ip6/2001:db8::1/tcp/46337",) * c.HEARTBEAT_ADDRESSES_MAX,
        features=tuple(range(32)),
        coordinators=(NodeId(bytes(32)),) * 4,
        extensions=tuple((2 * number + 1, b"") for number in range(8)),
    )
    assert decode_record(encode_record(largest), Heartbeat) == largest


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
def test_lengths_are_followed_however_the_bytes_were_cut(size: int) -> None:
    data = b"".join(len(body).to_bytes(4, "big") + body for body in (b"a", b"bc" * 100, b"\xff" * 3))
    lengths = FrameLengths(JOB_LIMITS)
    ends = {5, 5 + 204, len(data)}
    for start in range(0, len(data), size):
        lengths.feed(data[start : start + size])
        assert lengths.is_between_frames == (min(start + size, len(data)) in ends)
    assert lengths.frames == 3


@pytest.mark.parametrize("length", [0, c.CONTROL_FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_that_nobody_may_read_is_not_passed_on(length: int) -> None:
    lengths = FrameLengths(CONTROL_LIMITS)
    lengths.feed(b"\0\0\0\x01x" + length.to_bytes(4, "big")[:3])
    with pytest.raises(BadFrame):
        lengths.feed(length.to_bytes(4, "big")[3:])


def test_the_rest_of_a_stream_can_be_left_to_somebody_else() -> None:
    reader = FrameReader(JOB_LIMITS)
    messages = reader.feed(encode_message(Fault(1, "a")) + b"whatever follows")
    assert next(messages) == Fault(1, "a")
    assert reader.take_rest() == b"whatever follows"
    assert reader.pending_bytes == 0
