"""Claims on their way: together in few frames, each with its own end, and over HTTP where a link has no room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from infernet.coordinator_client import CoordinatorError
from infernet.money.claims import CLAIM_TIMEOUT_S, Claims
from protocol.constants import CLAIMS_MAX
from protocol.effects import SendClaim
from protocol.ids import LeaseId
from protocol.link import LINK_CLAIMS_MAX, ClaimAnswer, ClaimRefusal
from protocol.records import Signed
from tests.helpers_money_store import BANK, acknowledgement, lease_of


class Link:
    """Double of the link: it stands or it does not, and keeps what is sent over it."""

    def __init__(self) -> None:
        self.stands = True
        self.sent: dict[int, tuple[Signed, ...]] = {}

    def claim(self, number: int, claims: tuple[Signed, ...]) -> bool:
        if self.stands:
            self.sent[number] = claims
        return self.stands


class Client:
    """Double of the coordinator's routes."""

    def __init__(self) -> None:
        self.asked: list[Signed] = []
        self.answer: Signed | Exception | None = acknowledgement(1)

    async def claim(self, claim: Signed) -> Signed:
        self.asked.append(claim)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await trio.sleep_forever()
            raise AssertionError
        return self.answer


class Bench:
    """Claims, and how they ended."""

    def __init__(self, *, has_link: bool = True) -> None:
        self.link, self.client = Link(), Client()
        self.on_end: Callable[[], None] = lambda: None
        self.ended: list[tuple[LeaseId, Signed | None, str, bool]] = []
        self.claims = Claims(self.client, self._on_outcome)  # type: ignore[arg-type]
        if has_link:
            self.claims.use_link(self.link)  # type: ignore[arg-type]

    def _on_outcome(self, lease: LeaseId, acknowledgement: Signed | None, text: str, *, is_final: bool) -> None:
        self.ended.append((lease, acknowledgement, text, is_final))
        self.on_end()

    async def send(self, *numbers: int) -> None:
        for number in numbers:
            self.claims.send(effect(number))
        await wait_all_tasks_blocked()


@asynccontextmanager
async def bench(**words: Any) -> AsyncIterator[Bench]:
    made = Bench(**words)
    async with trio.open_nursery() as nursery:
        made.claims.attach(nursery)
        yield made
        nursery.cancel_scope.cancel()


def effect(number: int, marker: bytes = b"") -> SendClaim:
    return SendClaim(lease_of(number), BANK.node, Signed(number.to_bytes(2, "big") + marker, bytes(64)))


@pytest.mark.anyio
async def test_what_is_wanted_in_one_go_travels_in_one_frame_and_ends_one_by_one() -> None:
    async with bench() as b:
        await b.send(1, 2, 3)
        assert list(b.link.sent.values()) == [tuple(effect(number).claim for number in (1, 2, 3))]
        assert len(b.claims) == 3
        refusals = (ClaimRefusal(1, "lease_closed", "it is over"),)
        b.claims.on_answer(ClaimAnswer(next(iter(b.link.sent)), acknowledgement(9), refusals))
        assert b.ended == [
            (lease_of(1), acknowledgement(9), b.ended[0][2], False),
            (lease_of(2), None, "the coordinator refused: it is over", True),
            (lease_of(3), acknowledgement(9), b.ended[2][2], False),
        ]
        assert len(b.claims) == 0


@pytest.mark.anyio
async def test_an_answer_that_says_nothing_of_a_claim_is_none_for_it() -> None:
    async with bench() as b:
        await b.send(1, 2)
        b.claims.on_answer(ClaimAnswer(next(iter(b.link.sent)), None, (ClaimRefusal(0, "busy", "later"),)))
        assert [(lease, word, is_final) for lease, word, _, is_final in b.ended] == [
            (lease_of(1), None, False),
            (lease_of(2), None, False),
        ]


@pytest.mark.anyio
async def test_more_than_a_frame_takes_goes_into_the_next_and_more_than_a_link_takes_over_http() -> None:
    async with bench() as b:
        await b.send(*range(LINK_CLAIMS_MAX + 2))
        assert [len(claims) for claims in b.link.sent.values()] == [CLAIMS_MAX] * (LINK_CLAIMS_MAX // CLAIMS_MAX)
        beyond = [LINK_CLAIMS_MAX, LINK_CLAIMS_MAX + 1]
        assert set(b.client.asked) == {effect(number).claim for number in beyond}
        assert {ended[0] for ended in b.ended} == {lease_of(number) for number in beyond}
        assert len(b.claims) == LINK_CLAIMS_MAX
        b.claims.on_answer(ClaimAnswer(next(iter(b.link.sent)), acknowledgement(9), ()))
        await b.send(100)
        assert len(b.link.sent) == 3, "there is room again"


@pytest.mark.anyio
async def test_what_is_on_its_way_takes_room_on_the_link_until_it_is_answered_also_where_nobody_waits_for_it() -> None:
    async with bench() as b:
        await b.send(*range(40))
        await b.send(*range(30))
        assert sum(len(claims) for claims in b.link.sent.values()) == LINK_CLAIMS_MAX
        assert len(b.client.asked) == 40 + 30 - LINK_CLAIMS_MAX
        assert len(b.claims) == LINK_CLAIMS_MAX - 30


@pytest.mark.anyio
async def test_a_claim_in_place_of_an_earlier_one_is_the_only_one_that_ends() -> None:
    async with bench() as b:
        await b.send(1, 2)
        await b.send(1)
        first, second = b.link.sent
        assert len(b.claims) == 2
        b.claims.on_answer(ClaimAnswer(first, acknowledgement(9), ()))
        assert [ended[0] for ended in b.ended] == [lease_of(2)]
        b.claims.on_answer(ClaimAnswer(second, acknowledgement(9), ()))
        assert [ended[0] for ended in b.ended] == [lease_of(2), lease_of(1)]
        b.claims.on_answer(ClaimAnswer(second, acknowledgement(9), ()))
        assert len(b.ended) == 2, "an answer that comes again"


@pytest.mark.anyio
async def test_of_two_claims_on_a_lease_before_the_frame_the_later_one_is_sent() -> None:
    async with bench() as b:
        b.claims.send(effect(1))
        b.claims.send(effect(1, b"later"))
        await wait_all_tasks_blocked()
        assert list(b.link.sent.values()) == [(effect(1, b"later").claim,)]


@pytest.mark.anyio
async def test_without_a_link_claims_go_over_http_and_failures_are_told() -> None:
    async with bench(has_link=False) as b:
        b.client.answer = CoordinatorError("it is away")
        await b.send(1)
        assert b.ended == [(lease_of(1), None, "it is away", False)]
        assert len(b.claims) == 0


async def never_answered() -> float:
    """How long a claim waits for a coordinator that does not answer."""
    async with bench(has_link=False) as b:
        b.client.answer = None
        ended = trio.Event()
        b.on_end = ended.set
        b.claims.send(effect(1))
        await ended.wait()
        assert (b.ended[0][1], b.ended[0][3]) == (None, False)
        return trio.current_time()


def test_a_coordinator_that_does_not_answer_is_waited_for_so_long() -> None:
    clock = MockClock(autojump_threshold=0)
    begun_s = clock.current_time()
    assert trio.run(never_answered, clock=clock) - begun_s == pytest.approx(CLAIM_TIMEOUT_S)


@pytest.mark.anyio
async def test_what_is_on_its_way_over_a_lost_link_has_no_answer() -> None:
    async with bench() as b:
        await b.send(1, 2)
        await b.send(1)
        b.link.stands = False
        b.claims.on_link_lost()
        assert sorted(ended[0] for ended in b.ended) == sorted([lease_of(2), lease_of(1)])
        assert {ended[1:] for ended in b.ended} == {(None, "the link to the coordinator was lost", False)}
        await b.send(3)
        assert b.client.asked == [effect(3).claim]


@pytest.mark.anyio
async def test_a_node_that_is_ending_sends_nothing() -> None:
    b = Bench()
    b.claims.send(effect(1))
    assert b.ended == [(lease_of(1), None, "this node is ending", False)]
    assert len(b.claims) == 0


STEPS = st.one_of(
    st.tuples(st.just("send"), st.lists(st.integers(0, 90), min_size=1, max_size=40)),
    st.tuples(st.just("answer"), st.integers(0, 5), st.booleans(), st.lists(st.integers(0, CLAIMS_MAX - 1))),
    st.tuples(st.just("link"), st.booleans()),
)


@given(st.lists(STEPS, max_size=12))
@settings(deadline=None)
def test_whatever_a_coordinator_answers_each_claim_ends_once_and_none_is_waited_for_for_ever(steps: list[Any]) -> None:
    trio.run(each_ends_once, steps)


async def each_ends_once(steps: list[Any]) -> None:
    async with bench() as b:
        waiting: set[LeaseId] = set()
        unanswered: list[int] = []

        def settle() -> None:
            ended = [lease for lease, *_ in b.ended]
            assert len(set(ended)) == len(ended)
            assert set(ended) <= waiting, "it has ended before"
            waiting.difference_update(ended)
            b.ended.clear()
            assert len(b.claims) == len(waiting)

        for name, *words in steps:
            sent = set(b.link.sent)
            if name == "send":
                waiting.update(map(lease_of, words[0]))
                await b.send(*words[0])
                assert sum(len(b.link.sent[number]) for number in unanswered) <= LINK_CLAIMS_MAX
            elif name == "answer":
                number = unanswered.pop(words[0]) if words[0] < len(unanswered) else 10_000
                refusals = tuple(ClaimRefusal(position, "busy", "later") for position in words[2])
                b.claims.on_answer(ClaimAnswer(number, acknowledgement(9) if words[1] else None, refusals))
            elif not words[0]:
                b.link.stands = False
                b.claims.on_link_lost()
                unanswered.clear()
            else:
                b.link.stands = True
            unanswered += set(b.link.sent) - sent
            settle()
        b.claims.on_link_lost()
        settle()
        assert waiting == set()
