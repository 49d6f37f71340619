"""A peer that orders from itself: judged by its owner's rules, and never spoken of to others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol import constants as c
from protocol.admission import FREE_RUNS_PER_STRANGER_MAX, Held
from protocol.effects import Dial, JobFailed, OpenStream, RunEngine, Send
from protocol.errors import Refusal
from protocol.events import Ask, EngineFinished, EngineStarted, LearnAddresses, LearnRecord, SetOffer
from protocol.ids import RunId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Interest, JobOpen, JobReject, Queued
from protocol.peer import FEATURE_FORWARDS
from protocol.records import Availability, FreePolicy, Outcome, Role
from tests.helpers_machines import ADDRESS, ALONE, LOOPBACK, Bench, chat, now, offer, provider_record, record_of
from tests.helpers_puppets import job_stream, order_for
from tests.helpers_records import ASKER, OFFER, PROVIDER, order, signing_key
from tests.protocol.test_admission import admission_of, ask

OWN = {"asker": PROVIDER.node, "provider": PROVIDER.node}


def ordered(bench: Bench, **changes: Any) -> StreamId:
    """An order of the bench's to itself arrives."""
    stream = bench.accept_stream(bench.peer.node, c.JOB_PROTOCOL)
    bench.hear(stream, *order_for(bench, bench.key, **changes).messages)
    return stream


# ---------------------------------------------------------------- as the provider


@pytest.mark.parametrize("policy", list(FreePolicy))
@pytest.mark.parametrize("availability", [Availability.AVAILABLE, Availability.DRAINING])
def test_it_is_free_whenever_anything_is_run(policy: FreePolicy, availability: Availability) -> None:
    held = Held(PROVIDER.node, PROVIDER.node, OFFER.name)
    running = (held,) * (FREE_RUNS_PER_STRANGER_MAX + 1)
    admission = admission_of(free_policy=policy, availability=availability)
    assert ask(admission, order(**OWN), peer=PROVIDER.node, running=running) is None
    assert ask(admission, order(**OWN), peer=PROVIDER.node) is Refusal.DUPLICATE


def test_after_the_goodbye_it_is_refused_as_all_are() -> None:
    offline = admission_of(availability=Availability.OFFLINE)
    assert ask(offline, order(**OWN), peer=PROVIDER.node) is Refusal.DRAINING


def test_nobody_else_is_taken_for_the_owner() -> None:
    closed = admission_of(free_policy=FreePolicy.NOBODY)
    assert ask(closed, order(), peer=PROVIDER.node, local=True) is Refusal.NOT_FREE
    draining = admission_of(availability=Availability.DRAINING)
    assert ask(draining, order(), peer=ASKER.node, local=True) is Refusal.DRAINING


def test_who_reserves_for_an_order_to_itself_is_no_owner_here() -> None:
    """Such an order names its asker as its provider, and is not for us."""
    stranger = signing_key("stranger").node
    theirs = order(asker=stranger, provider=stranger)
    for changes, code in (
        ({"free_policy": FreePolicy.NOBODY}, Refusal.NOT_FREE),
        ({"free_policy": FreePolicy.KNOWN}, Refusal.NOT_FREE),
        ({"availability": Availability.DRAINING}, Refusal.DRAINING),
    ):
        why = admission_of(**changes).judge_another(theirs, stranger, (), now())
        assert isinstance(why, tuple), changes
        assert why[0] is code


@pytest.mark.parametrize(("address", "share"), [(LOOPBACK, 1.0), ("/ip4/198.51.100.7/tcp/50000", 0.5)])
def test_it_waits_before_all_others_and_where_they_find_no_place(address: str, share: float) -> None:
    """Known askers may have every place in the queue, strangers half of them."""
    bench = Bench()
    bench.provide()
    waits = {"extensions": order_extensions(may_hand_off=False, queue_wait_ms=30_000)}
    places = round(c.QUEUE_PER_SLOT * OFFER.concurrency * share)
    for number in range(OFFER.concurrency + places):
        key = signing_key(f"asker {number}")
        bench.hear(job_stream(bench, key, address), *order_for(bench, key, **waits).messages)
        if number < OFFER.concurrency:
            bench.feed(EngineStarted(RunId(number + 1), 5))
    late = signing_key("late")
    stream = job_stream(bench, late, address)
    bench.hear(stream, *order_for(bench, late, **waits).messages)
    assert bench.heard(stream, JobReject).code == Refusal.BUSY
    own = ordered(bench, **waits)
    assert bench.heard(own, Queued).position == 0
    assert (bench.peer.statistics().jobs_waiting, bench.peer.statistics().jobs_own) == (places, 1)
    bench.feed(EngineFinished(RunId(1), Outcome.STOP, 0))
    assert bench.one(RunEngine).run == RunId(OFFER.concurrency + places + 1)


# ---------------------------------------------------------------- as the asker


@pytest.mark.parametrize("is_own", [True, False])
def test_what_it_asks_itself_is_no_interest_that_others_hear_of(is_own: bool) -> None:
    # Whose directory is full wants to hear of the models that it has to do with only, and says which.
    bench = Bench(config=replace(ALONE, directory_records_max=8))
    bench.connect(signing_key("friend").node, gossips=True)
    bench.provide()
    for number in range(8):
        bench.feed(LearnRecord(record_of(str(number))))
    bench.feed(chat(model="rare", provider=bench.peer.node if is_own else None))
    bench.wait(60.0)
    told = [message for said in bench.said.values() for message in said if isinstance(message, Interest)]
    assert any(OFFER.name in message.models for message in told)
    assert any("rare" in message.models for message in told) is not is_own


def test_no_aggregator_is_asked_to_reach_it() -> None:
    """Not even before it offers anything, when its own record is not there."""
    bench = Bench()
    aggregator = signing_key("aggregator").node
    bench.feed(LearnRecord(record_of("aggregator", role=Role.AGGREGATOR, models=(), features=(FEATURE_FORWARDS,))))
    bench.connect(aggregator)
    bench.feed(chat(provider=bench.peer.node))
    bench.wait(c.REACH_DEADLINE_S)
    assert bench.one(JobFailed).code is Refusal.DEADLINE
    assert [each.peer for each in bench.opened.values() if each.protocol == c.JOB_PROTOCOL] == []


def test_it_does_not_dial_itself_wherever_it_is_said_to_be() -> None:
    bench = Bench()
    bench.feed(LearnAddresses(bench.peer.node, (ADDRESS,), connect=True))
    assert bench.effects == []
    bench.wait(c.REACH_DEADLINE_S)
    assert bench.none_of(Dial)


def test_it_passes_nothing_on_to_others_for_itself() -> None:
    bench = Bench()
    other = signing_key("other").node
    bench.feed(LearnRecord(provider_record("other")))
    bench.connect(other)
    bench.feed(chat(provider=other, via=bench.peer.node))
    opened = bench.one(OpenStream)
    assert opened.peer == other
    assert [type(message) for message in bench.said[opened.stream]] == [JobOpen]


def test_it_orders_from_itself_at_no_price_and_by_way_of_nobody() -> None:
    bench = Bench()
    bench.feed(SetOffer(offer(models=(OFFER,))))
    wanted: Ask = chat(provider=bench.peer.node, via=bench.peer.node, spend_uusd_max=10)
    bench.feed(wanted)
    opened = bench.one(OpenStream)
    assert (opened.peer, opened.protocol) == (bench.peer.node, c.JOB_PROTOCOL)
    assert [type(message) for message in bench.said[opened.stream]] == [JobOpen]
    assert bench.heard(opened.stream, JobOpen).lease is None
    assert [effect.stream for effect in bench.all(Send)] == [opened.stream]
