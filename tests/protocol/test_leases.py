"""The rules of a lease: the window, what a payer signs, what a provider takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol import constants as c
from protocol.accounts import cuts_uusd
from protocol.codec import decode_record
from protocol.envelope import sign_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.ids import JobId, LeaseId
from protocol.jobs import cost_uusd
from protocol.leases import Meter, PayerSide, ProviderSide, lease_refusal, most_uusd, window_uusd
from protocol.money_records import LeaseRecord, VoucherRecord
from protocol.records import JobAcceptRecord, JobOpenRecord, Signed
from tests.helpers_records import JOB, NOW_MS, OFFER, PROVIDER, acceptance, order, receipt, signing_key

BANK = signing_key("bank")
PAYER = signing_key("payer")
LEASE = LeaseId(b"L" * 32)
HASH = bytes(32)
PRICED = replace(OFFER, price_in_uusd=1_000_000, price_out_uusd=2_000_000)


def lease(**changes: Any) -> LeaseRecord:
    """A lease of the test model for a tenth of a dollar."""
    record = LeaseRecord(
        version=1,
        coordinator=BANK.node,
        lease=LEASE,
        payer=PAYER.node,
        provider=PROVIDER.node,
        relay=None,
        relay_bps=0,
        fee_bps=0,
        cap_uusd=100_000,
        model=PRICED.name,
        fingerprint=PRICED.fingerprint,
        price_in_uusd=PRICED.price_in_uusd,
        price_out_uusd=PRICED.price_out_uusd,
        price_job_uusd=0,
        entry=1,
        issued_at_ms=NOW_MS,
        serve_until_ms=NOW_MS + 3_600_000,
        claim_by_ms=NOW_MS + 7_200_000,
        extensions=(),
    )
    return replace(record, **changes)


def paid_order(**changes: Any) -> JobOpenRecord:
    """An order under that lease."""
    fields = {
        "asker": PAYER.node,
        "lease": LEASE,
        "price_in_uusd": PRICED.price_in_uusd,
        "price_out_uusd": PRICED.price_out_uusd,
        "prepay_max_uusd": 100,
        **changes,
    }
    return order(**fields)


def accepted(**changes: Any) -> JobAcceptRecord:
    fields = {"lease": LEASE, "prompt_tokens": 17, "prefill_uusd": 17, "window_tokens": 8, "window_uusd": 16, **changes}
    return acceptance(**fields)


def voucher(paid_uusd: int, **changes: Any) -> Signed:
    """What the payer signs."""
    record = VoucherRecord(1, LEASE, PAYER.node, 1, paid_uusd, JOB, 1, 0, 0, HASH, ())
    return sign_record(replace(record, **changes), PAYER)


# ---------------------------------------------------------------- the window


@pytest.mark.parametrize(
    ("price_out_uusd", "window_tokens", "paid_uusd", "expected_uusd"),
    [
        (2_000_000, 8, 0, 16),  # eight tokens
        (2_000_000, 100, 0, 200),  # as many as two round trips take
        (2_000_000, 10_000, 0, 1_000),  # the fixed bound
        (2_000_000, 10_000, 160_000, 10_000),  # a sixteenth of what was paid
        (300_000_000, 8, 0, 1_000),  # a dear token: three of them
        (5_000_000_000, 8, 0, 5_000),  # one that is worth more than the bound
        (0, 8, 0, 0),  # an answer that costs nothing
        (1, 8, 0, 1),  # one that costs next to nothing
        (1_000_000_000, 10_000, 10**9, 10_000_000),  # prices are for a million tokens, and no more
    ],
)
def test_the_window(price_out_uusd: int, window_tokens: int, paid_uusd: int, expected_uusd: int) -> None:
    assert window_uusd(paid_order(price_out_uusd=price_out_uusd), window_tokens, paid_uusd) == expected_uusd


@given(st.integers(0, 10**9), st.integers(8, 10_000), st.integers(0, 10**9))
def test_the_window_is_one_token_at_least_and_otherwise_bounded(price: int, tokens: int, paid_uusd: int) -> None:
    ordered = paid_order(price_out_uusd=price)
    window = window_uusd(ordered, tokens, paid_uusd)
    one_token = -(-price // 1_000_000)
    assert one_token <= window <= max(one_token, c.WINDOW_UUSD_MIN, paid_uusd // c.WINDOW_PAID_SHARE)


# ---------------------------------------------------------------- orders under a lease


@pytest.mark.parametrize(
    ("ordered", "leased", "code"),
    [
        ({"asker": PROVIDER.node}, {}, Refusal.LEASE),
        ({}, {"provider": PAYER.node}, Refusal.LEASE),
        ({"model": "other"}, {}, Refusal.LEASE),
        ({"price_in_uusd": 999_999}, {}, Refusal.LEASE),
        ({"price_out_uusd": 1}, {}, Refusal.LEASE),
        ({"price_job_uusd": 1}, {}, Refusal.LEASE),
        ({}, {"fingerprint": bytes(32)}, Refusal.LEASE),
        ({"price_in_uusd": 999_999}, {"price_in_uusd": 999_999}, Refusal.PRICE),
        ({"expires_at_ms": NOW_MS + 3_600_001}, {}, Refusal.LEASE),
        ({}, {"issued_at_ms": NOW_MS + c.CLOCK_SKEW_MS_MAX + 1}, Refusal.CLOCK_SKEW),
        ({}, {"relay": PAYER.node, "relay_bps": 1}, Refusal.PRICE),
        ({}, {"relay": PAYER.node, "relay_bps": 10_000}, Refusal.PRICE),
        ({}, {"relay": PAYER.node, "relay_bps": 5_000, "fee_bps": 5_001}, Refusal.LEASE),
        ({}, {"relay": None, "relay_bps": 1}, Refusal.LEASE),
    ],
)
def test_every_refusal_of_a_lease(ordered: dict[str, Any], leased: dict[str, Any], code: Refusal) -> None:
    why = lease_refusal(lease(**leased), paid_order(**ordered), PRICED, NOW_MS)
    assert why is not None
    assert why[0] is code
    assert 0 < len(why[1]) <= c.TEXT_CHARACTERS_MAX


def test_a_good_order_and_one_at_a_higher_price_than_asked_are_taken() -> None:
    assert lease_refusal(lease(), paid_order(), PRICED, NOW_MS) is None
    cheaper = replace(PRICED, price_out_uusd=1)
    assert lease_refusal(lease(), paid_order(expires_at_ms=NOW_MS + 3_600_000), cheaper, NOW_MS) is None
    newest = lease(issued_at_ms=NOW_MS + c.CLOCK_SKEW_MS_MAX)
    assert lease_refusal(newest, paid_order(), PRICED, NOW_MS) is None


def test_the_part_of_a_relay_comes_on_top_of_the_price() -> None:
    """By the ledger's own arithmetic: what is left for the provider, before the coordinator's fee, is what it asked."""
    for price_in_uusd, taken in ((1_249_999, False), (1_250_000, True)):
        terms = {"price_in_uusd": price_in_uusd, "price_out_uusd": 2_500_000}
        shared = lease(relay=PAYER.node, relay_bps=2_000, **terms)
        why = lease_refusal(shared, paid_order(**terms), PRICED, NOW_MS)
        assert (why is None) is taken
        assert why is None or "relay" in why[1]
        total_uusd = cost_uusd(paid_order(**terms), 1_000_000_000, 0)
        kept_uusd = total_uusd - sum(cuts_uusd(total_uusd, 0, 2_000))
        assert (kept_uusd >= cost_uusd(PRICED, 1_000_000_000, 0)) is taken


def test_a_price_that_has_risen_is_no_relay_s_doing() -> None:
    cheap = {"price_in_uusd": 999_999}
    why = lease_refusal(lease(**cheap), paid_order(**cheap), PRICED, NOW_MS)
    assert why is not None
    assert "risen" in why[1]


def test_the_most_that_an_order_can_cost() -> None:
    assert most_uusd(paid_order(prepay_max_uusd=30, output_tokens_max=100)) == 30 + 200
    dear = paid_order(prepay_max_uusd=0, output_tokens_max=10_000, price_out_uusd=1_000_000_000)
    assert most_uusd(dear) == 10_000_000


# ---------------------------------------------------------------- the payer


def payer_side(**changes: Any) -> PayerSide:
    side = PayerSide(lease(), sign_record(lease(), BANK), PAYER, mark_uusd=10_000)
    for name, value in changes.items():
        setattr(side, name, value)
    return side


def test_a_new_lease_begins_with_nothing() -> None:
    payer = PayerSide(lease(), sign_record(lease(), BANK), PAYER)
    assert (payer.signed_uusd, payer.mark_uusd, payer.base_uusd, payer.sequence, payer.is_closing) == (
        0,
        0,
        0,
        0,
        False,
    )
    side = provider_side()
    assert (side.paid_uusd, side.claimed_uusd, side.vouched_tokens) == (0, 0, 0)
    assert (side.is_closed, side.is_final_wanted, side.in_use) == (False, False, False)
    made = Meter(side, paid_order())
    assert (made.base_uusd, made.prefill_uusd, made.promised_uusd, made.delivered_uusd) == (0, 0, 0, 0)


def test_a_prompt_may_cost_as_much_as_was_ordered() -> None:
    side = payer_side()
    side.accept(paid_order(), accepted(prompt_tokens=100, prefill_uusd=100), None)
    assert side.base_uusd == 0


def test_what_we_remember_ourselves_counts() -> None:
    side = payer_side(signed_uusd=500, sequence=12)
    side.accept(paid_order(), accepted(paid_before_uusd=500), voucher(500, sequence=9))
    assert (side.sequence, side.voucher) == (12, None)


def test_vouchers_are_totals_and_numbered() -> None:
    side = payer_side()
    side.accept(paid_order(), accepted(), None)
    totals = []
    for owed_uusd in (17, 20, 33):
        signed = side.pay(paid_order(), owed_uusd, 1, 2, HASH)
        assert signed is not None
        record = decode_record(signed.body, VoucherRecord)
        totals.append((record.sequence, record.paid_uusd))
    assert totals == [(1, 17), (2, 20), (3, 33)]
    assert side.left_uusd == 100_000 - 33


def test_a_lower_total_than_before_is_never_signed() -> None:
    side = payer_side(signed_uusd=50)
    side.accept(paid_order(), accepted(paid_before_uusd=20), None)
    signed = side.pay(paid_order(), 17, 0, 0, HASH)
    assert signed is not None
    assert decode_record(signed.body, VoucherRecord).paid_uusd == 50


@pytest.mark.parametrize("changes", [{"mark_uusd": 16}, {"record": lease(cap_uusd=16)}])
def test_nothing_is_signed_beyond_the_mark_or_the_cap(changes: dict[str, Any]) -> None:
    side = payer_side(**changes)
    side.accept(paid_order(), accepted(), None)
    assert side.pay(paid_order(), 17, 0, 0, HASH) is None
    assert side.signed_uusd == 0
    assert side.pay(paid_order(), 16, 0, 0, HASH) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"paid_before_uusd": 1},
        {"prefill_uusd": 18},
        {"prefill_uusd": 16},
        {"prompt_tokens": 101, "prefill_uusd": 101},
        {"window_tokens": 9},
        {"window_uusd": 17},
    ],
)
def test_an_acceptance_that_wants_too_much_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(RemoteProtocolError):
        payer_side().accept(paid_order(), accepted(**changes), None)


def test_a_window_is_earned_by_what_was_signed_for() -> None:
    """By the tokens of each job as they grow, whether its vouchers repeat themselves or not."""
    side = payer_side()
    other = paid_order(job=JobId(b"2" * 16))
    assert (side.vouched_tokens, side.job_tokens, side.window_tokens_max) == (0, 0, 8)
    seen = []
    for ordered, tokens in ((paid_order(), 5), (paid_order(), 20), (paid_order(), 20), (other, 3), (other, 1)):
        side.pay(ordered, 100, 1, tokens, HASH)
        seen.append((side.vouched_tokens, side.job_tokens, side.window_tokens_max))
    assert seen == [(5, 5, 8), (20, 20, 20), (20, 20, 20), (23, 3, 23), (23, 1, 23)]
    side.accept(other, accepted(window_tokens=23, window_uusd=46, paid_before_uusd=100), None)


def test_a_job_reaches_as_far_as_is_signed_of_it_and_one_window() -> None:
    assert payer_side(base_uusd=100, signed_uusd=150).reach_uusd == 50 + 16


@pytest.mark.parametrize(("price_out_uusd", "tokens"), [(2_000_000, 500_000), (1, 10**12), (0, 10**12)])
def test_what_was_forgotten_is_reckoned_from_the_money(price_out_uusd: int, tokens: int) -> None:
    side = payer_side(record=lease(price_out_uusd=price_out_uusd))
    signed = voucher(1_000_000)
    side.recall(decode_record(signed.body, VoucherRecord), signed)
    assert side.vouched_tokens == tokens
    side.vouched_tokens = 2 * tokens
    side.recall(decode_record(signed.body, VoucherRecord), signed)
    assert side.vouched_tokens == 2 * tokens


def test_our_own_voucher_reminds_us_of_what_we_signed() -> None:
    side = payer_side()
    side.accept(paid_order(), accepted(paid_before_uusd=500), voucher(500, sequence=9))
    assert (side.signed_uusd, side.sequence, side.base_uusd) == (500, 9 + 1_048_576, 500)


@pytest.mark.parametrize(
    "proof",
    [
        voucher(500, lease=LeaseId(bytes(32))),
        sign_record(VoucherRecord(1, LEASE, PROVIDER.node, 1, 500, JOB, 1, 0, 0, HASH, ()), PROVIDER),
    ],
)
def test_a_voucher_that_is_not_ours_proves_nothing(proof: Signed) -> None:
    with pytest.raises(RemoteProtocolError):
        payer_side().accept(paid_order(), accepted(paid_before_uusd=500), proof)


# ---------------------------------------------------------------- the provider


def provider_side() -> ProviderSide:
    return ProviderSide(lease(), sign_record(lease(), BANK))


def test_a_lease_is_untouched_until_something_is_delivered_paid_or_credited() -> None:
    side = provider_side()
    assert side.is_untouched
    assert side.owed_uusd == 0
    for name, value in (("voucher", voucher(1)), ("owed_uusd", 1), ("claimed_uusd", 1)):
        touched = provider_side()
        setattr(touched, name, value)
        assert not touched.is_untouched, name


@pytest.mark.parametrize(("owed_uusd", "is_in_debt"), [(9, False), (10, False), (11, True)])
def test_a_debt_is_what_was_delivered_and_not_paid(owed_uusd: int, is_in_debt: bool) -> None:
    side = provider_side()
    side.paid_uusd, side.owed_uusd = 10, owed_uusd
    assert side.is_in_debt is is_in_debt


@pytest.mark.parametrize("name", ["is_closed", "is_final_wanted"])
def test_a_lease_is_given_up_when_it_is_over_or_shall_be(name: str) -> None:
    side = provider_side()
    assert not side.is_given_up
    setattr(side, name, True)
    assert side.is_given_up


@pytest.mark.parametrize(("paid_uusd", "claimed_uusd", "expected"), [(30, 10, 20), (10, 10, 0), (10, 30, 0)])
def test_what_is_unclaimed_is_never_less_than_nothing(paid_uusd: int, claimed_uusd: int, expected: int) -> None:
    side = provider_side()
    side.paid_uusd, side.claimed_uusd = paid_uusd, claimed_uusd
    assert side.unclaimed_uusd == expected


def test_the_highest_voucher_is_kept_in_any_order() -> None:
    side = provider_side()
    for paid_uusd in (5, 9, 3, 9, 8):
        side.take(voucher(paid_uusd))
    assert side.paid_uusd == 9
    assert side.voucher == voucher(9)


def test_of_two_vouchers_for_as_much_the_first_is_kept_and_the_whole_cap_may_be_paid() -> None:
    side = provider_side()
    side.take(voucher(100_000))
    side.take(voucher(100_000, sequence=2))
    assert (side.paid_uusd, side.voucher) == (100_000, voucher(100_000))
    side.claimed_uusd = 30_000
    assert side.unclaimed_uusd == 70_000


def test_the_receipt_of_a_job_of_this_lease_goes_with_the_claim() -> None:
    side = provider_side()
    ours, other = receipt(lease=LEASE), receipt(lease=LeaseId(bytes(32)))
    side.take_receipt(ours, sign_record(ours, PROVIDER))
    side.take_receipt(other, sign_record(other, PROVIDER))
    assert side.receipt == sign_record(ours, PROVIDER)


@pytest.mark.parametrize(
    "signed",
    [
        voucher(5, lease=LeaseId(bytes(32))),
        sign_record(VoucherRecord(1, LEASE, PROVIDER.node, 1, 5, JOB, 1, 0, 0, HASH, ()), PROVIDER),
        voucher(100_001),
        Signed(voucher(5).body, voucher(6).signature),
    ],
)
def test_a_voucher_that_is_worth_nothing_is_refused(signed: Signed) -> None:
    side = provider_side()
    with pytest.raises(RemoteProtocolError):
        side.take(signed)
    assert (side.paid_uusd, side.voucher) == (0, None)


def meter(**changes: Any) -> Meter:
    """A job whose prompt costs 17 and is counted at second 10."""
    made = Meter(provider_side(), paid_order(**changes))
    made.accept(17, HASH, 10.0)
    return made


def test_nothing_is_sent_before_the_prompt_is_paid() -> None:
    made = meter()
    assert not made.is_prompt_paid
    assert not made.may_send(17)
    made.take(voucher(16), 10.1)
    assert not made.may_send(17)
    made.take(voucher(17), 10.1)
    assert made.may_send(17 + 16)
    assert not made.may_send(17 + 17)


def test_a_job_begins_at_what_was_paid_before() -> None:
    made = Meter(provider_side(), paid_order())
    made.side.take(voucher(1_000, job=JobId(bytes(16))))
    made.accept(17, HASH, 10.0)
    assert (made.base_uusd, made.paid_uusd, made.is_prompt_paid) == (1_000, 0, False)
    assert made.total_uusd == 1_000 + 17


def test_the_window_follows_the_round_trip_and_the_rate_and_does_not_shrink() -> None:
    made = meter()
    assert made.window_tokens == c.WINDOW_TOKENS_MIN
    made.take(voucher(17), 10.25)
    made.measure(100, 1.0)
    assert made.window_tokens == c.WINDOW_TOKENS_MIN
    made.side.vouched_tokens = 60
    assert made.window_tokens == 50
    assert made.window_uusd == 100
    made.measure(10, 1.0)
    assert made.window_tokens == c.WINDOW_TOKENS_MIN
    assert made.window_uusd == 100


def test_the_next_job_of_the_lease_begins_with_what_this_one_learnt() -> None:
    first = meter()
    first.take(voucher(17), 10.25)
    first.measure(100, 1.0)
    first.side.vouched_tokens = 60
    second = Meter(first.side, paid_order())
    second.accept(17, HASH, 20.0)
    assert second.window_tokens == 50


def test_a_payer_earns_its_window_by_what_it_signs_for() -> None:
    made = meter()
    made.take(voucher(17), 20.0)
    made.measure(1_000, 1.0)
    for number, tokens in enumerate((8, 16, 32), 1):
        made.sent(number, bytes([number]) * 32, tokens, 17, 20.0)
        signed = voucher(17 + 2 * tokens, chunks=number, output_tokens=tokens, running_hash=bytes([number]) * 32)
        made.take(signed, 30.0)
        assert made.window_tokens == tokens
    made.sent(4, b"4" * 32, 32, 17, 30.0)
    again = voucher(17 + 65, chunks=4, output_tokens=32, running_hash=b"4" * 32)
    made.take(again, 31.0)
    assert made.side.vouched_tokens == 32


def test_a_voucher_states_what_was_sent() -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 1, 19, 10.2)
    made.sent(2, b"2" * 32, 2, 21, 10.3)
    made.take(voucher(21, chunks=2, output_tokens=2, running_hash=b"2" * 32), 10.4)
    with pytest.raises(RemoteProtocolError):
        made.take(voucher(23, chunks=3, running_hash=b"3" * 32), 10.5)


def test_a_voucher_says_whether_it_pays_more() -> None:
    made = meter()
    assert [made.take(voucher(paid_uusd), 10.1) for paid_uusd in (17, 16, 17, 18)] == [True, False, False, True]


def test_more_than_a_window_is_never_sent() -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 1, 17 + 16, 10.2)
    with pytest.raises(AssertionError, match="I5"):
        made.sent(2, b"2" * 32, 2, 17 + 17, 10.3)


def test_round_trips_are_smoothed_and_the_rate_is_the_last() -> None:
    made = meter()
    made.take(voucher(17), 10.25)
    assert made.round_trip_s == 0.25
    made.sent(1, b"1" * 32, 1, 19, 11.0)
    made.take(voucher(19, chunks=1, output_tokens=1, running_hash=b"1" * 32), 11.5)
    assert made.round_trip_s == made.side.round_trip_s == 0.75 * 0.25 + 0.25 * 0.5
    made.measure(100, 2.0)
    assert made.tokens_per_s == made.side.tokens_per_s == 50.0
    made.measure(100, 0.0)
    assert made.tokens_per_s == 50.0


def test_a_voucher_for_another_answer_is_a_broken_protocol() -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 1, 19, 10.2)
    with pytest.raises(RemoteProtocolError):
        made.take(voucher(19, chunks=1, output_tokens=1, running_hash=b"x" * 32), 10.3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"job": JobId(bytes(16))},
        {"attempt": 2},
        {"chunks": 3},
        {"chunks": 1, "output_tokens": 1},
        {"output_tokens": 3},
        {"output_tokens": 5},
        {"output_tokens": 2**32 - 1},
        {"running_hash": b"1" * 32},
    ],
)
def test_nothing_is_kept_of_a_voucher_for_something_else(wrong: dict[str, Any]) -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 2, 21, 10.2)
    made.sent(2, b"2" * 32, 4, 25, 10.2)
    good = {"chunks": 2, "output_tokens": 4, "running_hash": b"2" * 32}
    made.take(voucher(20, **good), 10.3)
    with pytest.raises(RemoteProtocolError):
        made.take(voucher(25, **good | wrong), 10.3)
    assert (made.side.paid_uusd, made.side.voucher) == (20, voucher(20, **good))
    assert made.side.vouched_tokens == 4


def test_a_voucher_that_was_overtaken_says_nothing_new() -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 2, 21, 10.2)
    made.take(voucher(21, chunks=1, output_tokens=2, running_hash=b"1" * 32), 10.3)
    assert not made.take(voucher(17), 10.4)
    # As much as was paid, for less than arrived, is nothing new either; more is.
    assert not made.take(voucher(21), 10.4)
    with pytest.raises(RemoteProtocolError, match="pays more for less"):
        made.take(voucher(22), 10.4)
    assert made.side.paid_uusd == 21


def test_more_vouchers_than_there_is_to_pay_for_are_not_checked() -> None:
    made = meter()
    for paid_uusd in range(4):
        made.take(voucher(paid_uusd), 10.1)
    with pytest.raises(RemoteProtocolError):
        made.take(voucher(4), 10.1)
    assert made.side.paid_uusd == 3


def test_each_chunk_is_paid_for_in_two_vouchers_at_most() -> None:
    made = meter()
    made.take(voucher(17), 10.1)
    made.sent(1, b"1" * 32, 1, 19, 10.2)
    for _ in range(5):
        made.take(voucher(17), 10.3)
    with pytest.raises(RemoteProtocolError):
        made.take(voucher(17), 10.3)


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 40))
def test_as_many_tokens_are_counted_as_fit(sent_tokens: int, more_tokens: int, paid_tokens: int) -> None:
    made = meter()
    made.take(voucher(17 + 2 * paid_tokens), 10.1)
    wanted = sent_tokens + more_tokens
    fitting = made.tokens_that_fit(17, sent_tokens, wanted)
    assert sent_tokens <= fitting <= wanted
    if fitting > sent_tokens:
        assert made.may_send(cost_uusd(made.order, 17, fitting))
    if fitting < wanted:
        assert not made.may_send(cost_uusd(made.order, 17, fitting + 1))
