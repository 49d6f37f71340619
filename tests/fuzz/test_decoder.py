"""The decoder is total: any bytes become a message, nothing, or RemoteProtocolError, at a bounded cost."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from protocol.codec import (
    CONTROL_LIMITS,
    JOB_LIMITS,
    RECORD_LIMITS,
    SEALED_LIMITS,
    FrameReader,
    Limits,
    decode_message,
    decode_record,
    decode_struct,
    decode_value,
    record_job,
)
from protocol.envelope import open_record, verify_request
from protocol.errors import BadFrame, RemoteProtocolError
from protocol.ids import NodeId
from protocol.link import decode_frame, decode_hello, decode_server_time
from protocol.messages import Message
from protocol.records import ChunkBody, Heartbeat, JobAcceptRecord, JobOpenRecord, ReceiptRecord, SealedPrompt, Signed
from tests.helpers_fuzz import BODIES, full_of, garbage, mutated

RECORDS = (Heartbeat, JobOpenRecord, JobAcceptRecord, ReceiptRecord)
FRAMES = 10_000
NIGHTLY_FRAMES = 100_000


def outcome(body: bytes, limits: Limits) -> str:
    """Which of the three things that may happen has happened; anything else escapes and fails the test."""
    try:
        message = decode_message(body, limits)
    except RemoteProtocolError:
        return "refused"
    if message is None:
        return "ignored"
    assert isinstance(message, Message)
    return "message"


def frames(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [mutated(rng, rng.choice(BODIES)) if rng.random() < 0.7 else garbage(rng) for _ in range(count)]


def test_every_body_that_is_damaged_below_is_valid() -> None:
    assert {outcome(body, JOB_LIMITS) for body in BODIES} == {"message"}


@pytest.mark.parametrize("seed", range(4))
def test_damaged_frames_and_garbage_are_messages_or_refused(seed: int) -> None:
    outcomes = {outcome(body, JOB_LIMITS) for body in frames(seed, FRAMES)}
    assert outcomes == {"message", "ignored", "refused"}, "each of the three happened, so each was tested"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100, 112))
def test_a_million_frames(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(NIGHTLY_FRAMES):
        outcome(mutated(rng, rng.choice(BODIES)) if rng.random() < 0.7 else garbage(rng), JOB_LIMITS)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"type{body[1] if body[1] < 128 else body[2]}")
def test_no_truncation_and_no_single_byte_gets_through_as_anything_else(body: bytes) -> None:
    for length in range(len(body)):
        assert outcome(body[:length], JOB_LIMITS) == "refused"
    rng = random.Random(len(body))
    for at in range(len(body)):
        outcome(body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :], JOB_LIMITS)


@pytest.mark.parametrize("seed", range(2))
def test_a_reader_fed_garbage_never_holds_more_than_a_frame(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        reader = FrameReader(CONTROL_LIMITS)
        try:
            for _ in range(50):
                piece = rng.choice((rng.randbytes(rng.randint(1, 300)), b"\0\0\0\x04" + garbage(rng)[:4]))
                list(reader.feed(piece))
                assert reader.pending_bytes <= CONTROL_LIMITS.total_bytes + 4
        except RemoteProtocolError:
            continue


@pytest.mark.parametrize("seed", range(2))
def test_every_other_door_is_total_too(seed: int) -> None:
    """Records, sealed plaintexts, chunk plaintexts, link frames and headers."""
    rng = random.Random(1000 + seed)
    node = NodeId(bytes(32))
    for body in frames(seed, 1_500):
        header = body.hex()
        doors = (
            lambda body=body: decode_record(body, rng.choice(RECORDS)),
            lambda body=body: open_record(Signed(body or b"\0", bytes(64)), Heartbeat),
            lambda body=body: decode_struct(body, SealedPrompt, SEALED_LIMITS),
            lambda body=body: decode_struct(body, ChunkBody, JOB_LIMITS),
            lambda body=body: decode_frame(body),
            lambda body=body: decode_hello(body, node, node, ""),
            lambda header=header: decode_server_time(header, node, ""),
            lambda header=header: verify_request(header, node, "GET", "/", b"", 0),
        )
        for door in doors:
            try:
                door()
            except RemoteProtocolError:
                continue
        record_job(body)


# ---------------------------------------------------------------- cost

#: Shapes that cost most per byte when a decoder builds first and counts later.
LEAVES = {
    "empty arrays": b"\x90",
    "arrays of nil": b"\x91\xc0",
    "arrays of arrays": b"\x91\x90",
    "integers": b"\xcd\x10\x00",
    "texts": b"\xa2ab",
    "large integers": b"\xcf\x7f" + b"\xff" * 7,
}
LIMITS = {"control": CONTROL_LIMITS, "job": JOB_LIMITS, "record": RECORD_LIMITS, "sealed": SEALED_LIMITS}
# Generous: a busy machine is no failure. What this catches is a factor of a hundred.
WORST_S = 0.25
WORST_BYTES = 12_000_000


def hostile_values() -> dict[str, tuple[bytes, Limits]]:
    values = {
        f"{name} in a {where} frame": (full_of(leaf, limits.total_bytes, limits.array_items), limits)
        for where, limits in LIMITS.items()
        for name, leaf in LEAVES.items()
    }
    for where, limits in LIMITS.items():
        header = b"\xdc" + limits.array_items.to_bytes(2, "big")
        values[f"promised arrays in a {where} frame"] = (header * 1_024, limits)
        values[f"deep arrays in a {where} frame"] = (b"\x91" * (limits.total_bytes - 1) + b"\xc0", limits)
        values[f"one array of long items in a {where} frame"] = (
            b"\x91\xc6" + (limits.total_bytes - 6).to_bytes(4, "big"),
            limits,
        )
    return values


HOSTILE = hostile_values()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_worst_frame_costs_little(name: str) -> None:
    data, limits = HOSTILE[name]
    assert len(data) <= limits.total_bytes
    seconds = min(_seconds(data, limits) for _ in range(3))
    tracemalloc.start()
    _seconds(data, limits)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < WORST_S
    assert peak_bytes < WORST_BYTES


def _seconds(data: bytes, limits: Limits) -> float:
    started = time.perf_counter()
    with pytest.raises(BadFrame):
        decode_value(data, limits)
    return time.perf_counter() - started


def test_a_hundred_thousand_nested_arrays_are_refused_at_once() -> None:
    assert _seconds(b"\x91" * 100_000 + b"\xc0", SEALED_LIMITS) < WORST_S
