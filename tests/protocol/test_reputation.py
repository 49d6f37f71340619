"""protocol/reputation.py: what our jobs taught us counts in full, the word of others within limits, and claims not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import reputation as module
from protocol.envelope import sign_record
from protocol.ids import NodeId
from protocol.quantiles import beta_quantile
from protocol.ranking import STRANGER
from protocol.records import ModelOffer, Outcome, Signed
from protocol.reputation import HALF_LIFE_MS, JOBS_WEIGHT_MAX, Reputation, reliability
from tests.helpers_records import ASKER, NOW_MS, OFFER, PROVIDER, order, receipt, signing_key
from tests.helpers_reports import evidence, offers, report, report_entry

OURS = signing_key("ours").node
P, M = PROVIDER.node, OFFER.name
DAY_MS = 24 * 60 * 60 * 1000


def experienced(ok: int = 0, bad: int = 0, provider: NodeId = P) -> Reputation:
    known = Reputation(OURS)
    add(known, ok, bad, provider)
    return known


def add(known: Reputation, ok: int = 0, bad: int = 0, provider: NodeId = P) -> None:
    for _ in range(ok):
        known.job_done(provider, M, NOW_MS)
    for _ in range(bad):
        known.job_failed(provider, M, NOW_MS)


def hear(known: Reputation, name: str = "other", *, number: int = 1, at_ms: int = NOW_MS, **changes: Any) -> int:
    """One report with one receipt; gives how many entries counted."""
    asker = signing_key(name)
    entry = report_entry(evidence=evidence(PROVIDER, asker.node, number, accepted_at_ms=at_ms), **changes)
    return len(known.hear(report(asker, entry), offers, at_ms))


# ---------------------------------------------------------------- our own jobs


def test_of_a_stranger_nothing_is_known() -> None:
    assert Reputation(OURS).standing(P, M, NOW_MS) == STRANGER
    assert Reputation(OURS).account(P, M, NOW_MS).standing == STRANGER
    assert reliability(0, 0) == pytest.approx(0.05)


def test_reliability_is_the_quantile_to_a_hundredth() -> None:
    for ok, bad in ((1, 0), (0, 1), (3.3, 0.4), (19.97, 2.03), (200, 0)):
        assert reliability(ok, bad) == pytest.approx(beta_quantile(0.05, ok + 1, bad + 1), abs=0.01)


def test_jobs_count_and_refusals_do_not() -> None:
    known = experienced(8, 2)
    standing = known.standing(P, M, NOW_MS)
    assert (standing.jobs, standing.has_served) == (10, True)
    assert standing.reliability == reliability(8, 2)
    known.refused(P, M, NOW_MS)
    assert known.standing(P, M, NOW_MS) == standing
    assert known.account(P, M, NOW_MS).refused == 1


def test_jobs_that_measured_nothing_leave_the_assumed_speed_as_it_was() -> None:
    for known in (experienced(bad=1), Reputation(OURS)):
        known.refused(P, M, NOW_MS)
        standing = known.standing(P, M, NOW_MS)
        assert (standing.first_token_s, standing.tokens_per_s) == (STRANGER.first_token_s, STRANGER.tokens_per_s)


def test_silence_is_a_failure_that_is_counted_apart() -> None:
    known = experienced(8)
    known.was_silent(P, M, NOW_MS)
    account = known.account(P, M, NOW_MS)
    assert (account.bad, account.silent) == (1, 1)
    assert account.standing.reliability == reliability(8, 1)


def test_models_and_providers_are_apart() -> None:
    known = experienced(8)
    assert known.standing(P, "other", NOW_MS) == STRANGER
    assert known.standing(signing_key("x").node, M, NOW_MS) == STRANGER


def test_the_past_fades_by_half_in_fourteen_days() -> None:
    known = experienced(8, 4)
    account = known.account(P, M, NOW_MS + HALF_LIFE_MS)
    assert (account.ok, account.bad) == (pytest.approx(4), pytest.approx(2))
    known.job_done(P, M, NOW_MS + HALF_LIFE_MS)
    assert known.account(P, M, NOW_MS + HALF_LIFE_MS).ok == pytest.approx(5)
    assert not known.standing(P, M, NOW_MS + 10 * HALF_LIFE_MS).has_served


def test_a_clock_that_was_set_back_neither_takes_nor_adds() -> None:
    known = experienced(8)
    assert known.account(P, M, NOW_MS - 10 * HALF_LIFE_MS).ok == 8
    known.job_done(P, M, NOW_MS - DAY_MS)
    assert known.account(P, M, NOW_MS - DAY_MS).ok == 9


def test_a_long_past_does_not_hide_that_somebody_has_turned_bad() -> None:
    known = experienced(5 * int(JOBS_WEIGHT_MAX))
    assert known.standing(P, M, NOW_MS).jobs == pytest.approx(JOBS_WEIGHT_MAX)
    add(known, bad=int(JOBS_WEIGHT_MAX))
    assert known.standing(P, M, NOW_MS).reliability < 0.4


def test_speed_is_a_mean_that_the_first_measurement_begins_and_later_ones_move() -> None:
    known = Reputation(OURS)
    for _ in range(50):
        known.measured(P, M, NOW_MS, first_token_s=0.2, tokens_per_s=80)
    standing = known.standing(P, M, NOW_MS)
    assert standing.first_token_s == pytest.approx(0.2, rel=0.25)
    assert standing.tokens_per_s == pytest.approx(80, rel=0.25)
    for _ in range(30):
        known.measured(P, M, NOW_MS, first_token_s=2.0, tokens_per_s=8)
    standing = known.standing(P, M, NOW_MS)
    assert standing.first_token_s == pytest.approx(2.0, rel=0.25)
    assert standing.tokens_per_s == pytest.approx(8, rel=0.25)


def test_one_freak_measurement_moves_little_and_none_breaks_it() -> None:
    known = Reputation(OURS)
    for _ in range(20):
        known.measured(P, M, NOW_MS, first_token_s=0.2, tokens_per_s=80)
    known.measured(P, M, NOW_MS, first_token_s=0.0, tokens_per_s=1e30)
    standing = known.standing(P, M, NOW_MS)
    assert standing.first_token_s > 0.08
    assert standing.tokens_per_s < 260
    known.measured(P, M, NOW_MS, first_token_s=1.0, tokens_per_s=None)
    assert known.standing(P, M, NOW_MS).tokens_per_s == pytest.approx(standing.tokens_per_s)


def test_favourites_are_the_last_that_did_a_job() -> None:
    known = Reputation(OURS)
    nodes = [signing_key(str(number)).node for number in range(module.FAVOURITES_PER_MODEL + 2)]
    for node in nodes:
        known.job_done(node, M, NOW_MS)
    known.job_done(nodes[2], M, NOW_MS)
    assert known.favourites(M) == [*nodes[3:], nodes[2]]
    assert known.favourites("other") == []
    known.job_done(P, "other", NOW_MS)
    assert known.favourites("other") == [P]
    assert known.favourites(None) == [*nodes[4:], nodes[2], P]


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_MAX", 3)
    known = Reputation(OURS)
    for number in range(5):
        known.job_done(NodeId(bytes([number]) * 32), M, NOW_MS)
    assert known.standing(NodeId(b"\x01" * 32), M, NOW_MS) == STRANGER
    assert known.standing(NodeId(b"\x02" * 32), M, NOW_MS).jobs == 1
    assert len(known.take_changed()) == 3


def test_what_is_saved_is_the_same_after_a_restart() -> None:
    known = experienced(5, 1)
    known.measured(P, M, NOW_MS, first_token_s=0.2, tokens_per_s=80)
    known.was_silent(P, M, NOW_MS)
    known.refused(P, M, NOW_MS)
    saved = known.take_changed()
    assert known.take_changed() == []
    again = Reputation(OURS)
    again.restore(saved)
    for at_ms in (NOW_MS, NOW_MS + 3 * DAY_MS):
        assert again.account(P, M, at_ms) == known.account(P, M, at_ms)
    assert again.favourites(M) == [P]
    assert again.take_changed() == []


# ---------------------------------------------------------------- the word of others


def test_a_report_with_a_receipt_counts_a_little() -> None:
    known = Reputation(OURS)
    assert hear(known) == 1
    account = known.account(P, M, NOW_MS)
    assert 0 < account.others_ok <= 0.4
    assert (account.others_bad, account.askers, account.ok) == (0, 1, 0)
    assert account.standing.reliability > STRANGER.reliability


def test_without_a_receipt_a_claim_has_no_effect() -> None:
    known = Reputation(OURS)
    assert known.hear(report(ASKER, report_entry(jobs_done=1_000_000, first_token_ms=1)), offers, NOW_MS) == []
    assert known.standing(P, M, NOW_MS) == STRANGER


def forged() -> list[tuple[str, Signed]]:
    theirs = evidence(PROVIDER, ASKER.node)
    return [
        ("a signature that is none", Signed(theirs.body, bytes(64))),
        ("no receipt at all", Signed(b"\x90", bytes(64))),
        ("another record", sign_record(order(), ASKER)),
        ("somebody else's receipt", evidence(PROVIDER, signing_key("somebody").node)),
        ("another provider's receipt", evidence(signing_key("q"), ASKER.node)),
        ("other weights", evidence(PROVIDER, ASKER.node, fingerprint=b"\x01" * 32)),
        ("long ago", evidence(PROVIDER, ASKER.node, accepted_at_ms=NOW_MS - DAY_MS - 1)),
        ("from the future", evidence(PROVIDER, ASKER.node, accepted_at_ms=NOW_MS + 60_001)),
    ]


@pytest.mark.parametrize(("what", "proof"), forged(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_proves_nothing_counts_nothing(what: str, proof: Signed) -> None:
    known = Reputation(OURS)
    assert known.hear(report(ASKER, report_entry(evidence=proof)), offers, NOW_MS) == [], what
    assert known.standing(P, M, NOW_MS) == STRANGER


def test_nobody_vouches_for_himself_and_nobody_tells_us_about_us() -> None:
    known = Reputation(OURS)
    own = report_entry(evidence=evidence(PROVIDER, PROVIDER.node))
    assert known.hear(report(PROVIDER, own), offers, NOW_MS) == []
    ours = signing_key("ours")
    about_us = report_entry(ours, evidence=evidence(ours, ASKER.node))
    assert known.hear(report(ASKER, about_us), offers, NOW_MS) == []
    from_us = report_entry(evidence=evidence(PROVIDER, ours.node))
    assert known.hear(report(ours, from_us), offers, NOW_MS) == []


def test_unknown_providers_and_models_are_left_out_unread() -> None:
    def nobody(_provider: NodeId, _model: str) -> ModelOffer | None:
        return None

    known = Reputation(OURS)
    entry = report_entry(evidence=evidence(PROVIDER, ASKER.node))
    assert known.hear(report(ASKER, entry), nobody, NOW_MS) == []
    assert known.hear(report(ASKER, replace(entry, model="other")), offers, NOW_MS) == []


def test_weights_that_nobody_knows_tie_no_receipt() -> None:
    def unknown(_provider: NodeId, _model: str) -> ModelOffer | None:
        return replace(OFFER, fingerprint=bytes(32))

    entry = report_entry(evidence=evidence(PROVIDER, ASKER.node, fingerprint=b"\x01" * 32))
    assert len(Reputation(OURS).hear(report(ASKER, entry), unknown, NOW_MS)) == 1


def test_each_receipt_counts_once() -> None:
    known = Reputation(OURS)
    assert hear(known, number=1) == 1
    before = known.account(P, M, NOW_MS)
    assert hear(known, number=1) == 0
    assert known.account(P, M, NOW_MS) == before
    # The same job shown for another model is the same receipt.
    shown = report_entry(evidence=evidence(PROVIDER, signing_key("other").node), model="second")
    assert known.hear(report(signing_key("other"), shown), lambda _p, _m: OFFER, NOW_MS) == []


def test_one_receipt_is_one_job_whatever_is_said_of_it() -> None:
    """Its asker may say how the jobs went, not how many there were."""
    claims = [{"jobs_done": 10**6}, {"jobs_done": 1}, {"jobs_done": 0}]
    weights = []
    for claim in claims:
        known = Reputation(OURS)
        assert hear(known, **claim) == 1
        weights.append(known.account(P, M, NOW_MS).others_ok)
    assert weights[0] == weights[1] == weights[2]


def test_a_failure_that_the_provider_signed_is_one() -> None:
    known = Reputation(OURS)
    proof = evidence(PROVIDER, ASKER.node, outcome=Outcome.FAILED)
    entry = report_entry(evidence=proof, jobs_done=0, jobs_failed=0)
    assert len(known.hear(report(ASKER, entry), offers, NOW_MS)) == 1
    account = known.account(P, M, NOW_MS)
    assert (account.others_ok, account.others_bad > 0) == (0, True)


def test_no_asker_weighs_more_than_a_fifth_of_all_others() -> None:
    known = Reputation(OURS)
    for number in range(50):
        hear(known, number=number)
    alone = known.account(P, M, NOW_MS).others_ok
    assert alone == pytest.approx(module.OTHERS_JOBS_MIN / 5)
    for name in ("b", "c", "d", "e", "f", "g"):
        for number in range(50):
            hear(known, name, number=number)
    assert known.account(P, M, NOW_MS).others_ok == pytest.approx(module.OTHERS_JOBS_MIN)


def test_all_others_weigh_a_quarter_of_what_we_saw() -> None:
    known = experienced(40, 40)
    for name in "abcdefgh":
        for number in range(20):
            hear(known, name, number=number, jobs_done=1, jobs_failed=0)
    account = known.account(P, M, NOW_MS)
    assert account.others_ok == pytest.approx(20)
    assert account.standing.jobs == pytest.approx(100)


def test_the_word_of_others_fades_too() -> None:
    known = Reputation(OURS)
    hear(known)
    later = known.account(P, M, NOW_MS + 10 * HALF_LIFE_MS)
    assert later.others_ok < 0.01


def test_what_others_measured_moves_the_guess_about_a_stranger_and_no_further() -> None:
    for told_ms, told_rate, lowest, highest in ((10, 10**9, 0.4, 1.0), (10**6, 1, 1.0, 2.5)):
        known = Reputation(OURS)
        for name in "abcdefgh":
            hear(known, name, first_token_ms=told_ms, tokens_per_s_milli=told_rate)
        standing = known.standing(P, M, NOW_MS)
        assert lowest <= standing.first_token_s <= highest
        assert STRANGER.tokens_per_s / 2.5 <= standing.tokens_per_s <= STRANGER.tokens_per_s * 2.5
    for _ in range(20):
        known.measured(P, M, NOW_MS, first_token_s=0.1, tokens_per_s=100)
    assert known.standing(P, M, NOW_MS).first_token_s < 0.25


def test_the_middle_of_what_others_measured_counts() -> None:
    known = Reputation(OURS)
    for name, told_ms in (("a", 700), ("b", 800), ("c", 10**6)):
        hear(known, name, first_token_ms=told_ms)
    assert known.standing(P, M, NOW_MS).first_token_s == pytest.approx(0.8**0.5)


def test_others_are_bounded_and_never_push_out_what_we_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARD_MAX", 2)
    known = experienced(3, provider=signing_key("p0").node)
    for number in range(5):
        provider = signing_key(f"p{number}")
        entry = report_entry(provider, evidence=evidence(provider, ASKER.node, number))
        assert len(known.hear(report(ASKER, entry), offers, NOW_MS)) == 1
    assert known.standing(signing_key("p1").node, M, NOW_MS) == STRANGER
    assert known.standing(signing_key("p4").node, M, NOW_MS) != STRANGER
    assert known.account(signing_key("p0").node, M, NOW_MS).ok == 3


def test_a_receipt_is_judged_by_its_bytes() -> None:
    """The helper's receipts are real ones: altered in one field they prove nothing."""
    good = evidence(PROVIDER, ASKER.node)
    bad = Signed(good.body.replace(receipt().running_hash, b"\x56" * 32), good.signature)
    assert bad.body != good.body
    assert Reputation(OURS).hear(report(ASKER, report_entry(evidence=bad)), offers, NOW_MS) == []
