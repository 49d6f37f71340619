"""An answer whose provider is gone in the middle goes on at another one with the same weights, and nowhere else."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import JobAccepted, JobDone, JobFailed, JobResumed, JobText, OpenStream, Served
from protocol.errors import Refusal
from protocol.events import LearnRecord, OutboxFull, StopAsking, StreamBroken
from protocol.messages import Fault
from protocol.records import ChunkBody, JobRequest, Kind, Outcome
from tests.helpers_asking import EMBEDDER, bench_with, is_at_rest, running
from tests.helpers_machines import Bench, chat, provider_record
from tests.helpers_puppets import HELLO, Provider
from tests.helpers_records import OFFER


def lose(bench: Bench, provider: Provider, how: str) -> None:
    if how == "broken":
        bench.feed(StreamBroken(provider.stream, "reset"))
    elif how == "ended":
        bench.hear_end(provider.stream)
    elif how == "nonsense":
        bench.hear(provider.stream, provider.chunk("b", 1, number=9))
    elif how == "fault":
        bench.hear(provider.stream, Fault(Refusal.INTERNAL, "sorry"))
    elif how == "engine failed":
        bench.hear(provider.stream, provider.receipt(Outcome.FAILED, Refusal.ENGINE_FAILED))
    elif how == "shutdown":
        bench.hear(provider.stream, provider.receipt(Outcome.FAILED, Refusal.SHUTDOWN))
    elif how == "false receipt":
        bench.hear(provider.stream, provider.receipt(chunks=7))
    else:
        assert how == "silence"
        bench.wait(c.NEXT_CHUNK_DEADLINE_S)


@pytest.mark.parametrize(
    "how", ["broken", "ended", "nonsense", "fault", "engine failed", "shutdown", "false receipt", "silence"]
)
def test_another_provider_of_the_same_weights_goes_on_from_the_text_so_far(how: str) -> None:
    bench, first = running(output_tokens_max=50)
    bench.hear(first.stream, first.chunk("bc", 4))
    lose(bench, first, how)
    assert bench.none_of(JobFailed)
    second = Provider("q", prompt_tokens=9)
    second.take(bench)
    assert second.order is not None
    assert first.order is not None
    assert second.request == replace(HELLO, continuation="abc")
    assert (second.order.attempt, second.order.output_tokens_max) == (2, 45)
    assert (second.order.model, second.order.fingerprint) == (OFFER.name, OFFER.fingerprint)
    assert second.order.sampling == first.order.sampling
    bench.hear(second.stream, second.accept())
    assert bench.effects == [JobResumed(chat().job, second.node, 2, 9, 5, first.node)]
    bench.hear(second.stream, second.chunk("d", 2), second.receipt())
    assert [(t.text, t.output_tokens) for t in bench.all(JobText)] == [("d", 7)]
    assert bench.one(JobDone).served == (Served(first.node, 1, 3, 5), Served(second.node, 2, 9, 2))
    assert is_at_rest(bench)


def test_a_continuation_of_the_asker_stays_before_that_of_the_answer() -> None:
    bench, first = running(request=replace(HELLO, continuation="Once ", stop=("\n",)))
    lose(bench, first, "broken")
    second = Provider("q")
    second.take(bench)
    assert second.request == replace(HELLO, continuation="Once a", stop=("\n",))


def test_the_tokens_that_spelt_the_answer_go_with_it_and_each_provider_adds_its_own() -> None:
    bench, (first, second, third) = bench_with("p", "q", "r")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept())
    bench.hear(first.stream, first.chunk(ChunkBody("ab", token_ids=ids(1, 2)), 2), first.chunk(ChunkBody("c"), 1))
    bench.feed(StreamBroken(first.stream, "reset"))
    second.take(bench)
    assert second.request == replace(HELLO, continuation="abc", continuation_ids=ids(1, 2))
    bench.hear(second.stream, second.accept(), second.chunk(ChunkBody("d", token_ids=ids(9, 4)), 1))
    bench.feed(StreamBroken(second.stream, "reset"))
    third.take(bench)
    assert third.request == replace(HELLO, continuation="abcd", continuation_ids=ids(1, 2, 9, 4))


def ids(*tokens: int) -> bytes:
    return b"".join(token.to_bytes(4, "big") for token in tokens)


def test_a_part_of_a_token_breaks_the_protocol() -> None:
    bench, first = running()
    bench.hear(first.stream, first.chunk(ChunkBody("b", token_ids=b"\x00\x01")))
    assert bench.peer.statistics().bad_frames == 1


def test_an_answer_goes_on_as_often_as_it_gets_on() -> None:
    """Failures without a word between them are bounded; a provider that brought text starts the count anew."""
    names = [f"p{number}" for number in range(c.ATTEMPTS_MAX + 3)]
    bench, providers = bench_with(*names)
    bench.feed(chat())
    for provider in providers[:-1]:
        provider.take(bench)
        bench.hear(provider.stream, provider.accept(), provider.chunk("x"))
        bench.feed(StreamBroken(provider.stream, "reset"))
    last = providers[-1]
    last.take(bench)
    bench.hear(last.stream, last.accept(), last.chunk("y"), last.receipt())
    done = bench.one(JobDone)
    assert [served.attempt for served in done.served] == list(range(1, len(names) + 1))
    assert sum(served.output_tokens for served in done.served) == bench.all(JobText)[-1].output_tokens == len(names)


def test_how_many_orders_one_job_sends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "ORDERS_MAX", 5)
    names = [f"p{number}" for number in range(c.ORDERS_MAX + 2)]
    bench, providers = bench_with(*names)
    bench.feed(chat())
    for provider in providers[: c.ORDERS_MAX]:
        provider.take(bench)
        bench.hear(provider.stream, provider.accept(), provider.chunk("x"))
        bench.feed(StreamBroken(provider.stream, "reset"))
    assert bench.one(JobFailed).code is Refusal.PEER_LOST
    assert is_at_rest(bench)


def test_other_weights_under_the_same_name_do_not_continue() -> None:
    bench, (first, _) = bench_with("p", "q")
    other = replace(OFFER, fingerprint=b"\x77" * 32)
    bench.feed(LearnRecord(provider_record("q", models=(other,), sequence=9, load=5)))
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept(), first.chunk("a"))
    bench.feed(StreamBroken(first.stream, "reset"))
    assert all(effect.protocol != c.JOB_PROTOCOL for effect in bench.all(OpenStream))


def test_the_name_of_the_model_is_fixed_by_the_first_piece() -> None:
    """Asked for any model, and begun with one: another name is another model even with the same weights."""
    bench, first = running(model=None)
    renamed = replace(OFFER, name="other")
    bench.feed(LearnRecord(provider_record("q", models=(renamed,), sequence=9)))
    bench.feed(StreamBroken(first.stream, "reset"))
    assert all(effect.protocol != c.JOB_PROTOCOL for effect in bench.all(OpenStream))


def test_a_piece_without_text_is_begun_all_the_same() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept(), first.chunk("", 2))
    bench.feed(StreamBroken(first.stream, "reset"))
    second.take(bench)
    assert second.request == HELLO
    bench.hear(second.stream, second.accept(), second.chunk("a", 1), second.receipt())
    assert bench.one(JobText).output_tokens == 3


def test_failures_before_the_first_piece_of_an_attempt_leave_no_account() -> None:
    bench, (first, second, third) = bench_with("p", "q", "r")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept(), first.chunk("a"))
    bench.feed(StreamBroken(first.stream, "reset"))
    second.take(bench)
    bench.hear(second.stream, second.accept())
    bench.feed(StreamBroken(second.stream, "reset"))
    third.take(bench)
    assert third.request == replace(HELLO, continuation="a")
    bench.hear(third.stream, third.accept())
    assert bench.one(JobResumed).lost == first.node
    bench.hear(third.stream, third.receipt())
    assert [s.provider for s in bench.one(JobDone).served] == [first.node, third.node]


# ---------------------------------------------------------------- the end after all


def ends(bench: Bench, code: Refusal) -> None:
    assert bench.one(JobFailed).code is code
    assert bench.none_of(OpenStream)
    assert is_at_rest(bench)


@pytest.mark.parametrize("code", [Refusal.CANCELLED, Refusal.SLOW_READER, Refusal.UNPAID])
def test_what_was_the_doing_of_the_asker_is_the_end(code: Refusal) -> None:
    bench, provider = running()
    bench.hear(provider.stream, provider.receipt(Outcome.FAILED, code))
    ends(bench, code)


def test_what_the_user_stopped_stays_stopped() -> None:
    bench, provider = running()
    bench.feed(StopAsking(chat().job))
    assert bench.one(JobFailed).code is Refusal.CANCELLED
    bench.feed(StreamBroken(provider.stream, "reset"))
    assert bench.effects == []
    assert is_at_rest(bench)


def test_unknown_weights_are_not_continued() -> None:
    bench, provider = running(fingerprint=bytes(32))
    bench.feed(StreamBroken(provider.stream, "reset"))
    ends(bench, Refusal.PEER_LOST)


def test_embeddings_are_not_continued() -> None:
    bench, (first, _) = bench_with("p", "q", models=(EMBEDDER,))
    bench.feed(chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a", "b")), output_tokens_max=0))
    first.take(bench)
    bench.hear(first.stream, first.accept(), first.chunk(ChunkBody("", 0, b"\x01" * 8), 0))
    bench.feed(StreamBroken(first.stream, "reset"))
    ends(bench, Refusal.PEER_LOST)


def test_an_answer_that_has_all_its_tokens_is_not_continued() -> None:
    bench, provider = running(output_tokens_max=1)
    bench.feed(StreamBroken(provider.stream, "reset"))
    ends(bench, Refusal.PEER_LOST)


def test_a_text_that_no_seal_holds_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "SEALED_BYTES_MAX", 3000)
    bench, provider = running()
    bench.hear(provider.stream, provider.chunk("x" * 2500))
    bench.feed(StreamBroken(provider.stream, "reset"))
    ends(bench, Refusal.PEER_LOST)


def test_a_flood_of_text_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "SEALED_BYTES_MAX", 3000)
    bench, provider = running()
    for _ in range(4):
        bench.hear(provider.stream, provider.chunk("x" * 1000, 0))
    (job,) = bench.peer._asking._jobs.values()
    assert job.text == []
    bench.feed(StreamBroken(provider.stream, "reset"))
    ends(bench, Refusal.PEER_LOST)


def test_a_chosen_provider_goes_on_itself_or_nobody() -> None:
    bench, (first, _) = bench_with("p", "q")
    bench.feed(chat(provider=first.node))
    first.take(bench)
    bench.hear(first.stream, first.accept(), first.chunk("a"))
    bench.feed(StreamBroken(first.stream, "reset"))
    first.take(bench)
    assert first.request == replace(HELLO, continuation="a")
    bench.hear(first.stream, first.accept())
    assert bench.one(JobResumed).lost == first.node
    bench.feed(OutboxFull(first.stream))
    ends(bench, Refusal.SLOW_READER)


def test_the_only_provider_is_tried_once_more_when_nobody_else_turns_up() -> None:
    bench, (only,) = bench_with("p")
    bench.feed(chat())
    only.take(bench)
    bench.hear(only.stream, only.accept(), only.chunk("a"))
    bench.feed(StreamBroken(only.stream, "reset"))
    bench.wait(c.SEARCH_DEADLINE_S - 0.001)
    assert bench.none_of(OpenStream, JobFailed)
    bench.wait(0.001)
    only.take(bench)
    bench.hear(only.stream, only.accept(), only.chunk("b"))
    bench.feed(StreamBroken(only.stream, "reset"))
    assert bench.one(JobFailed).code is Refusal.PEER_LOST
    assert bench.peer.statistics().jobs_asked == 0


def test_an_accepted_job_that_has_not_begun_starts_over_unseen() -> None:
    bench, (first, second) = bench_with("p", "q")
    bench.feed(chat())
    first.take(bench)
    bench.hear(first.stream, first.accept())
    bench.feed(StreamBroken(first.stream, "reset"))
    second.take(bench)
    assert second.request == HELLO
    bench.hear(second.stream, second.accept())
    assert bench.one(JobAccepted)
    assert bench.none_of(JobResumed)
