"""Signed records about money, as asker, provider and coordinator would sign them; and what the money store is given."""

from __future__ import annotations

from typing import Any

from protocol.effects import StoreClaimed, StoreMark, StoreVoucher
from protocol.envelope import sign_record
from protocol.ids import LeaseId
from protocol.money_records import Credited, LeaseRecord, VoucherRecord
from protocol.records import Signed
from tests.helpers_claims import acknowledged
from tests.helpers_records import ASKER, JOB, NOW_MS, PROVIDER, signing_key

BANK = signing_key("bank")
CAP_UUSD = 50_000


def request_of(number: int) -> bytes:
    """The number of the request for a numbered lease, from which its payer's key follows."""
    return number.to_bytes(16, "big")


def lease_of(number: int) -> LeaseId:
    """The id of a numbered lease."""
    return LeaseId(number.to_bytes(32, "big"))


def lease(number: int = 1, **changes: Any) -> Signed:
    """A lease that the bank has signed: of ASKER for PROVIDER."""
    fields: dict[str, Any] = {
        "version": 1,
        "coordinator": BANK.node,
        "lease": lease_of(number),
        "payer": ASKER.payer(request_of(number)).node,
        "provider": PROVIDER.node,
        "relay": None,
        "relay_bps": 0,
        "fee_bps": 0,
        "cap_uusd": CAP_UUSD,
        "model": "tiny-135m",
        "fingerprint": bytes(32),
        "price_in_uusd": 1_000_000,
        "price_out_uusd": 2_000_000,
        "price_job_uusd": 0,
        "entry": number,
        "issued_at_ms": NOW_MS,
        "serve_until_ms": NOW_MS + 86_400_000,
        "claim_by_ms": NOW_MS + 90_000_000,
        "extensions": (),
    }
    return sign_record(LeaseRecord(**(fields | changes)), BANK)


def voucher(paid_uusd: int, number: int = 1) -> Signed:
    """A voucher of the payer of a numbered lease."""
    key = ASKER.payer(request_of(number))
    record = VoucherRecord(1, lease_of(number), key.node, paid_uusd, paid_uusd, JOB, 1, 1, 1, bytes(32), ())
    return sign_record(record, key)


def acknowledgement(claimed_uusd: int, number: int = 1, *, is_closed: bool = False) -> Signed:
    """The bank's word for a claim."""
    return acknowledged(BANK, Credited(lease_of(number), claimed_uusd, int(is_closed), number, bytes(32), NOW_MS))


def mark(mark_uusd: int, number: int = 1, paid_uusd: int | None = None) -> StoreMark:
    """What an asker puts on disk before it signs."""
    signed = voucher(paid_uusd, number) if paid_uusd is not None else None
    return StoreMark(lease_of(number), request_of(number), lease(number), mark_uusd, signed)


def paid(paid_uusd: int, number: int = 1, **changes: Any) -> StoreVoucher:
    """What a provider puts on disk when a better voucher has come."""
    signed = voucher(paid_uusd, number) if paid_uusd else None
    return StoreVoucher(lease_of(number), lease(number, **changes), signed, None, paid_uusd)


def claimed(claimed_uusd: int, number: int = 1, *, is_closed: bool = False) -> StoreClaimed:
    """What a provider puts on disk when the coordinator has answered."""
    word = acknowledgement(claimed_uusd, number, is_closed=is_closed)
    return StoreClaimed(lease_of(number), claimed_uusd, is_closed, word)
