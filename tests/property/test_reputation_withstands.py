"""A thousand invented askers against what one asker saw itself: they change figures, and never the order."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ids import NodeId
from protocol.records import ModelOffer, Signed
from protocol.reputation import OTHERS_SHARE, Reputation, reliability
from tests.helpers_records import NOW_MS, OFFER, signing_key
from tests.helpers_reports import evidence, offers, report, report_entry

OURS = signing_key("ours").node
GOOD, BAD = signing_key("good"), signing_key("bad")
M = OFFER.name


@cache
def proof(provider: str, asker: str, number: int) -> Signed:
    """Signing is slow; the same receipts serve every example."""
    return evidence(signing_key(provider), signing_key(asker).node, number)


def told(known: Reputation, askers: int, receipts: int, *, lift: str, bury: str) -> None:
    """Askers who all say that one provider is perfect and the other one never works, each with receipts of both."""
    for number in range(askers):
        name = f"asker {number}"
        for job in range(receipts):
            lifted = report_entry(
                signing_key(lift),
                evidence=proof(lift, name, job),
                jobs_done=10**6,
                jobs_failed=0,
                first_token_ms=1,
                tokens_per_s_milli=10**9,
            )
            buried = report_entry(
                signing_key(bury),
                evidence=proof(bury, name, job),
                jobs_done=0,
                jobs_failed=10**6,
                first_token_ms=10**9,
                tokens_per_s_milli=1,
            )
            known.hear(report(signing_key(name), lifted, buried), offers, NOW_MS)


def own(known: Reputation, provider: NodeId, ok: int, bad: int) -> None:
    for _ in range(ok):
        known.job_done(provider, M, NOW_MS)
    for _ in range(bad):
        known.job_failed(provider, M, NOW_MS)


@pytest.mark.slow
def test_a_thousand_askers_neither_lift_the_bad_nor_bury_the_good() -> None:
    known = Reputation(OURS)
    own(known, GOOD.node, 9, 1)
    own(known, BAD.node, 4, 6)
    told(known, 1000, 1, lift="bad", bury="good")
    good, bad = (known.standing(key.node, M, NOW_MS) for key in (GOOD, BAD))
    assert good.reliability > 1.5 * bad.reliability
    # And where it was measured, speed is what it was measured to be.
    for _ in range(8):
        known.measured(GOOD.node, M, NOW_MS, first_token_s=0.2, tokens_per_s=60)
        known.measured(BAD.node, M, NOW_MS, first_token_s=4.0, tokens_per_s=3)
    good, bad = (known.standing(key.node, M, NOW_MS) for key in (GOOD, BAD))
    assert good.first_token_s < 0.5 < 2 < bad.first_token_s
    assert good.tokens_per_s > 30 > 8 > bad.tokens_per_s


@settings(max_examples=60, deadline=None)
@given(jobs=st.integers(8, 60), good_share=st.floats(0, 1), difference=st.floats(0, 1), askers=st.integers(1, 24))
def test_who_is_better_by_more_than_the_share_of_others_stays_better(
    jobs: int, good_share: float, difference: float, askers: int
) -> None:
    good_ok = round(jobs * good_share)
    bad_ok = round(good_ok - jobs * (OTHERS_SHARE + difference * (1 - OTHERS_SHARE)) - 1)
    if bad_ok < 0:
        return
    known = Reputation(OURS)
    own(known, GOOD.node, good_ok, jobs - good_ok)
    own(known, BAD.node, bad_ok, jobs - bad_ok)
    told(known, askers, 3, lift="bad", bury="good")
    good, bad = (known.standing(key.node, M, NOW_MS) for key in (GOOD, BAD))
    assert good.reliability > bad.reliability


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_quantile_knows_good_from_bad(ok: int, bad: int) -> None:
    assert reliability(ok + 1, bad) > reliability(ok, bad) > reliability(ok, bad + 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.booleans()), max_size=30))
def test_what_others_weigh_is_bounded_whatever_they_say(reports: list[tuple[int, int, bool]]) -> None:
    known = Reputation(OURS)
    for asker, number, is_good in reports:
        name = f"asker {asker}"
        entry = report_entry(GOOD, evidence=proof("good", name, number), jobs_done=is_good, jobs_failed=not is_good)
        known.hear(report(signing_key(name), entry), offers, NOW_MS)
    account = known.account(GOOD.node, M, NOW_MS)
    assert account.others_ok + account.others_bad <= 2 + 1e-9
    assert account.others_ok + account.others_bad <= 0.4 * len({asker for asker, _, _ in reports}) + 1e-9


def test_the_offer_of_the_helper_is_the_one_that_receipts_name() -> None:
    offer = offers(GOOD.node, M)
    assert isinstance(offer, ModelOffer)
    assert offer.fingerprint == OFFER.fingerprint
