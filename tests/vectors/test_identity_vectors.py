"""specs/vectors of page 02: keys, signatures, records, signed requests, the replay window."""

from __future__ import annotations

import base64
import json

import coincurve
import msgpack
import pytest

from protocol import codec
from protocol.details import NOTHING_SAID, extensions_of, said_of
from protocol.envelope import (
    HttpRecord,
    ReplayWindow,
    SigningKey,
    open_record,
    sign_request_v1,
    tagged_hash,
    verify_digest,
    verify_request,
)
from protocol.errors import BadSignature, LocalProtocolError, RemoteProtocolError, UnknownVersion
from protocol.ids import (
    NodeId,
    bech32_decode,
    node_id_from_peer_id,
    node_id_from_text,
    npub,
    peer_id,
)
from protocol.records import EngineKind, Heartbeat, JobAcceptRecord, JobOpenRecord, ReceiptRecord, Signed
from tests.helpers_vectors import Vector, each, load, plain

RECORDS = {cls.__name__: cls for cls in (Heartbeat, JobOpenRecord, JobAcceptRecord, ReceiptRecord)}


def data(vector: Vector, name: str) -> bytes:
    return bytes.fromhex(vector[name])


@each("identity")
def test_identity(vector: Vector) -> None:
    if vector["valid"]:
        key = SigningKey(data(vector, "secret"), bytes)
        assert key.secret_bytes() == data(vector, "secret_normalised")
        assert key.node.hex() == vector["node_id"]
        assert (npub(key.node), peer_id(key.node)) == (vector["npub"], vector["peer_id"])
        assert node_id_from_text(vector["npub"]) == node_id_from_peer_id(vector["peer_id"]) == key.node
        assert bech32_decode("nsec", vector["nsec_normalised"]) == key.secret_bytes()
    elif "secret" in vector:
        with pytest.raises(LocalProtocolError):
            SigningKey(data(vector, "secret"), bytes)
    else:
        with pytest.raises(LocalProtocolError):
            node_id_from_text(vector["text"])


def test_identity_has_secrets_of_both_kinds() -> None:
    kinds = {vector["secret"] == vector["secret_normalised"] for vector in load("identity") if vector["valid"]}
    assert kinds == {True, False}


@each("bip340")
def test_bip340(vector: Vector) -> None:
    key, message, signature = (data(vector, name) for name in ("public_key", "message", "signature"))
    if not vector["valid"]:
        with pytest.raises(BadSignature):
            verify_digest(key, message, signature)
        return
    verify_digest(key, message, signature)
    if "secret" in vector:
        randomness = data(vector, "auxiliary_randomness")
        signer = SigningKey(data(vector, "secret"), lambda _: randomness)
        assert signer.node == key
        assert signer.sign_digest(message) == signature


@each("tagged-hashes")
def test_tagged_hash(vector: Vector) -> None:
    assert tagged_hash(vector["tag"], data(vector, "body")).hex() == vector["hash"]


@each("records")
def test_record(vector: Vector) -> None:
    cls = RECORDS[vector["record"]]
    signed = Signed(data(vector, "body"), data(vector, "signature"))
    if vector["valid"]:
        record = open_record(signed, cls)
        assert plain(record) == vector["fields"]
        assert getattr(record, cls.SIGNER).hex() == vector["signer"]
        assert tagged_hash(vector["tag"], signed.body).hex() == vector["hash"]
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            open_record(signed, cls)
        assert isinstance(caught.value, UnknownVersion) == vector.get("skipped", False)


@each("model-details")
def test_model_details(vector: Vector) -> None:
    """Good or bad, the record is: what is not as it must be is only not heard."""
    signed = Signed(data(vector, "body"), data(vector, "signature"))
    record = open_record(signed, Heartbeat)
    assert [offer.name for offer in record.models] == vector["models"]
    assert plain(record.extensions) == vector["extensions"]
    said = {name: said_of(record, name) for name in vector["models"]}
    if vector["valid"]:
        assert {name: plain(one) for name, one in said.items()} == vector["said"]
        # An engine of tomorrow is heard as none, and cannot be said again.
        if EngineKind.UNKNOWN not in {one.engine for one in said.values()}:
            assert extensions_of(record.models, said) == record.extensions
    else:
        assert set(said.values()) == {NOTHING_SAID}


@each("auth-v1")
def test_auth_version_1(vector: Vector) -> None:
    def check() -> NodeId:
        return verify_request(
            vector["header"],
            NodeId(bytes(32)),
            vector["method"],
            vector["target"],
            data(vector, "body"),
            vector["now_ms"],
        ).node

    if vector["valid"]:
        assert check().hex() == vector["node_id"]
    else:
        with pytest.raises(RemoteProtocolError):
            check()


def test_the_golden_vector_of_version_1_is_what_existing_clients_send_byte_for_byte() -> None:
    """Values that were recorded from the existing implementation, written here a second time on purpose."""
    vector = load("auth-v1")[0]
    assert vector["node_id"] == "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"
    assert vector["digest"] == "a909c85ec211f81d6e894fc09b8c684943db0ce8a0eba95ca13577f261d5044d"
    assert vector["signature"] == (
        "7e6f6553aa58a78e150bc20cbaa7189b014328cb701e402c43675c9edcf8dd2f"
        "9d46fb9b71196b9dbd469791f67c0f092696d100b6743b535634231ccf58f49c"
    )
    assert "27673ab854fccfc8bb4460d87087a316345a18786c2473471b7d8212f6ab14d8" in vector["canonical"]
    assert len(vector["header"]) == 383
    header = sign_request_v1(
        SigningKey(data(vector, "secret"), bytes),
        vector["method"],
        vector["target"],
        data(vector, "body"),
        vector["now_ms"] // 1000,
        json.loads(vector["json"])["nonce"],
    )
    assert header == vector["header"]
    assert base64.urlsafe_b64decode(header + "==").decode() == vector["json"]


@each("auth-v2")
def test_auth_version_2(vector: Vector) -> None:
    def check() -> NodeId:
        return verify_request(
            vector["header"],
            NodeId(data(vector, "audience")),
            vector["method"],
            vector["target"],
            data(vector, "body"),
            vector["now_ms"],
        ).node

    if not vector["valid"]:
        with pytest.raises(RemoteProtocolError):
            check()
        return
    assert check().hex() == vector["node_id"]
    if "fields" in vector:
        body, signature = msgpack.unpackb(base64.urlsafe_b64decode(vector["header"] + "=="))
        assert (body.hex(), signature.hex()) == (vector["record"], vector["signature"])
        assert plain(codec.decode_record(body, HttpRecord)) == vector["fields"]


@each("replay-window")
def test_replay_window(vector: Vector) -> None:
    window = ReplayWindow()
    assert [window.accept(counter) for counter in vector["counters"]] == vector["accepted"]
    assert (window.highest, f"{window.bitmap:x}") == (vector["highest"], vector["bitmap"])


def test_coincurve_signs_what_the_vectors_say() -> None:
    """The one library under all of this, against the official list, without our code between."""
    for vector in load("bip340"):
        if "secret" in vector:
            key = coincurve.PrivateKey(data(vector, "secret"))
            assert (
                key.sign_schnorr(data(vector, "message"), data(vector, "auxiliary_randomness")).hex()
                == vector["signature"]
            )
