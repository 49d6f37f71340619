"""An asker that pays, and providers and coordinators that lie: no more is signed than what came, and one window."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import JobDone, JobText
from protocol.events import StopAsking
from protocol.messages import Progress
from protocol.records import ChunkBody, JobRequest, Kind, Outcome
from tests.helpers_hostile_provider import PREFILL_UUSD, PRICED, PaidProvider, accepted, ordered, paid_chat, paying

WINDOW_UUSD = 16  # eight tokens

# ---------------------------------------------------------------- the way it should go


def test_an_honest_answer_is_paid_to_the_end() -> None:
    bench, provider = accepted()
    for number in range(10):
        bench.hear(provider.stream, provider.chunk(f"word{number} "))
    bench.hear(provider.stream, provider.receipt())
    assert bench.one(JobDone).served[-1].paid_uusd == PREFILL_UUSD + 2 * 10
    assert bench.vouchers(provider)[-1].paid_uusd == PREFILL_UUSD + 2 * 10


# ---------------------------------------------------------------- what a chunk may ask for


@pytest.mark.parametrize(("tokens", "is_paid"), [(8, True), (9, False), (100, False)])
def test_a_chunk_reaches_no_further_than_one_window(tokens: int, is_paid: bool) -> None:
    bench, provider = accepted()
    bench.hear(provider.stream, provider.chunk("much text " * 100, tokens))
    assert bench.signed_uusd() == PREFILL_UUSD + (2 * tokens if is_paid else 0)
    assert bool(bench.all(JobText)) is is_paid
    if not is_paid:
        assert bench.vouchers(provider)[-1].paid_uusd == PREFILL_UUSD


def test_what_is_not_paid_yet_is_reached_for_once() -> None:
    """The disk has not answered, so nothing is signed: a provider that sends all the same risks one window of its own."""
    bench, (provider,) = paying("p")
    bench.stores = False
    bench.feed(paid_chat())
    provider.take(bench)
    bench.hear(provider.stream, provider.accept(), provider.chunk("six tokens", 6))
    assert bench.all(JobText)
    bench.hear(provider.stream, provider.chunk("one more", 1))
    assert bench.all(JobText) == []
    assert bench.signed_uusd() == 0


def test_after_a_cancel_no_more_than_one_window_is_paid() -> None:
    bench, provider = accepted()
    bench.hear(provider.stream, provider.chunk("a"))
    bench.feed(StopAsking(paid_chat().job))
    bench.hear(provider.stream, provider.chunk("", 99), provider.receipt(Outcome.CANCELLED))
    assert bench.signed_uusd() <= PREFILL_UUSD + 2 + WINDOW_UUSD
    assert bench.peer.statistics().jobs_asked == 0


def test_what_crossed_a_cancel_is_paid_by_the_receipt() -> None:
    bench, provider = accepted()
    bench.hear(provider.stream, provider.chunk("a"))
    bench.feed(StopAsking(paid_chat().job))
    bench.hear(provider.stream, provider.chunk("b", 2), provider.receipt(Outcome.CANCELLED))
    assert bench.vouchers(provider)[-1].paid_uusd == PREFILL_UUSD + 2 * 3


@pytest.mark.parametrize("lie", [{"number": 7}, {"attempt": 2}, {"owed_uusd": 0}, {"output_tokens": 0}])
def test_after_a_cancel_chunks_are_checked_as_before(lie: dict[str, int]) -> None:
    bench, provider = accepted()
    bench.hear(provider.stream, provider.chunk("a"))
    bench.feed(StopAsking(paid_chat().job))
    bench.hear(provider.stream, provider.chunk("b", **lie))
    assert bench.peer.statistics().bad_frames == 1
    assert bench.peer.statistics().jobs_asked == 0


# ---------------------------------------------------------------- tokens that spell nothing


def test_tokens_without_text_are_paid_to_a_bound() -> None:
    bench, provider = accepted(output_tokens_max=2_000)
    for _ in range(2_000 // 4):
        bench.hear(provider.stream, provider.chunk("", 4))
        if bench.peer.statistics().bad_frames:
            break
    assert bench.peer.statistics().bad_frames == 1
    assert bench.signed_uusd() <= PREFILL_UUSD + 2 * c.TEXTLESS_TOKENS_MAX


def test_text_makes_room_for_as_many_tokens_as_it_has_bytes() -> None:
    bench, provider = accepted(output_tokens_max=2_000)
    bench.hear(provider.stream, provider.chunk("\N{SNOWMAN}" * 100, 4))
    for _ in range((300 + c.TEXTLESS_TOKENS_MAX - 4) // 4):
        bench.hear(provider.stream, provider.chunk("", 4))
    assert bench.peer.statistics().bad_frames == 0
    bench.hear(provider.stream, provider.chunk("", 1))
    assert bench.peer.statistics().bad_frames == 1


def test_a_free_answer_cannot_look_quick_by_tokens_that_spell_nothing() -> None:
    bench, provider = ordered(spend_uusd_max=0, output_tokens_max=2_000)
    bench.hear(provider.stream, provider.accept(), provider.chunk("x", 1 + c.TEXTLESS_TOKENS_MAX))
    assert bench.peer.statistics().bad_frames == 0
    bench.hear(provider.stream, provider.chunk("", 1))
    assert bench.peer.statistics().bad_frames == 1


def test_an_embedding_costs_no_output_tokens() -> None:
    embedder = replace(PRICED, kinds=(Kind.EMBEDDING,))
    bench, (provider,) = paying("p", offer=embedder)
    bench.feed(paid_chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a",)), output_tokens_max=50))
    provider.take(bench)
    bench.hear(provider.stream, provider.accept(), provider.chunk(ChunkBody("", 0, b"\x01" * 8), 1))
    assert bench.peer.statistics().bad_frames == 1
    assert bench.signed_uusd() == PREFILL_UUSD


# ---------------------------------------------------------------- the acceptance


@pytest.mark.parametrize(
    "lies",
    [
        {"window_uusd": WINDOW_UUSD + 1},
        {"window_tokens": 9},
        {"window_uusd": c.INTEGER_MAX, "window_tokens": 2**32 - 1},
        {"prefill_uusd": 0},
        {"prefill_uusd": c.INTEGER_MAX},
        {"prompt_tokens": 2**32 - 1, "prefill_uusd": 2**32 - 1},
        {"paid_before_uusd": 1},
        {"paid_before_uusd": c.INTEGER_MAX},
        {"lease": None},
        {"lease": b"?" * 32},
    ],
)
def test_an_acceptance_that_wants_more_than_its_due_moves_nothing(lies: dict[str, Any]) -> None:
    bench, provider = ordered()
    bench.hear(provider.stream, provider.accept(**lies))
    assert bench.signed_uusd() == 0
    assert bench.peer.statistics().bad_frames == 1


def test_a_window_grows_with_what_was_signed_for() -> None:
    bench, provider = accepted(output_tokens_max=400)
    for _ in range(25):
        bench.hear(provider.stream, provider.chunk("12345678", 8))
    bench.hear(provider.stream, provider.receipt())
    assert bench.signed_uusd() == PREFILL_UUSD + 400
    bench.feed(paid_chat(2))
    provider.take(bench)
    provider.paid_before_uusd = PREFILL_UUSD + 400
    bench.hear(provider.stream, provider.accept(window_tokens=200, window_uusd=400))
    assert bench.peer.statistics().bad_frames == 0
    bench.hear(provider.stream, provider.chunk("x" * 100, 100))
    assert bench.one(JobText).output_tokens == 100


def test_a_window_of_nothing_is_paid_in_the_smallest_steps() -> None:
    bench, provider = ordered()
    bench.hear(provider.stream, provider.accept(window_tokens=0, window_uusd=0))
    for number in range(3):
        bench.hear(provider.stream, provider.chunk("word"))
        assert bench.signed_uusd() == PREFILL_UUSD + 2 * (number + 1)


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize("figures", [(2, 1), (2**32 - 1, 0)])
def test_nobody_has_read_more_than_there_is(figures: tuple[int, int]) -> None:
    bench, provider = ordered()
    assert provider.order is not None
    bench.hear(provider.stream, Progress(provider.order.job, provider.order.attempt, *figures))
    assert bench.peer.statistics().bad_frames == 1


def test_who_reaches_too_far_is_left_for_the_next_provider() -> None:
    bench, provider = accepted("p", "q")
    bench.hear(provider.stream, provider.chunk("much", 100))
    other = PaidProvider("q")
    other.take(bench)
    bench.hear(other.stream, other.accept(), other.chunk("a"), other.receipt())
    served = bench.one(JobDone).served
    assert [each.paid_uusd for each in served] == [PREFILL_UUSD + 2]
    assert bench.signed_uusd() == 2 * PREFILL_UUSD + 2
