"""Vectors of specs/01 and of the link in specs/07: frames that are messages, and frames that are none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgpack

from _vectors_common import ASKER, COORDINATOR, JOB, NOW_MS, PROVIDER, Vector, file, invalid, valid
from _vectors_identity import heartbeat, order
from protocol import codec
from protocol import constants as c
from protocol.envelope import sign_record
from protocol.ids import LeaseId
from protocol.link import (
    Announce,
    ClaimAnswer,
    ClaimFrame,
    ClaimRefusal,
    Closing,
    Data,
    Finish,
    Frame,
    LinkHello,
    Open,
    Ping,
    Pong,
    Reset,
    ServerTime,
    auth_hash,
    encode_frame,
    encode_hello,
    encode_server_time,
)
from protocol.messages import (
    MESSAGES_OF_PROTOCOL,
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
    Message,
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
from protocol.money_records import LedgerHeadRecord, VoucherRecord
from protocol.records import (
    JobAcceptRecord,
    Kind,
    Outcome,
    Reachability,
    ReceiptRecord,
    ReportEntry,
    ReportRecord,
    ReservationRecord,
)

RECORD = sign_record(heartbeat(), PROVIDER)
VOUCHER = VoucherRecord(1, LeaseId(bytes(range(32))), ASKER.node, 3, 4_500, JOB, 2, 5, 18, bytes(range(32, 64)), ())
HEAD = LedgerHeadRecord(1, COORDINATOR.node, 1_234, bytes(range(32)), NOW_MS, ())
SMALL_RECORD = sign_record(heartbeat(models=(), gpus=(), addresses=()), PROVIDER)
ACCEPTANCE = sign_record(
    JobAcceptRecord(1, JOB, 2, PROVIDER.node, None, bytes(32), bytes(32), 57, 0, 0, 0, 0, NOW_MS, ()), PROVIDER
)
RECEIPT = sign_record(
    ReceiptRecord(
        *(1, JOB, 2, PROVIDER.node, ASKER.node, None, bytes(32), bytes(32), 57, 9, 2, b"\xee" * 32, 0, 0),
        *(NOW_MS, 10, 90, Outcome.STOP, 0, ()),
    ),
    PROVIDER,
)

RESERVATION = sign_record(
    ReservationRecord(1, JOB, PROVIDER.node, ASKER.node, JOB, "smollm2:135m", NOW_MS, NOW_MS + 10_000, ()), PROVIDER
)
REPORT = sign_record(
    ReportRecord(
        1,
        ASKER.node,
        NOW_MS,
        NOW_MS,
        NOW_MS + 3_600_000,
        600,
        (ReportEntry(PROVIDER.node, "smollm2:135m", 12, 3, ((10, 7),), 2, 1, 180, 41_500, RECEIPT),),
        (),
    ),
    ASKER,
)

# The fingerprint of a range in which one record lies: node id and sequence, hashed.
MARK = hashlib.sha256(PROVIDER.node + NOW_MS.to_bytes(8, "big")).digest()[:8]

MESSAGES: tuple[tuple[str, Message], ...] = (
    ("a fault", Fault(68, "a frame of 70000 bytes where at most 65536 are allowed")),
    ("a hello", Hello(1, (1,), "infernet/0.1.0", NOW_MS, NOW_MS - 5_000, "/ip4/198.51.100.4/tcp/50123", 17, RECORD)),
    ("a hello of a node that says little", Hello(1, (), "", 0, 0, None, 0, None)),
    ("a digest of everything", Digest(bytes(32), b"\xff" * 32, ((PROVIDER.node, NOW_MS), (ASKER.node, 2**63 - 1)))),  # type: ignore[arg-type]  # plain bytes
    ("an empty digest", Digest(bytes(32), b"\xff" * 32, ())),  # type: ignore[arg-type]  # as above
    ("records", Records((SMALL_RECORD, RECORD))),
    ("no records", Records(())),
    ("a want", Want((PROVIDER.node, ASKER.node))),
    ("a load", Load(8, 12_500)),
    ("reports", Reports((REPORT,))),
    ("a head of a ledger", Heads((sign_record(HEAD, COORDINATOR),))),
    ("news that the sender has", Have(((PROVIDER.node, NOW_MS),))),
    ("a summary of one record", Summary(NOW_MS, ((b"\xff" * 32, MARK),))),  # type: ignore[arg-type]  # plain bytes
    ("a graft", Graft((PROVIDER.node,))),
    ("a prune", Prune()),
    ("an interest in everything", Interest(1, ())),
    ("an interest in two models", Interest(0, ("smollm2:135m", "all-minilm"))),
    ("a lonely node that asks to be a neighbour", Neighbour(1)),
    ("a new neighbour", NeighbourAnswer(1, ())),
    ("no new neighbour, but others who may be", NeighbourAnswer(0, (SMALL_RECORD,))),
    ("a leave", Leave()),
    ("a shuffle", Shuffle((SMALL_RECORD,))),
    ("what comes for a shuffle", Shuffled(())),
    ("a find with limits", Find(2**63 - 1, "smollm2:135m", Kind.CHAT, 4_096, 100_000, 400_000, 16)),
    ("a find without limits", Find(0, None, Kind.EMBEDDING, 0, None, None, 1)),
    ("an answer to a find", Found(2**63 - 1, (RECORD,))),
    ("a question how one is reached", ReachMe(46_337)),
    ("a dial-back that came through", Reached(Reachability.REACHED, "/ip4/203.0.113.9/tcp/46337", "")),
    ("a dial-back that was not made", Reached(Reachability.NOT_TRIED, None, "you asked a moment ago")),
    ("an order with the beginning of its prompt", JobOpen(sign_record(order(), ASKER), bytes(range(64)))),
    ("progress", Progress(JOB, 2, 128, 4_096)),
    ("a part of a prompt", Part(JOB, 2, 0, bytes(range(64, 128)))),
    ("a place in the queue", Queued(JOB, 2, 3, 9_400)),
    ("an acceptance", JobAccept(ACCEPTANCE)),
    (
        "a refusal that names a better provider",
        JobReject(JOB, 2, 1, 2_000, "all 4 slots of this model are taken", (RECORD,), None),
    ),
    ("a refusal without more", JobReject(JOB, 2**32 - 1, 127, 0, "", (), None)),
    ("a chunk", Chunk(JOB, 2, 1, 1, 0, bytes(80))),
    ("a chunk with the largest counts", Chunk(JOB, 2, 2**63 - 1, 2**32 - 1, 2**63 - 1, b"\xff" * 80)),
    ("a voucher", Voucher(sign_record(VOUCHER, ASKER))),
    ("a cancel", Cancel(JOB, 2, 65)),
    ("a receipt", Receipt(RECEIPT)),
    ("a refused order, shown to another provider", Reserve(sign_record(order(), ASKER))),
    ("a slot that is held", Reserved(JOB, RESERVATION, 0)),
    ("no slot", Reserved(JOB, None, 1)),
    ("the first message to an aggregator", Forward(PROVIDER.node)),
)


def frames() -> Vector:
    """frames.json."""
    return file(
        "One frame each, on a stream of `protocol`. With `ignored`, the frame is read and means nothing; else it is "
        "`message` with `fields`. What is not valid ends the stream.",
        [*_good_frames(), *_other_ways_to_write_them(), *_bad_frames()],
    )


def _protocol(message: Message) -> str:
    return next(name for name, classes in MESSAGES_OF_PROTOCOL.items() if isinstance(message, classes))


def _good_frames() -> Iterator[Vector]:
    for comment, message in MESSAGES:
        yield _good(comment, message, codec.encode_message(message))


def _good(comment: str, message: Message, frame: bytes) -> Vector:
    tag = message.__struct_config__.tag
    name = type(message).__name__
    return valid(comment, protocol=_protocol(message), type=tag, message=name, fields=message, frame=frame)


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _packed(*fields: Any) -> bytes:
    body: bytes = msgpack.packb(fields)
    return _frame(body)


def _other_ways_to_write_them() -> Iterator[Vector]:
    cancel = Cancel(JOB, 2, 65)
    yield _good("fields after those that are known are ignored", cancel, _packed(76, JOB, 2, 65, None, ["more"], -1))
    long_form = b"\xdc\x00\x04\xcd\x00\x4c\xc5\x00\x10" + JOB + b"\xce\x00\x00\x00\x02\xcc\x41"
    yield _good("a message need not be in canonical form, other than a record", cancel, _frame(long_form))
    opened = JobOpen(sign_record(order(), ASKER), b"")
    yield _good("an order whose last field, the lease, is missing", opened, _packed(64, list(_pair(opened)), b""))
    found = Find(1, None, Kind.UNKNOWN, 0, None, None, 1)
    yield _good("an unknown kind is read as UNKNOWN", found, _packed(32, 1, None, 200, 0, None, None, 1))
    for protocol in c.PROTOCOLS:
        yield valid("an unknown odd type", protocol=protocol, ignored=True, frame=_packed(1_001, "later", [b"", -5]))
    yield valid("an unknown odd type without fields", protocol=c.JOB_PROTOCOL, ignored=True, frame=_packed(3))


def _pair(message: JobOpen) -> tuple[bytes, bytes]:
    return message.order.body, message.order.signature


def _bad_frames() -> Iterator[Vector]:
    job, control = c.JOB_PROTOCOL, c.GOSSIP_PROTOCOL

    def bad(comment: str, frame: bytes, protocol: str = job) -> Vector:
        return invalid(comment, protocol=protocol, frame=frame)

    yield bad("a body of 65,537 bytes is announced on a control stream", (65_537).to_bytes(4, "big"), control)
    yield bad("a body of 262,145 bytes is announced on a job stream", (262_145).to_bytes(4, "big"))
    yield bad("a body of 4 gigabytes is announced", b"\xff" * 4)
    yield bad("an empty body", bytes(4))
    for comment, body in (
        ("nil", "c0"),
        ("an integer", "01"),
        ("text", "a14c"),
        ("an empty array", "90"),
        ("a map", "81014c"),
        ("a type of nil", "91c0"),
        ("a type in text", "91a24c4c"),
        ("a type that is an array", "919101"),
        ("type 0", "9100"),
        ("a negative odd type", "91ff"),
        ("an unknown even type", "91cd03e8"),
        ("a type reserved for vouchers", "914a"),
        ("two values", "9190" + "c0"),
        ("an array cut short", "924c"),
        ("the byte that MessagePack never uses", "c1"),
        ("a boolean among the fields", "9201c3"),
        ("an empty map in an unknown odd type", "92cd03e980"),
        ("a float of 32 bits in an unknown odd type", "92cd03e9ca3f800000"),
        ("a float of 64 bits in an unknown odd type", "92cd03e9cb3ff0000000000000"),
        ("an extension in an unknown odd type", "92cd03e9d40100"),
        ("a timestamp in an unknown odd type", "92cd03e9d6ff00000000"),
        ("an integer of 64 bits in an unknown odd type", "92cd03e9cf8000000000000000"),
        ("the smallest integer of 64 bits in an unknown odd type", "92cd03e9d38000000000000000"),
        ("text that is not UTF-8 in an unknown odd type", "92cd03e9a1ff"),
        ("text with half a surrogate pair in an unknown odd type", "92cd03e9a3eda080"),
        ("an array of 4 billion items", "ddffffffff"),
        ("a map of 4 billion items", "dfffffffff"),
        ("bytes of 4 gigabytes", "c6ffffffff"),
        ("an extension of 4 gigabytes", "c9ffffffff01"),
    ):
        yield bad(comment, _frame(bytes.fromhex(body)))
    yield bad("65 items", _packed(1_001, *[0] * 64))
    yield bad("seven levels", _frame(b"\x92\xcd\x03\xe9" + b"\x91" * 5 + b"\xc0"))
    yield bad("1,000 levels", _frame(b"\x92\xcd\x03\xe9" + b"\x91" * 999 + b"\xc0"))
    yield bad("1,025 values", _packed(1_001, *[[0] * 64 for _ in range(15)], *[0] * 48))
    yield from (bad(f"a Cancel: {comment}", _packed(76, *fields)) for comment, fields in _BAD_CANCELS.items())
    yield bad("a Chunk whose seal is shorter than its tag", _packed(72, JOB, 1, 1, 1, 0, bytes(15)))
    yield bad("a Part without bytes", _packed(66, JOB, 1, 0, b""))
    yield bad("a Part of 49,153 bytes", _packed(66, JOB, 1, 0, bytes(49_153)))
    yield bad("a Want of 31 bytes", _packed(20, [bytes(31)]), control)
    yield bad("a Find for no answers", _packed(32, 1, None, 1, 0, None, None, 0), c.FIND_PROTOCOL)
    yield bad("a Fault with 257 characters", _packed(1, 68, "x" * 257))
    frame = codec.encode_message(Cancel(JOB, 2, 65))
    for length in range(4, len(frame)):
        yield bad(f"a Cancel cut to {length - 4} bytes of body", _frame(frame[4:length]))


_BAD_CANCELS: dict[str, list[Any]] = {
    "a field is missing": [JOB, 2],
    "the job has 15 bytes": [JOB[:15], 2, 65],
    "the job is text": ["0123456789abcdef", 2, 65],
    "the job is nil": [None, 2, 65],
    "attempt 0": [JOB, 0, 65],
    "an attempt of 33 bits": [JOB, 2**32, 65],
    "a negative code": [JOB, 2, -1],
    "code 256": [JOB, 2, 256],
    "an array for a number": [JOB, [2], 65],
}

# ---------------------------------------------------------------- the link

AUTH = "an X-Infernet-Auth header as it was sent"


def link() -> Vector:
    """link.json."""
    return file(
        "The link between node and coordinator: its frames (one WebSocket message each), and what the coordinator "
        "signs. `auth` is the header that they are bound to.",
        [*_link_frames(), *_link_records()],
    )


def _link_frames() -> Iterator[Vector]:
    frames: tuple[Frame, ...] = (
        Open(1, c.JOB_PROTOCOL),
        Data(1, b"\0\0\0\x01\x90"),
        Finish(1),
        Reset(2, "too many streams"),
        Ping(7),
        Pong(7),
        Announce(SMALL_RECORD),
        ClaimFrame(9, (SMALL_RECORD, SMALL_RECORD)),
        ClaimAnswer(9, SMALL_RECORD, (ClaimRefusal(1, "lease_closed", "it has been closed"),)),
        Closing(SMALL_RECORD),
    )
    for frame in frames:
        yield valid(
            f"{type(frame).__name__}",
            type=frame.__struct_config__.tag,
            frame=type(frame).__name__,
            fields=frame,
            message=encode_frame(frame),
        )
    yield valid("an unknown odd type", ignored=True, message=msgpack.packb([1_001, "later"]))
    for comment, value in (
        ("an unknown even type", [1_000]),
        ("stream 0", [6, 0]),
        ("no data", [4, 1, b""]),
        ("too much data", [4, 1, bytes(16 * 1024 + 1)]),
        ("33 items", [10, *[0] * 32]),
        ("no claim", [16, 9, []]),
        ("a claim by itself", [16, 9, [SMALL_RECORD.body, SMALL_RECORD.signature]]),
        ("33 claims", [16, 9, [[SMALL_RECORD.body, SMALL_RECORD.signature]] * 33]),
        ("a claim refused that no frame has room for", [18, 9, None, [[32, "busy", "later"]]]),
        ("a refusal without a sentence", [18, 9, None, [[0, "busy"]]]),
        ("not an array", 10),
        ("five levels", [1_001, [[[[0]]]]]),
        ("161 values", [1_001, [[0] * 32] * 5]),
    ):
        yield invalid(comment, message=msgpack.packb(value))


def _link_records() -> Iterator[Vector]:
    hello = encode_hello(COORDINATOR, PROVIDER.node, AUTH, NOW_MS)
    time = encode_server_time(COORDINATOR, AUTH, NOW_MS)
    common = {"coordinator": COORDINATOR.node, "node_id": PROVIDER.node, "auth": AUTH}
    yield valid(
        "the first message of a link",
        hello=hello,
        fields=LinkHello(1, COORDINATOR.node, PROVIDER.node, auth_hash(AUTH), NOW_MS),
        **common,
    )
    yield valid(
        "the clock of the coordinator in X-Infernet-Time",
        server_time=time,
        fields=ServerTime(1, COORDINATOR.node, auth_hash(AUTH), NOW_MS),
        **common,
    )
    for name, value in (("hello", hello), ("server_time", time)):
        yield invalid(
            f"{name} of another coordinator than the pinned one", **{**common, name: value, "coordinator": ASKER.node}
        )
        yield invalid(f"{name} for another request", **{**common, name: value, "auth": AUTH + "x"})
    yield invalid("hello for another node", **{**common, "hello": hello, "node_id": ASKER.node})
    yield invalid("a server time is no hello", **common, hello=bytes.fromhex(time))
    yield invalid("a hello is no server time", **common, server_time=hello.hex())
