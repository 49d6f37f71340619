"""Any value that MessagePack can write is a message, nothing, or refused: here as Hypothesis finds it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import CONTROL_LIMITS, JOB_LIMITS, FrameReader, decode_message, decode_record, decode_value
from protocol.errors import RemoteProtocolError
from protocol.messages import Message
from protocol.records import Heartbeat
from tests.helpers_messages import MESSAGES

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
)
values = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=6) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=25,
)
types = st.sampled_from([cls.__struct_config__.tag for cls in MESSAGES]) | st.integers(-3, 130)


def holds_only_what_is_allowed(value: Any, depth: int = 1) -> bool:
    if depth > 6 or isinstance(value, bool | float | dict | msgpack.ExtType):
        return False
    if isinstance(value, int):
        return abs(value) < 2**63
    return not isinstance(value, list) or all(holds_only_what_is_allowed(item, depth + 1) for item in value)


@given(values)
def test_exactly_the_allowed_values_decode(value: Any) -> None:
    data = msgpack.packb(value)
    try:
        decoded = decode_value(data, CONTROL_LIMITS)
    except RemoteProtocolError:
        assert not holds_only_what_is_allowed(value)
        return
    assert holds_only_what_is_allowed(value)
    assert msgpack.packb(decoded) == data


@given(types, st.lists(values, max_size=9))
def test_an_array_with_a_type_is_a_message_nothing_or_refused(tag: int, fields: list[Any]) -> None:
    body = msgpack.packb([tag, *fields])
    try:
        message = decode_message(body, JOB_LIMITS)
    except RemoteProtocolError:
        return
    assert message is None or isinstance(message, Message)
    if message is None:
        assert tag % 2 == 1


@given(st.lists(values, max_size=20))
def test_no_array_is_taken_for_a_heartbeat_by_accident(fields: list[Any]) -> None:
    try:
        record = decode_record(msgpack.packb(fields), Heartbeat)
    except RemoteProtocolError:
        return
    raise AssertionError(record)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_what_a_reader_makes_of_bytes_does_not_depend_on_how_they_were_cut(data: bytes, cuts: list[int]) -> None:
    def read(pieces: list[bytes]) -> tuple[list[Message], bool]:
        reader = FrameReader(CONTROL_LIMITS)
        found: list[Message] = []
        for piece in pieces:
            try:
                for message in reader.feed(piece):
                    found.append(message)  # noqa: PERF402 - what came before an error counts
            except RemoteProtocolError:
                return found, True
        return found, False

    # Random bytes nearly always announce a long frame; short lengths make some of them readable.
    data = bytes(byte if index % 7 > 2 else 0 for index, byte in enumerate(data))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert read(pieces) == read([data]) == read([bytes([byte]) for byte in data])
