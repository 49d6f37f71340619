"""specs/vectors of page 06: leases, vouchers, and a small ledger from its first entry on."""

from __future__ import annotations

import json

import msgspec
import pytest

from protocol import codec
from protocol.book import Book
from protocol.claims import Terms, claim_command, lease_id, open_claim, open_lease_request
from protocol.envelope import open_record, tagged_hash
from protocol.errors import RemoteProtocolError, UnknownVersion
from protocol.ids import LeaseId, NodeId
from protocol.ledger import AnyCommand, Entry, Lease, Refused
from protocol.money_records import (
    ClaimAckRecord,
    ClaimRecord,
    CloseRecord,
    ComplaintRecord,
    LeaseRecord,
    LeaseRequestRecord,
    LedgerHeadRecord,
    VoucherRecord,
)
from protocol.records import ReceiptRecord, Signed
from tests.helpers_vectors import FOLDER, Vector, each, load, plain

RECORDS = {
    cls.__name__: cls
    for cls in (
        *(LeaseRequestRecord, LeaseRecord, VoucherRecord, ClaimRecord, ClaimAckRecord),
        *(CloseRecord, ComplaintRecord, LedgerHeadRecord, ReceiptRecord),
    )
}
BYTES = ("lease", "payer", "provider", "relay")


def signed_of(vector: Vector) -> Signed:
    return Signed(bytes.fromhex(vector["body"]), bytes.fromhex(vector["signature"]))


def check_record(vector: Vector) -> None:
    cls = RECORDS[vector["record"]]
    signed = signed_of(vector)
    if not vector["valid"]:
        with pytest.raises(RemoteProtocolError) as caught:
            open_record(signed, cls)
        assert isinstance(caught.value, UnknownVersion) == vector.get("skipped", False)
        return
    record = open_record(signed, cls)
    assert plain(record) == vector["fields"]
    assert codec.encode_record(record) == signed.body
    assert getattr(record, cls.SIGNER).hex() == vector["signer"]
    assert tagged_hash(vector["tag"], signed.body).hex() == vector["hash"]


@each("leases")
def test_lease(vector: Vector) -> None:
    if "record" in vector:
        check_record(vector)
        return
    request, coordinator = signed_of(vector["request"]), NodeId(bytes.fromhex(vector["coordinator"]))
    terms, now_ms = Terms(**vector["terms"]), vector["now_ms"]
    if vector["valid"]:
        command = open_lease_request(request, coordinator, terms, now_ms)[1]
        assert plain(command) == vector["command"]
        assert lease_id(request.body).hex() == vector["lease"]
    else:
        with pytest.raises(RemoteProtocolError):
            open_lease_request(request, coordinator, terms, now_ms)


@each("vouchers")
def test_voucher(vector: Vector) -> None:
    if "record" in vector:
        check_record(vector)
        return
    claim = signed_of(vector["claim"])
    fields = {name: bytes.fromhex(value) if name in BYTES else value for name, value in vector["lease"].items()}
    lease = Lease(**{**fields, "is_closed": bool(fields["is_closed"])})
    if vector["valid"]:
        assert plain(claim_command(open_claim(claim), lease)) == vector["command"]
    else:
        with pytest.raises(RemoteProtocolError):
            claim_command(open_claim(claim), lease)


def test_the_ledger_from_its_first_entry_on() -> None:
    book = Book()
    for vector in load("ledger"):
        value = codec.decode_value(bytes.fromhex(vector["command"]), codec.RECORD_LIMITS)
        command: AnyCommand = msgspec.convert(value, type=AnyCommand, builtin_types=(bytes,))
        assert plain(command) == vector["fields"], vector["comment"]
        verdict = book.command(command, vector["at_ms"])
        assert book.head.hex() == vector["head"], vector["comment"]
        if vector["valid"]:
            assert isinstance(verdict, Entry) == (vector["body"] is not None), vector["comment"]
            assert vector["body"] in (None, book.entries[-1].hex()), vector["comment"]
            assert {name: sum_ for name, sum_ in sorted(book.accounts.items()) if sum_} == vector["balances"]
        else:
            assert isinstance(verdict, Refused), vector["comment"]
            assert verdict.code == vector["code"]


def test_the_ledger_refuses_for_every_reason_there_is() -> None:
    codes = {vector["code"] for vector in load("ledger") if not vector["valid"]}
    assert codes == {
        *("insufficient_funds", "conflict", "unknown_lease", "wrong_provider", "lease_closed", "not_yet"),
        *("unknown_payout", "payout_resolved", "bad_amount", "unknown_hold"),
    }


def test_no_sum_in_the_ledger_has_a_fraction() -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    for name in ("ledger", "leases", "lease-amounts", "lease-rules", "vouchers"):
        json.loads((FOLDER / f"{name}.json").read_text("utf-8"), parse_float=refuse)


def test_every_record_about_money_has_vectors() -> None:
    named = {vector.get("record") for name in ("leases", "vouchers") for vector in load(name)}
    assert named - {None} == set(RECORDS)


def test_a_lease_is_named_after_its_request() -> None:
    vector = next(vector for vector in load("leases") if "request" in vector and vector["valid"])
    body = bytes.fromhex(vector["request"]["body"])
    assert LeaseId(bytes.fromhex(vector["command"]["lease"])) == tagged_hash("infernet/lease-request/1", body)
