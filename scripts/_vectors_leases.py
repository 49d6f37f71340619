"""Vectors of what provider, coordinator and everybody else say to records under a lease, and of the amounts in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from _vectors_common import COORDINATOR, NOW_MS, PROVIDER, Vector, file, invalid, valid
from _vectors_identity import order as any_order
from _vectors_money import ACK, CLOSE, CREDITED, FINGERPRINT, HEAD, LEASE, OTHER, PAYER, RELAY, VOUCHER
from protocol.accounts import cuts_uusd
from protocol.codec import encode_record
from protocol.effects import Equivocation
from protocol.envelope import SigningKey, sign_record
from protocol.events import Now
from protocol.heads import Heads
from protocol.ids import LeaseId, NodeId
from protocol.leases import ProviderSide, lease_refusal, window_uusd
from protocol.money_records import ClaimAckRecord, CloseRecord, LedgerHeadRecord, VoucherRecord
from protocol.records import JobOpenRecord, Kind, ModelOffer, Record, Signed

LEASE_SIGNED = sign_record(LEASE, COORDINATOR)
# The relay's twentieth of the lease's prices comes on top of these.
OFFER = ModelOffer(LEASE.model, FINGERPRINT, (Kind.CHAT,), 8_192, 4, 47_500, 190_000, 9)
ELSEWHERE = LeaseId(bytes(32))


def lease_rules() -> Vector:
    """lease-rules.json."""
    return file(
        "Records under one `lease`. An `order` comes to its provider, which offers `offer` at `now_ms`, and is refused "
        "with the code `refusal`. A `voucher` is taken by the provider, which holds one for `held_uusd`, and holds "
        "`paid_uusd` afterwards. A `close` comes to the coordinator. Two records by which a `coordinator` states "
        "heads, `first` and `second`, prove that it keeps two ledgers, or (not valid) do not.",
        [*_orders(), *_vouchers(), *_closes(), *_heads()],
    )


# ---------------------------------------------------------------- orders


def _orders() -> Iterator[Vector]:
    changes: dict[str, Any] = {"asker": PAYER.node, "lease": LEASE.lease, "fingerprint": FINGERPRINT}
    prices = {"price_in_uusd": 50_000, "price_out_uusd": 200_000, "price_job_uusd": 10}
    good = any_order(**changes, **prices, expires_at_ms=LEASE.serve_until_ms)

    def case(order: JobOpenRecord, offer: ModelOffer = OFFER, now_ms: int = NOW_MS + 50) -> Vector:
        key = PAYER if order.asker == PAYER.node else OTHER
        why = lease_refusal(LEASE, order, offer, now_ms)
        fields = {"lease": LEASE_SIGNED, "order": sign_record(order, key), "offer": offer, "now_ms": now_ms}
        return {**fields, "refusal": why[0].name if why is not None else None}

    yield valid("an order on the terms of its lease, until the end of it", **case(good))
    cheaper = replace(OFFER, price_out_uusd=189_999)
    yield valid("the provider asks less by now", **case(good, cheaper))
    yield valid(
        "the lease was issued by a clock that is a minute ahead", **case(good, now_ms=LEASE.issued_at_ms - 60_000)
    )
    for comment, order, offer, now_ms in (
        ("an order of another payer", replace(good, asker=OTHER.node), OFFER, NOW_MS + 50),
        ("an order for another provider", replace(good, provider=RELAY.node), OFFER, NOW_MS + 50),
        ("an order for another model", replace(good, model="smollm2:360m"), OFFER, NOW_MS + 50),
        ("other weights are served by now", good, replace(OFFER, fingerprint=bytes(32)), NOW_MS + 50),
        ("an order at a lower price than its lease", replace(good, price_job_uusd=9), OFFER, NOW_MS + 50),
        ("an order at a higher price than its lease", replace(good, price_in_uusd=50_001), OFFER, NOW_MS + 50),
        ("the provider asks more for output by now", good, replace(OFFER, price_out_uusd=190_001), NOW_MS + 50),
        ("the provider asks more for a job by now", good, replace(OFFER, price_job_uusd=10), NOW_MS + 50),
        ("the relay's part would come out of the provider's", good, replace(OFFER, price_in_uusd=50_000), NOW_MS + 50),
        (
            "an order that may outlive its lease",
            replace(good, expires_at_ms=good.expires_at_ms + 1),
            OFFER,
            NOW_MS + 50,
        ),
        ("a lease from the future", good, OFFER, LEASE.issued_at_ms - 60_001),
    ):
        yield invalid(comment, **case(order, offer, now_ms))


# ---------------------------------------------------------------- vouchers


def _vouchers() -> Iterator[Vector]:
    def under(record: Record, key: SigningKey, tag: str = VoucherRecord.TAG) -> Signed:
        body = encode_record(record)
        return Signed(body, key.sign(tag, body))

    def taken(paid_uusd: int, held_uusd: int = 0) -> Vector:
        signed = under(replace(VOUCHER, paid_uusd=paid_uusd), PAYER)
        side = ProviderSide(LEASE, LEASE_SIGNED)
        if held_uusd:
            side.take(under(replace(VOUCHER, paid_uusd=held_uusd), PAYER))
        side.take(signed)
        return {"lease": LEASE_SIGNED, "voucher": signed, "held_uusd": held_uusd, "paid_uusd": side.paid_uusd}

    yield valid("a first voucher", **taken(1_234))
    yield valid("a higher one", **taken(1_235, 1_234))
    yield valid("a lower one, which is ignored", **taken(1_233, 1_234))
    yield valid("one for nothing", **taken(0))
    yield valid("one for the whole cap", **taken(LEASE.cap_uusd))
    for comment, signed in (
        ("one above the cap", under(replace(VOUCHER, paid_uusd=LEASE.cap_uusd + 1), PAYER)),
        ("one for another lease", under(replace(VOUCHER, lease=ELSEWHERE), PAYER)),
        ("one of another payer", under(replace(VOUCHER, payer=OTHER.node), OTHER)),
        ("one signed by another payer in this one's name", under(VOUCHER, OTHER)),
        ("one signed as a close", under(VOUCHER, PAYER, CloseRecord.TAG)),
        ("a close in place of a voucher", under(CLOSE, PAYER, CloseRecord.TAG)),
    ):
        yield invalid(comment, lease=LEASE_SIGNED, voucher=signed, held_uusd=0)


# ---------------------------------------------------------------- closes


def _closes() -> Iterator[Vector]:
    good = sign_record(CLOSE, PAYER)
    for comment, close, is_good in (
        ("the payer wants no more of it", good, True),
        ("a close of another lease", sign_record(replace(CLOSE, lease=ELSEWHERE), PAYER), False),
        ("a close of the client's, who is not the payer", sign_record(replace(CLOSE, payer=OTHER.node), OTHER), False),
        ("a close of the provider's", sign_record(replace(CLOSE, payer=PROVIDER.node), PROVIDER), False),
        (
            "a close signed by the provider in the payer's name",
            Signed(good.body, PROVIDER.sign(CLOSE.TAG, good.body)),
            False,
        ),
        ("a voucher in place of a close", sign_record(VOUCHER, PAYER), False),
    ):
        make = valid if is_good else invalid
        yield make(comment, lease=LEASE_SIGNED, close=close)


# ---------------------------------------------------------------- heads


def contradicts(coordinator: NodeId, first: Signed, second: Signed, *, is_acknowledgement: bool) -> bool:
    """Whether two records prove that a coordinator keeps two ledgers."""
    heads, now = Heads(), Now(0.0, NOW_MS + 5_000)
    heads.use([coordinator])
    heads.take(None, [first], now)
    effects = heads.acknowledged(second) if is_acknowledgement else heads.take(None, [second], now)[1]
    return any(isinstance(effect, Equivocation) for effect in effects)


def _heads() -> Iterator[Vector]:
    first, other_head = sign_record(HEAD, COORDINATOR), b"\x16" * 32
    other_lease = replace(CREDITED, lease=ELSEWHERE)

    def acknowledged(head: bytes) -> ClaimAckRecord:
        return replace(ACK, credited=(other_lease, replace(CREDITED, entry=HEAD.entry, head=head)))

    def head(**changes: Any) -> LedgerHeadRecord:
        return replace(HEAD, **changes)

    cases: tuple[tuple[str, LedgerHeadRecord | ClaimAckRecord, SigningKey], ...] = (
        ("another hash under one number", head(head=other_head), COORDINATOR),
        ("the same, told in an answer to a claim", acknowledged(other_head), COORDINATOR),
        ("the same head, signed once more", head(signed_at_ms=HEAD.signed_at_ms + 1), COORDINATOR),
        ("the same head, told in an answer to a claim", acknowledged(HEAD.head), COORDINATOR),
        ("another hash under another number", head(entry=HEAD.entry + 1, head=other_head), COORDINATOR),
        ("another hash of another coordinator", head(coordinator=OTHER.node, head=other_head), OTHER),
    )
    for comment, record, key in cases:
        second, is_acknowledgement = sign_record(record, key), isinstance(record, ClaimAckRecord)
        proves = contradicts(COORDINATOR.node, first, second, is_acknowledgement=is_acknowledgement)
        kind = type(record).__name__
        make = valid if proves else invalid
        yield make(comment, coordinator=COORDINATOR.node, first=first, second=second, second_record=kind)


# ---------------------------------------------------------------- amounts


def lease_amounts() -> Vector:
    """lease-amounts.json."""
    return file(
        "With `window_tokens`: how much may be delivered ahead of payment, at this price, with so much paid on the "
        "lease before. With `fee_bps`: what relay, coordinator and provider get of a claim from one total to the next. "
        "What is not valid is an amount that it is not.",
        [*_windows(), *_cuts()],
    )


def _windows() -> Iterator[Vector]:
    def fields(price_out_uusd: int, window_tokens: int, paid_uusd: int) -> Vector:
        order = any_order(price_out_uusd=price_out_uusd)
        window = window_uusd(order, window_tokens, paid_uusd)
        given = {"price_out_uusd": price_out_uusd, "window_tokens": window_tokens, "paid_uusd": paid_uusd}
        return {**given, "window_uusd": window}

    for comment, *values in (
        ("eight tokens", 2_000_000, 8, 0),
        ("as many as two round trips take", 2_000_000, 100, 0),
        ("rounded up to whole micro-USD", 300_000, 8, 0),
        ("no more than 1,000 micro-USD", 2_000_000, 10_000, 0),
        ("a sixteenth of what was paid, where that is more", 2_000_000, 10_000, 160_000),
        ("... rounded down", 2_000_000, 10_000, 160_015),
        ("... and not where it is less", 2_000_000, 10_000, 15_999),
        ("three dear tokens", 300_000_000, 8, 0),
        ("one token that is worth more than all that", 5_000_000_000, 8, 0),
        ("an answer that costs nothing", 0, 8, 0),
        ("an answer that costs next to nothing", 1, 8, 0),
    ):
        yield valid(str(comment), **fields(*map(int, values)))
    yield invalid("each token rounded on its own", **{**fields(300_000, 8, 0), "window_uusd": 8})
    yield invalid("a sixteenth on top", **{**fields(2_000_000, 10_000, 160_000), "window_uusd": 11_000})


def _cuts() -> Iterator[Vector]:
    def fields(fee_bps: int, relay_bps: int, before_uusd: int, after_uusd: int) -> Vector:
        fees, relays = zip(*(cuts_uusd(total, fee_bps, relay_bps) for total in (before_uusd, after_uusd)), strict=True)
        fee_uusd, relay_uusd = fees[1] - fees[0], relays[1] - relays[0]
        given = {"fee_bps": fee_bps, "relay_bps": relay_bps, "before_uusd": before_uusd, "after_uusd": after_uusd}
        got = {"fee_uusd": fee_uusd, "relay_uusd": relay_uusd}
        return {**given, **got, "provider_uusd": after_uusd - before_uusd - fee_uusd - relay_uusd}

    for comment, *values in (
        ("no cuts", 0, 0, 0, 1_234),
        ("one in a hundred and one in twenty", 100, 500, 0, 1_234),
        ("one micro-USD more, of which nobody gets a part", 100, 500, 1_234, 1_235),
        ("one micro-USD more, of which the coordinator gets all", 100, 500, 1_299, 1_300),
        ("in small pieces it is the same: the first", 100, 500, 0, 99),
        ("in small pieces it is the same: the second", 100, 500, 99, 10_000),
        ("all at once", 100, 500, 0, 10_000),
        ("two cuts that would both grow, were both taken of the total", 5_000, 5_000, 1, 2),
        ("the fee is the whole, and nothing is left for a relay", 10_000, 0, 0, 77),
        ("the largest cap", 100, 2_000, 0, 10**12),
    ):
        yield valid(str(comment), **fields(*map(int, values)))
    rounded_up = fields(100, 500, 0, 1_234)
    yield invalid(
        "a fee rounded up", **{**rounded_up, "fee_uusd": 13, "provider_uusd": rounded_up["provider_uusd"] - 1}
    )
    whole = fields(100, 500, 0, 10_000)
    yield invalid(
        "a relay's part of the whole, in whole parts of what is left",
        **{**whole, "relay_uusd": whole["relay_uusd"] - 1, "provider_uusd": whole["provider_uusd"] + 1},
    )
