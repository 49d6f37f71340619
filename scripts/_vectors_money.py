"""Vectors of specs/06: leases, vouchers and what becomes of them, and a small ledger from its first entry on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
from msgspec.structs import astuple, replace

from _vectors_common import ASKER, COORDINATOR, JOB, NOW_MS, PROVIDER, Vector, file, invalid, plain, signing_key, valid
from protocol import constants as c
from protocol.book import Book
from protocol.claims import Terms, claim_command, lease_id, lease_record, open_claim, open_lease_request
from protocol.codec import encode_record, encode_value
from protocol.envelope import SigningKey, sign_record, tagged_hash
from protocol.ids import LeaseId
from protocol.ledger import (
    AMOUNT_MAX,
    AnyCommand,
    Budget,
    Claim,
    Deposit,
    ExpireLease,
    Lease,
    OrderPayout,
    Refused,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
    available,
)
from protocol.money_records import (
    ClaimAckRecord,
    ClaimRecord,
    CloseRecord,
    ComplaintKind,
    ComplaintRecord,
    Credited,
    LeaseRecord,
    LeaseRequestRecord,
    LedgerHeadRecord,
    VoucherRecord,
)
from protocol.records import Outcome, ReceiptRecord, Record, Signed

PAYER, RELAY, OTHER = signing_key("payer"), signing_key("relay"), signing_key("other coordinator")
TERMS = Terms(fee_bps=100, relay_bps_max=2_000, serve_s_max=86_400, claim_s=3_600)
FINGERPRINT = bytes(range(32))

REQUEST = LeaseRequestRecord(
    version=1,
    coordinator=COORDINATOR.node,
    request=bytes(range(16)),
    client=ASKER.node,
    payer=PAYER.node,
    provider=PROVIDER.node,
    relay=RELAY.node,
    relay_bps=500,
    cap_uusd=250_000,
    model="smollm2:135m",
    fingerprint=FINGERPRINT,
    price_in_uusd=50_000,
    price_out_uusd=200_000,
    price_job_uusd=10,
    serve_s=600,
    created_at_ms=NOW_MS,
    extensions=(),
)
REQUEST_SIGNED = sign_record(REQUEST, ASKER)
OPENED = open_lease_request(REQUEST_SIGNED, COORDINATOR.node, TERMS, NOW_MS + 40)[1]
LEASE = lease_record(REQUEST, OPENED, COORDINATOR.node, 2, NOW_MS + 40)
VOUCHER = VoucherRecord(1, OPENED.lease, PAYER.node, 3, 1_234, JOB, 1, 5, 40, b"\x12" * 32, ())
RECEIPT = ReceiptRecord(
    version=1,
    job=JOB,
    attempt=1,
    provider=PROVIDER.node,
    asker=PAYER.node,
    lease=OPENED.lease,
    open_hash=b"\x16" * 32,
    fingerprint=FINGERPRINT,
    prompt_tokens=57,
    output_tokens=40,
    chunks=5,
    running_hash=VOUCHER.running_hash,
    paid_before_uusd=1_213,
    owed_uusd=21,
    accepted_at_ms=NOW_MS + 200,
    first_token_ms=210,
    last_token_ms=600,
    outcome=Outcome.STOP,
    code=0,
    extensions=(),
)
CLAIM = ClaimRecord(1, PROVIDER.node, OPENED.lease, sign_record(VOUCHER, PAYER), None, 0, NOW_MS + 900, ())
CLOSE = CloseRecord(1, OPENED.lease, PAYER.node, 1_234, NOW_MS + 950, ())
COMPLAINT = ComplaintRecord(
    1, PROVIDER.node, OPENED.lease, JOB, 1, ComplaintKind.UNPAID, b"\x13" * 32, NOW_MS + 990, ()
)
HEAD = LedgerHeadRecord(1, COORDINATOR.node, 17, b"\x14" * 32, NOW_MS + 1_000, ())
CREDITED = Credited(OPENED.lease, 1_234, 0, 18, b"\x15" * 32, NOW_MS + 1_001)
ACK = ClaimAckRecord(1, COORDINATOR.node, (CREDITED,), ())
FULL_ACK = replace(
    ACK, credited=tuple(replace(CREDITED, lease=LeaseId(bytes([number]) * 32)) for number in range(c.CLAIMS_MAX))
)


def good(comment: str, record: Record, key: SigningKey) -> Vector:
    """A record that must be read, to the byte."""
    signed = sign_record(record, key)
    return valid(
        comment,
        record=type(record).__name__,
        tag=record.TAG,
        signer=key.node,
        fields=record,
        body=signed.body,
        hash=tagged_hash(record.TAG, signed.body),
        signature=signed.signature,
    )


def bad_forms(record: Record, key: SigningKey, stranger: SigningKey, foreign_tag: str) -> Iterator[Vector]:
    """What makes any of these records worthless, whatever it says."""
    name, tag = type(record).__name__, record.TAG
    body = encode_record(record)
    fields = msgpack.unpackb(body)

    def bad(comment: str, data: bytes, signer: SigningKey = key, under: str = tag, **more: Any) -> Vector:
        return invalid(f"{name}: {comment}", record=name, body=data, signature=signer.sign(under, data), **more)

    header = 3 if body[0] == 0xDC else 1
    yield bad("signed by somebody else", body, stranger)
    yield bad("signed under another tag", body, under=foreign_tag)
    yield bad("one field less", msgpack.packb(fields[:-1]))
    yield bad("one field more", msgpack.packb([*fields, None]))
    yield bad("the version in two bytes", body[:header] + b"\xcc\x01" + body[header + 1 :])
    yield bad("a byte after it", body + b"\xc0")
    yield bad("version 2", with_field(record, 0, 2), skipped=True)
    changed = bytearray(body)
    changed[-1] ^= 1
    yield invalid(
        f"{name}: changed after it was signed", record=name, body=bytes(changed), signature=key.sign(tag, body)
    )


def with_field(record: Record, index: int, value: object) -> bytes:
    """The bytes of a record with something else in one field."""
    fields = msgpack.unpackb(encode_record(record))
    fields[index] = value
    data: bytes = msgpack.packb(fields)
    return data


def bad_fields(record: Record, key: SigningKey, *fields: tuple[str, object]) -> Iterator[Vector]:
    """A record with a value that a field cannot have."""
    names = record.__struct_fields__
    for name, value in fields:
        body = with_field(record, names.index(name), value)
        kind = type(record).__name__
        shown = value.hex() if isinstance(value, bytes) else value
        yield invalid(f"{kind}: {name} {shown}", record=kind, body=body, signature=key.sign(record.TAG, body))


# ---------------------------------------------------------------- leases


def leases() -> Vector:
    """leases.json."""
    return file(
        "Requests for leases, leases, and heads of the ledger. A vector with `record` is a record by itself. One with "
        "`request` is asked of `coordinator` under `terms` at `now_ms`, and becomes `command`.",
        [*_lease_records(), *_requests()],
    )


def _lease_records() -> Iterator[Vector]:
    bare = replace(REQUEST, relay=None, relay_bps=0, price_in_uusd=0, price_out_uusd=0, price_job_uusd=0)
    yield good("a request for a lease", REQUEST, ASKER)
    yield good("a request without a relay, for a model without a price", bare, ASKER)
    yield good("the largest request", replace(REQUEST, cap_uusd=10**12, serve_s=604_800, relay_bps=10_000), ASKER)
    yield good("a lease", LEASE, COORDINATOR)
    yield good("a lease without a relay", replace(LEASE, relay=None, relay_bps=0), COORDINATOR)
    yield good("a head of the ledger", HEAD, COORDINATOR)
    for record, key, foreign_tag in (
        (REQUEST, ASKER, LeaseRecord.TAG),
        (LEASE, COORDINATOR, LeaseRequestRecord.TAG),
        (HEAD, COORDINATOR, ClaimAckRecord.TAG),
    ):
        yield from bad_forms(record, key, OTHER, foreign_tag)
    amounts: tuple[object, ...] = (0, -1, True, 1.0, None, "1", 10**12 + 1, 2**63)
    yield from bad_fields(REQUEST, ASKER, *(("cap_uusd", value) for value in amounts))
    shares: tuple[object, ...] = (-1, 10_001, True, 0.5, None)
    yield from bad_fields(REQUEST, ASKER, *(("relay_bps", value) for value in shares))
    yield from bad_fields(LEASE, COORDINATOR, *(("fee_bps", value) for value in shares))
    yield from bad_fields(LEASE, COORDINATOR, ("cap_uusd", 0), ("cap_uusd", 10**12 + 1), ("entry", -1), ("relay", b""))
    yield from bad_fields(REQUEST, ASKER, ("serve_s", 0), ("serve_s", 604_801), ("request", bytes(15)))
    yield from bad_fields(REQUEST, ASKER, ("price_out_uusd", 10**12 + 1), ("model", ""), ("payer", bytes(31)))
    yield from bad_fields(HEAD, COORDINATOR, ("entry", -1), ("head", bytes(31)), ("signed_at_ms", 1.0))


def _requests() -> Iterator[Vector]:
    def asked(key: SigningKey = ASKER, **changes: Any) -> dict[str, Any]:
        return at(sign_record(replace(REQUEST, **changes), key))

    def at(request: Signed, now_ms: int = NOW_MS + 40) -> dict[str, Any]:
        terms = {name: getattr(TERMS, name) for name in ("fee_bps", "relay_bps_max", "serve_s_max", "claim_s")}
        return {"request": request, "coordinator": COORDINATOR.node, "terms": terms, "now_ms": now_ms}

    def opened(fields: dict[str, Any]) -> dict[str, Any]:
        command = open_lease_request(fields["request"], COORDINATOR.node, TERMS, fields["now_ms"])[1]
        return {**fields, "lease": lease_id(fields["request"].body), "command": command}

    yield valid("becomes a lease", **opened(asked()))
    yield valid("serves no longer than the coordinator grants", **opened(asked(serve_s=86_401)))
    yield valid("a minute old", **opened(at(REQUEST_SIGNED, NOW_MS + c.CLOCK_SKEW_MS_MAX)))
    yield valid("from a clock that is a minute ahead", **opened(at(REQUEST_SIGNED, NOW_MS - c.CLOCK_SKEW_MS_MAX)))
    yield invalid("asked of another coordinator", **asked(coordinator=OTHER.node))
    yield invalid("more than a minute old", **at(REQUEST_SIGNED, NOW_MS + c.CLOCK_SKEW_MS_MAX + 1))
    yield invalid("more than a minute ahead", **at(REQUEST_SIGNED, NOW_MS - c.CLOCK_SKEW_MS_MAX - 1))
    yield invalid("paid by the client's own key", **asked(payer=ASKER.node))
    yield invalid("paid by the provider", **asked(payer=PROVIDER.node))
    yield invalid("a cut and no relay", **asked(relay=None))
    yield invalid("a cut above what the coordinator allows", **asked(relay_bps=2_001))
    body = REQUEST_SIGNED.body
    yield invalid("signed by the payer", **at(Signed(body, PAYER.sign(REQUEST.TAG, body))))


# ---------------------------------------------------------------- vouchers


def vouchers() -> Vector:
    """vouchers.json."""
    return file(
        "Vouchers, receipts, claims, acknowledgements, closes and complaints. A vector with `record` is a record by "
        "itself. One with `claim` is claimed on `lease`, and becomes `command`.",
        [*_voucher_records(), *_claims()],
    )


def _voucher_records() -> Iterator[Vector]:
    records: tuple[tuple[str, Record, SigningKey, str], ...] = (
        ("a voucher", VOUCHER, PAYER, CloseRecord.TAG),
        ("a receipt", RECEIPT, PROVIDER, ClaimRecord.TAG),
        ("a claim", CLAIM, PROVIDER, VoucherRecord.TAG),
        ("an acknowledgement", ACK, COORDINATOR, LedgerHeadRecord.TAG),
        ("a close", CLOSE, PAYER, VoucherRecord.TAG),
        ("a complaint", COMPLAINT, PROVIDER, ClaimRecord.TAG),
    )
    for comment, record, key, _ in records:
        yield good(comment, record, key)
    yield good("a voucher for as much as can be said", replace(VOUCHER, paid_uusd=c.INTEGER_MAX), PAYER)
    yield good("a final claim without a voucher", replace(CLAIM, voucher=None, is_final=1), PROVIDER)
    for _, record, key, foreign_tag in records:
        yield from bad_forms(record, key, OTHER, foreign_tag)
    totals: tuple[object, ...] = (-1, True, 1.0, None, "1", 2**63)
    yield from bad_fields(VOUCHER, PAYER, *(("paid_uusd", value) for value in totals))
    yield from bad_fields(CLOSE, PAYER, *(("paid_uusd", value) for value in totals))
    yield good("one acknowledgement for as many leases as it can name", FULL_ACK, COORDINATOR)
    twice = (replace(CREDITED, claimed_uusd=1_233, entry=17), CREDITED)
    yield good(
        "an acknowledgement that names a lease twice, of which the higher entry counts",
        replace(ACK, credited=twice),
        COORDINATOR,
    )
    yield from _bad_credits()
    yield from bad_fields(VOUCHER, PAYER, ("lease", bytes(31)), ("attempt", 0), ("running_hash", b""), ("sequence", -1))
    yield from bad_fields(RECEIPT, PROVIDER, *(("owed_uusd", value) for value in totals), ("paid_before_uusd", -1))
    yield from bad_fields(RECEIPT, PROVIDER, ("lease", b""), ("output_tokens", -1), ("outcome", 256), ("chunks", 1.0))
    yield from bad_fields(CLAIM, PROVIDER, ("is_final", 2), ("is_final", True), ("voucher", [b"", b""]))
    yield from bad_fields(CLAIM, PROVIDER, ("receipt", [b"", b""]), ("receipt", b""))
    yield from bad_fields(COMPLAINT, PROVIDER, ("kind", 256), ("evidence_hash", b""))


def _bad_credits() -> Iterator[Vector]:
    """Acknowledgements of what cannot be acknowledged."""

    def bad(comment: str, credited: object) -> Vector:
        body = with_field(ACK, ClaimAckRecord.__struct_fields__.index("credited"), credited)
        name, signature = ClaimAckRecord.__name__, COORDINATOR.sign(ClaimAckRecord.TAG, body)
        return invalid(f"{name}: {comment}", record=name, body=body, signature=signature)

    fields: list[object] = list(astuple(CREDITED))
    totals: tuple[object, ...] = (-1, True, 1.0, None, "1", 2**63)
    for name, value in (*(("claimed_uusd", total) for total in totals), ("is_closed", 2), ("entry", -1)):
        at = Credited.__struct_fields__.index(name)
        yield bad(f"{name} {value}", [[*fields[:at], value, *fields[at + 1 :]]])
    yield bad("a head of 31 bytes", [[*fields[:4], bytes(31), *fields[5:]]])
    yield bad("one field less of a lease", [fields[:-1]])
    yield bad("one field more of a lease", [[*fields, 0]])
    yield bad("no lease", [])
    yield bad("one lease more than it can name", [fields] * (c.CLAIMS_MAX + 1))


def _claims() -> Iterator[Vector]:
    lease = Lease(
        lease=OPENED.lease,
        account=available(ASKER.node),
        payer=PAYER.node,
        provider=PROVIDER.node,
        relay=RELAY.node,
        relay_bps=500,
        fee_bps=100,
        cap_uusd=250_000,
        claimed_uusd=0,
        is_closed=False,
        serve_until_ms=OPENED.serve_until_ms,
        claim_by_ms=OPENED.claim_by_ms,
        downtime_ms=0,
    )
    elsewhere = LeaseId(bytes(32))

    def of(voucher: Signed | None, key: SigningKey = PROVIDER, **changes: Any) -> Signed:
        record = replace(CLAIM, voucher=voucher, **changes)
        body = encode_record(record)
        return Signed(body, key.sign(ClaimRecord.TAG, body))

    def under(record: VoucherRecord, key: SigningKey, tag: str = VoucherRecord.TAG) -> Signed:
        body = encode_record(record)
        return Signed(body, key.sign(tag, body))

    paid = sign_record(VOUCHER, PAYER)
    for comment, claim in (
        ("claims what the payer has signed", of(paid)),
        ("and gives up the rest", of(paid, is_final=1)),
        ("claims nothing and gives up", of(None, is_final=1)),
        ("with the receipt of the job", of(paid, receipt=sign_record(RECEIPT, PROVIDER))),
        ("above the cap, which the ledger cuts", of(under(replace(VOUCHER, paid_uusd=c.INTEGER_MAX), PAYER))),
    ):
        yield valid(comment, claim=claim, lease=lease, command=claim_command(open_claim(claim), lease))
    stranger = replace(VOUCHER, payer=OTHER.node)
    receipt_body = encode_record(RECEIPT)
    forged = Signed(receipt_body, PAYER.sign(ReceiptRecord.TAG, receipt_body))
    for comment, claim in (
        ("a voucher signed by the provider", of(under(VOUCHER, PROVIDER))),
        ("a voucher signed as a close", of(under(VOUCHER, PAYER, CloseRecord.TAG))),
        ("the voucher of another payer", of(under(stranger, OTHER))),
        ("a voucher for another lease", of(under(replace(VOUCHER, lease=elsewhere), PAYER))),
        ("a claim on another lease", of(paid, lease=elsewhere)),
        ("a claim signed by the payer", of(paid, PAYER)),
        ("another record in place of the voucher", of(sign_record(CLOSE, PAYER))),
        ("a receipt for another lease", of(paid, receipt=sign_record(replace(RECEIPT, lease=elsewhere), PROVIDER))),
        ("a receipt for another asker", of(paid, receipt=sign_record(replace(RECEIPT, asker=OTHER.node), PROVIDER))),
        ("a receipt of another provider", of(paid, receipt=sign_record(replace(RECEIPT, provider=OTHER.node), OTHER))),
        ("a receipt signed by the payer", of(paid, receipt=forged)),
    ):
        yield invalid(comment, claim=claim, lease=lease)


# ---------------------------------------------------------------- the ledger


def ledger() -> Vector:
    """ledger.json."""
    return file(
        "One ledger from its first entry on, in order. `command` is decided at `at_ms`; what is carried out has the "
        "`body` of its entry, what is no news has none, what is refused has a `code`; `head` is the head afterwards.",
        _entries(),
    )


def _entries() -> Iterator[Vector]:
    book = Book()
    for comment, at_ms, command in _history():
        entries = len(book.entries)
        verdict = book.command(command, at_ms)
        fields = {
            "kind": type(command).__name__,
            "at_ms": at_ms,
            "fields": command,
            "command": encode_value(command),
            "head": book.head,
        }
        if isinstance(verdict, Refused):
            yield invalid(comment, **fields, code=str(verdict.code))
            continue
        body = book.entries[-1] if len(book.entries) > entries else None
        yield valid(comment, **fields, body=body, balances=plain(_balances(book)))


def _balances(book: Book) -> dict[str, int]:
    return {account: balance for account, balance in sorted(book.accounts.items()) if balance}


def _history() -> Iterator[tuple[str, int, AnyCommand]]:
    now_ms = NOW_MS + 40
    deposit = Deposit("payment-1", ASKER.node, "USDC-base", 1_000_000, 999_000, 0)
    held = Deposit("payment-2", ASKER.node, "BTC", 500, 300_000, 1)
    release = ReleaseHold("payment-2", ASKER.node, 300_000)
    intent, day = bytes(range(16)), 20_775
    payout = OrderPayout(intent, PROVIDER.node, 900)
    yield "a lease before there is any money", now_ms, OPENED
    yield "a deposit", now_ms, deposit
    yield "the same deposit", now_ms, deposit
    yield "the same payment with another value", now_ms, replace(deposit, credit_uusd=1)
    yield "a deposit below zero", now_ms, replace(deposit, payment="payment-3", credit_uusd=-1)
    yield "a deposit of more than there is", now_ms, replace(deposit, payment="payment-3", units=AMOUNT_MAX + 1)
    yield "a deposit that is held", now_ms, held
    yield "released to somebody else", now_ms, replace(release, key=PROVIDER.node)
    yield "released", now_ms, release
    yield "the lease", now_ms, OPENED
    later = replace(OPENED, serve_until_ms=OPENED.serve_until_ms + 9, claim_by_ms=OPENED.claim_by_ms + 9)
    yield "the same lease, asked for again", now_ms + 9, later
    yield "another lease under the same number", now_ms, replace(OPENED, cap_uusd=1)
    small = replace(OPENED, lease=LeaseId(b"\x0a" * 32), cap_uusd=1_000)
    yield "a lease for more than is available", now_ms, replace(small, cap_uusd=2_000_000)
    yield "cuts of more than the whole", now_ms, replace(small, relay_bps=9_901)
    yield "no time for claims", now_ms, replace(small, claim_by_ms=small.serve_until_ms)
    yield "a small lease", now_ms, small
    claim = Claim(OPENED.lease, PROVIDER.node, 1_234, 0, CLAIM.voucher)
    yield "a claim", now_ms + 900, claim
    yield "the same claim", now_ms + 901, claim
    yield "a claim for less", now_ms + 902, replace(claim, paid_uusd=1_000)
    yield "a claim of somebody else", now_ms + 903, replace(claim, provider=RELAY.node)
    yield "a claim on no lease", now_ms + 904, replace(claim, lease=LeaseId(bytes(32)))
    yield "one more, and no cut grows", now_ms + 905, replace(claim, paid_uusd=1_235)
    yield "above the cap of the small lease", now_ms + 906, replace(claim, lease=small.lease, paid_uusd=c.INTEGER_MAX)
    yield "the provider orders a payout", now_ms + 907, payout
    yield "the same payout", now_ms + 908, payout
    yield "a payout of more than it has", now_ms + 909, replace(payout, intent=bytes(16), amount_uusd=10_000)
    yield "it was not sent", now_ms + 910, ReturnPayout(intent)
    yield "it was sent after all", now_ms + 911, SettlePayout(intent, "USDC-base", 880)
    other = replace(payout, intent=b"\x0c" * 16)
    yield "another payout", now_ms + 912, other
    yield "it was sent", now_ms + 913, SettlePayout(other.intent, "USDC-base", 880)
    yield "a payout that nobody ordered", now_ms + 914, ReturnPayout(bytes(16))
    yield "the coordinator was away", now_ms + 60_000, Resume(59_000)
    yield "it may not end the lease yet", OPENED.claim_by_ms + 59_000, ExpireLease(OPENED.lease)
    yield "it ends the lease", OPENED.claim_by_ms + 59_001, ExpireLease(OPENED.lease)
    yield "it has ended the lease", OPENED.claim_by_ms + 59_002, ExpireLease(OPENED.lease)
    yield "a claim after the end", OPENED.claim_by_ms + 59_003, replace(claim, paid_uusd=2_000)
    yield "the budget of the public chat", now_ms, Budget(day, 500_000)
    yield "the same day again", now_ms, Budget(day, 900_000)
    sponsored = replace(small, lease=LeaseId(b"\x0b" * 32), client=COORDINATOR.node, day=day, relay=None, relay_bps=0)
    yield "a lease of the public chat", now_ms, sponsored
    yield "a final claim on it", now_ms, Claim(sponsored.lease, PROVIDER.node, 100, 1, CLAIM.voucher)
    yield "the day is over", now_ms, SweepBudget(day)
    yield "it is over already", now_ms, SweepBudget(day)
