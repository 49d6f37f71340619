"""What a coordinator makes of signed requests about money: commands for the ledger, or what is wrong.

Pure: signatures, sizes and times are checked here, balances in `accounts`. Every function raises RemoteProtocolError.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import constants as c
from protocol.envelope import open_record, tagged_hash
from protocol.errors import BadSignature, RemoteProtocolError, Stale
from protocol.ids import LeaseId, NodeId
from protocol.ledger import AnyCommand, Claim, Lease, OpenLease, State
from protocol.money_records import (
    ClaimRecord,
    CloseRecord,
    LeaseRecord,
    LeaseRequestRecord,
    VoucherRecord,
)
from protocol.records import ReceiptRecord, Signed


@dataclass(frozen=True, slots=True)
class Terms:
    """What a coordinator takes and grants. Cuts in basis points; `claim_s` is the time for claims after serving."""

    fee_bps: int = 0
    relay_bps_max: int = 2_000
    serve_s_max: int = 24 * 60 * 60
    claim_s: int = 60 * 60


def lease_id(request_body: bytes) -> LeaseId:
    """The identity of a lease: the hash of what its client asked for."""
    # SPEC 06: The id of a lease is the tagged hash of the request's bytes under its own tag,
    return LeaseId(tagged_hash(LeaseRequestRecord.TAG, request_body))


def open_lease_request(
    signed: Signed, coordinator: NodeId, terms: Terms, now_ms: int
) -> tuple[LeaseRequestRecord, OpenLease]:
    """Check a request for a lease, and say what it asks of the ledger. Raises RemoteProtocolError."""
    request = open_record(signed, LeaseRequestRecord)
    # SPEC 06: The coordinator MUST refuse a request for a lease that names another coordinator,
    if request.coordinator != coordinator:
        raise BadSignature("the lease is asked of another coordinator")
    if abs(now_ms - request.created_at_ms) > c.CLOCK_SKEW_MS_MAX:
        raise Stale(f"the request is {abs(now_ms - request.created_at_ms) // 1000} s away from this clock")
    if request.payer in (request.client, request.provider):
        raise RemoteProtocolError("the payer is a key of its own, made for this lease alone")
    if request.relay is None and request.relay_bps:
        raise RemoteProtocolError("a cut for a relay, and no relay")
    if request.relay_bps > terms.relay_bps_max:
        raise RemoteProtocolError(f"a relay may get {terms.relay_bps_max} basis points here at most")
    serve_until_ms = now_ms + 1000 * min(request.serve_s, terms.serve_s_max)
    return request, OpenLease(
        lease=lease_id(signed.body),
        client=request.client,
        day=None,
        payer=request.payer,
        provider=request.provider,
        relay=request.relay,
        relay_bps=request.relay_bps,
        fee_bps=terms.fee_bps,
        cap_uusd=request.cap_uusd,
        serve_until_ms=serve_until_ms,
        claim_by_ms=serve_until_ms + 1000 * terms.claim_s,
        request=signed,
    )


def lease_record(
    request: LeaseRequestRecord, command: OpenLease, coordinator: NodeId, entry: int, now_ms: int
) -> LeaseRecord:
    """What the coordinator signs once the ledger has locked the money under this entry."""
    return LeaseRecord(
        version=1,
        coordinator=coordinator,
        lease=command.lease,
        payer=request.payer,
        provider=request.provider,
        relay=request.relay,
        relay_bps=request.relay_bps,
        fee_bps=command.fee_bps,
        cap_uusd=request.cap_uusd,
        model=request.model,
        fingerprint=request.fingerprint,
        price_in_uusd=request.price_in_uusd,
        price_out_uusd=request.price_out_uusd,
        price_job_uusd=request.price_job_uusd,
        entry=entry,
        issued_at_ms=now_ms,
        serve_until_ms=command.serve_until_ms,
        claim_by_ms=command.claim_by_ms,
        extensions=(),
    )


def open_claim(signed: Signed) -> ClaimRecord:
    """Check the provider's own signature: who claims, and on which lease. Raises RemoteProtocolError."""
    return open_record(signed, ClaimRecord)


@dataclass(frozen=True, slots=True)
class CheckedClaim:
    """A claim of which every signature holds. Whether it is for this lease is not checked yet."""

    claim: ClaimRecord
    voucher: VoucherRecord | None
    receipt: ReceiptRecord | None


def check_claim(signed: Signed) -> CheckedClaim:
    """Check every signature of a claim, which takes most of its time and no lease. Raises RemoteProtocolError."""
    return _check_papers(open_claim(signed))


def _check_papers(claim: ClaimRecord) -> CheckedClaim:
    voucher = open_record(claim.voucher, VoucherRecord) if claim.voucher is not None else None
    receipt = open_record(claim.receipt, ReceiptRecord) if claim.receipt is not None else None
    return CheckedClaim(claim, voucher, receipt)


def command_of(checked: CheckedClaim, lease: Lease) -> Claim:
    """What a claim asks of the ledger: its voucher must be the payer's, for this lease. Raises BadSignature."""
    claim, voucher, receipt = checked.claim, checked.voucher, checked.receipt
    if claim.lease != lease.lease:
        raise BadSignature("the claim is for another lease")
    # SPEC 06: The coordinator MUST credit only what the payer of that lease has signed, for that lease.
    if voucher is not None and voucher.lease != lease.lease:
        raise BadSignature("the voucher is for another lease")
    if voucher is not None and voucher.payer != lease.payer:
        raise BadSignature("the voucher is not signed by the payer of the lease")
    parties = (lease.lease, lease.provider, lease.payer)
    if receipt is not None and (receipt.lease, receipt.provider, receipt.asker) != parties:
        raise BadSignature("the receipt is for another lease")
    paid_uusd = voucher.paid_uusd if voucher is not None else 0
    return Claim(lease.lease, claim.provider, paid_uusd, claim.is_final, claim.voucher)


def claim_command(claim: ClaimRecord, lease: Lease) -> Claim:
    """`command_of` for a claim of which only the provider's own signature was checked. Raises RemoteProtocolError."""
    return command_of(_check_papers(claim), lease)


def check_close(signed: Signed, lease: Lease) -> CloseRecord:
    """Check that the payer of this lease wants no more of it. Raises RemoteProtocolError."""
    close = open_record(signed, CloseRecord)
    if (close.lease, close.payer) != (lease.lease, lease.payer):
        raise BadSignature("the close is for another lease, or not its payer's")
    return close


def check_evidence(state: State, command: AnyCommand) -> None:
    """Check the signatures that an entry of the ledger keeps, for whoever rebuilds one and trusts nobody.

    `state` is the ledger before that entry: it says who pays for a lease. Raises RemoteProtocolError.
    """
    if isinstance(command, OpenLease):
        request = open_record(command.request, LeaseRequestRecord)
        if lease_id(command.request.body) != command.lease or any(
            getattr(request, name) != getattr(command, name)
            for name in ("client", "payer", "provider", "relay", "relay_bps", "cap_uusd")
        ):
            raise BadSignature("the lease is not what its client asked for")
    elif isinstance(command, Claim):
        _check_claimed(state.lease(command.lease), command)


def _check_claimed(lease: Lease | None, command: Claim) -> None:
    if command.voucher is None:
        if command.paid_uusd:
            raise BadSignature("a claim for money that no payer signed")
        return
    voucher = open_record(command.voucher, VoucherRecord)
    if (voucher.lease, voucher.paid_uusd) != (command.lease, command.paid_uusd):
        raise BadSignature("the claim is not what its payer signed")
    if lease is None or voucher.payer != lease.payer:
        raise BadSignature("the voucher is not signed by the payer of the lease")
