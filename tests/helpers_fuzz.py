"""Bytes that somebody hostile, or something broken, could send: mutated frames and structured garbage."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

from protocol.codec import encode_message, encode_value
from protocol.envelope import sign_record
from protocol.ids import LeaseId
from protocol.messages import (
    AnyMessage,
    Cancel,
    Chunk,
    Digest,
    Fault,
    Find,
    Forward,
    Found,
    Graft,
    Have,
    Heads,
    Hello,
    Interest,
    JobAccept,
    JobOpen,
    JobReject,
    Leave,
    Load,
    Neighbour,
    NeighbourAnswer,
    Part,
    Progress,
    Prune,
    Queued,
    Reached,
    ReachMe,
    Receipt,
    Records,
    Reports,
    Reserve,
    Reserved,
    Shuffle,
    Shuffled,
    Summary,
    Voucher,
    Want,
)
from protocol.money_records import VoucherRecord
from protocol.records import Kind, Reachability
from tests.helpers_records import ASKER, JOB, NOW_MS, PROVIDER, acceptance, heartbeat, order, receipt

RECORD = sign_record(heartbeat(), PROVIDER)
VOUCHER = VoucherRecord(1, LeaseId(bytes(32)), ASKER.node, 3, 4500, JOB, 1, 2, 9, bytes(32), ())
#: One valid body of every message type, to be damaged.
BODIES: tuple[bytes, ...] = tuple(
    encode_message(message)[4:]
    for message in (
        Fault(68, "why"),
        Hello(1, (1,), "infernet/0.1", NOW_MS, NOW_MS, "/ip4/192.0.2.1/tcp/46337", 3, RECORD),
        Digest(bytes(32), b"\xff" * 32, ((PROVIDER.node, 7), (ASKER.node, 2**40))),  # type: ignore[arg-type]  # plain bytes
        Records((RECORD,)),
        Want((PROVIDER.node, ASKER.node)),
        Summary(NOW_MS, ((PROVIDER.node, bytes(8)),)),
        Find(5, "tiny-135m", Kind.CHAT, 100, None, 10**9, 4),
        Found(5, (RECORD,)),
        JobOpen(sign_record(order(), ASKER), bytes(range(200))),
        Progress(JOB, 1, 3, 9),
        Part(JOB, 1, 0, bytes(range(100))),
        JobAccept(sign_record(acceptance(), PROVIDER)),
        JobReject(JOB, 1, 1, 2000, "full", (RECORD,), None),
        Chunk(JOB, 1, 1, 4, 0, bytes(80)),
        Voucher(sign_record(VOUCHER, ASKER)),
        Heads((RECORD,)),
        Cancel(JOB, 1, 65),
        Receipt(sign_record(receipt(), PROVIDER)),
        Load(3, 900),
        Reports((RECORD,)),
        Have(((PROVIDER.node, 7),)),
        Graft((PROVIDER.node,)),
        Prune(),
        Interest(0, ("tiny-135m",)),
        Neighbour(1),
        NeighbourAnswer(0, (RECORD,)),
        Leave(),
        Shuffle((RECORD,)),
        Shuffled((RECORD,)),
        ReachMe(46337),
        Reached(Reachability.REACHED, "/ip4/192.0.2.1/tcp/46337", "it answers"),
        Queued(JOB, 1, 2, 3_000),
        Reserve(sign_record(order(extensions=((1, b""),)), ASKER)),
        Reserved(JOB, RECORD, 0),
        Forward(PROVIDER.node),
    )
)
assert len({body[1] for body in BODIES}) == len(get_args(AnyMessage)), "a message is missing"

_INTERESTING = bytes.fromhex("000180c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf7f90919fa0bfe0ff")


def mutated(rng: random.Random, body: bytes) -> bytes:
    """A body with one to four pieces of damage."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        _DAMAGE[rng.randrange(len(_DAMAGE))](rng, data)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_INTERESTING)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randint(0, len(data)) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = bytes(rng.choice(_INTERESTING) for _ in range(rng.randint(1, 5)))


def _drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    del data[at : at + rng.randint(1, 9)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = data[at : at + rng.randint(1, 40)] * rng.randint(1, 4)


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(BODIES)
    at = rng.randint(0, len(data))
    data[at:] = other[rng.randint(0, len(other)) :]


_DAMAGE: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip,
    _flip,
    _set,
    _set,
    _cut,
    _insert,
    _drop,
    _repeat,
    _splice,
)


def garbage(rng: random.Random) -> bytes:
    """MessagePack that is well formed and means nothing, or headers that promise what does not come."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randint(0, 64))
        case 1:
            return bytes(rng.choice(_INTERESTING) for _ in range(rng.randint(1, 200)))
        case 2:
            return b"\x91" * rng.choice((1, 5, 6, 7, 1000, 1024, 1025, 5000)) + rng.choice((b"", b"\xc0"))
        case 3:
            header = rng.choice((b"\xdc", b"\xdd", b"\xde", b"\xdf", b"\xc6", b"\xc9", b"\xdb"))
            return header + rng.randbytes(4) + rng.randbytes(rng.randint(0, 20))
        case _:
            return encode_value(_structure(rng, 0))


def _structure(rng: random.Random, depth: int) -> object:
    if depth < 7 and rng.random() < 0.5:
        return [_structure(rng, depth + 1) for _ in range(rng.randint(0, 5))]
    leaves = (
        None,
        rng.randint(-(2**63), 2**64 - 1),
        rng.randint(0, 128),
        rng.randbytes(rng.randint(0, 70)),
        "äö" * rng.randint(0, 4),
    )
    return rng.choice(leaves)


def full_of(leaf: bytes, total_bytes: int, array_items: int) -> bytes:
    """A value of nearly `total_bytes` that consists of this leaf, in arrays as long as allowed."""
    items = [leaf] * ((total_bytes - total_bytes // array_items * 4 - 16) // len(leaf))
    while len(items) > 1:
        items = [
            b"\xdc"
            + len(items[start : start + array_items]).to_bytes(2, "big")
            + b"".join(items[start : start + array_items])
            for start in range(0, len(items), array_items)
        ]
    return items[0]
