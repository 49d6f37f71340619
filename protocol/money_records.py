"""Every signed record that moves money or speaks of it: leases, vouchers, claims, closes, heads of the ledger.

Amounts are integer micro-USD, prices integer micro-USD per 1,000,000 tokens, cuts basis points. The rules that use them
are in `leases` (asker and provider) and `accounts` (the ledger); the page is specs/06.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from protocol import constants as c
from protocol.ids import LeaseId
from protocol.records import (
    Attempt,
    Extensions,
    Flag,
    Hash,
    JobKey,
    LeaseKey,
    ModelName,
    NodeKey,
    Price,
    Record,
    Signed,
    TokenCount,
    UnsignedInteger,
    Version1,
    WireEnum,
)
from protocol.structs import prepare

RequestKey = Annotated[bytes, Meta(min_length=16, max_length=16)]
BasisPoints = Annotated[int, Meta(ge=0, le=c.BASIS_POINTS)]
# A million dollars: nobody locks more for one provider, and sums of as many as there are leases fit 63 bits.
Cap = Annotated[int, Meta(ge=1, le=c.LEASE_CAP_UUSD_MAX)]


class ComplaintKind(WireEnum):
    """What one side of a lease holds against the other; `Complaint.kind`."""

    UNKNOWN = 0
    UNPAID = 1  # delivered, and the vouchers stopped
    STALLED = 2  # prepaid, and nothing came
    BAD_ANSWER = 3  # chunks or a receipt that do not hold
    EQUIVOCATION = 4  # two different records under one number


class LeaseRequestRecord(Record, frozen=True):
    """A client asks its coordinator to lock money for one provider. The coordinator answers with a lease, or refuses.

    `payer` is a key made for this lease alone: the provider sees it, and not the client. `serve_s` is how long the
    provider may be ordered from. `request` is the client's own number: the same again gets the same answer.
    """

    TAG: ClassVar[str] = "infernet/lease-request/1"
    SIGNER: ClassVar[str] = "client"

    version: Version1
    coordinator: NodeKey
    request: RequestKey
    client: NodeKey
    payer: NodeKey
    provider: NodeKey
    relay: NodeKey | None
    relay_bps: BasisPoints
    cap_uusd: Cap
    model: ModelName
    fingerprint: Hash
    price_in_uusd: Price
    price_out_uusd: Price
    price_job_uusd: Price
    serve_s: Annotated[int, Meta(ge=1, le=c.LEASE_SERVE_S_MAX)]
    created_at_ms: UnsignedInteger
    extensions: Extensions


class LeaseRecord(Record, frozen=True):
    """The coordinator holds `cap_uusd` for this provider, until `claim_by_ms` at least. Checked by whoever gets it.

    `lease` is the hash of the request. `entry` is the number of the ledger's entry that locked the money.
    """

    TAG: ClassVar[str] = "infernet/lease/1"
    SIGNER: ClassVar[str] = "coordinator"

    version: Version1
    coordinator: NodeKey
    lease: LeaseKey
    payer: NodeKey
    provider: NodeKey
    relay: NodeKey | None
    relay_bps: BasisPoints
    fee_bps: BasisPoints
    cap_uusd: Cap
    model: ModelName
    fingerprint: Hash
    price_in_uusd: Price
    price_out_uusd: Price
    price_job_uusd: Price
    entry: UnsignedInteger
    issued_at_ms: UnsignedInteger
    serve_until_ms: UnsignedInteger
    claim_by_ms: UnsignedInteger
    extensions: Extensions


class VoucherRecord(Record, frozen=True):
    """The payer owes the provider `paid_uusd` on this lease in all. The provider keeps the highest, and redeems one.

    A total, never a difference: one more often, late or out of order changes nothing. Job, counts and running hash are
    what the payer has received when it signs; the last voucher of a job and the receipt agree in them.
    """

    TAG: ClassVar[str] = "infernet/voucher/1"
    SIGNER: ClassVar[str] = "payer"

    version: Version1
    lease: LeaseKey
    payer: NodeKey
    sequence: UnsignedInteger
    paid_uusd: UnsignedInteger
    job: JobKey
    attempt: Attempt
    chunks: UnsignedInteger
    output_tokens: TokenCount
    running_hash: Hash
    extensions: Extensions


class ClaimRecord(Record, frozen=True):
    """The provider redeems a voucher. The coordinator credits what is new in it, and answers with `ClaimAckRecord`.

    With `is_final` the provider gives up the rest of the lease, which goes back to the client at once. Without a
    voucher it claims nothing, and can only give up.
    """

    TAG: ClassVar[str] = "infernet/claim/1"
    SIGNER: ClassVar[str] = "provider"

    version: Version1
    provider: NodeKey
    lease: LeaseKey
    voucher: Signed | None
    receipt: Signed | None
    is_final: Flag
    claimed_at_ms: UnsignedInteger
    extensions: Extensions


class Credited(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """So much of this lease has been claimed in all, and the ledger says so in this entry, under this head."""

    lease: LeaseKey
    claimed_uusd: UnsignedInteger
    is_closed: Flag
    entry: UnsignedInteger
    head: Hash
    credited_at_ms: UnsignedInteger


class ClaimAckRecord(Record, frozen=True):
    """What the ledger says of the leases of one provider that it has claimed on together.

    One signature for all of them: making it costs the coordinator as much as checking two claims.
    """

    TAG: ClassVar[str] = "infernet/claim-ack/1"
    SIGNER: ClassVar[str] = "coordinator"

    version: Version1
    coordinator: NodeKey
    credited: Annotated[tuple[Credited, ...], Meta(min_length=1, max_length=c.CLAIMS_MAX)]
    extensions: Extensions

    def of(self, lease: LeaseId) -> Credited | None:
        """What it says of this lease, if anything; the newest, should it say more."""
        found = [credited for credited in self.credited if credited.lease == lease]
        return max(found, key=lambda credited: credited.entry, default=None)


class CloseRecord(Record, frozen=True):
    """The payer will not sign above `paid_uusd` on this lease any more, and asks for the rest.

    The coordinator tells the provider, whose final claim sets the rest free. Without one it is free after the last
    moment for claims.
    """

    TAG: ClassVar[str] = "infernet/close/1"
    SIGNER: ClassVar[str] = "payer"

    version: Version1
    lease: LeaseKey
    payer: NodeKey
    paid_uusd: UnsignedInteger
    closed_at_ms: UnsignedInteger
    extensions: Extensions


class ComplaintRecord(Record, frozen=True):
    """One side of a lease says what the other one did. The coordinator counts it; it moves no money."""

    TAG: ClassVar[str] = "infernet/complaint/1"
    SIGNER: ClassVar[str] = "complainant"

    version: Version1
    complainant: NodeKey
    lease: LeaseKey
    job: JobKey
    attempt: Attempt
    kind: ComplaintKind
    evidence_hash: Hash
    complained_at_ms: UnsignedInteger
    extensions: Extensions


class LedgerHeadRecord(Record, frozen=True):
    """The coordinator's ledger has so many entries, and this is their hash. Passed on by nodes that it serves.

    Two of one coordinator with the same number and different hashes prove that it keeps two ledgers.
    """

    TAG: ClassVar[str] = "infernet/ledger-head/1"
    SIGNER: ClassVar[str] = "coordinator"

    version: Version1
    coordinator: NodeKey
    entry: UnsignedInteger
    head: Hash
    signed_at_ms: UnsignedInteger
    extensions: Extensions


prepare(globals())
