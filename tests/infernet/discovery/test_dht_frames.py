"""infernet/discovery/dht_frames.py: what is written can be read, and nothing else."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.discovery import dht_frames as frames
from infernet.discovery.dht_frames import (
    BadDhtFrame,
    Begin,
    Begun,
    Command,
    Found,
    FrameCutter,
    Meet,
    NotBegun,
    Ping,
    Pong,
    Publish,
    Report,
    Search,
    encode,
    read_command,
    read_report,
)
from protocol.ids import NodeId

NODE = NodeId(bytes(32))
COMMANDS: list[Command] = [
    Begin(("0.0.0.0", "::"), 46338, ("203.0.113.7",), ("/ip4/203.0.113.8/tcp/1/p2p/x",), False),
    Meet(("/ip4/203.0.113.8/tcp/1/p2p/x",)),
    Publish(NODE, ("/ip4/203.0.113.7/tcp/46337",), b"record", (bytes(32),)),
    Search(bytes(32)),
    Ping(7),
]
REPORTS: list[Report] = [
    Begun(("/ip4/203.0.113.7/tcp/46338/p2p/x",)),
    NotBegun("no"),
    Found(NODE, ("/ip4/203.0.113.7/tcp/46337",), None),
    Found(NODE, (), b"record"),
    Pong(7, ()),
]


def test_what_is_written_can_be_read_however_it_is_cut() -> None:
    data = b"".join(map(encode, (*COMMANDS, *REPORTS)))
    cutter = FrameCutter()
    bodies = [body for at in range(len(data)) for body in cutter.feed(data[at : at + 1])]
    assert [read_command(body) for body in bodies[: len(COMMANDS)]] == COMMANDS
    assert [read_report(body) for body in bodies[len(COMMANDS) :]] == REPORTS
    assert FrameCutter().feed(data) == bodies


def test_a_command_is_no_report() -> None:
    (body,) = FrameCutter().feed(encode(Search(bytes(32))))
    with pytest.raises(BadDhtFrame):
        read_report(body)


def test_a_frame_that_is_too_long_is_not_waited_for() -> None:
    with pytest.raises(BadDhtFrame, match="65537 bytes"):
        FrameCutter().feed(struct.pack(">I", frames.FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "Found", "node": bytes(31), "addresses": [], "record": None},
        {"type": "Found", "node": bytes(32), "addresses": ["x"] * 9, "record": None},
        {"type": "Found", "node": bytes(32), "addresses": ["x" * 257], "record": None},
        {"type": "Found", "node": bytes(32), "addresses": [], "record": b"x" * 17_000},
        {"type": "Pong", "number": -1, "peers": []},
        {"type": "Pong", "number": 1, "peers": ["x"] * 33},
        {"type": "Other"},
        {"number": 1},
        ["Pong", 1, []],
        7,
    ],
)
def test_what_exceeds_its_limits_is_no_report(value: object) -> None:
    with pytest.raises(BadDhtFrame):
        read_report(msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "body",
    [
        b"\x82\xa4type\xa8NotBegun\xa6reason\xa2\xff\xfe",
        b"\x84\xa4type\xa4Pong\xa6number\x01\xa5peers\x90\xa1x" + b"\x91" * 60_000 + b"\xc0",
    ],
    ids=["no UTF-8", "too deep"],
)
def test_what_the_library_stumbles_over_is_no_report(body: bytes) -> None:
    with pytest.raises(BadDhtFrame):
        read_report(body)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_a_bad_frame(body: bytes) -> None:
    try:
        read_report(body)
    except BadDhtFrame:
        return
