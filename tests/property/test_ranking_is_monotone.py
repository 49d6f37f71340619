"""Better in one figure and equal in the others never ranks behind, whatever the other figures are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.ranking import Need, Standing, rank
from protocol.records import FreePolicy, ModelOffer
from tests.helpers_records import OFFER

STANDINGS = st.builds(
    Standing,
    jobs=st.floats(0, 300),
    has_served=st.booleans(),
    reliability=st.floats(0.001, 1),
    first_token_s=st.floats(0.001, 1e5),
    tokens_per_s=st.floats(0.001, 1e5),
    open_jobs=st.integers(0, 20),
    rest_s=st.floats(0, 600),
    is_warm=st.booleans(),
)
LIMITS = st.none() | st.integers(0, 10**6)
NEEDS = st.builds(
    Need,
    prompt_bytes=st.integers(0, 10**6),
    output_tokens=st.integers(0, 32 * 1024),
    is_free=st.booleans(),
    price_in_uusd_max=LIMITS,
    price_out_uusd_max=LIMITS,
)
OFFERS = st.builds(
    lambda concurrency, price_in, price_out: replace(
        OFFER, concurrency=concurrency, price_in_uusd=price_in, price_out_uusd=price_out
    ),
    st.integers(1, 64),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
POLICIES = st.sampled_from(FreePolicy)
LOADS = st.integers(0, 8)
WAITS = st.none() | st.floats(0, 600)


@given(OFFERS, POLICIES, LOADS, LOADS, WAITS, STANDINGS, NEEDS)
def test_in_load(
    offer: ModelOffer, policy: FreePolicy, one: int, other: int, wait_s: float | None, standing: Standing, need: Need
) -> None:
    low, high = sorted((one, other))
    assert rank(offer, policy, low, wait_s, standing, need).key <= rank(offer, policy, high, wait_s, standing, need).key


@given(OFFERS, POLICIES, LOADS, WAITS, STANDINGS, NEEDS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_in_price(
    offer: ModelOffer,
    policy: FreePolicy,
    load: int,
    wait_s: float | None,
    standing: Standing,
    need: Need,
    more_in: int,
    more_out: int,
) -> None:
    dearer = replace(offer, price_in_uusd=offer.price_in_uusd + more_in, price_out_uusd=offer.price_out_uusd + more_out)
    assert (
        rank(offer, policy, load, wait_s, standing, need).key <= rank(dearer, policy, load, wait_s, standing, need).key
    )


@given(
    OFFERS,
    POLICIES,
    LOADS,
    WAITS,
    STANDINGS,
    NEEDS,
    st.floats(1, 100),
    st.sampled_from(["slower", "later", "less sure"]),
)
def test_in_what_was_measured(
    offer: ModelOffer,
    policy: FreePolicy,
    load: int,
    wait_s: float | None,
    standing: Standing,
    need: Need,
    factor: float,
    how: str,
) -> None:
    worse = {
        "slower": replace(standing, tokens_per_s=standing.tokens_per_s / factor),
        "later": replace(standing, first_token_s=standing.first_token_s * factor),
        "less sure": replace(standing, reliability=standing.reliability / factor),
    }[how]
    assert rank(offer, policy, load, wait_s, standing, need).key <= rank(offer, policy, load, wait_s, worse, need).key


@given(OFFERS, POLICIES, LOADS, WAITS, STANDINGS, NEEDS)
def test_in_what_is_known(
    offer: ModelOffer, policy: FreePolicy, load: int, wait_s: float | None, standing: Standing, need: Need
) -> None:
    """More jobs, an earlier one of ours, a warm prompt: none of it hurts. A rest, or more jobs of ours there, may."""
    at = rank(offer, policy, load, wait_s, standing, need).key
    for better in (
        replace(standing, jobs=standing.jobs + 5),
        replace(standing, has_served=True),
        replace(standing, is_warm=True),
        replace(standing, rest_s=0.0),
        replace(standing, open_jobs=0),
    ):
        assert rank(offer, policy, load, wait_s, better, need).key <= at
