"""specs/vectors of page 01 and of the link."""

from __future__ import annotations

from typing import get_args

import pytest

from protocol import constants as c
from protocol.codec import FrameReader, encode_message, limits_of_protocol
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.link import AnyFrame, decode_frame, decode_hello, decode_server_time, encode_frame
from protocol.messages import MESSAGES_OF_PROTOCOL
from tests.helpers_messages import MESSAGES
from tests.helpers_vectors import Vector, each, load, plain

CANONICAL = {"fields after those", "need not be in canonical", "is missing", "unknown kind"}


@each("frames")
def test_frame(vector: Vector) -> None:
    frame = bytes.fromhex(vector["frame"])
    reader = FrameReader(limits_of_protocol(vector["protocol"]))
    if not vector["valid"]:
        with pytest.raises(RemoteProtocolError):
            list(reader.feed(frame))
        return
    messages = list(reader.feed(frame))
    assert reader.pending_bytes == 0
    if vector.get("ignored"):
        assert messages == []
        return
    (message,) = messages
    assert type(message).__name__ == vector["message"]
    assert type(message).__struct_config__.tag == vector["type"]
    assert isinstance(message, MESSAGES_OF_PROTOCOL[vector["protocol"]])
    assert plain(message) == vector["fields"]
    if not any(words in vector["comment"] for words in CANONICAL):
        assert encode_message(message) == frame


def test_there_is_a_frame_of_every_message_and_of_every_protocol() -> None:
    assert {v["message"] for v in load("frames") if "message" in v} == {cls.__name__ for cls in MESSAGES}
    assert {v["protocol"] for v in load("frames")} == set(c.PROTOCOLS)


@each("link")
def test_link(vector: Vector) -> None:
    if "hello" in vector or "server_time" in vector:
        check_what_the_coordinator_signs(vector)
        return
    message = bytes.fromhex(vector["message"])
    if not vector["valid"]:
        with pytest.raises(RemoteProtocolError):
            decode_frame(message)
        return
    frame = decode_frame(message)
    if vector.get("ignored"):
        assert frame is None
        return
    assert frame is not None
    assert (type(frame).__name__, plain(frame)) == (vector["frame"], vector["fields"])
    assert encode_frame(frame) == message


def check_what_the_coordinator_signs(vector: Vector) -> None:
    coordinator, node = (NodeId(bytes.fromhex(vector[name])) for name in ("coordinator", "node_id"))

    def check() -> object:
        if "hello" in vector:
            return plain(decode_hello(bytes.fromhex(vector["hello"]), coordinator, node, vector["auth"]))
        return {"time_ms": decode_server_time(vector["server_time"], coordinator, vector["auth"])}

    if not vector["valid"]:
        with pytest.raises(RemoteProtocolError):
            check()
        return
    found = check()
    assert isinstance(found, dict)
    assert found.items() <= vector["fields"].items()


def test_there_is_a_vector_of_every_link_frame() -> None:
    assert {v["frame"] for v in load("link") if "frame" in v} == {cls.__name__ for cls in get_args(AnyFrame)}
