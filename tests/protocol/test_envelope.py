"""protocol/envelope.py: who signed what, for whom, when, and not twice."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import coincurve
import msgpack
import pytest
from msgspec.structs import replace

from protocol import codec
from protocol.envelope import (
    AUTH_HEADER,
    AUTH_HEADER_CHARACTERS_MAX,
    HTTP_TAG,
    REPLAY_WINDOW,
    HttpRecord,
    ReplayWindow,
    SigningKey,
    is_public_key,
    open_record,
    sign_record,
    sign_request,
    sign_request_v1,
    tagged_hash,
    verify,
    verify_digest,
    verify_request,
)
from protocol.errors import BadFrame, BadSignature, LocalProtocolError, RemoteProtocolError, Stale
from protocol.ids import NodeId
from protocol.records import Heartbeat, JobAcceptRecord, Signed
from tests.helpers_records import NOW_MS, PROVIDER, acceptance, heartbeat, signing_key

NODE = signing_key("node")
COORDINATOR = signing_key("coordinator").node
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

METHOD, TARGET, BODY = "POST", "/api/v1/node/heartbeat?limit=5", b'{"role":"provider"}'
Check = Callable[..., Any]

# ---------------------------------------------------------------- keys and signatures


def test_a_tagged_hash_is_the_one_of_bip_340() -> None:
    tag = hashlib.sha256(b"infernet/heartbeat/1").digest()
    assert tagged_hash("infernet/heartbeat/1", b"body") == hashlib.sha256(tag + tag + b"body").digest()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 8, 2**200 + 1])
def test_a_secret_is_normalised_so_that_its_point_has_even_y(number: int) -> None:
    secret = number.to_bytes(32, "big")
    key = SigningKey(secret, bytes)
    assert coincurve.PrivateKey(key.secret_bytes()).public_key.format() == b"\x02" + key.node
    assert int.from_bytes(key.secret_bytes(), "big") in (number, CURVE_ORDER - number)
    assert SigningKey(key.secret_bytes(), bytes).secret_bytes() == key.secret_bytes()


def test_both_signs_of_a_secret_are_the_same_node() -> None:
    odd = next(n for n in range(1, 50) if coincurve.PrivateKey(n.to_bytes(32, "big")).public_key.format()[0] == 3)
    one, other = odd.to_bytes(32, "big"), (CURVE_ORDER - odd).to_bytes(32, "big")
    assert SigningKey(one, bytes).node == SigningKey(other, bytes).node


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_what_is_no_scalar_is_no_key(secret: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        SigningKey(secret, bytes)


def test_a_key_never_shows_its_secret() -> None:
    key = signing_key("node")
    assert key.secret_bytes().hex() not in f"{key!r} {key}"
    assert not hasattr(key, "__dict__")


def test_the_same_randomness_gives_the_same_signature_and_other_randomness_another() -> None:
    other = SigningKey(NODE.secret_bytes(), lambda size: b"\x01" * size)
    assert NODE.sign("tag", b"body") == NODE.sign("tag", b"body") != other.sign("tag", b"body")
    verify(NODE.node, "tag", b"body", other.sign("tag", b"body"))


def test_a_signature_of_one_kind_of_record_is_none_of_another() -> None:
    signature = NODE.sign(Heartbeat.TAG, b"body")
    verify(NODE.node, Heartbeat.TAG, b"body", signature)
    with pytest.raises(BadSignature):
        verify(NODE.node, JobAcceptRecord.TAG, b"body", signature)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64])
def test_nonsense_is_no_signature(signature: bytes) -> None:
    with pytest.raises(BadSignature):
        verify_digest(NODE.node, bytes(32), signature)


@pytest.mark.parametrize("node", [b"", bytes(32), b"\xff" * 32, bytes(31) + b"\x05", bytes(33)])
def test_what_is_no_point_signs_nothing(node: bytes) -> None:
    with pytest.raises(BadSignature):
        verify_digest(node, bytes(32), NODE.sign_digest(bytes(32)))


# ---------------------------------------------------------------- records


def test_a_signed_record_opens_to_what_was_signed() -> None:
    record = heartbeat()
    assert open_record(sign_record(record, PROVIDER), Heartbeat) == record


def test_only_the_node_that_a_record_names_can_sign_it() -> None:
    with pytest.raises(LocalProtocolError, match="of another node"):
        sign_record(heartbeat(), NODE)
    body = codec.encode_record(heartbeat())
    with pytest.raises(BadSignature):
        open_record(Signed(body, NODE.sign(Heartbeat.TAG, body)), Heartbeat)


def test_every_byte_of_a_record_is_signed() -> None:
    signed = sign_record(acceptance(), PROVIDER)
    for at in range(len(signed.body)):
        body = signed.body[:at] + bytes([signed.body[at] ^ 1]) + signed.body[at + 1 :]
        with pytest.raises(RemoteProtocolError):
            open_record(replace(signed, body=body), JobAcceptRecord)
    for at in range(64):
        signature = signed.signature[:at] + bytes([signed.signature[at] ^ 1]) + signed.signature[at + 1 :]
        with pytest.raises(BadSignature):
            open_record(replace(signed, signature=signature), JobAcceptRecord)


def test_the_signature_covers_the_bytes_received_and_not_their_meaning() -> None:
    """A record that reads the same in other bytes is refused, although its re-encoding would verify."""
    signed = sign_record(acceptance(), PROVIDER)
    rewritten = signed.body[:1] + b"\xcc\x01" + signed.body[2:]
    assert msgpack.packb(msgpack.unpackb(rewritten)) == signed.body
    with pytest.raises(BadFrame):
        open_record(replace(signed, body=rewritten), JobAcceptRecord)


def test_unknown_values_of_enumerations_do_not_spoil_the_signature() -> None:
    fields = msgpack.unpackb(codec.encode_record(heartbeat()))
    fields[Heartbeat.__struct_fields__.index("role")] = 200
    body = msgpack.packb(fields)
    assert open_record(Signed(body, PROVIDER.sign(Heartbeat.TAG, body)), Heartbeat).role == 0


# ---------------------------------------------------------------- X-Infernet-Auth, both versions


def v1(**changes: Any) -> str:
    arguments = {
        "method": METHOD,
        "target": TARGET,
        "body": BODY,
        "now_s": NOW_MS // 1000,
        "nonce": "ab" * 16,
        **changes,
    }
    return sign_request_v1(arguments.pop("key", NODE), **arguments)


def v2(**changes: Any) -> str:
    arguments = {
        "audience": COORDINATOR,
        "method": METHOD,
        "target": TARGET,
        "body": BODY,
        "now_ms": NOW_MS,
        "counter": NOW_MS,
        "boot": 1,
        **changes,
    }
    return sign_request(arguments.pop("key", NODE), **arguments)


def check(header: str, **changes: Any) -> Any:
    arguments = {
        "audience": COORDINATOR,
        "method": METHOD,
        "target": TARGET,
        "body": BODY,
        "now_ms": NOW_MS,
        **changes,
    }
    return verify_request(header, **arguments)


def test_version_1_names_the_node_and_its_nonce() -> None:
    request = check(v1())
    assert (request.version, request.node, request.nonce, request.counter) == (1, NODE.node, "ab" * 16, None)
    assert request.created_at_ms == NOW_MS


def test_version_2_names_the_node_and_its_counter() -> None:
    request = check(v2(counter=17))
    assert (request.version, request.node, request.nonce, request.counter) == (2, NODE.node, None, 17)
    assert request.created_at_ms == NOW_MS


@pytest.mark.parametrize("make", [v1, v2])
def test_the_case_of_the_method_does_not_matter(make: Check) -> None:
    assert check(make(method="post")).node == check(make(), method="post").node == NODE.node


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"target": TARGET + "0"},
        {"target": TARGET.partition("?")[0]},
        {"target": "/" + TARGET},
        {"body": BODY + b" "},
        {"body": b""},
    ],
    ids=str,
)
def test_another_request_is_refused(make: Check, change: dict[str, Any]) -> None:
    with pytest.raises(BadSignature):
        check(make(), **change)


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_minute_of_skew_is_allowed_in_both_versions(seconds: int) -> None:
    assert check(v1(now_s=NOW_MS // 1000 + seconds))
    assert check(v2(now_ms=NOW_MS + seconds * 1000))


@pytest.mark.parametrize("seconds", [-61, 61])
def test_more_than_a_minute_is_not(seconds: int) -> None:
    with pytest.raises(Stale, match="61 s"):
        check(v1(now_s=NOW_MS // 1000 + seconds))
    with pytest.raises(Stale, match="61 s"):
        check(v2(now_ms=NOW_MS + seconds * 1000))


def test_version_2_counts_milliseconds_and_version_1_whole_seconds() -> None:
    with pytest.raises(Stale):
        check(v2(), now_ms=NOW_MS + 60_001)
    assert check(v1(), now_ms=NOW_MS + 60_999)
    with pytest.raises(Stale):
        check(v1(), now_ms=NOW_MS + 61_000)


def test_version_2_is_for_one_coordinator_only() -> None:
    with pytest.raises(BadSignature, match="another coordinator"):
        check(v2(), audience=signing_key("another coordinator").node)
    assert check(v1(), audience=signing_key("another coordinator").node), "version 1 has no audience"


def test_version_2_is_shorter_than_the_limit_of_a_header() -> None:
    assert len(v2(target="/" + "x" * 1000)) < AUTH_HEADER_CHARACTERS_MAX


def rewritten_v1(**changes: Any) -> str:
    fields = json.loads(base64.urlsafe_b64decode(v1() + "=="))
    fields.update(changes)
    return base64.urlsafe_b64encode(json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()).decode()


def test_what_existing_clients_send_is_read() -> None:
    assert check(rewritten_v1(extra=1)).node == NODE.node
    padded = base64.b64encode(base64.urlsafe_b64decode(v1() + "==")).decode()
    assert check(padded).node == NODE.node
    assert check(f" {v1()} ").node == NODE.node


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": "1"},
        {"v": True},
        {"v": 1.0},
        {"v": ...},
        {"pubkey": NODE.node.hex().upper()},
        {"pubkey": NODE.node.hex()[:-1]},
        {"pubkey": NODE.node.hex() + "\n"},
        {"pubkey": 7},
        {"pubkey": ...},
        {"created_at": float(NOW_MS // 1000)},
        {"created_at": str(NOW_MS // 1000)},
        {"created_at": True},
        {"created_at": -1},
        {"created_at": 10**30},
        {"created_at": ...},
        {"nonce": ""},
        {"nonce": "a" * 65},
        {"nonce": "a\nb"},
        {"nonce": 5},
        {"nonce": ...},
        {"sig": "0" * 127},
        {"sig": "G" * 128},
        {"sig": None},
        {"sig": ...},
    ],
    ids=str,
)
def test_each_field_of_version_1_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(BadFrame):
        check(rewritten_v1(**changes))


def test_upper_case_signatures_are_refused() -> None:
    fields = json.loads(base64.urlsafe_b64decode(v1() + "=="))
    with pytest.raises(BadFrame, match="lower-case"):
        check(rewritten_v1(sig=fields["sig"].upper()))


@pytest.mark.parametrize("nonce", ["ab" * 15 + "ac", "x"])
def test_the_nonce_is_signed(nonce: str) -> None:
    with pytest.raises(BadSignature):
        check(rewritten_v1(nonce=nonce))


def test_another_key_in_the_header_is_refused() -> None:
    with pytest.raises(BadSignature):
        check(rewritten_v1(pubkey=signing_key("thief").node.hex()))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("nothing", ""),
        ("no base64", "%%%%"),
        ("five characters", "abcde"),
        ("not ASCII", "é" * 8),
        ("too long", "A" * (AUTH_HEADER_CHARACTERS_MAX + 1)),
        ("an array of JSON", encoded(b"[1]")),
        ("JSON cut short", encoded(b'{"v":1')),
        ("JSON that is not UTF-8", encoded(b'{"v":"\xff"}')),
        ("deep JSON", encoded(b'{"v":' + b"[" * 1400)),
        ("a long number", encoded(b'{"v":1' + b"0" * 1400 + b"}")),
        ("a very large exponent", encoded(b'{"v":1,"created_at":1e999}')),
        ("not a number", encoded(b'{"v":1,"created_at":NaN}')),
        ("a key twice", encoded(b'{"v":1,"v":2}')),
        ("MessagePack of something else", encoded(msgpack.packb({"a": 1}))),
        ("a record of another kind", encoded(codec.encode_value(sign_record(heartbeat(), PROVIDER)))),
        ("a signature of nothing", encoded(codec.encode_value(Signed(b"", bytes(64))))),
        ("nested arrays", encoded(b"\x91" * 1500)),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_what_is_no_header_is_refused_as_such(name: str, header: str) -> None:
    with pytest.raises((BadFrame, BadSignature)):
        check(header)


def signed_http(**changes: Any) -> str:
    record = HttpRecord(1, NODE.node, COORDINATOR, METHOD, TARGET, hashlib.sha256(BODY).digest(), NOW_MS, 5, 1)
    return encoded(codec.encode_value(sign_record(replace(record, **changes), NODE)))


def test_a_lower_case_method_inside_version_2_is_refused() -> None:
    assert check(signed_http())
    with pytest.raises(BadSignature):
        check(signed_http(method="post"))


def test_version_2_has_its_own_domain() -> None:
    record = HttpRecord(1, NODE.node, COORDINATOR, METHOD, TARGET, hashlib.sha256(BODY).digest(), NOW_MS, 5, 1)
    body = codec.encode_record(record)
    for tag, good in ((HTTP_TAG, True), (Heartbeat.TAG, False)):
        header = encoded(codec.encode_value(Signed(body, NODE.sign(tag, body))))
        if good:
            assert check(header).node == NODE.node
        else:
            with pytest.raises(BadSignature):
                check(header)


def test_the_audience_is_compared_before_anything_expensive() -> None:
    """A request for another coordinator with a bad signature is told the first reason, not the second."""
    signed = codec.decode_struct(base64.urlsafe_b64decode(v2() + "=="), Signed, codec.CONTROL_LIMITS)
    header = encoded(codec.encode_value(replace(signed, signature=bytes(64))))
    with pytest.raises(BadSignature, match="another coordinator"):
        check(header, audience=NodeId(bytes(32)))


# ---------------------------------------------------------------- replay


def test_a_counter_is_accepted_once_also_out_of_order() -> None:
    window = ReplayWindow()
    assert [window.accept(n) for n in (100, 99, 101, 100, 99, 101, 98)] == [True, True, True, False, False, False, True]


def test_below_the_window_nothing_is_accepted() -> None:
    window = ReplayWindow()
    assert window.accept(5000)
    assert window.accept(5000 - REPLAY_WINDOW + 1)
    assert not window.accept(5000 - REPLAY_WINDOW)
    assert not window.accept(1)


def test_a_jump_forgets_what_is_now_below_the_window() -> None:
    window = ReplayWindow()
    assert window.accept(10)
    assert window.accept(10 + REPLAY_WINDOW)
    assert not window.accept(10)
    assert window.accept(11)
    assert window.bitmap < 1 << REPLAY_WINDOW


def test_the_window_survives_in_two_integers() -> None:
    window = ReplayWindow()
    for counter in (7, 9, 2000):
        assert window.accept(counter)
    again = ReplayWindow(window.highest, window.bitmap)
    assert not again.accept(2000)
    assert again.accept(1999)
    assert not again.accept(9)


# ---------------------------------------------------------------- edges


def test_a_key_that_pays_follows_from_the_secret_and_the_request() -> None:
    request = bytes(range(16))
    expected = SigningKey(tagged_hash("infernet/payer-key/1", NODE.secret_bytes() + request), bytes)
    assert NODE.payer(request).node == expected.node
    assert NODE.payer(bytes(16)).node != expected.node


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_has_32_bytes(size: int) -> None:
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        SigningKey(b"\x01" * size, bytes)


def test_a_public_key_is_the_x_of_a_point() -> None:
    assert is_public_key(NODE.node)
    assert not is_public_key(bytes(32))
    assert not is_public_key(b"\xff" * 32)


def test_the_header_has_a_name_and_a_longest_value() -> None:
    assert (AUTH_HEADER, AUTH_HEADER_CHARACTERS_MAX) == ("X-Infernet-Auth", 2048)
    for length, is_too_long in ((2048, False), (2049, True)):
        with pytest.raises(BadFrame) as refused:
            verify_request("A" * length, COORDINATOR, METHOD, TARGET, BODY, NOW_MS)
        assert ("too long" in str(refused.value)) is is_too_long


def version_1(**changes: Any) -> str:
    """The header of version 1 with other fields, in standard base64 with its padding."""
    header = sign_request_v1(NODE, METHOD, TARGET, BODY, NOW_MS // 1000, "nonce")
    fields = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    return base64.b64encode(json.dumps(fields | changes).encode()).decode()


@pytest.mark.parametrize("created_at", [0, 1, 2**53])
def test_a_time_that_can_be_is_only_too_far_away(created_at: int) -> None:
    with pytest.raises(Stale):
        verify_request(version_1(created_at=created_at), COORDINATOR, METHOD, TARGET, BODY, NOW_MS)


@pytest.mark.parametrize("created_at", [-1, 2**53 + 1])
def test_a_time_that_cannot_be_is_none(created_at: int) -> None:
    with pytest.raises(BadFrame, match="whole seconds"):
        verify_request(version_1(created_at=created_at), COORDINATOR, METHOD, TARGET, BODY, NOW_MS)


def test_what_is_json_and_no_object_is_no_header() -> None:
    header = base64.urlsafe_b64encode(b'{"v":1}').decode()
    with pytest.raises(BadFrame, match="public key"):
        verify_request(header, COORDINATOR, METHOD, TARGET, BODY, NOW_MS)
    with pytest.raises(BadFrame, match="not base64url"):
        verify_request("!" + version_1(), COORDINATOR, METHOD, TARGET, BODY, NOW_MS)


def test_both_alphabets_are_read_with_padding_and_without() -> None:
    """A nonce is chosen so that all of the letters in which the alphabets differ stand in the header."""
    for number in range(2000):
        header = sign_request_v1(NODE, METHOD, TARGET, BODY, NOW_MS // 1000, f"nonce-{number}-~")
        raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)).replace(b"~", b"")
        fields = json.loads(raw) | {"note": "\u00fb\u00ff\u00be?>" * (number % 5)}
        data = json.dumps(fields, ensure_ascii=False).encode()
        standard = base64.b64encode(data).decode()
        if {"+", "/", "="} <= set(standard):
            break
    assert {"+", "/", "="} <= set(standard)
    seen = {
        type(error).__name__ + str(error)
        for text in (standard, standard.rstrip("="), standard.replace("+", "-").replace("/", "_"), f" {standard} ")
        for error in [refusal_of(text)]
    }
    assert seen == {"BadSignaturethe signature does not verify"}, "each is read, to the same fields"


def refusal_of(header: str) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as refused:
        verify_request(header, COORDINATOR, METHOD, TARGET, BODY, NOW_MS)
    return refused.value


def test_a_jump_by_a_whole_window_forgets_everything() -> None:
    for jump, remembers in ((REPLAY_WINDOW - 1, True), (REPLAY_WINDOW, False), (REPLAY_WINDOW + 1, False)):
        window = ReplayWindow()
        assert window.accept(1)
        assert window.accept(1 + jump)
        assert window.bitmap == (1 | (1 << jump) if remembers else 1)
