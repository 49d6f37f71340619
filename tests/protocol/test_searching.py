"""Whom a job turns to next: the silent are left soon, the full are queued at, the lost get a second chance."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import Dial, JobAccepted, JobDone, JobFailed, JobQueued, OpenStream, RecordLearnt, ResetStream
from protocol.errors import Refusal
from protocol.events import DialFailed, LearnAddresses, LearnRecord, PeerDisconnected, StreamBroken
from protocol.ids import NodeId
from protocol.jobs import FEATURE_ACKNOWLEDGES, may_hand_off, queue_wait_ms
from protocol.messages import Find, Found, Progress, Queued
from protocol.peer import FEATURE_FORWARDS
from protocol.records import ChatMessage, JobRequest, Outcome, Role
from protocol.router import Router
from tests.helpers_asking import bench_with
from tests.helpers_machines import Bench, chat, provider_record, record_of, sealer_of
from tests.helpers_puppets import Provider
from tests.helpers_records import NOW_MS, OFFER, signing_key

JOB = chat().job


def modern(*names: str, **changes: Any) -> tuple[Bench, list[Provider]]:
    """Providers that acknowledge orders."""
    return bench_with(*names, features=(FEATURE_ACKNOWLEDGES,), **changes)


def orders(bench: Bench) -> int:
    return sum(effect.protocol == c.JOB_PROTOCOL for effect in bench.all(OpenStream))


def transfer_s(provider: Provider) -> float:
    assert provider.order is not None
    return provider.order.sealed_bytes / c.PROMPT_BYTES_PER_S_MIN


# ---------------------------------------------------------------- the silent


def test_a_silent_provider_costs_less_than_two_seconds() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    limit_s = c.ACK_DEADLINE_S + transfer_s(first)
    assert limit_s < 2.0
    bench.wait(limit_s - 0.001)
    assert bench.none_of(ResetStream)
    bench.wait(0.001)
    assert bench.one(ResetStream).stream == first.stream
    second.take(bench)


def test_a_long_prompt_has_time_to_cross_the_line_before_it_is_acknowledged() -> None:
    bench, (first, _) = modern("p", "q", sealed_bytes_max=300_000)
    bench.feed(chat(request=JobRequest(messages=(ChatMessage("user", "x" * 200_000),))))
    first.take(bench)
    bench.wait(c.ACK_DEADLINE_S + 0.5)
    assert bench.none_of(ResetStream)
    bench.hear(first.stream, Progress(JOB, 1, 0, 0))
    bench.wait(transfer_s(first))
    assert bench.none_of(ResetStream)
    bench.hear(first.stream, first.accept())
    assert bench.one(JobAccepted)


def test_an_acknowledged_order_is_answered_in_time_or_left() -> None:
    """Signs of life alone do not keep it: the engine behind them may hang."""
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.wait(1.0)
    bench.hear(first.stream, Progress(JOB, 1, 0, 0))
    for _ in range(4):
        bench.wait(1.0)
        bench.hear(first.stream, Progress(JOB, 1, 0, 0))
    assert bench.none_of(ResetStream)
    bench.wait(1.0 + transfer_s(first))
    assert bench.one(ResetStream).stream == first.stream
    second.take(bench)


def test_a_provider_that_falls_silent_after_its_acceptance_is_left_long_before_its_engine_would_be() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, Progress(JOB, 1, 0, 0), first.accept())
    bench.wait(c.SILENCE_DEADLINE_S - 0.001)
    assert bench.none_of(ResetStream)
    bench.wait(0.001)
    assert "sign of life" in bench.one(ResetStream).reason
    second.take(bench)


def test_an_engine_that_hangs_is_left_although_its_node_gives_signs_of_life() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept(), Progress(JOB, 1, 40, 100))
    waited_s = 0.0
    while bench.none_of(ResetStream):
        bench.wait(1.0)
        waited_s += 1.0
        if bench.none_of(ResetStream):
            bench.hear(first.stream, Progress(JOB, 1, 40, 100))
    assert waited_s == c.FIRST_CHUNK_DEADLINE_S
    second.take(bench)


def test_real_progress_keeps_a_slow_prompt_alive() -> None:
    bench, (first, _) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept())
    for second in range(int(3 * c.FIRST_CHUNK_DEADLINE_S)):
        bench.wait(1.0)
        bench.hear(first.stream, Progress(JOB, 1, second // 20, 100))
    bench.hear(first.stream, first.chunk("a"), first.receipt())
    assert bench.one(JobDone)


def test_a_provider_that_does_not_say_that_it_acknowledges_gets_the_time_it_always_had() -> None:
    bench, (first, _) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.wait(c.ACCEPT_DEADLINE_S)
    bench.hear(first.stream, first.accept())
    bench.wait(c.FIRST_CHUNK_DEADLINE_S - 0.001)
    assert bench.none_of(ResetStream)


# ---------------------------------------------------------------- the full


def test_a_free_slot_is_looked_for_at_several_providers_before_one_is_waited_for() -> None:
    bench, providers = modern(*[f"p{n}" for n in range(c.BUSY_REFUSALS_MAX + 1)])
    bench.feed(chat(timeout_s=100.0))
    waits_ms = (9_000, 4_000, 6_000)
    for provider, wait_ms in zip(providers, waits_ms, strict=False):
        provider.take(bench)
        assert provider.order is not None
        assert queue_wait_ms(provider.order) == 0
        bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=wait_ms))
    shortest = providers[1]
    bench.wait(0.0)
    shortest.take(bench)
    assert shortest.order is not None
    assert shortest.order.attempt == c.BUSY_REFUSALS_MAX + 1
    assert queue_wait_ms(shortest.order) == 100_000


def queued() -> tuple[Bench, Provider]:
    """A job that waits at the only provider."""
    bench, (provider,) = modern("p")
    bench.feed(chat(timeout_s=100.0))
    provider.take(bench)
    bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=4_000))
    provider.take(bench)
    bench.hear(provider.stream, Queued(JOB, 2, 3, 4_000))
    return bench, provider


def test_the_user_hears_where_the_job_waits_and_then_its_answer() -> None:
    bench, provider = queued()
    assert bench.effects == [JobQueued(JOB, provider.node, 3, 4_000)]
    for place in (2, 1, 0):
        bench.wait(c.QUEUED_INTERVAL_S)
        bench.hear(provider.stream, Queued(JOB, 2, place, place * 1000))
        assert bench.one(JobQueued).position == place
    bench.hear(provider.stream, Progress(JOB, 2, 0, 0))
    bench.wait(c.ACCEPT_DEADLINE_S - 1.0)
    bench.hear(provider.stream, provider.accept(), provider.chunk("a"), provider.receipt())
    assert bench.one(JobDone)


def test_a_queue_that_is_no_longer_spoken_of_is_left() -> None:
    bench, provider = queued()
    bench.wait(c.SILENCE_DEADLINE_S)
    assert bench.one(ResetStream).stream == provider.stream


def test_a_place_in_a_queue_that_was_not_asked_for_breaks_the_protocol() -> None:
    bench, (provider,) = modern("p")
    bench.feed(chat())
    provider.take(bench)
    bench.hear(provider.stream, Queued(JOB, 1, 0, 10))
    assert bench.one(ResetStream)
    assert bench.peer.statistics().bad_frames == 1


def test_the_next_queue_is_tried_when_one_has_no_place_and_the_user_hears_when_to_come_again() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat(timeout_s=100.0))
    for provider, wait_ms in ((first, 2_000), (second, 3_000)):
        provider.take(bench)
        bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=wait_ms))
    for provider in (first, second):
        provider.take(bench)
        bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=7_000))
    failed = bench.one(JobFailed)
    assert (failed.code, failed.retry_after_ms) == (Refusal.BUSY, 7_000)


@pytest.mark.parametrize("wait_ms", [0, 100_000, 200_000])
def test_nobody_queues_for_longer_than_the_job_has_time(wait_ms: int) -> None:
    bench, (provider,) = modern("p")
    bench.feed(chat(timeout_s=100.0))
    provider.take(bench)
    bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=wait_ms))
    assert (bench.one(JobFailed).code, bench.one(JobFailed).retry_after_ms) == (Refusal.BUSY, wait_ms)


def test_a_chosen_provider_that_is_full_is_queued_at() -> None:
    bench, (first, _) = modern("p", "q")
    bench.feed(chat(provider=first.node))
    first.take(bench)
    bench.hear(first.stream, first.reject(Refusal.BUSY, retry_after_ms=5_000))
    first.take(bench)
    assert first.order is not None
    assert first.order.attempt == 2


@pytest.mark.parametrize("is_chosen", [False, True])
@pytest.mark.parametrize("limit", ["context", "price"])
def test_a_queue_is_joined_for_the_model_that_fits_the_job_when_none_is_named(limit: str, *, is_chosen: bool) -> None:
    wrong = {"context_tokens": 128} if limit == "context" else {"price_out_uusd": 900_000}
    models = (replace(OFFER, name="small", **wrong), replace(OFFER, name="big"))
    bench, (provider,) = modern("p", models=models)
    spends = {"spend_uusd_max": 10_000, "price_out_uusd_max": 500_000} if limit == "price" else {}
    bench.feed(
        chat(model=None, output_tokens_max=1_000, provider=provider.node if is_chosen else None, **spends),
    )
    for _ in range(2):
        provider.take(bench)
        assert provider.order is not None
        assert provider.order.model == "big"
        bench.hear(provider.stream, provider.reject(Refusal.BUSY, retry_after_ms=5_000))
    assert provider.order.attempt == 2


def test_whoever_was_lost_is_asked_again_for_the_model_that_fits_the_job() -> None:
    models = (replace(OFFER, name="small", context_tokens=128), replace(OFFER, name="big"))
    bench, (provider,) = modern("p", models=models)
    bench.feed(chat(model=None, output_tokens_max=1_000))
    provider.take(bench)
    bench.feed(StreamBroken(provider.stream, "gone"))
    bench.wait(c.SEARCH_DEADLINE_S)
    provider.take(bench)
    assert provider.order is not None
    assert (provider.order.model, provider.order.attempt) == ("big", 2)


# ---------------------------------------------------------------- the lost


def test_a_dead_first_candidate_makes_the_job_search_again() -> None:
    bench, (first,) = modern("p")
    bench.connect(signing_key("other").node)
    bench.feed(chat())
    first.take(bench)
    bench.feed(StreamBroken(first.stream, "gone"), PeerDisconnected(first.node))
    find = bench.stream_to(signing_key("other").node, c.FIND_PROTOCOL)
    (question,) = bench.said[find]
    bench.wait(1.0)
    assert bench.none_of(JobFailed)
    bench.hear(find, Found(question.query, (provider_record("q"),)))
    assert bench.one(Dial).peer == signing_key("q").node


def test_a_refusal_is_told_at_once_and_not_searched_after() -> None:
    bench, (first,) = modern("p")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.reject(Refusal.NOT_FREE))
    assert bench.one(JobFailed).code is Refusal.NOT_FREE


def test_the_silent_get_a_second_chance_and_more_time_when_nobody_else_is_there() -> None:
    bench, (only,) = modern("p")
    bench.feed(chat())
    only.take(bench)
    bench.wait(c.ACK_DEADLINE_S + transfer_s(only))
    assert bench.one(ResetStream)
    bench.wait(c.SEARCH_DEADLINE_S)
    assert orders(bench) == 1
    only.take(bench)
    bench.wait(c.ACCEPT_DEADLINE_S)
    assert only.stream not in [reset.stream for reset in bench.all(ResetStream)]
    bench.hear(only.stream, only.accept(), only.chunk("a"), only.receipt())
    assert bench.one(JobDone)


def test_a_second_chance_is_the_last() -> None:
    bench, (only,) = modern("p")
    bench.feed(chat())
    for _ in range(2):
        only.take(bench)
        bench.feed(StreamBroken(only.stream, "gone"))
        bench.wait(c.SEARCH_DEADLINE_S)
    assert bench.peer.statistics().jobs_asked == 0


def test_that_the_lost_is_not_back_does_not_hide_why_it_was_lost() -> None:
    bench, (only,) = modern("p")
    bench.feed(chat())
    only.take(bench)
    bench.hear(only.stream, only.accept(), only.receipt(Outcome.FAILED, Refusal.SHUTDOWN))
    bench.feed(PeerDisconnected(only.node))
    bench.wait(c.SEARCH_DEADLINE_S)
    assert bench.one(Dial).peer == only.node
    bench.feed(DialFailed(only.node, "refused"))
    assert bench.one(JobFailed).code is Refusal.SHUTDOWN


def test_who_lost_the_connection_in_the_middle_may_come_back_by_itself() -> None:
    """A node behind NAT publishes no address: as long as the search lasts it may dial us again."""
    bench, (only,) = modern("p", addresses=())
    bench.feed(chat())
    only.take(bench)
    bench.hear(only.stream, only.accept())
    bench.feed(StreamBroken(only.stream, "gone"), PeerDisconnected(only.node))
    bench.wait(c.SEARCH_DEADLINE_S - 1.0)
    assert bench.none_of(JobFailed)
    bench.connect(only.node, inbound=True)
    assert orders(bench) == 1
    only.take(bench)


# ---------------------------------------------------------------- a provider that started anew


def new_record(name: str) -> Any:
    key = sealer_of(f"{name} restarted").public_key(NOW_MS)
    return record_of(name, sealing_key=key, sequence=99, features=(FEATURE_ACKNOWLEDGES,))


def refuse_seal(bench: Bench, provider: Provider, *better: Any) -> None:
    bench.hear(provider.stream, provider.reject(Refusal.CANNOT_OPEN_SEAL, better=better))


def test_a_provider_that_lost_its_sealing_key_is_ordered_from_again_with_its_new_one() -> None:
    bench, (first, _) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    refuse_seal(bench, first, new_record("p"))
    assert bench.one(RecordLearnt).heartbeat.node == first.node
    assert orders(bench) == 1
    assert bench.stream_to(first.node, c.JOB_PROTOCOL) != first.stream
    assert bench.none_of(JobFailed)


def test_a_provider_that_lost_its_sealing_key_and_sends_no_record_is_asked_for_it() -> None:
    bench, (first, _) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    refuse_seal(bench, first)
    assert orders(bench) == 0
    find = bench.stream_to(first.node, c.FIND_PROTOCOL)
    (question,) = bench.said[find]
    bench.hear(find, Found(question.query, (new_record("p"),)))
    assert orders(bench) == 1


def test_a_provider_that_cannot_open_its_new_key_either_is_left() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    refuse_seal(bench, first, new_record("p"))
    stream = bench.stream_to(first.node, c.JOB_PROTOCOL)
    bench.hear(stream, replace(first.reject(Refusal.CANNOT_OPEN_SEAL), attempt=2))
    second.take(bench)


def test_a_provider_that_keeps_its_old_key_is_left_in_time() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat())
    first.take(bench)
    refuse_seal(bench, first)
    bench.wait(c.REACH_DEADLINE_S)
    second.take(bench)


# ---------------------------------------------------------------- what an order allows


def test_an_order_says_whether_others_may_hear_of_it() -> None:
    bench, (first, second) = modern("p", "q")
    bench.feed(chat(1), chat(2, may_hand_off=False), chat(3, provider=second.node))
    allowed = []
    for stream, effect in bench.opened.items():
        if effect.protocol == c.JOB_PROTOCOL:
            provider = first if effect.peer == first.node else second
            provider.take(bench, stream)
            assert provider.order is not None
            allowed.append((provider.order.job, may_hand_off(provider.order)))
    assert sorted(allowed) == [(chat(1).job, True), (chat(2).job, False), (chat(3).job, False)]


def test_a_record_learnt_while_a_job_waits_does_not_disturb_it() -> None:
    bench, provider = queued()
    bench.feed(LearnRecord(provider_record("q")))
    assert orders(bench) == 0
    bench.hear(provider.stream, provider.accept())
    assert bench.one(JobAccepted)


# ---------------------------------------------------------------- those who were away not long ago

LEFT_OUT = "failed before; the next attempt is in 300 s"


def test_a_provider_that_was_away_not_long_ago_is_dialled_before_anybody_hears_that_there_is_nobody() -> None:
    bench, (provider,) = bench_with("p", connected=False, addresses=("/ip4/192.0.2.1/tcp/46337",))
    bench.feed(chat())
    assert not bench.one(Dial).at_once
    bench.feed(DialFailed(provider.node, LEFT_OUT, left_out=True))
    assert bench.one(Dial).at_once
    bench.connect(provider.node)
    provider.take(bench)
    bench.hear(provider.stream, provider.accept(), provider.chunk("a"), provider.receipt())
    assert bench.one(JobDone)


@pytest.mark.parametrize("wanted", [None, signing_key("p").node], ids=["any", "this one"])
def test_it_is_dialled_so_once_and_its_reason_is_told(wanted: NodeId | None) -> None:
    bench, (provider,) = bench_with("p", connected=False, addresses=("/ip4/192.0.2.1/tcp/46337",))
    bench.feed(chat(provider=wanted))
    bench.feed(DialFailed(provider.node, LEFT_OUT, left_out=True))
    assert bench.one(Dial).at_once
    # A dial of it that was under way for another reason may end in the same manner.
    bench.feed(DialFailed(provider.node, "still " + LEFT_OUT, left_out=True))
    assert bench.none_of(Dial)
    if wanted is None:
        bench.wait(c.SEARCH_DEADLINE_S)
    failed = bench.one(JobFailed)
    assert (failed.code, failed.text) == (Refusal.PEER_LOST, "still " + LEFT_OUT)


def test_those_that_can_be_reached_come_before_whom_we_did_not_dial() -> None:
    away = ("/ip4/192.0.2.1/tcp/46337",)
    bench, (first, second) = bench_with("p", "q", connected=False, addresses=away)
    bench.feed(chat())
    chosen, other = (first, second) if bench.one(Dial).peer == first.node else (second, first)
    bench.feed(DialFailed(chosen.node, LEFT_OUT, left_out=True))
    dial = bench.one(Dial)
    assert (dial.peer, dial.at_once) == (other.node, False)
    bench.feed(DialFailed(other.node, "connection refused"))
    dial = bench.one(Dial)
    assert (dial.peer, dial.at_once) == (chosen.node, True)


def test_the_aggregator_that_the_user_wants_is_dialled_whatever_failed_before() -> None:
    bench, _ = bench_with("p", connected=False, addresses=("/ip4/192.0.2.1/tcp/46337",))
    (aggregator,) = bench_with("a", connected=False)[1]
    bench.feed(LearnAddresses(aggregator.node, ("/ip4/192.0.2.2/tcp/46337",)))
    bench.feed(chat(via=aggregator.node))
    dial = bench.one(Dial)
    assert (dial.peer, dial.at_once) == (aggregator.node, False)
    bench.feed(DialFailed(aggregator.node, LEFT_OUT, left_out=True))
    dial = bench.one(Dial)
    assert (dial.peer, dial.at_once) == (aggregator.node, True)
    bench.feed(DialFailed(aggregator.node, "connection refused"))
    assert "connection refused" in bench.one(JobFailed).text


# ---------------------------------------------------------------- asking around


def test_others_are_asked_soon_when_the_first_ones_know_nobody() -> None:
    bench = Bench()
    names = [f"n{number}" for number in range(2 * c.FIND_PEERS + 1)]
    for name in names:
        bench.connect(signing_key(name).node)
    asked: list[NodeId] = []

    def answer_all() -> None:
        finds = [effect for effect in bench.all(OpenStream) if effect.protocol == c.FIND_PROTOCOL]
        for find in finds:
            asked.append(find.peer)
            query = bench.heard(find.stream, Find).query
            bench.hear(find.stream, Found(query, ()))

    bench.feed(chat())
    answer_all()
    assert len(asked) == c.FIND_PEERS
    bench.wait(c.FIND_MORE_S)
    answer_all()
    assert len(asked) == 2 * c.FIND_PEERS
    bench.wait(c.FIND_MORE_S)
    answer_all()
    assert sorted(asked) == sorted(signing_key(name).node for name in names), "each once"
    bench.wait(c.FIND_MORE_S)
    assert bench.none_of(OpenStream), "nobody is left"
    bench.wait(c.SEARCH_DEADLINE_S - 3 * c.FIND_MORE_S)
    assert bench.one(JobFailed).code is Refusal.NO_PROVIDER


def test_nobody_else_is_asked_once_somebody_is_found() -> None:
    bench = Bench()
    for number in range(2 * c.FIND_PEERS):
        bench.connect(signing_key(f"n{number}").node)
    bench.feed(chat())
    bench.feed(LearnRecord(provider_record("p", addresses=("/ip4/192.0.2.1/tcp/46337",))))
    assert bench.one(Dial).peer == signing_key("p").node
    bench.wait(c.FIND_MORE_S)
    assert bench.none_of(OpenStream)


# ---------------------------------------------------------------- what comes while it searches


def test_records_that_do_not_help_a_search_are_not_the_beginning_of_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.feed(chat())
    choose, chosen = Router.choose, []

    def count(self: Router, *arguments: Any) -> Any:
        chosen.append(1)
        return choose(self, *arguments)

    monkeypatch.setattr(Router, "choose", count)
    for number in range(64):
        bench.feed(LearnRecord(provider_record(f"small {number}", models=(replace(OFFER, context_tokens=1),))))
        bench.feed(LearnRecord(provider_record(f"other {number}", models=(replace(OFFER, name="other"),))))
    assert chosen == []
    bench.feed(LearnRecord(provider_record("p")))
    assert bench.one(Dial).peer == signing_key("p").node


@pytest.mark.parametrize("comes_last", ["aggregator", "provider"])
def test_a_search_goes_on_with_the_record_of_an_aggregator_and_that_of_a_provider(comes_last: str) -> None:
    """Nobody can dial the provider, so both are needed."""
    bench = Bench()
    aggregator = signing_key("aggregator").node
    bench.connect(aggregator)
    bench.feed(chat())
    records = {
        "aggregator": record_of("aggregator", role=Role.AGGREGATOR, models=(), features=(FEATURE_FORWARDS,)),
        "provider": provider_record("p", addresses=()),
    }
    last = records.pop(comes_last)
    bench.feed(*map(LearnRecord, records.values()))
    assert not orders(bench)
    bench.feed(LearnRecord(last))
    assert bench.one(OpenStream).peer == aggregator
