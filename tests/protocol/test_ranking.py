"""protocol/ranking.py: the figures that rank candidates, and what separates their tiers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol.ranking import (
    SMALL_OUTPUT_TOKENS,
    SMALL_PROMPT_BYTES,
    STRANGER,
    WARM_FACTOR,
    Need,
    Rank,
    Standing,
    Tier,
    rank,
)
from protocol.records import FreePolicy
from tests.helpers_records import OFFER

SMALL = Need(1024, 100, True, None, None)
LARGE = replace(SMALL, output_tokens=SMALL_OUTPUT_TOKENS + 1)
KNOWN = Standing(jobs=20, has_served=True, reliability=0.8, first_token_s=0.5, tokens_per_s=50)


def ranked(
    standing: Standing = KNOWN,
    *,
    need: Need = SMALL,
    load: int = 0,
    wait_s: float | None = None,
    free: FreePolicy = FreePolicy.ALL,
) -> Rank:
    return rank(OFFER, free, load, wait_s, standing, need)


def test_the_score_is_the_expected_time_over_the_reliability() -> None:
    assert ranked().score_s == pytest.approx((0.5 + 100 / 50) / 0.8)
    assert ranked().expected_s == pytest.approx(0.5 + 100 / 50)
    assert ranked(load=4).score_s == pytest.approx((0.5 + 100 / 50) * 1.5 / 0.8)
    assert ranked(replace(KNOWN, is_warm=True)).score_s == pytest.approx(ranked().score_s / WARM_FACTOR)


def test_a_full_one_waits_as_long_as_it_says_or_for_a_whole_job() -> None:
    assert ranked(load=8).tier is Tier.FULL
    assert ranked(load=8).wait_s == pytest.approx((0.5 + 100 / 50) * 2)
    assert ranked(load=8, wait_s=7.0).wait_s == 7
    assert ranked(load=7, wait_s=7.0).wait_s == 0


def test_our_own_jobs_there_are_load_that_nobody_has_told_us_of() -> None:
    assert ranked(replace(KNOWN, open_jobs=OFFER.concurrency - 1)).load == 4
    full = ranked(replace(KNOWN, open_jobs=OFFER.concurrency))
    assert (full.load, full.tier) == (8, Tier.FULL)
    assert ranked(replace(KNOWN, open_jobs=9)).load == 8


def test_tiers_in_their_order() -> None:
    assert ranked().tier is Tier.READY
    assert ranked(STRANGER).tier is Tier.READY
    assert ranked(STRANGER, free=FreePolicy.KNOWN).tier is Tier.MAY_REFUSE
    assert ranked(KNOWN, free=FreePolicy.KNOWN).tier is Tier.READY
    assert ranked(STRANGER, need=LARGE).tier is Tier.NEWCOMER
    assert ranked(STRANGER, need=replace(SMALL, prompt_bytes=SMALL_PROMPT_BYTES + 1)).tier is Tier.NEWCOMER
    assert ranked(KNOWN, need=LARGE).tier is Tier.READY
    resting = ranked(replace(KNOWN, rest_s=9.0), load=8)
    assert (resting.tier, resting.wait_s) == (Tier.RESTING, 9.0)
    assert list(Tier) == sorted(Tier)


def test_price_counts_as_a_share_of_the_limit() -> None:
    offer = replace(OFFER, price_in_uusd=50, price_out_uusd=100)
    limited = replace(SMALL, is_free=False, price_in_uusd_max=100, price_out_uusd_max=100)
    free = rank(offer, FreePolicy.ALL, 0, None, KNOWN, SMALL)
    paid = rank(offer, FreePolicy.ALL, 0, None, KNOWN, limited)
    assert paid.score_s == pytest.approx(free.score_s * 1.75)
    assert (free.price_uusd, paid.price_uusd) == (0, 150)
    unlimited = rank(
        offer, FreePolicy.ALL, 0, None, KNOWN, replace(limited, price_in_uusd_max=None, price_out_uusd_max=None)
    )
    assert unlimited.score_s == free.score_s
    assert free.key < unlimited.key
