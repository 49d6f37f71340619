"""The ledger, as words: what can be commanded, what an entry is, how entries are chained, and whose account is whose.

Nothing here decides; that is `accounts`. The page is specs/06.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocol.codec import encode_value
from protocol.envelope import tagged_hash
from protocol.errors import BadFrame, UnknownVersion
from protocol.ids import LeaseId, NodeId
from protocol.records import Flag, Signed

ENTRY_TAG: Final = "infernet/ledger-entry/1"
COMMAND_TAG: Final = "infernet/ledger-command/1"
GENESIS_HEAD: Final = bytes(32)
CREDIT: Final = "credit"
# Accounts that stand for the world outside: what came from there is owed to somebody here, so they are negative.
# Nobody's money can be missing from them.
OUTSIDE: Final = frozenset({"gateway", "treasury", "fx"})
# Nothing in the world is worth more, and what is added up of such stays within 63 bits.
AMOUNT_MAX: Final = 2**53

TREASURY: Final = "treasury"
FEE: Final = "fee"


class MoneyRefusal(StrEnum):
    """Why money did not move: stable codes, which HTTP and programs repeat (specs/06)."""

    INSUFFICIENT = "insufficient_funds"
    CONFLICT = "conflict"
    UNKNOWN_LEASE = "unknown_lease"
    WRONG_PROVIDER = "wrong_provider"
    LEASE_CLOSED = "lease_closed"
    NOT_YET = "not_yet"
    UNKNOWN_PAYOUT = "unknown_payout"
    PAYOUT_RESOLVED = "payout_resolved"
    BAD_AMOUNT = "bad_amount"
    UNKNOWN_HOLD = "unknown_hold"


# ---------------------------------------------------------------- state


class Lease(Struct, frozen=True):
    """A lease as the ledger knows it; `account` paid for it, and gets back what is left.

    `downtime_ms` is how long the coordinator had been away in all when the lease was issued: what came since is added
    to `claim_by_ms`.
    """

    lease: LeaseId
    account: str
    payer: NodeId
    provider: NodeId
    relay: NodeId | None
    relay_bps: int
    fee_bps: int
    cap_uusd: int
    claimed_uusd: int
    is_closed: bool
    serve_until_ms: int
    claim_by_ms: int
    downtime_ms: int

    @property
    def held(self) -> str:
        """The account in which its money lies."""
        return f"lease:{self.lease.hex()}"

    def grace_until_ms(self, downtime_ms: int) -> int:
        """Until when claims are taken at least, the coordinator having been away for so long in all."""
        # SPEC 06: The coordinator MUST add the time in which it could not be reached to `claim_by_ms`.
        return self.claim_by_ms + downtime_ms - self.downtime_ms


class Payout(Struct, frozen=True):
    """Money on its way out. `is_resolved`: it has left for good, or has come back."""

    intent: bytes
    account: str
    amount_uusd: int
    is_resolved: bool

    @property
    def held(self) -> str:
        return f"payout:{self.intent.hex()}"


class State(Protocol):
    """What the rules look at."""

    @property
    def downtime_ms(self) -> int:
        """How long the coordinator has been away in all."""

    def balance(self, account: str) -> int:
        """What is in an account; 0 for one that nobody has heard of."""

    def lease(self, lease: LeaseId) -> Lease | None: ...

    def payout(self, intent: bytes) -> Payout | None: ...

    def recorded(self, reference: str) -> bytes | None:
        """The hash of the command that was carried out under this reference."""


# ---------------------------------------------------------------- commands


class Command(Struct, frozen=True, array_like=True):
    """Base of all commands; the tag of each class is its kind in the ledger."""


class Deposit(Command, frozen=True, tag="deposit"):
    """A payment arrived at the gateway: so many units of the asset, worth so much credit by the quote it was paid on.

    With `is_held` the credit waits until somebody has looked at it.
    """

    payment: str
    key: NodeId
    asset: str
    units: int
    credit_uusd: int
    is_held: Flag


class ReleaseHold(Command, frozen=True, tag="release-hold"):
    """Somebody looked at a deposit that was held, and it is good."""

    payment: str
    key: NodeId
    credit_uusd: int


class Budget(Command, frozen=True, tag="budget"):
    """What the operator gives for the public chat on one day (days since 1970-01-01, UTC)."""

    day: int
    amount_uusd: int


class SweepBudget(Command, frozen=True, tag="sweep-budget"):
    """The day is over: what is left of its budget goes back."""

    day: int


class OpenLease(Command, frozen=True, tag="open-lease"):
    """Lock the cap for the provider. `request` is what the client signed; `day` is set for the sponsor's own."""

    lease: LeaseId
    client: NodeId
    day: int | None
    payer: NodeId
    provider: NodeId
    relay: NodeId | None
    relay_bps: int
    fee_bps: int
    cap_uusd: int
    serve_until_ms: int
    claim_by_ms: int
    request: Signed


class Claim(Command, frozen=True, tag="claim"):
    """Credit the provider up to what the payer has signed in all; with `is_final` the rest goes back to the client."""

    lease: LeaseId
    provider: NodeId
    paid_uusd: int
    is_final: Flag
    voucher: Signed | None


class ExpireLease(Command, frozen=True, tag="expire-lease"):
    """The time for claims is over: the rest goes back to the client."""

    lease: LeaseId


class Resume(Command, frozen=True, tag="resume"):
    """The coordinator was away for so long."""

    gap_ms: int


class OrderPayout(Command, frozen=True, tag="order-payout"):
    """Set money aside for a payout, before anybody outside is asked to send it."""

    intent: bytes
    key: NodeId
    amount_uusd: int


class SettlePayout(Command, frozen=True, tag="settle-payout"):
    """The gateway has sent it: so many units of the asset have left."""

    intent: bytes
    asset: str
    units: int


class ReturnPayout(Command, frozen=True, tag="return-payout"):
    """It was not sent and never will be: the money is its owner's again."""

    intent: bytes


AnyCommand = (
    Deposit
    | ReleaseHold
    | Budget
    | SweepBudget
    | OpenLease
    | Claim
    | ExpireLease
    | Resume
    | OrderPayout
    | SettlePayout
    | ReturnPayout
)

# ---------------------------------------------------------------- what comes of a command


class Posting(Struct, frozen=True, array_like=True):
    """So much more (or less) in an account, in units of the asset."""

    account: str
    asset: str
    amount: int


class Entry(Struct, frozen=True):
    """What is to be carried out: postings, and rows that are new or change.

    Under its `reference` no other command can be carried out.
    """

    command: AnyCommand
    postings: tuple[Posting, ...]
    reference: str | None = None
    lease: Lease | None = None
    payout: Payout | None = None
    downtime_ms: int = 0


class Unchanged(Struct, frozen=True):
    """It has been carried out before: nothing changes, and whoever asks hears the same as then."""


class Refused(Struct, frozen=True):
    """Nothing changes, for this reason. `text` is one sentence for people."""

    code: MoneyRefusal
    text: str


Verdict = Entry | Unchanged | Refused


# ---------------------------------------------------------------- accounts


def available(key: NodeId) -> str:
    """The account of a key: what it deposited, earned and got back, and has neither locked nor withdrawn."""
    return f"available:{key.hex()}"


def sponsor(day: int) -> str:
    """The account of the public chat for one day."""
    return f"sponsor:{day}"


def digest(command: AnyCommand) -> bytes:
    """What tells a repeated command from another one under the same reference."""
    if isinstance(command, OpenLease):
        # A client that asks again asks for the same, although the coordinator's clock and terms have moved on, and
        # although BIP-340 gives each signature of the same bytes another form.
        request = Signed(command.request.body, bytes(64))
        command = replace(command, day=None, fee_bps=0, serve_until_ms=0, claim_by_ms=0, request=request)
    return tagged_hash(COMMAND_TAG, encode_value(command))


# ---------------------------------------------------------------- the chain


def entry_body(number: int, at_ms: int, entry: Entry) -> bytes:
    """The bytes of an entry that are chained and kept: number from 1, time, command, postings."""
    # SPEC 06: The body of an entry is the canonical MessagePack array `[1, number, at_ms, command, postings]`.
    return encode_value((1, number, at_ms, entry.command, entry.postings))


_ENTRY_BODY: Final = msgspec.msgpack.Decoder(tuple[int, int, int, AnyCommand, tuple[Posting, ...]])


def read_entry_body(body: bytes) -> tuple[int, int, AnyCommand, tuple[Posting, ...]]:
    """Number, time, command and postings of an entry that `entry_body` wrote. Raises BadFrame for other bytes.

    Only the chain of heads tells whether an entry is one of the ledger's; whether it was rightly made, only a replay.
    """
    try:
        version, number, at_ms, command, postings = _ENTRY_BODY.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise BadFrame(f"not the body of an entry: {error}") from None
    if version != 1:
        raise UnknownVersion(f"the body of an entry of version {version}")
    return number, at_ms, command, postings


def next_head(head: bytes, body: bytes) -> bytes:
    """The head of the ledger after this entry, 32 bytes."""
    # SPEC 06: Each head is the tagged hash of the head before it and the body of the entry.
    return tagged_hash(ENTRY_TAG, head + body)
