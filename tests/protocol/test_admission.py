"""Which orders a provider takes, and the code of every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.admission import FREE_RUNS_PER_STRANGER_MAX, SHARES_OF_MEMORY, Admission, Held
from protocol.errors import Refusal
from protocol.ids import JobId, NodeId
from protocol.records import Availability, FreePolicy, JobOpenRecord, Kind, ModelOffer, Role
from tests.helpers_machines import now, offer
from tests.helpers_records import ASKER, NOW_MS, OFFER, PROVIDER, order, signing_key

SOMEBODY = signing_key("somebody").node


def nothing_pays(*_: object) -> tuple[Refusal, str]:
    """What becomes of paid orders where this machine alone is tested."""
    return Refusal.LEASE, "nothing pays here"


def admission_of(**changes: Any) -> Admission:
    admission = Admission(PROVIDER.node, NOW_MS - 1000, nothing_pays)
    admission.offer = offer(**changes)
    return admission


def ask(
    admission: Admission,
    wanted: JobOpenRecord | None = None,
    *,
    peer: NodeId = ASKER.node,
    local: bool = False,
    running: tuple[Held, ...] = (),
    network: str = "",
    at_s: float = 0.0,
) -> Refusal | None:
    """The code of the refusal, or None for an order that is admitted."""
    wanted = wanted or order()
    answer = admission.admit(wanted, None, peer, local, running, now(at_s))
    why = admission.remember(wanted, network, now(at_s)) if isinstance(answer, ModelOffer) else answer
    if why is None:
        return None
    code, text = why
    assert 0 < len(text) <= c.TEXT_CHARACTERS_MAX
    return code


def test_a_good_order_is_admitted() -> None:
    assert ask(admission_of()) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"provider": SOMEBODY}, Refusal.WRONG_PROVIDER),
        ({"created_at_ms": NOW_MS - c.JOB_OPEN_AGE_MS_MAX - 1}, Refusal.STALE),
        ({"created_at_ms": NOW_MS - 1001}, Refusal.STALE),
        ({"created_at_ms": NOW_MS + c.CLOCK_SKEW_MS_MAX + 1, "expires_at_ms": NOW_MS + 70_000}, Refusal.CLOCK_SKEW),
        ({"expires_at_ms": NOW_MS}, Refusal.STALE),
        ({"expires_at_ms": NOW_MS + c.JOB_LIFETIME_MS_MAX + 1}, Refusal.BAD_REQUEST),
        ({"model": "other"}, Refusal.NO_MODEL),
        ({"fingerprint": b"\x99" * 32}, Refusal.NO_MODEL),
        ({"kind": Kind.EMBEDDING}, Refusal.UNSUPPORTED),
        ({"kind": Kind.UNKNOWN}, Refusal.UNSUPPORTED),
        ({"lease": bytes(32)}, Refusal.LEASE),
        ({"price_out_uusd": 1}, Refusal.LEASE),
        ({"sealed_bytes": 300_000}, Refusal.TOO_LARGE),
        ({"output_tokens_max": 0}, Refusal.BAD_REQUEST),
    ],
)
def test_every_refusal_of_an_order(changes: dict[str, Any], code: Refusal) -> None:
    admission = Admission(PROVIDER.node, NOW_MS - 1000, nothing_pays)
    if "created_at_ms" in changes and changes["created_at_ms"] < NOW_MS - 1001:
        admission = Admission(PROVIDER.node, 0, nothing_pays)  # so that age is the only reason
    admission.offer = offer()
    assert ask(admission, order(**changes)) is code


def test_the_limits_of_age_themselves_are_allowed() -> None:
    admission = Admission(PROVIDER.node, 0, nothing_pays)
    admission.offer = offer()
    oldest = NOW_MS - c.JOB_OPEN_AGE_MS_MAX
    assert ask(admission, order(created_at_ms=oldest)) is None
    ahead = NOW_MS + c.CLOCK_SKEW_MS_MAX
    assert ask(admission, order(job=JobId(b"\x01" * 16), created_at_ms=ahead, expires_at_ms=ahead + 1)) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"role": Role.CLIENT}, Refusal.NO_MODEL),
        ({"availability": Availability.DRAINING}, Refusal.DRAINING),
        ({"availability": Availability.OFFLINE}, Refusal.DRAINING),
        ({"models": ()}, Refusal.NO_MODEL),
        ({"free_policy": FreePolicy.KNOWN}, Refusal.NOT_FREE),
        ({"free_policy": FreePolicy.NOBODY}, Refusal.NOT_FREE),
    ],
)
def test_every_refusal_of_an_offer(changes: dict[str, Any], code: Refusal) -> None:
    assert ask(admission_of(**changes)) is code


def test_a_model_that_is_being_loaded_is_refused_for_now_and_not_for_good() -> None:
    admission = admission_of(models_loading=("other", "late"))
    assert ask(admission, order(model="late")) is Refusal.ENGINE_UNAVAILABLE
    assert ask(admission, order(model="another")) is Refusal.NO_MODEL
    assert ask(admission) is None
    # What keeps all jobs away is said first.
    draining = admission_of(models_loading=("late",), availability=Availability.DRAINING)
    assert ask(draining, order(model="late")) is Refusal.DRAINING


@pytest.mark.parametrize("price_out_uusd", [0, 1])
def test_a_lease_over_nothing_is_no_way_around_the_rules_for_free_jobs(price_out_uusd: int) -> None:
    """Neither one at a price of 0 nor one at next to nothing for a model that is free."""
    wanted = order(lease=bytes(32), price_out_uusd=price_out_uusd)
    for policy, running, code in (
        (FreePolicy.NOBODY, 0, Refusal.NOT_FREE),
        (FreePolicy.KNOWN, 0, Refusal.NOT_FREE),
        (FreePolicy.ALL, FREE_RUNS_PER_STRANGER_MAX, Refusal.RATE_LIMITED),
        (FreePolicy.ALL, FREE_RUNS_PER_STRANGER_MAX - 1, None),
    ):
        admission = Admission(PROVIDER.node, NOW_MS - 1000, lambda *_: None)
        admission.offer = offer(free_policy=policy)
        held = Held(ASKER.node, ASKER.node, OFFER.name)
        assert ask(admission, wanted, running=(held,) * running) is code


def test_what_is_paid_is_run_for_whoever_pays_it() -> None:
    admission = Admission(PROVIDER.node, NOW_MS - 1000, lambda *_: None)
    priced = replace(OFFER, price_out_uusd=1)
    admission.offer = offer(models=(priced,), free_policy=FreePolicy.NOBODY)
    assert ask(admission, order(lease=bytes(32), price_out_uusd=1)) is None


def test_without_an_offer_there_are_no_jobs() -> None:
    assert ask(Admission(PROVIDER.node, 0, nothing_pays)) is Refusal.NO_MODEL


def test_an_order_without_a_fingerprint_takes_any_weights() -> None:
    assert ask(admission_of(), order(fingerprint=None)) is None


def test_of_two_models_with_one_name_the_one_with_the_weights_is_taken() -> None:
    other = replace(OFFER, fingerprint=b"\x77" * 32)
    admission = admission_of(models=(other, OFFER))
    assert admission.admit(order(), None, ASKER.node, False, (), now()) == OFFER


# ---------------------------------------------------------------- for whom jobs are free


def test_friends_on_the_list_and_this_machine_are_known() -> None:
    admission = admission_of(free_policy=FreePolicy.KNOWN)
    assert ask(admission, local=True) is None
    admission.allowed = frozenset({ASKER.node})
    assert ask(admission, order(job=JobId(b"\x01" * 16))) is None
    admission.allowed = frozenset({SOMEBODY})
    assert ask(admission, order(job=JobId(b"\x02" * 16))) is Refusal.NOT_FREE


def test_for_nobody_means_not_even_for_friends_and_this_machine() -> None:
    admission = admission_of(free_policy=FreePolicy.NOBODY)
    admission.allowed = frozenset({ASKER.node})
    assert ask(admission, local=True) is Refusal.NOT_FREE


def test_an_order_that_this_machine_only_passes_on_is_not_its_own() -> None:
    admission = admission_of(free_policy=FreePolicy.KNOWN)
    assert ask(admission, peer=SOMEBODY, local=True) is Refusal.NOT_FREE


def test_a_stranger_holds_few_slots_and_a_friend_as_many_as_there_are() -> None:
    admission = admission_of(models=(replace(OFFER, concurrency=10),))
    running = (Held(ASKER.node, ASKER.node, OFFER.name),) * FREE_RUNS_PER_STRANGER_MAX
    assert ask(admission, running=running) is Refusal.RATE_LIMITED
    assert ask(admission, running=(Held(SOMEBODY, SOMEBODY, OFFER.name),) * 9) is None
    admission.allowed = frozenset({ASKER.node})
    assert ask(admission, order(attempt=2), running=running) is None


def test_a_stranger_gets_no_more_slots_by_changing_keys() -> None:
    admission = admission_of(models=(replace(OFFER, concurrency=10),))
    running = (Held(SOMEBODY, ASKER.node, OFFER.name),) * FREE_RUNS_PER_STRANGER_MAX
    assert ask(admission, running=running) is Refusal.RATE_LIMITED


def test_slots_are_counted_per_model() -> None:
    admission = admission_of(models=(OFFER, replace(OFFER, name="other", concurrency=7)))
    assert admission.slots(OFFER.name) == OFFER.concurrency
    assert admission.slots("other") == 7
    assert admission.slots("unknown") == 0


# ---------------------------------------------------------------- at most once


def test_an_attempt_is_admitted_once_and_only_a_later_one_again() -> None:
    admission = admission_of()
    assert ask(admission, order(attempt=2)) is None
    assert ask(admission, order(attempt=2)) is Refusal.DUPLICATE
    assert ask(admission, order(attempt=1)) is Refusal.DUPLICATE
    assert ask(admission, order(attempt=3)) is None
    assert ask(admission, order(attempt=2)) is Refusal.DUPLICATE


def test_a_job_id_belongs_to_its_asker() -> None:
    admission = admission_of()
    assert ask(admission) is None
    assert ask(admission, order(asker=SOMEBODY)) is None
    assert ask(admission, order(job=JobId(b"\x01" * 16))) is None


def test_what_was_refused_may_be_ordered_again() -> None:
    admission = admission_of()
    running = (Held(ASKER.node, ASKER.node, OFFER.name),) * FREE_RUNS_PER_STRANGER_MAX
    assert ask(admission, running=running) is Refusal.RATE_LIMITED
    assert ask(admission) is None


def test_an_order_is_remembered_for_longer_than_it_could_come_again() -> None:
    """However the clocks differ within what is allowed: when it is forgotten, it is too old to be admitted."""
    admission = admission_of()
    ahead = NOW_MS + c.CLOCK_SKEW_MS_MAX
    wanted = order(created_at_ms=ahead, expires_at_ms=ahead + c.JOB_LIFETIME_MS_MAX)
    assert ask(admission, wanted) is None
    codes = set()
    for at_s in range(1, int(3 * c.JOB_MEMORY_S)):
        if at_s % 10 == 0:  # others keep the memory moving
            number = at_s.to_bytes(16, "big")
            fresh = order(
                job=JobId(number), created_at_ms=NOW_MS + at_s * 1000, expires_at_ms=NOW_MS + at_s * 1000 + 5000
            )
            assert ask(admission, fresh, at_s=at_s) is None
        codes.add(ask(admission, wanted, at_s=at_s))
    assert codes == {Refusal.DUPLICATE, Refusal.STALE}


def test_the_memory_is_bounded_and_a_full_one_admits_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "JOB_MEMORIES_MAX", 3)
    admission = admission_of()
    for number in range(3):
        assert ask(admission, order(job=JobId(bytes([number]) * 16))) is None
    assert ask(admission, order(job=JobId(b"\x09" * 16))) is Refusal.RATE_LIMITED
    later = c.JOB_MEMORY_S + 1
    fresh = order(job=JobId(b"\x09" * 16), created_at_ms=NOW_MS + round(later * 1000), expires_at_ms=NOW_MS + 400_000)
    assert ask(admission, fresh, at_s=later) is None
    assert len(admission._seen) == 1


def test_the_strangers_of_one_network_fill_their_share_of_the_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "JOB_MEMORIES_MAX", 3 * SHARES_OF_MEMORY)
    admission = admission_of()
    orders = [order(job=JobId(bytes([number]) * 16)) for number in range(8)]
    crowded, other = "203.0.0.0/16", "198.51.0.0/16"
    for each in orders[:3]:
        assert ask(admission, each, network=crowded) is None
    assert ask(admission, orders[3], network=crowded) is Refusal.RATE_LIMITED
    assert ask(admission, orders[3], network=other) is None
    assert ask(admission, orders[4]) is None, "and whom the owner knows is not concerned"
    # A further attempt at a job is no further memory, wherever it comes from.
    again = order(job=orders[3].job, attempt=2)
    assert ask(admission, again, network=other) is None
    later = c.JOB_MEMORY_S + 1
    fresh = order(job=JobId(b"\x09" * 16), created_at_ms=NOW_MS + round(later * 1000), expires_at_ms=NOW_MS + 400_000)
    assert ask(admission, fresh, network=crowded, at_s=later) is None
    assert admission._seen_from == {crowded: 1}


# ---------------------------------------------------------------- by way of others


def brought(*askers: str, peer: NodeId = SOMEBODY) -> tuple[Held, ...]:
    """What askers hold that come by way of one peer."""
    return tuple(Held(signing_key(name).node, peer, OFFER.name) for name in askers)


def test_the_askers_of_one_aggregator_share_a_quarter_of_the_slots() -> None:
    admission = admission_of(models=(replace(OFFER, concurrency=16),))
    assert ask(admission, peer=SOMEBODY, running=brought("a", "b", "c")) is None
    fourth = order(job=JobId(b"\x01" * 16))
    assert ask(admission, fourth, peer=SOMEBODY, running=brought("a", "b", "c", "d")) is Refusal.RATE_LIMITED
    assert ask(admission, fourth, running=brought("a", "b", "c", "d")) is None  # who comes itself has its own share


def test_one_asker_takes_no_more_than_half_of_what_an_aggregator_has() -> None:
    admission = admission_of(models=(replace(OFFER, concurrency=4),))
    assert ask(admission, peer=SOMEBODY, running=brought("asker")) is Refusal.RATE_LIMITED
    assert ask(admission, peer=SOMEBODY, running=brought("another")) is None
    wide = admission_of(models=(replace(OFFER, concurrency=16),))
    assert ask(wide, peer=SOMEBODY, running=brought("asker")) is None
    assert ask(wide, order(attempt=2), peer=SOMEBODY, running=brought("asker", "asker")) is Refusal.RATE_LIMITED


def test_whom_the_owner_knows_it_knows_behind_an_aggregator_too() -> None:
    admission = admission_of(free_policy=FreePolicy.KNOWN)
    admission.allowed = frozenset({ASKER.node})
    assert ask(admission, peer=SOMEBODY, running=brought("a", "b", "c", "d")) is None
    admission.allowed = frozenset({SOMEBODY})
    assert ask(admission, order(attempt=2), peer=SOMEBODY) is Refusal.NOT_FREE


def test_an_order_for_another_provider_is_judged_as_if_it_were_ours() -> None:
    admission = admission_of()
    theirs = order(provider=SOMEBODY)
    assert admission.judge_another(theirs, SOMEBODY, (), now()) == OFFER
    stale = admission.judge_another(theirs, SOMEBODY, (), now(100))
    assert not isinstance(stale, ModelOffer)
    assert stale[0] is Refusal.STALE
    unknown = admission.judge_another(order(provider=SOMEBODY, model="other"), SOMEBODY, (), now())
    assert not isinstance(unknown, ModelOffer)
    assert unknown[0] is Refusal.NO_MODEL
    assert ask(admission) is None  # nothing was remembered of it
