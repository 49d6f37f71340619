"""The words of the ledger: whose account is whose, what a repeated command is, and how entries are chained."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest
from msgspec.structs import replace

from protocol.errors import BadFrame, UnknownVersion
from protocol.ledger import (
    AMOUNT_MAX,
    COMMAND_TAG,
    CREDIT,
    ENTRY_TAG,
    GENESIS_HEAD,
    OUTSIDE,
    AnyCommand,
    Budget,
    Entry,
    ExpireLease,
    Lease,
    MoneyRefusal,
    OpenLease,
    Payout,
    Posting,
    Resume,
    ReturnPayout,
    SweepBudget,
    available,
    digest,
    entry_body,
    next_head,
    read_entry_body,
    sponsor,
)
from protocol.records import Signed
from tests.helpers_ledger import (
    CLIENT,
    INTENT,
    LEASE,
    OTHER,
    PAYER,
    PROVIDER,
    claim,
    deposit,
    open_lease,
    order_payout,
)
from tests.helpers_records import NOW_MS


def bip340_hash(tag: str, data: bytes) -> bytes:
    """The tagged hash as BIP-340 writes it, apart from our own."""
    prefix = hashlib.sha256(tag.encode()).digest()
    return hashlib.sha256(prefix + prefix + data).digest()


def lease(**changes: Any) -> Lease:
    known = Lease(
        lease=LEASE,
        account=available(CLIENT.node),
        payer=PAYER.node,
        provider=PROVIDER.node,
        relay=None,
        relay_bps=0,
        fee_bps=0,
        cap_uusd=10,
        claimed_uusd=0,
        is_closed=False,
        serve_until_ms=1_000,
        claim_by_ms=2_000,
        downtime_ms=50,
    )
    return replace(known, **changes)


def test_accounts_are_named_after_whom_they_belong_to() -> None:
    assert available(CLIENT.node) == f"available:{CLIENT.node.hex()}"
    assert sponsor(20_800) == "sponsor:20800"
    assert lease().held == f"lease:{LEASE.hex()}"
    assert Payout(INTENT, "x", 1, is_resolved=False).held == f"payout:{INTENT.hex()}"


def test_the_world_outside_is_three_accounts() -> None:
    assert frozenset({"gateway", "treasury", "fx"}) == OUTSIDE


def test_a_thousand_of_the_largest_amounts_fit_into_63_bits() -> None:
    assert AMOUNT_MAX == 2**53
    assert 1_000 * AMOUNT_MAX < 2**63


@pytest.mark.parametrize(("downtime_ms", "until_ms"), [(50, 2_000), (51, 2_001), (1_050, 3_000)])
def test_the_time_for_claims_grows_by_absences_since_the_lease_was_issued(downtime_ms: int, until_ms: int) -> None:
    assert lease().grace_until_ms(downtime_ms) == until_ms


def test_refusals_have_stable_codes() -> None:
    assert {code.value for code in MoneyRefusal} == {
        *("insufficient_funds", "conflict", "unknown_lease", "wrong_provider", "lease_closed", "not_yet"),
        *("unknown_payout", "payout_resolved", "bad_amount", "unknown_hold"),
    }


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (deposit(), "deposit"),
        (Budget(1, 2), "budget"),
        (SweepBudget(1), "sweep-budget"),
        (open_lease(), "open-lease"),
        (claim(1), "claim"),
        (ExpireLease(LEASE), "expire-lease"),
        (Resume(1), "resume"),
        (order_payout(), "order-payout"),
        (ReturnPayout(INTENT), "return-payout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_says_which_kind_of_command_it_carries_out(command: AnyCommand, kind: str) -> None:
    assert msgpack.unpackb(entry_body(1, 0, Entry(command, ())))[3][0] == kind


# ---------------------------------------------------------------- repeated commands


def test_the_digest_is_a_hash_under_a_tag_of_its_own() -> None:
    data = msgpack.packb(["deposit", "payment-1", CLIENT.node, "USDC-base", 999_000, 1_000_000, 0], use_bin_type=True)
    assert digest(deposit()) == bip340_hash("infernet/ledger-command/1", data)
    assert COMMAND_TAG == "infernet/ledger-command/1" != ENTRY_TAG


@pytest.mark.parametrize("name", ["payment", "key", "asset", "units", "credit_uusd", "is_held"])
def test_every_field_of_a_command_counts(name: str) -> None:
    other = {"payment": "x", "key": OTHER.node, "asset": "BTC", "units": 1, "credit_uusd": 1, "is_held": 1}
    assert digest(deposit(**{name: other[name]})) != digest(deposit())


@pytest.mark.parametrize("command", [Resume(1), SweepBudget(1)])
def test_commands_of_other_kinds_are_others(command: AnyCommand) -> None:
    assert digest(Resume(1)) != digest(SweepBudget(1))
    assert digest(command) == digest(replace(command))


SAME_LEASE = {
    "day": 7,
    "fee_bps": 9,
    "serve_until_ms": 1,
    "claim_by_ms": 2,
    "request": Signed(b"\x00", b"\x07" * 64),
}
OTHER_LEASE = {
    "lease": bytes(32),
    "client": OTHER.node,
    "payer": OTHER.node,
    "provider": OTHER.node,
    "relay": OTHER.node,
    "relay_bps": 5,
    "cap_uusd": 5,
    "request": Signed(b"\x07", bytes(64)),
}


@pytest.mark.parametrize("name", SAME_LEASE)
def test_a_lease_asked_for_again_is_the_same_whatever_the_coordinator_adds(name: str) -> None:
    assert digest(open_lease(**{name: SAME_LEASE[name]})) == digest(open_lease())


@pytest.mark.parametrize("name", OTHER_LEASE)
def test_a_lease_for_which_something_else_is_asked_is_another(name: str) -> None:
    assert digest(open_lease(**{name: OTHER_LEASE[name]})) != digest(open_lease())


def test_the_two_lists_name_every_field_of_a_lease() -> None:
    assert {*SAME_LEASE, *OTHER_LEASE} == set(OpenLease.__struct_fields__)


# ---------------------------------------------------------------- the chain


def test_the_body_of_an_entry_is_an_array_of_five() -> None:
    entry = Entry(Resume(7), (Posting("fee", CREDIT, -1), Posting("treasury", CREDIT, 1)), "a reference", lease())
    assert entry_body(3, NOW_MS, entry) == msgpack.packb(
        [1, 3, NOW_MS, ["resume", 7], [["fee", "credit", -1], ["treasury", "credit", 1]]], use_bin_type=True
    )


def test_a_head_binds_the_body_and_everything_before_it() -> None:
    first = next_head(GENESIS_HEAD, b"one")
    assert first == bip340_hash("infernet/ledger-entry/1", bytes(32) + b"one")
    assert next_head(first, b"two") == bip340_hash("infernet/ledger-entry/1", first + b"two")
    assert len({first, next_head(GENESIS_HEAD, b"two"), next_head(first, b"one")}) == 3


# ---------------------------------------------------------------- reading an entry again


def test_an_entry_is_read_as_it_was_written() -> None:
    entry = Entry(open_lease(), (Posting("fee", CREDIT, -1), Posting("treasury", CREDIT, 1)))
    assert read_entry_body(entry_body(3, NOW_MS, entry)) == (3, NOW_MS, entry.command, entry.postings)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 1, 0, ["resume", 7]]),
        msgpack.packb([1, 1, 0, ["no such command", 7], []]),
        msgpack.packb([1, 1, 0, ["resume", True], []]),
        msgpack.packb([1, 1, 0, ["resume", 7.5], []]),
        msgpack.packb([1, 1, 0, ["resume", 7], [["fee", "credit", True]]]),
        msgpack.packb([1, 1, 0, ["resume", 7], []]) + b"\x00",
        b"\x91" * 5_000,
    ],
    ids=["nothing", "no MessagePack", "short", "unknown", "true", "a fraction", "a true sum", "more", "deep"],
)
def test_other_bytes_are_no_entry(body: bytes) -> None:
    with pytest.raises(BadFrame, match="not the body of an entry"):
        read_entry_body(body)


def test_an_entry_of_another_version_is_not_read() -> None:
    with pytest.raises(UnknownVersion, match="version 2"):
        read_entry_body(msgpack.packb([2, 1, 0, ["resume", 7], []]))
