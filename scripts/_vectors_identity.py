"""Vectors of specs/02: keys, signatures, signed records, signed requests, the replay window."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import base58
import coincurve
import msgpack

from _vectors_common import ASKER, COORDINATOR, JOB, NOW_MS, PROVIDER, Vector, file, invalid, plain, signing_key, valid
from protocol import codec
from protocol.envelope import (
    REPLAY_WINDOW,
    HttpRecord,
    ReplayWindow,
    SigningKey,
    sign_record,
    sign_request,
    sign_request_v1,
    tagged_hash,
)
from protocol.ids import LeaseId, bech32_encode, npub, peer_id
from protocol.jobs import default_sampling
from protocol.records import (
    Availability,
    FreePolicy,
    Gpu,
    GpuVendor,
    Heartbeat,
    JobAcceptRecord,
    JobOpenRecord,
    Kind,
    ModelOffer,
    Outcome,
    ReceiptRecord,
    Record,
    Role,
    Signed,
    VramTier,
)

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

# ---------------------------------------------------------------- keys


def identity() -> Vector:
    """identity.json."""
    return file(
        "A secret scalar, normalised so that its point has even Y, and the three textual forms of its public key.",
        [*_keys(), *_texts_that_are_no_key()],
    )


def _keys() -> Iterator[Vector]:
    for number in (1, 2, 3, 4, 5, 6, CURVE_ORDER - 1, CURVE_ORDER - 3):
        yield _key(number.to_bytes(32, "big"))
    yield _key(ASKER.secret_bytes())
    for secret in (bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32, bytes(31), bytes(33)):
        yield invalid("not a scalar between 1 and the order of the curve, in 32 bytes", secret=secret)


def _key(secret: bytes) -> Vector:
    odd = coincurve.PrivateKey(secret).public_key.format()[0] == 3
    key = SigningKey(secret, bytes)
    return valid(
        "the point of this secret has odd Y: it is negated" if odd else "the point of this secret has even Y",
        secret=secret,
        secret_normalised=key.secret_bytes(),
        nsec_normalised=bech32_encode("nsec", key.secret_bytes()),
        node_id=key.node,
        npub=npub(key.node),
        peer_id=peer_id(key.node),
    )


def _texts_that_are_no_key() -> Iterator[Vector]:
    node = PROVIDER.node
    good = npub(node)
    yield invalid("npub with its last character missing", text=good[:-1])
    yield invalid("npub with another last character", text=good[:-1] + ("q" if good[-1] != "q" else "p"))
    yield invalid("npub in mixed case", text=good[:8] + good[8:].upper())
    yield invalid("npub whose payload has 31 bytes", text=bech32_encode("npub", node[:31]))
    yield invalid("npub whose payload has 33 bytes", text=bech32_encode("npub", node + b"\0"))
    yield invalid("63 hexadecimal digits", text=node.hex()[:-1])
    yield invalid("66 hexadecimal digits: a compressed point is not a node id", text="02" + node.hex())
    prefix = bytes.fromhex("002508021221")
    yield invalid("PeerId of a point with odd Y", text=base58.b58encode(prefix + b"\x03" + node).decode())
    yield invalid("PeerId with a byte missing", text=base58.b58encode(prefix + b"\x02" + node[:31]).decode())
    ed25519 = base58.b58encode(bytes.fromhex("002408011220") + node).decode()
    yield invalid("PeerId of an Ed25519 key", text=ed25519)
    yield invalid("not base58", text="16Uiu2HA0OIl")


def tagged_hashes() -> Vector:
    """tagged-hashes.json."""
    tags = (Heartbeat.TAG, JobOpenRecord.TAG, JobAcceptRecord.TAG, ReceiptRecord.TAG, HttpRecord.TAG)
    bodies = (b"", b"\x90", bytes(range(256)))
    return file(
        "SHA-256( SHA-256(tag) || SHA-256(tag) || body ). The same body has another hash under every tag.",
        [
            valid(f"{len(body)} bytes", tag=tag, body=body, hash=tagged_hash(tag, body))
            for tag in (*tags, "infernet/link/1", "infernet/server-time/1", "infernet/answer-key/1")
            for body in bodies
        ],
    )


# ---------------------------------------------------------------- records

FINGERPRINT = hashlib.sha256(b"weights").digest()
LEASE = LeaseId(hashlib.sha256(b"lease").digest())


def heartbeat(**changes: Any) -> Heartbeat:
    """A provider's heartbeat with something in every field."""
    fields: dict[str, Any] = {
        "version": 1,
        "node": PROVIDER.node,
        "sequence": NOW_MS,
        "issued_at_ms": NOW_MS,
        "expires_at_ms": NOW_MS + 1_800_000,
        "role": Role.PROVIDER,
        "availability": Availability.AVAILABLE,
        "name": "Küche",
        "agent": "infernet/0.1.0",
        "addresses": ("/ip4/192.0.2.7/tcp/46337", "/ip6/2001:db8::7/tcp/46337"),
        "gpus": (Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "NVIDIA GeForce RTX 4090"),),
        "models": (
            ModelOffer("smollm2:135m", FINGERPRINT, (Kind.CHAT, Kind.COMPLETION), 8192, 4, 0, 0, 0),
            ModelOffer("bge-small", bytes(32), (Kind.EMBEDDING,), 512, 1, 10_000, 0, 5),
        ),
        "load": 3,
        "free_policy": FreePolicy.ALL,
        "sealing_key": hashlib.sha256(b"sealing key").digest(),
        "sealed_bytes_max": 262_192,
        "features": (1,),
        "coordinators": (COORDINATOR.node,),
        "extensions": (),
    }
    return Heartbeat(**{**fields, **changes})


def order(**changes: Any) -> JobOpenRecord:
    """A paid order with something in every field."""
    fields: dict[str, Any] = {
        "version": 1,
        "job": JOB,
        "attempt": 2,
        "asker": ASKER.node,
        "provider": PROVIDER.node,
        "lease": LEASE,
        "reservation": hashlib.sha256(b"reservation").digest()[:16],
        "kind": Kind.CHAT,
        "model": "smollm2:135m",
        "fingerprint": FINGERPRINT,
        "sampling": default_sampling(2**62 + 1),
        "prompt_tokens_max": 8192,
        "output_tokens_max": 256,
        "price_in_uusd": 100_000,
        "price_out_uusd": 400_000,
        "price_job_uusd": 10,
        "prepay_max_uusd": 1_000,
        "sealed_hash": hashlib.sha256(b"sealed").digest(),
        "sealed_bytes": 1_072,
        "created_at_ms": NOW_MS,
        "expires_at_ms": NOW_MS + 600_000,
        "extensions": (),
    }
    return JobOpenRecord(**{**fields, **changes})


def _acceptance() -> JobAcceptRecord:
    return JobAcceptRecord(
        1, JOB, 2, PROVIDER.node, LEASE, bytes(32), FINGERPRINT, 57, 1_234, 16, 8, 14, NOW_MS + 30, ()
    )


def _receipt() -> ReceiptRecord:
    return ReceiptRecord(
        version=1,
        job=JOB,
        attempt=2,
        provider=PROVIDER.node,
        asker=ASKER.node,
        lease=None,
        open_hash=bytes(32),
        fingerprint=FINGERPRINT,
        prompt_tokens=57,
        output_tokens=200,
        chunks=14,
        running_hash=b"\xee" * 32,
        paid_before_uusd=0,
        owed_uusd=0,
        accepted_at_ms=NOW_MS + 30,
        first_token_ms=210,
        last_token_ms=4_100,
        outcome=Outcome.FAILED,
        code=64,
        extensions=((1, b"odd: ignored"),),
    )


def records() -> Vector:
    """records.json."""
    return file(
        "Signed records. `body` and `signature` are the two fields of Signed. What is skipped is refused too, but "
        "nobody is to blame for it.",
        [*_good_records(), *_bad_records()],
    )


def _good_records() -> Iterator[Vector]:
    for comment, record, key in (
        ("a heartbeat with something in every field", heartbeat(), PROVIDER),
        (
            "the smallest heartbeat",
            heartbeat(
                name="", agent="", addresses=(), gpus=(), models=(), sealing_key=None, features=(), coordinators=()
            ),
            PROVIDER,
        ),
        ("a heartbeat with unknown odd extensions", heartbeat(extensions=((1, b""), (129, b"\x01"))), PROVIDER),
        ("a paid order", order(), ASKER),
        (
            "a free order for any weights",
            order(lease=None, reservation=None, fingerprint=None, price_in_uusd=0, price_out_uusd=0, price_job_uusd=0),
            ASKER,
        ),
        ("an acceptance", _acceptance(), PROVIDER),
        ("a receipt with an unknown odd extension", _receipt(), PROVIDER),
    ):
        yield _good(comment, record, sign_record(record, key))
    body = _changed(codec.encode_record(heartbeat()), {5: 99, 6: 255})
    signed = Signed(body, PROVIDER.sign(Heartbeat.TAG, body))
    yield _good("role 99 and availability 255 are read as UNKNOWN", codec.decode_record(body, Heartbeat), signed)


def _good(comment: str, record: Record, signed: Signed) -> Vector:
    return valid(
        comment,
        record=type(record).__name__,
        tag=record.TAG,
        signer=getattr(record, record.SIGNER),
        fields=record,
        body=signed.body,
        hash=tagged_hash(record.TAG, signed.body),
        signature=signed.signature,
    )


def _changed(body: bytes, changes: dict[int, Any]) -> bytes:
    fields = msgpack.unpackb(body)
    for index, value in changes.items():
        fields[index] = value
    data: bytes = msgpack.packb(fields)
    return data


def _bad_records() -> Iterator[Vector]:
    good = sign_record(order(), ASKER)

    def bad(comment: str, body: bytes, key: SigningKey = ASKER, *, tag: str = JobOpenRecord.TAG, **more: Any) -> Vector:
        return invalid(comment, record="JobOpenRecord", body=body, signature=key.sign(tag, body), **more)

    signature = good.signature
    yield invalid(
        "a changed signature",
        record="JobOpenRecord",
        body=good.body,
        signature=signature[:63] + bytes([signature[63] ^ 1]),
    )
    yield invalid("a changed body", record="JobOpenRecord", body=_changed(good.body, {12: 257}), signature=signature)
    yield bad("signed by another key", good.body, PROVIDER)
    yield bad("signed under another tag", good.body, tag=JobAcceptRecord.TAG)
    yield bad("signed without a tag", good.body) | {
        "signature": ASKER.sign_digest(hashlib.sha256(good.body).digest()).hex()
    }
    header = bytes([0xDC, 0x00, good.body[2]])
    assert good.body[:3] == header
    yield bad("the attempt takes two bytes where one is enough", good.body.replace(JOB + b"\x02", JOB + b"\xcc\x02", 1))
    yield bad("the array header takes five bytes where three are enough", b"\xdd\0\0\0" + good.body[2:])
    yield bad("the job id has a length of two bytes", good.body.replace(b"\xc4\x10" + JOB, b"\xc5\x00\x10" + JOB, 1))
    fields = msgpack.unpackb(good.body)
    yield bad("one field less", msgpack.packb(fields[:-1]))
    yield bad("one field more", msgpack.packb([*fields, None]))
    yield bad("version 0", _changed(good.body, {0: 0}))
    yield bad("version 2", _changed(good.body, {0: 2}), skipped=True)
    yield bad("version 2 with other fields", msgpack.packb([2, JOB, 7, "who knows"]), skipped=True)
    yield bad("an unknown extension of an even type", _changed(good.body, {-1: [[1, b""], [2, b""]]}), skipped=True)
    yield bad("extensions that do not ascend", _changed(good.body, {-1: [[3, b""], [1, b""]]}))
    yield bad("the same extension twice", _changed(good.body, {-1: [[1, b""], [1, b""]]}))
    yield bad("nine extensions", _changed(good.body, {-1: [[2 * n + 1, b""] for n in range(9)]}))
    yield bad("an attempt of 0", _changed(good.body, {2: 0}))
    yield bad("a price above the bound", _changed(good.body, {13: 10**12 + 1}))
    yield bad("a kind beyond 255", _changed(good.body, {7: 256}))
    yield bad("a job id in text", _changed(good.body, {1: JOB.hex()[:16]}))
    yield bad("an asker that is no point of the curve", _changed(good.body, {3: b"\xff" * 32}))
    yield bad("a boolean", _changed(good.body, {5: True}))
    yield bad("a map", _changed(good.body, {10: {}}))


# ---------------------------------------------------------------- X-Infernet-Auth

GOLDEN_KEY = SigningKey((3).to_bytes(32, "big"), bytes)
GOLDEN = {
    "method": "POST",
    "target": "/api/v1/node/heartbeat",
    "body": b'{"role":"provider","status":"available"}',
    "now_s": 1_777_400_000,
    "nonce": "000102030405060708090a0b0c0d0e0f",
}


def auth_v1() -> Vector:
    """auth-v1.json."""
    return file(
        "X-Infernet-Auth version 1: does this header authenticate this request at this time? `now_ms` is the "
        "coordinator's clock.",
        [*_good_v1(), *_bad_v1()],
    )


def _case_v1(header: str, **changes: Any) -> Vector:
    request = {**GOLDEN, **changes}
    return {
        "header": header,
        "method": request["method"],
        "target": request["target"],
        "body": plain(request["body"]),
        "now_ms": request.get("now_ms", request["now_s"] * 1000),
        "node_id": GOLDEN_KEY.node.hex(),
    }


def _fields_v1() -> dict[str, Any]:
    header = sign_request_v1(GOLDEN_KEY, **GOLDEN)  # type: ignore[arg-type]  # a dictionary of mixed values
    fields: dict[str, Any] = json.loads(base64.urlsafe_b64decode(header + "=="))
    return fields


def _header(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _good_v1() -> Iterator[Vector]:
    fields = _fields_v1()
    header = _header(json.dumps(fields, separators=(",", ":")))
    body_hash = hashlib.sha256(GOLDEN["body"]).hexdigest()  # type: ignore[arg-type]  # as above
    canonical = f"POST\n/api/v1/node/heartbeat\n1777400000\n{GOLDEN['nonce']}\n{body_hash}"
    yield valid(
        "the golden vector of the first existing implementation: secret 3, auxiliary randomness 32 zero bytes",
        secret=(3).to_bytes(32, "big"),
        canonical=canonical,
        digest=hashlib.sha256(canonical.encode()).digest(),
        signature=fields["sig"],
        json=json.dumps(fields, separators=(",", ":")),
        **_case_v1(header),
    )
    yield valid("60 seconds late", **_case_v1(header, now_ms=1_777_400_060_999))
    yield valid("60 seconds early", **_case_v1(header, now_ms=1_777_399_940_000))
    yield valid("padded, in the standard alphabet", **_case_v1(base64.b64encode(json.dumps(fields).encode()).decode()))
    reordered = dict(sorted(fields.items())) | {"x": [1]}
    yield valid("another order, spaces, an unknown key", **_case_v1(_header(json.dumps(reordered))))
    yield valid("the method in lower case", **_case_v1(header, method="post"))


def _bad_v1() -> Iterator[Vector]:
    fields = _fields_v1()
    header = _header(json.dumps(fields))
    yield invalid("61 seconds late", **_case_v1(header, now_ms=1_777_400_061_000))
    yield invalid("61 seconds early", **_case_v1(header, now_ms=1_777_399_939_999))
    yield invalid("another method", **_case_v1(header, method="PUT"))
    yield invalid("another target", **_case_v1(header, target="/api/v1/node/remove"))
    yield invalid("a query that was not signed", **_case_v1(header, target="/api/v1/node/heartbeat?x=1"))
    yield invalid("another body", **_case_v1(header, body=b'{"role":"provider","status":"offline"}'))
    for comment, changes in (
        ("the public key in upper case: the same key would be two identities", {"pubkey": fields["pubkey"].upper()}),
        ("the signature in upper case", {"sig": fields["sig"].upper()}),
        ("another nonce", {"nonce": "000102030405060708090a0b0c0d0e10"}),
        ("no nonce", {"nonce": ""}),
        ("a nonce with a line break", {"nonce": "00\n01"}),
        ("a time with a fraction", {"created_at": 1_777_400_000.5}),
        ("a time as text", {"created_at": "1777400000"}),
        ("another time", {"created_at": 1_777_400_001}),
        ("version 2 in JSON", {"v": 2}),
        ("the version as text", {"v": "1"}),
        ("another public key", {"pubkey": PROVIDER.node.hex()}),
        ("a public key that is no point of the curve", {"pubkey": "f" * 64}),
        ("a signature of zeros", {"sig": "0" * 128}),
    ):
        yield invalid(comment, **_case_v1(_header(json.dumps({**fields, **changes}))))
    yield invalid("not base64url", **_case_v1("%%%"))
    yield invalid("not JSON", **_case_v1(_header("{")))
    yield invalid("an array of JSON", **_case_v1(_header("[]")))
    yield invalid("JSON nested a thousand times", **_case_v1(_header('{"v":' + "[" * 1_000)))
    yield invalid("2,049 characters", **_case_v1("e" * 2_049))


def auth_v2() -> Vector:
    """auth-v2.json."""
    return file(
        "X-Infernet-Auth version 2: does this header authenticate this request to this coordinator at this time? "
        "That each counter is used once is tested by replay-window.json.",
        [*_good_v2(), *_bad_v2()],
    )


_V2: dict[str, Any] = {"method": "POST", "target": "/api/v1/node/me?role=provider", "body": b'{"role":"provider"}'}


def _case_v2(header: str, **changes: Any) -> Vector:
    request = {**_V2, "audience": COORDINATOR.node, "now_ms": NOW_MS, **changes}
    return {"header": header, **plain(request), "node_id": PROVIDER.node.hex()}


def _v2(**changes: Any) -> str:
    request = {**_V2, "audience": COORDINATOR.node, "now_ms": NOW_MS, "counter": NOW_MS, "boot": 7, **changes}
    return sign_request(PROVIDER, **request)


def _good_v2() -> Iterator[Vector]:
    header = _v2()
    signed = codec.decode_struct(base64.urlsafe_b64decode(header + "=="), Signed, codec.CONTROL_LIMITS)
    record = codec.decode_record(signed.body, HttpRecord)
    yield valid(
        "a request as a node makes it",
        fields=record,
        record=signed.body,
        signature=signed.signature,
        **_case_v2(header),
    )
    empty = _v2(method="GET", target="/api/v1/link", body=b"")
    yield valid("a request without a body", **_case_v2(empty, method="GET", target="/api/v1/link", body=b""))
    yield valid("60,000 ms late", **_case_v2(header, now_ms=NOW_MS + 60_000))
    yield valid("60,000 ms early", **_case_v2(header, now_ms=NOW_MS - 60_000))


def _bad_v2() -> Iterator[Vector]:
    header = _v2()
    yield invalid("60,001 ms late", **_case_v2(header, now_ms=NOW_MS + 60_001))
    yield invalid("60,001 ms early", **_case_v2(header, now_ms=NOW_MS - 60_001))
    yield invalid("for another coordinator", **_case_v2(header, audience=signing_key("another coordinator").node))
    yield invalid("another method", **_case_v2(header, method="GET"))
    yield invalid("another query", **_case_v2(header, target="/api/v1/node/me?role=client"))
    yield invalid("another body", **_case_v2(header, body=b'{"role":"client"}'))
    record = HttpRecord(
        1, PROVIDER.node, COORDINATOR.node, "POST", _V2["target"], hashlib.sha256(_V2["body"]).digest(), NOW_MS, 5, 7
    )
    body = codec.encode_record(record)
    for comment, data, signature in (
        ("signed by another key", body, ASKER.sign(HttpRecord.TAG, body)),
        ("signed under another tag", body, PROVIDER.sign(Heartbeat.TAG, body)),
        ("a method in lower case inside", *_signed_http(_changed(body, {3: "post"}))),
        ("one field more", *_signed_http(msgpack.packb([*msgpack.unpackb(body), 0]))),
        ("version 2 of the record", *_signed_http(_changed(body, {0: 2}))),
        ("a negative counter", *_signed_http(_changed(body, {7: -1}))),
        ("not canonical", *_signed_http(body.replace(b"\x05\x07", b"\xcc\x05\x07"))),
    ):
        raw = codec.encode_value(Signed(data, signature))
        yield invalid(comment, **_case_v2(base64.urlsafe_b64encode(raw).rstrip(b"=").decode()))
    yield invalid("not MessagePack", **_case_v2("wQ"))
    yield invalid("nothing", **_case_v2(""))


def _signed_http(body: bytes) -> tuple[bytes, bytes]:
    return body, PROVIDER.sign(HttpRecord.TAG, body)


# ---------------------------------------------------------------- replay


def replay_window() -> Vector:
    """replay-window.json."""
    sequences = {
        "in order": [1, 2, 3],
        "the same twice": [5, 5],
        "out of order within the window": [100, 98, 99, 98, 101, 99],
        "the lowest of the window, and one below": [5_000, 5_000 - REPLAY_WINDOW + 1, 5_000 - REPLAY_WINDOW],
        "a jump by the width of the window forgets what was before": [10, 10 + REPLAY_WINDOW, 10, 11, 11],
        "a jump far ahead": [NOW_MS, NOW_MS + 10**9, NOW_MS, NOW_MS + 10**9 - 1],
        "counter 0": [0, 0],
        "the largest counter": [2**63 - 1, 2**63 - 2, 2**63 - 1],
    }
    return file(
        "Counters of one node in the order in which they arrive, and which are accepted; then the two numbers that "
        "the coordinator holds.",
        [_sequence(comment, counters) for comment, counters in sequences.items()],
    )


def _sequence(comment: str, counters: list[int]) -> Vector:
    window = ReplayWindow()
    accepted = [window.accept(counter) for counter in counters]
    state = {"highest": window.highest, "bitmap": f"{window.bitmap:x}"}
    return {**valid(comment, counters=counters), "accepted": accepted, **state}
