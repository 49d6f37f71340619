"""protocol/clusters.py: its messages, and bytes that are none."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import clusters
from protocol.clusters import Attach, Attached, Build, Carry, Device, Ready, Refused, Why
from protocol.errors import BadFrame

BUILD = Build(11434, "unknown")
MESSAGES = (
    Attach(BUILD),
    Attached(bytes(16), BUILD, "7.0.0", (Device("CUDA0: a card", 24_000, 23_000),)),
    Refused(Why.OTHER_BUILD, "another build", BUILD),
    Refused(Why.NO_SESSION, "over", None),
    Carry(bytes(range(16))),
    Ready(),
)


def body(frame: bytes) -> bytes:
    assert clusters.body_length(frame[:4]) == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_a_message_is_read_as_it_was_written(message: clusters.AnyClusterMessage) -> None:
    assert clusters.decode(body(clusters.encode(message))) == message


def test_the_bytes_on_the_wire_are_fixed() -> None:
    assert clusters.encode(Attach(BUILD)).hex() == "0000000e" + "9202" + "92" + "cd2caa" + "a7756e6b6e6f776e"
    assert clusters.encode(Ready()).hex() == "00000002910a"


@pytest.mark.parametrize("length", [0, clusters.CLUSTER_FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_frame_of_a_length_that_nobody_sends_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(BadFrame):
        clusters.body_length(length.to_bytes(4, "big"))


@pytest.mark.parametrize(
    "value",
    [
        [3, [1, "x"]],
        [12],
        [],
        {},
        [2],
        [2, [-1, "x"]],
        [2, [1, "x" * 65]],
        [8, bytes(15)],
        [8, "x" * 16],
        [4, bytes(16), [1, "x"], "7.0.0", [["d", 1, 1]] * 17],
        [4, bytes(16), [1, "x"], "7.0.0", [["d", -1, 1]]],
        [6, 256, "x", None],
    ],
)
def test_what_breaks_a_bound_is_no_message(value: object) -> None:
    with pytest.raises(BadFrame):
        clusters.decode(msgpack.packb(value))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_frame(data: bytes) -> None:
    with suppress(BadFrame):
        assert isinstance(clusters.decode(data), Attach | Attached | Refused | Carry | Ready)


def test_fields_that_come_later_are_ignored() -> None:
    assert clusters.decode(msgpack.packb([10, "new"])) == Ready()


def test_only_the_same_build_may_work_together() -> None:
    assert clusters.why_not_together(BUILD, Build(11434, "unknown")) is None
    for other in (Build(11433, "unknown"), Build(11434, "abc")):
        told = clusters.why_not_together(BUILD, other)
        assert told is not None
        assert str(other) in told
        assert str(BUILD) in told
