"""An asker that pays, and providers and coordinators that lie: no more is signed than what came, and one window."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import decode_record
from protocol.effects import Dial, JobDone, JobFailed, JobText
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import LeaseDenied, LeaseGranted, StopAsking, UseCoordinator
from protocol.jobs import cost_uusd
from protocol.messages import Progress
from protocol.money_records import LeaseRecord, LeaseRequestRecord
from protocol.records import ChunkBody, JobRequest, Kind, ModelOffer, Outcome
from tests.helpers_hostile_provider import (
    PREFILL_UUSD,
    PRICED,
    PaidProvider,
    PayingBench,
    accepted,
    ordered,
    paid_chat,
    paying,
    priced_record,
)
from tests.helpers_records import OFFER, signing_key

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
    """The disk has not answered, so nothing is signed: whoever sends all the same risks a window of its own."""
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


# ---------------------------------------------------------------- prices

LIMITS = {"price_in_uusd_max": PRICED.price_in_uusd, "price_out_uusd_max": PRICED.price_out_uusd}
DEARER = [replace(PRICED, price_in_uusd=1_000_001), replace(PRICED, price_out_uusd=2_000_001)]


def is_unpaid(bench: PayingBench) -> bool:
    """Whether no money has moved and none is locked at these prices."""
    return not bench.signed_uusd() and not any(effect.protocol == c.JOB_PROTOCOL for effect in bench.opened.values())


@pytest.mark.parametrize("dearer", DEARER)
def test_a_price_that_rises_above_the_limit_before_the_order_is_not_paid(dearer: ModelOffer) -> None:
    bench = PayingBench()
    bench.feed(priced_record(bench, "p"))
    bench.feed(paid_chat(**LIMITS))
    assert bench.one(Dial)
    bench.feed(priced_record(bench, "p", dearer, sequence=8))
    bench.connect(signing_key("p").node)
    bench.wait(2 * c.SEARCH_DEADLINE_S)
    assert is_unpaid(bench)
    assert bench.requests == []


@pytest.mark.parametrize("dearer", DEARER)
def test_a_price_that_rises_while_money_is_locked_is_not_paid(dearer: ModelOffer) -> None:
    bench, _ = paying("p")
    bench.grants = False
    bench.feed(paid_chat(**LIMITS))
    bench.feed(priced_record(bench, "p", dearer, sequence=8))
    bench.feed(bench.grant(bench.requests[0]))
    assert bench.one(JobFailed).code is Refusal.PRICE
    assert is_unpaid(bench)
    assert len(bench.requests) == 1


@pytest.mark.parametrize("dearer", DEARER)
def test_a_provider_that_is_named_is_paid_no_more_than_the_limit(dearer: ModelOffer) -> None:
    bench, (provider,) = paying("p", offer=dearer)
    bench.feed(paid_chat(provider=provider.node, **LIMITS))
    assert bench.one(JobFailed).code is Refusal.PRICE
    assert is_unpaid(bench)
    assert bench.requests == []


def test_an_offer_behind_another_of_the_same_name_does_not_hide_its_price() -> None:
    dear = replace(PRICED, price_out_uusd=9_000_000)
    bench, _ = paying("p", models=(dear, PRICED))
    bench.feed(paid_chat(**LIMITS))
    bench.wait(2 * c.SEARCH_DEADLINE_S)
    assert is_unpaid(bench)
    assert bench.requests == []


@pytest.mark.parametrize("dearer", DEARER)
def test_a_refusal_for_its_price_is_not_answered_by_one_above_the_limit(dearer: ModelOffer) -> None:
    bench, provider = ordered(**LIMITS)
    bench.feed(priced_record(bench, "p", dearer, sequence=8))
    bench.hear(provider.stream, provider.reject(Refusal.PRICE))
    assert bench.one(JobFailed).code is Refusal.PRICE
    assert bench.signed_uusd() == 0
    assert len(bench.requests) == 1


def test_what_costs_nothing_needs_no_lease_whatever_the_provider_says_of_money() -> None:
    bench, (provider,) = paying("p", offer=OFFER)
    bench.feed(paid_chat())
    provider.take(bench)
    assert bench.requests == []
    lies = {"prefill_uusd": c.INTEGER_MAX, "window_uusd": c.INTEGER_MAX, "paid_before_uusd": c.INTEGER_MAX}
    bench.hear(provider.stream, provider.accept(**lies), provider.chunk("a"), provider.receipt())
    assert bench.one(JobDone).served[-1].paid_uusd == 0
    assert bench.vouchers(provider) == []


@pytest.mark.parametrize(
    "prices",
    [
        {"price_in_uusd": 0},
        {"price_out_uusd": 0},
        {"price_in_uusd": 0, "price_out_uusd": 0, "price_job_uusd": 7},
        {"price_in_uusd": 1, "price_out_uusd": 1},
    ],
)
def test_a_price_of_nothing_for_a_part_is_paid_to_the_end(prices: dict[str, int]) -> None:
    offer = replace(PRICED, **prices)
    bench, (provider,) = paying("p", offer=offer)
    bench.feed(paid_chat())
    provider.take(bench)
    bench.hear(provider.stream, provider.accept())
    for _ in range(10):
        bench.hear(provider.stream, provider.chunk("12345678", 8))
    bench.hear(provider.stream, provider.receipt())
    assert provider.order is not None
    assert bench.one(JobDone).served[-1].paid_uusd == cost_uusd(provider.order, 3, 80)
    assert bench.signed_uusd() == cost_uusd(provider.order, 3, 80)


# ---------------------------------------------------------------- leases


@pytest.mark.parametrize(
    "lies",
    [
        {"cap_uusd": 10**12},
        {"price_out_uusd": 10**12},
        {"provider": b"\x01" * 32},
        {"payer": b"\x01" * 32},
        {"lease": bytes(32)},
        {"serve_until_ms": 0},
        {"serve_until_ms": c.INTEGER_MAX, "claim_by_ms": c.INTEGER_MAX},
        {"claim_by_ms": 0},
    ],
)
def test_a_lease_that_was_not_asked_for_ends_the_wait_at_once(lies: dict[str, Any]) -> None:
    bench, _ = paying("p")
    bench.grants = False
    bench.feed(paid_chat())
    good = bench.grant(bench.requests[0])
    record = replace(decode_record(good.signed.body, LeaseRecord), **lies)
    bench.feed(LeaseGranted(good.request, sign_record(record, signing_key("bank"))))
    assert bench.one(JobFailed).code is Refusal.LEASE
    assert is_unpaid(bench)
    assert bench.peer.purse.sides() == []
    bench.feed(good)
    assert bench.peer.purse.sides() == []


def test_a_lease_with_a_signature_of_somebody_else_ends_the_wait_at_once() -> None:
    bench, _ = paying("p")
    bench.grants = False
    bench.feed(paid_chat())
    good = bench.grant(bench.requests[0])
    bench.feed(LeaseGranted(good.request, replace(good.signed, signature=bytes(64))))
    assert bench.one(JobFailed).code is Refusal.LEASE
    assert is_unpaid(bench)


def test_a_coordinator_that_is_left_while_it_is_asked_is_not_asked_again() -> None:
    bench, _ = paying("p")
    bench.grants = False
    bench.feed(paid_chat())
    bench.feed(UseCoordinator(None))
    bench.feed(LeaseDenied(bench.requests[0].request, "too little", is_final=True))
    assert bench.one(JobFailed).code is Refusal.LEASE
    assert len(bench.requests) == 1


def test_a_job_that_needs_nothing_is_asked_for_with_the_least_that_there_is() -> None:
    """Only output has a price, and an embedding has none: the coordinator's refusal must not end the node."""
    embedder = replace(PRICED, kinds=(Kind.EMBEDDING,), price_in_uusd=0)
    bench, _ = paying("p", offer=embedder)
    bench.grants = False
    bench.feed(paid_chat(kind=Kind.EMBEDDING, request=JobRequest(inputs=("a",)), output_tokens_max=0))
    bench.feed(LeaseDenied(bench.requests[0].request, "too little", is_final=True))
    assert decode_record(bench.requests[1].signed.body, LeaseRequestRecord).cap_uusd == 1
    bench.feed(LeaseDenied(bench.requests[1].request, "too little", is_final=True))
    assert bench.one(JobFailed).code is Refusal.LEASE
