"""specs/vectors of what is said to records under a lease, and of the amounts in it (specs/06)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.accounts import cuts_uusd
from protocol.claims import check_close
from protocol.effects import Equivocation
from protocol.envelope import open_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import Now
from protocol.heads import Heads
from protocol.ids import NodeId
from protocol.leases import ProviderSide, lease_refusal, window_uusd
from protocol.ledger import Lease, available
from protocol.money_records import ClaimAckRecord, LeaseRecord, LedgerHeadRecord
from protocol.records import JobOpenRecord, Kind, ModelOffer, Signed
from tests.helpers_records import PROVIDER, order
from tests.helpers_vectors import Vector, each, load

# What every vector of lease-rules.json is about.
SUBJECTS = ("order", "voucher", "close", "second")


def signed_of(fields: dict[str, Any]) -> Signed:
    return Signed(bytes.fromhex(fields["body"]), bytes.fromhex(fields["signature"]))


def check_order(vector: Vector) -> None:
    lease = open_record(signed_of(vector["lease"]), LeaseRecord)
    ordered = open_record(signed_of(vector["order"]), JobOpenRecord)
    fields = {**vector["offer"], "fingerprint": bytes.fromhex(vector["offer"]["fingerprint"])}
    offer = ModelOffer(**{**fields, "kinds": tuple(Kind(kind) for kind in fields["kinds"])})
    why = lease_refusal(lease, ordered, offer, vector["now_ms"])
    assert (why[0] if why is not None else None) == (Refusal[vector["refusal"]] if vector["refusal"] else None)
    assert (why is None) == vector["valid"]


def check_voucher(vector: Vector) -> None:
    lease, voucher = signed_of(vector["lease"]), signed_of(vector["voucher"])
    side = ProviderSide(open_record(lease, LeaseRecord), lease, paid_uusd=vector["held_uusd"])
    if vector["held_uusd"]:
        side.voucher = lease  # any: it is not looked at
    if vector["valid"]:
        side.take(voucher)
        assert side.paid_uusd == vector["paid_uusd"]
        is_better = vector["paid_uusd"] > vector["held_uusd"] or not vector["held_uusd"]
        assert (side.voucher == voucher) == is_better
    else:
        with pytest.raises(RemoteProtocolError):
            side.take(voucher)
        assert side.voucher is None


def check_closing(vector: Vector) -> None:
    record = open_record(signed_of(vector["lease"]), LeaseRecord)
    lease = Lease(
        lease=record.lease,
        account=available(PROVIDER.node),
        payer=record.payer,
        provider=record.provider,
        relay=record.relay,
        relay_bps=record.relay_bps,
        fee_bps=record.fee_bps,
        cap_uusd=record.cap_uusd,
        claimed_uusd=0,
        is_closed=False,
        serve_until_ms=record.serve_until_ms,
        claim_by_ms=record.claim_by_ms,
        downtime_ms=0,
    )
    if vector["valid"]:
        assert check_close(signed_of(vector["close"]), lease).payer == record.payer
    else:
        with pytest.raises(RemoteProtocolError):
            check_close(signed_of(vector["close"]), lease)


def check_heads(vector: Vector) -> None:
    coordinator = NodeId(bytes.fromhex(vector["coordinator"]))
    first, second = signed_of(vector["first"]), signed_of(vector["second"])
    heads = Heads()
    heads.use([coordinator])
    now = Now(0.0, open_record(first, LedgerHeadRecord).signed_at_ms)
    assert heads.take(None, [first], now) == ([coordinator], [])
    if vector["second_record"] == "ClaimAckRecord":
        assert open_record(second, ClaimAckRecord)
        effects = heads.acknowledged(second)
    else:
        effects = heads.take(None, [second], now)[1]
    entry = open_record(first, LedgerHeadRecord).entry
    assert effects == ([Equivocation(coordinator, entry, first, second)] if vector["valid"] else [])


CHECKS = dict(zip(SUBJECTS, (check_order, check_voucher, check_closing, check_heads), strict=True))


@each("lease-rules")
def test_what_is_said_under_a_lease(vector: Vector) -> None:
    (subject,) = (name for name in SUBJECTS if name in vector)
    CHECKS[subject](vector)


def test_there_are_good_and_bad_ones_of_each() -> None:
    kinds = Counter((next(n for n in SUBJECTS if n in vector), vector["valid"]) for vector in load("lease-rules"))
    assert set(kinds) == {(name, valid) for name in SUBJECTS for valid in (True, False)}


@each("lease-amounts")
def test_the_amounts_of_a_lease(vector: Vector) -> None:
    if "window_tokens" in vector:
        ordered = replace(order(), price_out_uusd=vector["price_out_uusd"])
        found = window_uusd(ordered, vector["window_tokens"], vector["paid_uusd"]) == vector["window_uusd"]
    else:
        cuts = [
            cuts_uusd(vector[f"{when}_uusd"], vector["fee_bps"], vector["relay_bps"]) for when in ("before", "after")
        ]
        fee_uusd, relay_uusd = cuts[1][0] - cuts[0][0], cuts[1][1] - cuts[0][1]
        rest_uusd = vector["after_uusd"] - vector["before_uusd"] - fee_uusd - relay_uusd
        wanted = tuple(vector[f"{whose}_uusd"] for whose in ("fee", "relay", "provider"))
        found = (fee_uusd, relay_uusd, rest_uusd) == wanted
        assert sum(wanted) == vector["after_uusd"] - vector["before_uusd"]
    assert found == vector["valid"]
