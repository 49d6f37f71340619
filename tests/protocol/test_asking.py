"""The asker's side of a job: find a provider, order, check every piece, end once with a receipt or a reason."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import (
    Dial,
    FinishStream,
    JobAccepted,
    JobDone,
    JobFailed,
    JobText,
    JobVector,
    Note,
    OpenStream,
    RecordLearnt,
    ResetStream,
    SearchWanted,
    Send,
)
from protocol.errors import LocalProtocolError, Refusal
from protocol.events import Ask, DialFailed, LearnAddresses, LearnRecord, OutboxFull, PeerDisconnected, StreamBroken
from protocol.messages import Cancel, Fault, Find, Found, JobOpen, Progress
from protocol.records import ChatMessage, ChunkBody, JobRequest, Kind, Outcome, Role
from tests.helpers_asking import EMBEDDER, bench_with, is_at_rest, running
from tests.helpers_machines import ADDRESS, Bench, chat, hello_of, provider_record, record_of
from tests.helpers_puppets import Provider
from tests.helpers_records import OFFER, signing_key

# ---------------------------------------------------------------- the way it should go


def test_an_answer_comes_through_and_ends_with_its_receipt() -> None:
    bench, (provider,) = bench_with("p")
    ask = chat()
    bench.feed(ask)
    assert provider.take(bench) == bench.one(OpenStream).stream
    assert provider.request == ask.request
    assert provider.order is not None
    assert (provider.order.job, provider.order.attempt, provider.order.model) == (ask.job, 1, OFFER.name)
    bench.hear(provider.stream, provider.accept())
    assert bench.effects == [JobAccepted(ask.job, provider.node, 1, OFFER.name, 3)]
    bench.hear(provider.stream, provider.chunk("Hello", 2), provider.chunk(" you", 3))
    assert [(t.text, t.output_tokens) for t in bench.all(JobText)] == [("Hello", 2), (" you", 5)]
    bench.hear(provider.stream, provider.receipt(Outcome.LENGTH))
    assert bench.one(JobDone).receipt.output_tokens == 5
    assert bench.one(FinishStream).stream == provider.stream
    assert is_at_rest(bench)
    bench.hear_end(provider.stream)
    assert bench.effects == []


def test_all_of_an_answer_in_one_piece_is_the_same_answer() -> None:
    bench, (provider,) = bench_with("p")
    bench.feed(chat())
    provider.take(bench)
    bench.hear(provider.stream, provider.accept(), provider.chunk("a"), provider.chunk("b"), provider.receipt())
    kinds = [type(effect) for effect in bench.effects]
    assert kinds == [JobAccepted, JobText, JobText, FinishStream, JobDone]


def test_a_long_prompt_is_ordered_in_parts() -> None:
    bench, (provider,) = bench_with("p", sealed_bytes_max=300_000)
    request = JobRequest(messages=(ChatMessage("user", "x" * 200_000),))
    bench.feed(chat(request=request))
    provider.take(bench)
    assert provider.request == request
    assert len(bench.all(Send)) > 3


def test_embeddings_come_in_any_order() -> None:
    bench, (provider,) = bench_with("p", models=(EMBEDDER,))
    bench.feed(chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a", "b")), output_tokens_max=0))
    provider.take(bench)
    bodies = [ChunkBody("", 1, b"\x01" * 8), ChunkBody("", 0, b"\x00" * 8)]
    bench.hear(provider.stream, provider.accept(), *[provider.chunk(body, 0) for body in bodies], provider.receipt())
    assert [(v.index, v.vector) for v in bench.all(JobVector)] == [(1, b"\x01" * 8), (0, b"\x00" * 8)]
    assert bench.one(JobDone)


def test_the_seed_and_the_limits_of_the_ask_are_ordered() -> None:
    bench, (provider,) = bench_with("p")
    ask = chat(9, output_tokens_max=33, timeout_s=7.0)
    bench.feed(ask)
    provider.take(bench)
    order = provider.order
    assert order is not None
    assert (order.sampling, order.output_tokens_max) == (ask.sampling, 33)
    assert order.expires_at_ms - order.created_at_ms == 7000
    assert (order.prompt_tokens_max, order.fingerprint) == (OFFER.context_tokens, OFFER.fingerprint)


# ---------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    "changes",
    [
        {"request": JobRequest()},
        {"request": JobRequest(prompt="once")},
        {"request": JobRequest(messages=(ChatMessage("user", "x"),), stop=("",))},
        {"request": JobRequest(messages=(ChatMessage("user", "x"),) * 2000)},
        {"request": JobRequest(messages=(ChatMessage("user", "\N{SNOWMAN}" * 400_000),))},
        {"output_tokens_max": 0},
        {"output_tokens_max": -1},
        {"output_tokens_max": c.OUTPUT_TOKENS_MAX + 1},
        {"timeout_s": 0.0},
        {"timeout_s": float("inf")},
        {"timeout_s": c.JOB_LIFETIME_MS_MAX / 1000 + 1},
        {"model": ""},
        {"model": "x" * 129},
        {"sampling": replace(chat().sampling, top_k=5000)},
        {"sampling": replace(chat().sampling, seed=-1)},
        {"kind": Kind.UNKNOWN},
        {"model": "\udcff"},
    ],
)
def test_what_no_provider_could_run_is_refused_when_it_is_asked(changes: dict[str, Any]) -> None:
    """Later, in the middle of a network event, the driver could tell nobody."""
    bench, _ = bench_with("p")
    with pytest.raises(LocalProtocolError):
        bench.feed(chat(**changes))
    assert is_at_rest(bench)
    assert bench.feed(chat())


def test_a_job_id_in_use_is_refused() -> None:
    bench, _ = bench_with("p")
    bench.feed(chat())
    with pytest.raises(LocalProtocolError):
        bench.feed(chat())
    assert bench.peer.statistics().jobs_asked == 1


def test_a_prompt_goes_to_whom_it_fits_as_it_is_sealed() -> None:
    """Padded and sealed it is up to twice as long: whoever takes less is left out before it is asked in vain."""
    bench, (_, large) = bench_with("small", "large")
    bench.feed(LearnRecord(provider_record("large", sequence=8, load=8, sealed_bytes_max=c.SEALED_BYTES_MAX)))
    bench.feed(chat(request=JobRequest(messages=(ChatMessage("user", "x" * 270_000),))))
    large.take(bench)


def test_the_largest_prompt_is_ordered_and_a_larger_one_refused_when_it_is_asked() -> None:
    bench, (provider,) = bench_with("p", sealed_bytes_max=c.SEALED_BYTES_MAX)
    overhead = 60
    bench.feed(chat(1, request=JobRequest(messages=(ChatMessage("user", "x" * (1024 * 1024 - overhead)),))))
    provider.take(bench)
    assert provider.order is not None
    assert provider.order.sealed_bytes == c.SEALED_BYTES_MAX
    with pytest.raises(LocalProtocolError, match="shorten"):
        bench.feed(chat(2, request=JobRequest(messages=(ChatMessage("user", "x" * (1024 * 1024 - 40)),))))


# ---------------------------------------------------------------- searching


def test_without_a_provider_peers_are_asked_and_the_first_that_turns_up_gets_the_job() -> None:
    bench = Bench()
    friend = signing_key("friend").node
    bench.connect(friend)
    bench.feed(chat())
    stream = bench.stream_to(friend, c.FIND_PROTOCOL)
    find = bench.heard(stream, Find)
    assert (find.model, find.kind) == (OFFER.name, Kind.CHAT)
    bench.hear(stream, Found(find.query, (provider_record("p"),)))
    assert bench.one(RecordLearnt)
    assert bench.one(Dial).peer == signing_key("p").node


def test_a_search_that_finds_nobody_ends_in_time() -> None:
    bench = Bench()
    bench.feed(chat())
    bench.wait(c.SEARCH_DEADLINE_S - 0.001)
    assert bench.effects == []
    bench.wait(0.001)
    failed = bench.one(JobFailed)
    assert (failed.code, failed.text.rpartition(" ")[2]) == (Refusal.NO_PROVIDER, "up"), "nothing of anybody known"
    assert is_at_rest(bench)


def test_a_searching_job_asks_every_new_neighbour_and_only_it() -> None:
    bench = Bench()
    bench.feed(chat())
    for name in ("a", "b", "c"):
        bench.connect(signing_key(name).node)
        finds = [effect for effect in bench.all(OpenStream) if effect.protocol == c.FIND_PROTOCOL]
        assert [effect.peer for effect in finds] == [signing_key(name).node]


def test_when_nobody_known_serves_a_model_the_sources_that_can_be_asked_hear_of_it_once() -> None:
    bench = Bench()
    bench.feed(chat(model="rare-7b"))
    assert bench.one(SearchWanted) == SearchWanted("rare-7b")
    bench.connect(signing_key("a").node)
    assert bench.none_of(SearchWanted)
    bench = Bench()
    bench.feed(chat(model=None))
    assert bench.none_of(SearchWanted)


def test_a_provider_that_only_lacked_a_connection_gets_the_job_when_it_connects() -> None:
    """Its record is known, its address is not: behind NAT, it has to come to us."""
    bench, (provider,) = bench_with("p", connected=False, addresses=())
    bench.feed(chat())
    assert bench.none_of(Dial, JobFailed)
    bench.connect(provider.node, inbound=True)
    provider.take(bench)


def test_the_provider_is_reached_at_an_address_that_only_others_told() -> None:
    bench, (provider,) = bench_with("p", connected=False, addresses=())
    bench.feed(LearnAddresses(provider.node, (ADDRESS,)))
    bench.feed(chat())
    assert bench.one(Dial) == Dial(provider.node, (ADDRESS,))


def test_a_forgery_beside_the_only_provider_does_not_hide_it() -> None:
    """A hostile neighbour answers first, with a good record and a bad one; an honest one then answers the same."""
    bench = Bench()
    bad, honest = signing_key("bad").node, signing_key("honest").node
    bench.connect(bad)
    bench.connect(honest)
    bench.feed(chat())
    streams = {node: bench.stream_to(node, c.FIND_PROTOCOL) for node in (bad, honest)}
    record = provider_record("p")
    forged = replace(record_of("q"), signature=bytes(64))
    bench.hear(streams[bad], Found(bench.heard(streams[bad], Find).query, (record, forged)))
    assert bench.none_of(Dial)
    bench.hear(streams[honest], Found(bench.heard(streams[honest], Find).query, (record,)))
    assert bench.one(Dial).peer == signing_key("p").node


# ---------------------------------------------------------------- reaching


def test_a_provider_that_is_not_connected_is_dialled_and_ordered_from_when_it_is() -> None:
    bench, (provider,) = bench_with("p", connected=False)
    bench.feed(chat())
    assert bench.one(Dial).peer == provider.node
    bench.connect(provider.node)
    assert [effect.protocol for effect in bench.all(OpenStream)] == [c.HELLO_PROTOCOL, c.JOB_PROTOCOL]
    provider.take(bench)


def test_a_failed_dial_leads_to_the_next_provider() -> None:
    bench, (first, second) = bench_with("p", "q", connected=False)
    bench.feed(chat())
    assert bench.one(Dial).peer == first.node
    bench.feed(DialFailed(first.node, "refused"))
    assert bench.one(Dial).peer == second.node
    bench.feed(DialFailed(second.node, "refused"))
    assert bench.none_of(JobFailed)  # somebody may turn up
    bench.wait(c.SEARCH_DEADLINE_S)
    assert bench.one(JobFailed) == JobFailed(chat().job, Refusal.PEER_LOST, "refused")
    assert is_at_rest(bench)


def test_a_failed_dial_to_who_has_connected_to_us_meanwhile_is_no_failure() -> None:
    bench, (provider,) = bench_with("p", connected=False)
    bench.feed(chat())
    bench.connect(provider.node, inbound=True)
    provider.take(bench)
    assert bench.feed(DialFailed(provider.node, "refused")) == []
    bench.hear(provider.stream, provider.accept())
    assert bench.one(JobAccepted)


def test_a_provider_that_never_gets_through_is_given_up_in_time() -> None:
    bench, (_, second) = bench_with("p", "q", connected=False)
    bench.feed(chat())
    bench.wait(c.REACH_DEADLINE_S - 0.001)
    assert bench.none_of(Dial)
    bench.wait(0.001)
    assert bench.one(Dial).peer == second.node


def test_a_chosen_provider_is_dialled_and_its_record_awaited() -> None:
    bench, provider = Bench(), Provider("p")
    bench.feed(LearnAddresses(provider.node, (ADDRESS,)))
    bench.feed(chat(provider=provider.node, model=None))
    assert bench.one(Dial).addresses == (ADDRESS,)
    bench.connect(provider.node, greets=False)
    assert [effect.protocol for effect in bench.all(OpenStream)] == [c.HELLO_PROTOCOL]
    bench.hear(bench.stream_to(provider.node, c.HELLO_PROTOCOL), hello_of(provider_record("p")))
    provider.take(bench)


def test_a_chosen_provider_is_the_only_one_tried() -> None:
    bench, (first, _) = bench_with("p", "q")
    bench.feed(chat(provider=first.node))
    first.take(bench)
    bench.hear(first.stream, first.reject(Refusal.RATE_LIMITED, retry_after_ms=500))
    failed = bench.one(JobFailed)
    assert (failed.code, failed.text, failed.retry_after_ms) == (Refusal.RATE_LIMITED, "because", 500)
    assert bench.none_of(OpenStream)


def test_a_chosen_provider_without_an_address_fails_at_once() -> None:
    bench = Bench()
    bench.feed(chat(provider=signing_key("p").node))
    assert bench.one(JobFailed).code is Refusal.PEER_LOST


def test_a_chosen_provider_that_does_not_serve_the_model_fails_at_once() -> None:
    bench, (provider,) = bench_with("p")
    bench.feed(chat(provider=provider.node, model="other"))
    assert bench.one(JobFailed).code is Refusal.NO_MODEL
    bench.feed(chat(2, provider=provider.node, kind=Kind.COMPLETION, request=JobRequest(prompt="x"), model=None))
    provider.take(bench)


def test_a_chosen_node_that_runs_no_jobs_fails_in_time() -> None:
    bench, (client,) = bench_with("p", role=Role.CLIENT, models=())
    bench.feed(chat(provider=client.node))
    bench.wait(c.REACH_DEADLINE_S)
    assert len(bench.all(JobFailed)) == 1 or is_at_rest(bench)


# ---------------------------------------------------------------- failing over before the first piece


@pytest.mark.parametrize(
    "how",
    ["reject", "broken", "disconnected", "ended", "fault", "nonsense", "slow", "failed receipt", "cancelled receipt"],
)
@pytest.mark.parametrize("accepted", [False, True])
def test_before_the_first_piece_the_next_provider_is_ordered_from_at_once(how: str, accepted: bool) -> None:
    """The delay is none: the same event that brings the bad news brings the next order, well within two seconds."""
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    if accepted:
        bench.hear(first.stream, first.accept())
    before_s = bench.at_s
    if how == "reject":
        bench.hear(first.stream, first.reject(Refusal.BUSY))
    elif how == "broken":
        bench.feed(StreamBroken(first.stream, "reset"))
    elif how == "disconnected":
        bench.feed(StreamBroken(first.stream, "lost"), PeerDisconnected(first.node))
    elif how == "ended":
        bench.hear_end(first.stream)
    elif how == "fault":
        bench.hear(first.stream, Fault(Refusal.INTERNAL, "sorry"))
    elif how == "nonsense":
        bench.hear(first.stream, first.accept(open_hash=bytes(32)))
    elif how == "slow":
        bench.feed(OutboxFull(first.stream))
    elif how == "failed receipt":
        bench.hear(first.stream, first.receipt(Outcome.FAILED, Refusal.ENGINE_FAILED))
    else:
        bench.hear(first.stream, first.receipt(Outcome.CANCELLED))
    assert bench.at_s == before_s
    assert bench.none_of(JobFailed)
    second.take(bench)
    assert second.order is not None
    assert second.order.attempt == 2
    bench.hear(second.stream, second.accept(), second.chunk("a"), second.receipt())
    assert [type(e) for e in bench.effects if isinstance(e, (JobAccepted, JobText, JobDone))] == [
        JobAccepted,
        JobText,
        JobDone,
    ]
    assert is_at_rest(bench)


def test_a_provider_that_says_nothing_is_left_when_it_should_have_answered() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    assert first.order is not None
    bench.wait(c.ACCEPT_DEADLINE_S)
    assert bench.none_of(ResetStream)
    bench.wait(first.order.sealed_bytes / c.PROMPT_BYTES_PER_S_MIN)
    assert bench.one(ResetStream).stream == first.stream
    second.take(bench)


def test_a_provider_that_accepts_and_then_hangs_is_left_after_its_deadline() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept())
    bench.wait(c.FIRST_CHUNK_DEADLINE_S - 1)
    bench.hear(first.stream, Progress(chat().job, 1, 1, 3))
    bench.wait(c.FIRST_CHUNK_DEADLINE_S - 0.001)
    assert bench.none_of(ResetStream)
    bench.wait(0.001)
    assert bench.one(ResetStream).stream == first.stream
    second.take(bench)


def test_not_every_provider_of_a_market_is_tried() -> None:
    names = [f"p{number}" for number in range(c.ATTEMPTS_MAX + 3)]
    bench, providers = bench_with(*names)
    bench.feed(chat())
    for provider in providers[: c.ATTEMPTS_MAX]:
        provider.take(bench)
        bench.hear(provider.stream, provider.reject(Refusal.NOT_FREE))
    assert bench.one(JobFailed).code is Refusal.NOT_FREE
    assert is_at_rest(bench)


def test_better_peers_named_by_a_refusal_are_tried_and_bad_hints_ignored() -> None:
    bench, (first,) = bench_with("p")
    bench.feed(chat())
    first.take(bench)
    better = (replace(record_of("liar"), signature=bytes(64)), provider_record("q"))
    bench.hear(first.stream, first.reject(Refusal.BUSY, better=better))
    assert [effect.heartbeat.node for effect in bench.all(RecordLearnt)] == [signing_key("q").node]
    assert bench.one(Dial).peer == signing_key("q").node
    assert bench.peer.statistics().bad_frames == 0


def test_unknown_refusals_are_refusals() -> None:
    bench, (first,) = bench_with("p")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.reject(200))
    assert bench.one(JobFailed).code is Refusal.INTERNAL


# ---------------------------------------------------------------- after the first piece


@pytest.mark.parametrize("how", ["broken", "ended", "nonsense", "failed receipt", "silence"])
def test_an_answer_that_no_other_weights_can_continue_ends_with_its_provider(how: str) -> None:
    bench, provider = running(fingerprint=bytes(32))
    if how == "broken":
        bench.feed(StreamBroken(provider.stream, "reset"))
    elif how == "ended":
        bench.hear_end(provider.stream)
    elif how == "nonsense":
        bench.hear(provider.stream, provider.chunk("b", 1, number=9))
    elif how == "failed receipt":
        bench.hear(provider.stream, provider.receipt(Outcome.FAILED, Refusal.SHUTDOWN))
    else:
        bench.wait(c.NEXT_CHUNK_DEADLINE_S)
    failed = bench.one(JobFailed)
    expected = {
        "broken": Refusal.PEER_LOST,
        "ended": Refusal.PROTOCOL,
        "nonsense": Refusal.PROTOCOL,
        "failed receipt": Refusal.SHUTDOWN,
        "silence": Refusal.DEADLINE,
    }
    assert failed.code is expected[how]
    assert bench.none_of(OpenStream)
    assert is_at_rest(bench)


def test_chunks_keep_a_slow_answer_alive() -> None:
    bench, provider = running()
    for _ in range(3):
        bench.wait(c.NEXT_CHUNK_DEADLINE_S - 1)
        bench.hear(provider.stream, provider.chunk("b"))
    assert bench.one(JobText)


def test_the_job_as_a_whole_has_a_deadline() -> None:
    bench, provider = running(timeout_s=30.0)
    for _ in range(3):
        bench.wait(9.0)
        bench.hear(provider.stream, provider.chunk("b"))
    bench.wait(3.0)
    assert bench.one(JobFailed).code is Refusal.DEADLINE
    assert bench.heard(provider.stream, Cancel)
    bench.wait(c.CANCEL_GRACE_S)
    assert bench.one(ResetStream).stream == provider.stream
    assert is_at_rest(bench)


def test_the_deadline_of_the_job_ends_a_search_too() -> None:
    bench = Bench()
    bench.feed(chat(timeout_s=1.0))
    bench.wait(1.0)
    assert bench.one(JobFailed).code is Refusal.DEADLINE
    bench.wait(60.0)
    assert bench.effects == []


def test_both_deadlines_at_one_instant_end_the_job_once_and_leave_time_for_the_receipt() -> None:
    bench, provider = running(timeout_s=20.0)
    bench.wait(c.NEXT_CHUNK_DEADLINE_S)
    assert len(bench.all(JobFailed)) == 1
    assert bench.none_of(ResetStream)
    bench.hear(provider.stream, provider.receipt(Outcome.CANCELLED, Refusal.CANCELLED))
    assert bench.one(FinishStream)
    assert is_at_rest(bench)


# ---------------------------------------------------------------- many at once


def test_jobs_do_not_disturb_each_other() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat(1, provider=first.node), chat(2, provider=second.node))
    for provider in (first, second):
        provider.take(bench)
    bench.hear(first.stream, first.accept())
    bench.hear(second.stream, second.accept(), second.chunk("two"))
    bench.hear(first.stream, first.receipt(Outcome.FAILED, Refusal.CONTEXT_EXCEEDED))
    assert [failed.job for failed in bench.all(JobFailed)] == [chat(1).job]
    bench.hear(second.stream, second.receipt())
    assert bench.one(JobDone).job == chat(2).job


def test_two_jobs_that_wait_for_one_provider_fail_with_it_together() -> None:
    bench, (provider,) = bench_with("p", connected=False)
    bench.feed(chat(1), chat(2))
    bench.feed(DialFailed(provider.node, "refused"))
    bench.wait(c.SEARCH_DEADLINE_S)
    assert len(bench.all(JobFailed)) == 2


def test_every_attempt_has_keys_and_seals_of_its_own() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    one = bench.heard(first.stream, JobOpen)
    bench.hear(first.stream, first.reject(Refusal.BUSY))
    second.take(bench)
    two = bench.heard(second.stream, JobOpen)
    assert one.sealed != two.sealed
    assert first.order_hash != second.order_hash


def test_attempts_that_failed_are_noted_without_the_prompt() -> None:
    bench, (provider,) = bench_with("p")
    secret = "a secret prompt"
    bench.feed(chat(request=JobRequest(messages=(ChatMessage("user", secret),))))
    provider.take(bench)
    bench.hear(provider.stream, provider.reject(Refusal.NOT_FREE))
    assert bench.one(Note).event == "job.attempt_failed"
    assert secret not in repr(bench.effects)
    assert secret not in repr(Ask(**{f: getattr(chat(), f) for f in Ask.__struct_fields__}))
