"""What coordinators say of claims, for tests: made and read."""

from __future__ import annotations

from protocol.codec import decode_record
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.ids import LeaseId
from protocol.money_records import ClaimAckRecord, Credited
from protocol.records import Signed


def acknowledged(key: SigningKey, *credited: Credited) -> Signed:
    """A coordinator's word for these leases."""
    return sign_record(ClaimAckRecord(1, key.node, credited, ()), key)


def credited_in(signed: Signed, lease: LeaseId | None = None, *, is_checked: bool = True) -> Credited:
    """What it says of this lease, or of the only one. Without `is_checked` nobody looks at the signature."""
    record = open_record(signed, ClaimAckRecord) if is_checked else decode_record(signed.body, ClaimAckRecord)
    found = record.of(lease) if lease is not None else record.credited[0]
    assert found is not None
    assert lease is not None or len(record.credited) == 1
    return found
