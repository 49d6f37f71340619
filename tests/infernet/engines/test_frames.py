"""Frames between node and engine process: what goes in comes out, and garbage is garbage."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.contract import EngineConfig
from infernet.engines.frames import (
    DEVICES_MAX,
    FRAME_BYTES_MAX,
    BadWorkerFrame,
    Device,
    FrameReader,
    Idle,
    Load,
    LoadFailed,
    Look,
    Ping,
    Pong,
    Ready,
    Seen,
    WorkerCommand,
    WorkerReport,
    encode,
)
from protocol.effects import CancelEngine, RunEngine
from protocol.errors import Refusal
from protocol.events import (
    VECTOR_BYTES_MAX,
    EngineFailed,
    EngineFinished,
    EngineProgress,
    EngineStarted,
    EngineText,
    EngineVector,
)
from protocol.ids import RunId
from protocol.records import Kind, Outcome
from tests.helpers_engine import GREEDY, chat

RUN = RunId(7)
MESSAGES: list[WorkerCommand | WorkerReport] = [
    Load(EngineConfig(name="m", path="/m.gguf", fingerprint=bytes(32), threads=2), "/tmp/x"),
    RunEngine(RUN, Kind.CHAT, "m", chat("wörd 🙂\0", stop=("x",)), GREEDY, 10, 20),
    CancelEngine(RUN),
    Ping(1),
    Look(),
    Ready(2048),
    Seen((Device("CUDA0", 2**40), Device("", 0))),
    LoadFailed("no"),
    Pong(1),
    Idle(0),
    EngineStarted(RUN, 3),
    EngineProgress(RUN, 1, 3),
    EngineText(RUN, "🙂", 1),
    EngineVector(RUN, 0, b"\0\0\x80?"),
    EngineFinished(RUN, Outcome.LENGTH, 20),
    EngineFailed(RUN, Refusal.BUSY, "all slots are in use"),
]


@given(cuts=st.lists(st.integers(1, 400), max_size=40))
def test_messages_survive_however_their_bytes_arrive(cuts: list[int]) -> None:
    data = b"".join(encode(message) for message in MESSAGES)
    reader = FrameReader()
    received = []
    for cut in cuts:
        received += reader.feed(data[:cut])
        data = data[cut:]
    assert received + reader.feed(data) == MESSAGES


@given(data=st.binary(max_size=200))
def test_garbage_raises_nothing_but_bad_worker_frame(data: bytes) -> None:
    with contextlib.suppress(BadWorkerFrame):
        for message in FrameReader().feed(data):
            encode(message)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IB", FRAME_BYTES_MAX + 1, 33),
        struct.pack(">IB", 1, 99) + b"\x80",
        struct.pack(">IB", 1, 33) + b"\xc1",
        struct.pack(">IB", 1, 33) + b"\x80",
        struct.pack(">IB", 9, 17) + b"\x81\xa4text\xa2\xff\xfe",
        struct.pack(">IB", 100_012, 18) + b"\x82\xa6number\x01\xa1x" + b"\x91" * 100_000 + b"\xc0",
    ],
    ids=["too long", "unknown kind", "no MessagePack", "fields are missing", "no UTF-8", "too deep"],
)
def test_a_bad_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BadWorkerFrame):
        FrameReader().feed(data)


@pytest.mark.parametrize(
    "report",
    [
        Ready(0),
        Ready(2**32),
        Idle(-1),
        Seen((Device("CUDA0", -1),)),
        Seen((Device("x" * 65, 1),)),
        Seen((Device("many", 1),) * (DEVICES_MAX + 1)),
        EngineStarted(RUN, -1),
        EngineProgress(RUN, -1, 3),
        EngineText(RUN, "x", 2**32),
        EngineVector(RUN, -1, b"\0\0\x80?"),
        EngineVector(RUN, 0, bytes(VECTOR_BYTES_MAX + 4)),
        EngineFinished(RUN, Outcome.STOP, -1),
    ],
    ids=lambda report: repr(report)[:48],
)
def test_a_report_that_could_not_go_on_to_a_peer_is_garbage(report: WorkerReport) -> None:
    """Later, when the node builds its message or record of it, nobody would be left to blame."""
    with pytest.raises(BadWorkerFrame):
        FrameReader().feed(encode(report))
