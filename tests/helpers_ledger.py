"""A small ledger to try things on: people, commands with plausible values, and signed records about money."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from protocol.book import Book
from protocol.envelope import SigningKey, sign_record
from protocol.ids import JobId, LeaseId
from protocol.ledger import (
    AnyCommand,
    Claim,
    Deposit,
    Entry,
    MoneyRefusal,
    OpenLease,
    OrderPayout,
    Refused,
    Unchanged,
    Verdict,
    available,
)
from protocol.money_records import ClaimRecord, CloseRecord, LeaseRequestRecord, VoucherRecord
from protocol.records import Record, Signed
from tests.helpers_records import NOW_MS, signing_key

CLIENT, PAYER, PROVIDER, RELAY, OTHER, COORDINATOR = (
    signing_key(f"ledger's {name}") for name in ("client", "payer", "provider", "relay", "other", "coordinator")
)
LEASE = LeaseId(b"\x0a" * 32)
INTENT = b"\x0b" * 16
CAP_UUSD = 100_000
DEPOSIT_UUSD = 1_000_000
SERVE_MS, CLAIM_MS = 600_000, 3_600_000
# Where nobody looks at signatures: `accounts` gets commands that `claims` has checked.
UNSIGNED = Signed(b"\x00", bytes(64))

_DEPOSIT = Deposit("payment-1", CLIENT.node, "USDC-base", 999_000, DEPOSIT_UUSD, 0)
_OPEN = OpenLease(
    lease=LEASE,
    client=CLIENT.node,
    day=None,
    payer=PAYER.node,
    provider=PROVIDER.node,
    relay=None,
    relay_bps=0,
    fee_bps=0,
    cap_uusd=CAP_UUSD,
    serve_until_ms=NOW_MS + SERVE_MS,
    claim_by_ms=NOW_MS + SERVE_MS + CLAIM_MS,
    request=UNSIGNED,
)
_CLAIM = Claim(LEASE, PROVIDER.node, 0, 0, UNSIGNED)
_PAYOUT = OrderPayout(INTENT, CLIENT.node, 1_000)


def deposit(**changes: Any) -> Deposit:
    """A dollar for the client."""
    return replace(_DEPOSIT, **changes)


def open_lease(**changes: Any) -> OpenLease:
    """A lease of ten cents for the provider, without relay and fee."""
    return replace(_OPEN, **changes)


def claim(paid_uusd: Any, **changes: Any) -> Claim:
    """The provider's claim for so much in all."""
    return replace(_CLAIM, paid_uusd=paid_uusd, **changes)


def order_payout(**changes: Any) -> OrderPayout:
    """The client wants a thousandth of a dollar back."""
    return replace(_PAYOUT, **changes)


def book_with(*commands: AnyCommand, at_ms: int = NOW_MS) -> Book:
    """A ledger in which these have been carried out."""
    book = Book()
    for command in commands:
        carried_out(book.command(command, at_ms))
    return book


def carried_out(verdict: Verdict) -> Entry:
    """The entry that came of a command which must not be refused."""
    assert isinstance(verdict, Entry), verdict
    return verdict


def refuses(book: Book, command: AnyCommand, code: MoneyRefusal, at_ms: int = NOW_MS) -> Refused:
    """Check that a command is refused for this reason and that it leaves no trace."""
    before = snapshot(book)
    verdict = book.command(command, at_ms)
    assert isinstance(verdict, Refused), verdict
    assert verdict.code == code
    assert snapshot(book) == before
    return verdict


def says_nothing_new(book: Book, command: AnyCommand, at_ms: int = NOW_MS) -> None:
    """Check that a command is taken as done, and leaves no trace."""
    before = snapshot(book)
    assert book.command(command, at_ms) == Unchanged()
    assert snapshot(book) == before


def snapshot(book: Book) -> tuple[object, ...]:
    """All that a ledger is, to compare."""
    accounts = {account: balance for account, balance in book.accounts.items() if balance}
    return accounts, dict(book.leases), dict(book.payouts), dict(book.references), book.downtime_ms, book.head


def of(book: Book, key: SigningKey) -> int:
    """What somebody could lock or withdraw."""
    return book.balance(available(key.node))


# ---------------------------------------------------------------- signed records

_REQUEST = LeaseRequestRecord(
    version=1,
    coordinator=COORDINATOR.node,
    request=bytes(range(16)),
    client=CLIENT.node,
    payer=PAYER.node,
    provider=PROVIDER.node,
    relay=None,
    relay_bps=0,
    cap_uusd=CAP_UUSD,
    model="tiny-135m",
    fingerprint=b"\x11" * 32,
    price_in_uusd=50_000,
    price_out_uusd=200_000,
    price_job_uusd=10,
    serve_s=600,
    created_at_ms=NOW_MS,
    extensions=(),
)
_VOUCHER = VoucherRecord(1, LEASE, PAYER.node, 1, 700, JobId(bytes(16)), 1, 3, 24, b"\x12" * 32, ())
_CLAIM_RECORD = ClaimRecord(1, PROVIDER.node, LEASE, None, None, 0, NOW_MS, ())
_CLOSE = CloseRecord(1, LEASE, PAYER.node, 700, NOW_MS, ())


def lease_request(**changes: Any) -> LeaseRequestRecord:
    """The client asks for the lease of `open_lease`."""
    return replace(_REQUEST, **changes)


def voucher(**changes: Any) -> VoucherRecord:
    """The payer owes 700 micro-USD in all."""
    return replace(_VOUCHER, **changes)


def claim_record(**changes: Any) -> ClaimRecord:
    """The provider claims, by default nothing."""
    return replace(_CLAIM_RECORD, **changes)


def close_record(**changes: Any) -> CloseRecord:
    """The payer wants no more of it."""
    return replace(_CLOSE, **changes)


def signed(record: Record, key: SigningKey) -> Signed:
    """A record as it travels."""
    return sign_record(record, key)


def forged(record: Record, key: SigningKey) -> Signed:
    """A record with the signature of a key that it does not name."""
    body = sign_record(record, _KEYS[getattr(record, record.SIGNER)]).body
    return Signed(body, key.sign(record.TAG, body))


_KEYS = {key.node: key for key in (CLIENT, PAYER, PROVIDER, RELAY, OTHER, COORDINATOR)}
