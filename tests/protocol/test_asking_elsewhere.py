"""Jobs that do not go straight to a provider: through an aggregator, or to where somebody holds a slot for them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import Dial, Effect, HangUp, JobAccepted, JobDone, JobFailed, JobText, OpenStream
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import BytesReceived, DialFailed, LearnAddresses, LearnRecord, PeerDisconnected, StreamBroken
from protocol.ids import JobId, NodeId
from protocol.jobs import FEATURE_ACKNOWLEDGES, may_hand_off
from protocol.messages import Fault, Find, Forward, Found, JobOpen, Part
from protocol.peer import FEATURE_FORWARDS
from protocol.records import Availability, ChatMessage, JobRequest, ReservationRecord, Role, Signed
from tests.helpers_asking import bench_with, is_at_rest
from tests.helpers_machines import ADDRESS, Bench, chat, provider_record, record_of
from tests.helpers_puppets import Provider
from tests.helpers_records import OFFER, signing_key

AGGREGATOR = signing_key("aggregator").node
JOB = chat().job


def with_aggregator(bench: Bench, *, connected: bool = True) -> None:
    """A node that forwards jobs."""
    record = record_of("aggregator", role=Role.AGGREGATOR, models=(), features=(FEATURE_FORWARDS,))
    bench.feed(LearnRecord(record), LearnAddresses(AGGREGATOR, (ADDRESS,)))
    if connected:
        bench.connect(AGGREGATOR)


def market(*names: str, **changes: Any) -> tuple[Bench, list[Provider]]:
    """Providers that are known and not connected, and an aggregator that is."""
    bench, providers = bench_with(*names, connected=False, **changes)
    with_aggregator(bench)
    return bench, providers


def ordered(bench: Bench) -> list[NodeId]:
    """To whom job streams were opened in the last step."""
    return [opened.peer for opened in bench.all(OpenStream) if opened.protocol == c.JOB_PROTOCOL]


def take_from_aggregator(bench: Bench, provider: Provider) -> None:
    """The aggregator has passed the last order on."""
    provider.take(bench, bench.stream_to(AGGREGATOR, c.JOB_PROTOCOL))


def answer(bench: Bench, provider: Provider) -> list[Effect]:
    """The provider does the job."""
    effects: list[Effect] = []
    for message in (provider.accept(), provider.chunk("a"), provider.receipt()):
        effects += bench.hear(provider.stream, message)
    return effects


# ---------------------------------------------------------------- through an aggregator because the user says so


def test_the_order_follows_forward_on_one_stream_and_the_answer_names_the_way() -> None:
    bench, (provider,) = market("p")
    bench.feed(chat(via=AGGREGATOR, request=JobRequest(messages=(ChatMessage("user", "x" * 100_000),))))
    assert ordered(bench) == [AGGREGATOR]
    assert bench.none_of(Dial)
    take_from_aggregator(bench, provider)
    said = bench.said[provider.stream]
    assert said[0] == Forward(provider.node)
    assert [type(message) for message in said[1:]] == [JobOpen, Part, Part]
    effects = answer(bench, provider)
    (accepted,) = [effect for effect in effects if isinstance(effect, JobAccepted)]
    assert (accepted.provider, accepted.via) == (provider.node, AGGREGATOR)
    assert [effect.text for effect in effects if isinstance(effect, JobText)] == ["a"]
    assert any(isinstance(effect, JobDone) for effect in effects)
    assert is_at_rest(bench)


def test_a_direct_answer_names_no_way() -> None:
    bench, (provider,) = bench_with("p")
    bench.feed(chat())
    provider.take(bench)
    bench.hear(provider.stream, provider.accept())
    assert bench.one(JobAccepted).via is None


def test_an_aggregator_that_is_not_connected_is_dialled_and_no_provider_is() -> None:
    bench, (provider,) = bench_with("p")
    with_aggregator(bench, connected=False)
    bench.feed(chat(via=AGGREGATOR))
    assert bench.one(Dial).peer == AGGREGATOR
    bench.connect(AGGREGATOR, greets=False)
    take_from_aggregator(bench, provider)
    assert bench.none_of(Dial)


@pytest.mark.parametrize("knows_address", [True, False])
def test_without_the_aggregator_nobody_is_asked(*, knows_address: bool) -> None:
    bench, _ = bench_with("p", "q")
    if knows_address:
        bench.feed(LearnAddresses(AGGREGATOR, (ADDRESS,)))
    bench.feed(chat(via=AGGREGATOR))
    if knows_address:
        bench.feed(DialFailed(AGGREGATOR, "refused"))
    failed = bench.one(JobFailed)
    assert failed.code is Refusal.PEER_LOST
    assert "aggregator" in failed.text
    assert ordered(bench) == []


def test_the_record_of_a_provider_that_only_the_aggregator_knows_is_asked_of_it() -> None:
    bench = Bench()
    with_aggregator(bench)
    provider = Provider("p")
    bench.feed(chat(via=AGGREGATOR, provider=provider.node))
    find = bench.stream_to(AGGREGATOR, c.FIND_PROTOCOL)
    (question,) = bench.said[find]
    assert isinstance(question, Find)
    assert question.provider == provider.node
    bench.hear(find, Found(question.query, (provider_record("p"),)))
    take_from_aggregator(bench, provider)


def test_the_aggregator_itself_may_be_the_provider() -> None:
    bench, (provider,) = bench_with("p")
    bench.feed(chat(via=provider.node, provider=provider.node))
    provider.take(bench)
    assert Forward not in [type(message) for message in bench.said[provider.stream]]


def test_a_provider_that_the_aggregator_cannot_reach_is_followed_by_the_next() -> None:
    bench, (first, second) = market("p", "q")
    bench.feed(chat(via=AGGREGATOR))
    take_from_aggregator(bench, first)
    bench.hear(first.stream, Fault(int(Refusal.NO_ROUTE), "no address is known"))
    take_from_aggregator(bench, second)
    assert bench.said[second.stream][0] == Forward(second.node)


def test_a_refusal_of_the_aggregator_is_not_one_of_the_provider() -> None:
    bench, (provider,) = market("p")
    bench.feed(chat(via=AGGREGATOR))
    refusal = Fault(int(Refusal.BUSY), "this node forwards 128 jobs already")
    take_from_aggregator(bench, provider)
    bench.hear(provider.stream, refusal)
    bench.wait(c.SEARCH_DEADLINE_S)
    take_from_aggregator(bench, provider)  # nobody else is there: a second chance
    bench.hear(provider.stream, refusal)
    # Not `BUSY`: the provider did not say so, and has no queue to wait in.
    failed = bench.one(JobFailed)
    assert failed.code is Refusal.NO_ROUTE
    assert "aggregator" in failed.text


def test_what_comes_after_a_word_of_the_provider_is_not_the_aggregators_refusal() -> None:
    """A provider that took the job cannot have its failure counted as an aggregator's that did not reach it."""
    bench, (provider,) = market("p")
    bench.feed(chat(via=AGGREGATOR))
    take_from_aggregator(bench, provider)
    bench.hear(provider.stream, provider.accept())
    bench.hear(provider.stream, Fault(int(Refusal.BUSY), "it is not"))
    account = bench.peer.experience.reputation.account(provider.node, OFFER.name, bench.now().wall_ms)
    assert account.bad == 1


def test_there_is_time_for_the_aggregator_to_reach_the_provider() -> None:
    bench, (provider, _) = market("p", "q", features=(FEATURE_ACKNOWLEDGES,))
    bench.feed(chat(via=AGGREGATOR))
    take_from_aggregator(bench, provider)
    bench.wait(c.FORWARD_REACH_DEADLINE_S + c.ACK_DEADLINE_S - 0.01)
    assert ordered(bench) == []
    bench.wait(0.1)
    assert ordered(bench) == [AGGREGATOR]


def test_what_a_provider_does_wrong_is_not_the_aggregators_fault() -> None:
    bench, providers = market("p", "q", "r", "s")
    for number in range(1, 3):
        bench.feed(chat(number, via=AGGREGATOR))
        for provider in providers:
            if ordered(bench):
                take_from_aggregator(bench, provider)
                bench.feed(BytesReceived(provider.stream, b"\0\0\0\x01\xc1"))
    assert bench.peer.statistics().bad_frames > c.BAD_FRAMES_MAX
    assert bench.peer.statistics().connections == 1


def test_nor_is_what_it_sends_after_its_last_word() -> None:
    bench, providers = market("p", "q", "r", "s")
    bench.feed(chat(via=AGGREGATOR))
    for provider in providers:
        take_from_aggregator(bench, provider)
        bench.hear(provider.stream, provider.reject(Refusal.NO_MODEL))
        bench.feed(BytesReceived(provider.stream, b"\0\0\0\x01\xc1"))
        assert bench.none_of(HangUp)
        assert not bench.peer._asking.is_forwarded(provider.stream), "nothing is kept of a stream that is gone"
    assert bench.peer.statistics().bad_frames > c.BAD_FRAMES_MAX


# ---------------------------------------------------------------- through an aggregator because nothing else helps


def test_a_provider_that_cannot_be_dialled_is_tried_through_an_aggregator_once() -> None:
    bench, (first, second) = market("p", "q")
    bench.feed(chat())
    assert bench.one(Dial).peer == first.node
    bench.feed(DialFailed(first.node, "refused"))
    take_from_aggregator(bench, first)
    bench.hear(first.stream, Fault(int(Refusal.NO_ROUTE), "no address is known"))
    assert bench.one(Dial).peer == second.node
    bench.connect(second.node, greets=False)
    second.take(bench)


def test_a_provider_that_does_not_answer_the_dial_in_time_is_tried_through_an_aggregator() -> None:
    bench, (provider,) = market("p")
    bench.feed(chat())
    bench.wait(c.REACH_DEADLINE_S)
    take_from_aggregator(bench, provider)


def test_a_provider_without_an_address_is_tried_through_an_aggregator() -> None:
    bench, (provider,) = market("p", addresses=())
    bench.feed(chat())
    assert bench.none_of(Dial)
    take_from_aggregator(bench, provider)


def test_whoever_can_be_reached_comes_before_whoever_cannot() -> None:
    bench, (hidden,) = market("hidden", addresses=(), load=0)
    bench.feed(LearnRecord(provider_record("open", load=7)))
    bench.feed(chat())
    assert bench.one(Dial).peer == signing_key("open").node
    bench.feed(DialFailed(signing_key("open").node, "refused"))
    assert ordered(bench) == [AGGREGATOR]
    assert hidden.node not in [dial.peer for dial in bench.all(Dial)]


def test_a_lost_aggregator_is_no_way() -> None:
    bench, _ = market("p")
    bench.feed(PeerDisconnected(AGGREGATOR))
    bench.feed(chat())
    bench.feed(DialFailed(signing_key("p").node, "refused"))
    assert ordered(bench) == []


def test_an_aggregator_that_drains_is_no_way() -> None:
    bench, _ = market("p")
    fields = {"role": Role.AGGREGATOR, "models": (), "features": (FEATURE_FORWARDS,), "sequence": 9}
    drains = record_of("aggregator", availability=Availability.DRAINING, **fields)
    bench.feed(LearnRecord(drains), chat())
    bench.feed(DialFailed(signing_key("p").node, "refused"))
    assert ordered(bench) == []


def test_the_aggregator_is_lost_on_the_way_and_the_job_goes_on_elsewhere() -> None:
    bench, (first, second) = market("p", "q")
    bench.feed(chat(provider=None))
    bench.feed(DialFailed(first.node, "refused"))
    take_from_aggregator(bench, first)
    bench.feed(StreamBroken(first.stream, "lost"), PeerDisconnected(AGGREGATOR))
    assert bench.one(Dial).peer == second.node


# ---------------------------------------------------------------- a slot that is held elsewhere


def reservation(provider: Provider, wanted: Provider, **lies: Any) -> Signed:
    """What `provider` holds for the order that `wanted` refuses."""
    assert wanted.order is not None
    record = ReservationRecord(
        version=1,
        reservation=JobId(b"\x07" * 16),
        provider=provider.node,
        asker=wanted.order.asker,
        job=wanted.order.job,
        model=wanted.order.model,
        issued_at_ms=wanted.order.created_at_ms,
        expires_at_ms=wanted.order.created_at_ms + c.RESERVATION_LIFETIME_MS_MAX,
        extensions=(),
    )
    return sign_record(replace(record, **lies), provider.key)


def refused(*names: str, **asked: Any) -> tuple[Bench, list[Provider]]:
    """The first of these providers has the order; a test now lets it refuse."""
    bench, providers = bench_with(*names)
    bench.feed(chat(**asked))
    providers[0].take(bench)
    return bench, providers


def refuse(bench: Bench, by: Provider, held: Signed | None, code: Refusal = Refusal.BUSY) -> None:
    bench.hear(by.stream, by.reject(int(code), reservation=held, retry_after_ms=2_000))


def test_the_one_that_holds_a_slot_is_next_whatever_its_load_and_hears_which_slot() -> None:
    bench, (first, _, last) = refused("p", "q", "r")
    held = reservation(last, first)
    refuse(bench, first, held)
    assert ordered(bench) == [last.node]
    last.take(bench)
    assert last.order is not None
    assert (last.order.reservation, last.order.attempt) == (JobId(b"\x07" * 16), 2)
    answer(bench, last)
    assert bench.all(JobDone)


def test_whom_we_did_not_know_is_known_by_its_record_in_the_refusal() -> None:
    bench, (first, _) = refused("p", "q")
    new = Provider("new")
    record = provider_record("new", addresses=(ADDRESS,))
    bench.hear(first.stream, first.reject(int(Refusal.BUSY), better=(record,), reservation=reservation(new, first)))
    assert bench.one(Dial).peer == new.node
    bench.connect(new.node, greets=False)
    new.take(bench)
    assert new.order is not None
    assert new.order.reservation is not None


def test_a_slot_is_asked_for_once_and_then_others_are_tried_without_it() -> None:
    bench, (first, second, last) = refused("p", "q", "r")
    refuse(bench, first, reservation(last, first))
    last.take(bench)
    refuse(bench, last, None, Refusal.RATE_LIMITED)
    second.take(bench)
    assert second.order is not None
    assert second.order.reservation is None


def test_whoever_had_no_slot_before_may_hold_one_now() -> None:
    bench, (first, second, _) = refused("p", "q", "r")
    refuse(bench, first, None)
    second.take(bench)
    refuse(bench, second, reservation(first, second))
    assert ordered(bench) == [first.node]
    first.take(bench)
    assert first.order is not None
    assert first.order.reservation is not None


def test_whoever_failed_us_gets_no_second_chance_by_a_reservation() -> None:
    bench, (first, second, third) = refused("p", "q", "r")
    refuse(bench, first, None, Refusal.NOT_FREE)
    second.take(bench)
    refuse(bench, second, reservation(first, second))
    assert ordered(bench) == [third.node]


@pytest.mark.parametrize(
    "lies",
    [
        {"asker": signing_key("x").node},
        {"job": JobId(bytes(16))},
        {"model": "another"},
        {"expires_at_ms": 0},
        {"issued_at_ms": 0, "expires_at_ms": c.RESERVATION_LIFETIME_MS_MAX},
    ],
    ids=["asker", "job", "model", "expired", "old"],
)
def test_a_slot_that_is_not_held_for_this_job_is_none(lies: dict[str, Any]) -> None:
    bench, (first, second, last) = refused("p", "q", "r")
    refuse(bench, first, reservation(last, first, **lies))
    assert ordered(bench) == [second.node]
    second.take(bench)
    assert second.order is not None
    assert second.order.reservation is None
    assert bench.peer.statistics().bad_frames == 0


def test_a_slot_that_lives_too_long_is_none() -> None:
    bench, (first, second, last) = refused("p", "q", "r")
    assert first.order is not None
    too_late = first.order.created_at_ms + c.RESERVATION_LIFETIME_MS_MAX + 1
    refuse(bench, first, reservation(last, first, expires_at_ms=too_late))
    assert ordered(bench) == [second.node]


def test_a_reservation_that_somebody_else_signed_is_none() -> None:
    bench, (first, second, last) = refused("p", "q", "r")
    genuine = reservation(last, first)
    refuse(bench, first, replace(genuine, signature=bytes(64)))
    assert ordered(bench) == [second.node]


def test_a_slot_at_who_refuses_is_none() -> None:
    bench, (first, second, _) = refused("p", "q", "r")
    refuse(bench, first, reservation(first, first))
    assert ordered(bench) == [second.node]


def test_a_slot_at_whom_we_would_not_have_chosen_is_none() -> None:
    bench, (first, second) = refused("p", "q")
    embedder = Provider("embedder")
    bench.feed(LearnRecord(provider_record("embedder", sealed_bytes_max=100)))
    bench.connect(embedder.node)
    refuse(bench, first, reservation(embedder, first))
    assert ordered(bench) == [second.node]


def test_consent_is_stated_unless_the_user_says_otherwise_or_names_one_provider() -> None:
    for asked, expected in (({}, True), ({"may_hand_off": False}, False), ({"provider": Provider("p").node}, False)):
        first = refused("p", "q", **asked)[1][0]
        assert first.order is not None
        assert may_hand_off(first.order) == expected


def test_without_consent_a_reservation_is_not_used() -> None:
    bench, (first, second, last) = refused("p", "q", "r", may_hand_off=False)
    refuse(bench, first, reservation(last, first))
    assert ordered(bench) == [second.node]


def test_a_slot_may_be_gone_when_its_provider_cannot_be_reached() -> None:
    bench, (first, second) = refused("p", "q")
    bench.feed(LearnRecord(provider_record("far", addresses=(ADDRESS,), models=(OFFER,))))
    far = Provider("far")
    refuse(bench, first, reservation(far, first))
    assert bench.one(Dial).peer == far.node
    bench.feed(DialFailed(far.node, "refused"))
    second.take(bench)
    assert second.order is not None
    assert second.order.reservation is None


@pytest.mark.parametrize("via", [AGGREGATOR, None])
def test_a_provider_is_not_blamed_for_what_an_aggregator_may_have_done(via: NodeId | None) -> None:
    bench, (provider,) = bench_with("p")
    with_aggregator(bench)
    bench.feed(chat(via=via))
    provider.take(bench, bench.stream_to(via or provider.node, c.JOB_PROTOCOL))
    bench.hear(provider.stream, provider.accept())
    before = bench.peer.experience.reputation.standing(provider.node, OFFER.name, bench.now().wall_ms)
    bench.feed(StreamBroken(provider.stream, "lost"))
    after = bench.peer.experience.reputation.standing(provider.node, OFFER.name, bench.now().wall_ms)
    assert (after == before) == (via is not None)
