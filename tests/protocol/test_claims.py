"""Signed requests about money: whose signature is needed where, and what becomes of a good one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.book import Book
from protocol.claims import (
    CheckedClaim,
    Terms,
    check_claim,
    check_close,
    check_evidence,
    claim_command,
    lease_id,
    lease_record,
    open_claim,
    open_lease_request,
)
from protocol.envelope import SigningKey, sign_record, tagged_hash
from protocol.errors import BadFrame, BadSignature, RemoteProtocolError, Stale
from protocol.ids import LeaseId
from protocol.ledger import AnyCommand, Claim, Lease, OpenLease, Resume, available
from protocol.money_records import ClaimRecord
from protocol.records import Signed
from tests.helpers_ledger import (
    CAP_UUSD,
    CLIENT,
    COORDINATOR,
    LEASE,
    OTHER,
    PAYER,
    PROVIDER,
    RELAY,
    book_with,
    carried_out,
    claim_record,
    close_record,
    deposit,
    forged,
    lease_request,
    open_lease,
    says_nothing_new,
    signed,
    voucher,
)
from tests.helpers_records import NOW_MS
from tests.helpers_records import receipt as receipt_record

TERMS = Terms(fee_bps=100, relay_bps_max=2_000, serve_s_max=3_600, claim_s=1_800)


def asked(now_ms: int = NOW_MS, terms: Terms = TERMS, **changes: Any) -> OpenLease:
    """What becomes of a request."""
    return open_lease_request(signed(lease_request(**changes), CLIENT), COORDINATOR.node, terms, now_ms)[1]


def lease(**changes: Any) -> Lease:
    """The lease as the ledger knows it."""
    return replace(book_with(deposit(), open_lease()).leases[LEASE], **changes)


def claimed(voucher_of: Any = None, receipt: Any = None, **changes: Any) -> ClaimRecord:
    """A claim with parts that have been signed."""
    return claim_record(voucher=voucher_of, receipt=receipt, **changes)


# ---------------------------------------------------------------- requests for leases


def test_a_request_becomes_a_lease_of_what_was_asked_for() -> None:
    request = lease_request(relay=RELAY.node, relay_bps=2_000)
    record = signed(request, CLIENT)
    read, command = open_lease_request(record, COORDINATOR.node, TERMS, NOW_MS)
    assert read == request
    for name in ("client", "payer", "provider", "relay", "relay_bps", "cap_uusd"):
        assert getattr(command, name) == getattr(request, name), name
    assert (command.day, command.fee_bps, command.request) == (None, 100, record)


def test_a_lease_is_named_after_what_was_asked_for() -> None:
    body = signed(lease_request(), CLIENT).body
    assert asked().lease == lease_id(body) == tagged_hash("infernet/lease-request/1", body)
    assert asked(cap_uusd=1).lease != asked().lease


def test_a_lease_serves_as_long_as_it_was_asked_for_from_now_on() -> None:
    command = asked(now_ms=NOW_MS + 7, serve_s=60)
    assert command.serve_until_ms == NOW_MS + 7 + 60_000
    assert command.claim_by_ms == command.serve_until_ms + 1_800_000


def test_a_lease_serves_no_longer_than_the_coordinator_grants() -> None:
    assert asked(serve_s=3_601).serve_until_ms == NOW_MS + 3_600_000


def test_the_terms_are_a_day_an_hour_and_a_fifth_for_the_relay() -> None:
    assert Terms() == Terms(fee_bps=0, relay_bps_max=2_000, serve_s_max=86_400, claim_s=3_600)


def test_the_same_request_twice_is_one_lease() -> None:
    book = book_with(deposit(), asked())
    says_nothing_new(book, asked(now_ms=NOW_MS + 30_000, terms=Terms(fee_bps=300)))


def test_a_request_that_names_another_coordinator_is_refused() -> None:
    with pytest.raises(BadSignature, match="another coordinator"):
        asked(coordinator=OTHER.node)


@pytest.mark.parametrize("signer", [PAYER, PROVIDER, OTHER, COORDINATOR])
def test_only_its_client_asks_for_a_lease(signer: SigningKey) -> None:
    with pytest.raises(BadSignature):
        open_lease_request(forged(lease_request(), signer), COORDINATOR.node, TERMS, NOW_MS)


@pytest.mark.parametrize("away_ms", [60_001, -60_001])
def test_a_request_from_another_time_is_refused(away_ms: int) -> None:
    with pytest.raises(Stale, match="60 s away"):
        asked(created_at_ms=NOW_MS + away_ms)


@pytest.mark.parametrize("away_ms", [60_000, -60_000])
def test_a_minute_is_not_another_time(away_ms: int) -> None:
    assert asked(created_at_ms=NOW_MS + away_ms).serve_until_ms == NOW_MS + 600_000


@pytest.mark.parametrize("payer", [CLIENT, PROVIDER])
def test_the_payer_is_a_key_of_its_own(payer: SigningKey) -> None:
    with pytest.raises(RemoteProtocolError, match="a key of its own"):
        asked(payer=payer.node)


def test_no_relay_no_cut() -> None:
    with pytest.raises(RemoteProtocolError, match="no relay"):
        asked(relay=None, relay_bps=1)
    assert asked(relay=RELAY.node, relay_bps=0).relay == RELAY.node


def test_a_relay_gets_at_most_what_the_coordinator_allows() -> None:
    assert asked(relay=RELAY.node, relay_bps=2_000).relay_bps == 2_000
    with pytest.raises(RemoteProtocolError, match="2000 basis points"):
        asked(relay=RELAY.node, relay_bps=2_001)


def test_the_lease_says_what_was_locked_and_in_which_entry() -> None:
    request = lease_request(relay=RELAY.node, relay_bps=300)
    command = open_lease_request(signed(request, CLIENT), COORDINATOR.node, TERMS, NOW_MS)[1]
    record = lease_record(request, command, COORDINATOR.node, 42, NOW_MS + 5)
    for name in (
        *("payer", "provider", "relay", "relay_bps", "cap_uusd", "model", "fingerprint"),
        *("price_in_uusd", "price_out_uusd", "price_job_uusd"),
    ):
        assert getattr(record, name) == getattr(request, name), name
    for name in ("lease", "fee_bps", "serve_until_ms", "claim_by_ms"):
        assert getattr(record, name) == getattr(command, name), name
    assert (record.version, record.coordinator, record.entry, record.issued_at_ms) == (
        *(1, COORDINATOR.node),
        *(42, NOW_MS + 5),
    )
    assert record.extensions == ()
    assert sign_record(record, COORDINATOR)


# ---------------------------------------------------------------- claims


def test_a_claim_is_worth_what_its_voucher_says() -> None:
    record = signed(voucher(), PAYER)
    assert claim_command(claimed(record), lease()) == Claim(LEASE, PROVIDER.node, 700, 0, record)


def test_a_claim_without_a_voucher_is_worth_nothing_and_can_be_final() -> None:
    assert claim_command(claimed(is_final=1), lease()) == Claim(LEASE, PROVIDER.node, 0, 1, None)


def test_a_claim_says_who_claims_and_the_ledger_decides() -> None:
    record = signed(voucher(), PAYER)
    assert claim_command(claimed(record, provider=OTHER.node), lease()).provider == OTHER.node


@pytest.mark.parametrize("signer", [PAYER, OTHER, COORDINATOR])
def test_only_who_claims_signs_a_claim(signer: SigningKey) -> None:
    assert open_claim(signed(claim_record(), PROVIDER)) == claim_record()
    with pytest.raises(BadSignature):
        open_claim(forged(claim_record(), signer))


@pytest.mark.parametrize("signer", [PROVIDER, CLIENT, OTHER])
def test_only_the_payer_signs_a_voucher(signer: SigningKey) -> None:
    with pytest.raises(BadSignature):
        claim_command(claimed(forged(voucher(), signer)), lease())


def test_the_voucher_of_another_payer_is_refused() -> None:
    with pytest.raises(BadSignature, match="payer of the lease"):
        claim_command(claimed(signed(voucher(payer=OTHER.node), OTHER)), lease())


def test_the_voucher_for_another_lease_is_refused() -> None:
    with pytest.raises(BadSignature, match="another lease"):
        claim_command(claimed(signed(voucher(lease=LeaseId(bytes(32))), PAYER)), lease())


def test_a_claim_on_another_lease_is_refused() -> None:
    with pytest.raises(BadSignature, match="another lease"):
        claim_command(claimed(signed(voucher(), PAYER), lease=LeaseId(bytes(32))), lease())


def test_signatures_are_checked_before_anybody_looks_for_the_lease() -> None:
    claim = claimed(signed(voucher(), PAYER), receipt())
    checked = check_claim(signed(claim, PROVIDER))
    assert (checked.claim, checked.voucher) == (claim, voucher())
    assert isinstance(checked, CheckedClaim)
    for bad in (forged(claim, OTHER), signed(claimed(forged(voucher(), OTHER)), PROVIDER)):
        with pytest.raises(BadSignature):
            check_claim(bad)


def test_no_other_record_passes_for_a_voucher() -> None:
    with pytest.raises(BadFrame):
        claim_command(claimed(signed(close_record(), PAYER)), lease())


def test_a_voucher_signed_as_something_else_is_refused() -> None:
    body = signed(voucher(), PAYER).body
    with pytest.raises(BadSignature):
        claim_command(claimed(Signed(body, PAYER.sign("infernet/close/1", body))), lease())


def receipt(**changes: Any) -> Signed:
    """The provider's receipt for a job on this lease."""
    return sign_record(
        receipt_record(provider=PROVIDER.node, asker=PAYER.node, **{"lease": LEASE, **changes}), PROVIDER
    )


def test_a_receipt_may_come_along() -> None:
    record = signed(voucher(), PAYER)
    assert claim_command(claimed(record, receipt()), lease()).paid_uusd == 700
    assert claim_command(claimed(None, receipt()), lease()).paid_uusd == 0


@pytest.mark.parametrize("change", [{"lease": LeaseId(bytes(32))}, {"lease": None}])
def test_the_receipt_for_another_lease_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSignature, match="receipt"):
        claim_command(claimed(None, receipt(**change)), lease())


@pytest.mark.parametrize("change", [{"provider": OTHER.node}, {"payer": OTHER.node}])
def test_the_receipt_of_others_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSignature, match="receipt"):
        claim_command(claimed(None, receipt()), lease(**change))


def test_a_receipt_that_nobody_signed_is_refused() -> None:
    with pytest.raises(BadSignature):
        claim_command(claimed(None, replace(receipt(), signature=bytes(64))), lease())


# ---------------------------------------------------------------- closes


def test_the_payer_closes() -> None:
    assert check_close(signed(close_record(), PAYER), lease()) == close_record()


@pytest.mark.parametrize("signer", [PROVIDER, CLIENT])
def test_nobody_closes_in_the_payers_name(signer: SigningKey) -> None:
    with pytest.raises(BadSignature):
        check_close(forged(close_record(), signer), lease())


def test_another_payer_closes_nothing_here() -> None:
    with pytest.raises(BadSignature, match="not its payer's"):
        check_close(signed(close_record(payer=OTHER.node), OTHER), lease())


def test_the_close_of_another_lease_closes_nothing_here() -> None:
    with pytest.raises(BadSignature, match="another lease"):
        check_close(signed(close_record(lease=LeaseId(bytes(32))), PAYER), lease())


# ---------------------------------------------------------------- evidence


def book() -> Book:
    """A ledger with a lease that was asked for as it should be."""
    return book_with(deposit(), asked())


def test_entries_with_their_signatures_are_good() -> None:
    command = asked(relay=RELAY.node, relay_bps=100)
    ledger = book_with(deposit())
    check_evidence(ledger, command)
    carried_out(ledger.command(command, NOW_MS))
    record = signed(voucher(lease=command.lease), PAYER)
    check_evidence(ledger, Claim(command.lease, PROVIDER.node, 700, 0, record))
    check_evidence(ledger, Claim(command.lease, PROVIDER.node, 0, 1, None))


@pytest.mark.parametrize("command", [Resume(1), deposit()], ids=["resume", "deposit"])
def test_other_entries_need_no_signature(command: AnyCommand) -> None:
    check_evidence(Book(), command)


@pytest.mark.parametrize(
    "change",
    [
        {"lease": LeaseId(bytes(32))},
        {"client": OTHER.node},
        {"payer": OTHER.node},
        {"provider": OTHER.node},
        {"relay": OTHER.node},
        {"relay_bps": 101},
        {"cap_uusd": CAP_UUSD + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_lease_that_is_not_what_its_client_asked_for_has_no_evidence(change: dict[str, Any]) -> None:
    command = asked(relay=RELAY.node, relay_bps=100)
    with pytest.raises(BadSignature, match="asked for"):
        check_evidence(Book(), replace(command, **change))


def test_a_lease_that_nobody_asked_for_has_no_evidence() -> None:
    request = forged(lease_request(), OTHER)
    with pytest.raises(BadSignature):
        check_evidence(Book(), replace(asked(), request=request))


def claim_of(record: Signed | None, paid_uusd: int = 700, **changes: Any) -> Claim:
    return Claim(
        **{"lease": asked().lease, "provider": PROVIDER.node, "is_final": 0, **changes},
        paid_uusd=paid_uusd,
        voucher=record,
    )


@pytest.mark.parametrize(
    "command",
    [
        claim_of(None, 1),
        claim_of(signed(voucher(lease=asked().lease), PAYER), 701),
        claim_of(signed(voucher(lease=asked().lease), PAYER), 699),
        claim_of(signed(voucher(), PAYER)),
        claim_of(forged(voucher(lease=asked().lease), OTHER)),
        claim_of(signed(voucher(lease=asked().lease, payer=OTHER.node), OTHER)),
        claim_of(signed(voucher(), PAYER), lease=LEASE),
    ],
    ids=["no voucher", "more", "less", "another lease", "forged", "another payer", "an unknown lease"],
)
def test_a_claim_that_its_payer_did_not_sign_has_no_evidence(command: Claim) -> None:
    with pytest.raises(BadSignature):
        check_evidence(book(), command)


def test_the_sum_that_counts_may_be_as_large_as_a_voucher_can_say() -> None:
    record = signed(voucher(paid_uusd=c.INTEGER_MAX), PAYER)
    ledger = book_with(deposit(), open_lease())
    carried_out(ledger.command(claim_command(claimed(record), ledger.leases[LEASE]), NOW_MS))
    assert ledger.balance(available(PROVIDER.node)) == CAP_UUSD
