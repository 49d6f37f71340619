"""protocol/router.py: what becomes of jobs is measured by our clock, and is felt by the next decision."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.affinity import PREFIX_CHARACTERS_MIN
from protocol.directory import Directory
from protocol.errors import Refusal
from protocol.events import Ask, Now
from protocol.ids import NodeId
from protocol.ranking import Standing, Tier
from protocol.records import ChatMessage, FreePolicy, JobRequest, Kind, Signed
from protocol.reputation import Reputation
from protocol.router import REST_S, REST_S_MAX, AttemptEnd, Listeners, Result, Router
from protocol.routing import Decision, Exclusion, RouteRequest
from tests.helpers_machines import chat, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

OURS = signing_key("ours").node
A, B = signing_key("a").node, signing_key("b").node
M = OFFER.name
REQUEST = RouteRequest(M, Kind.CHAT, output_tokens=100)
RECEIPT = Signed(b"receipt", bytes(64))


class Market:
    """A router among some providers, its clock, and what its listeners heard."""

    def __init__(self, *names: str, **changes: Any) -> None:
        self.directory = Directory()
        for name in names:
            fields = {"free_policy": FreePolicy.ALL, "expires_at_ms": NOW_MS + 1_800_000} | changes
            self.directory.add(record_of(name, **fields), NOW_MS)
        self.reputation = Reputation(OURS)
        self.decisions: list[Decision] = []
        self.ends: list[AttemptEnd] = []
        self.at_s = 1000.0
        self.router = Router(
            OURS,
            self.directory,
            self.reputation,
            random.Random(5),
            connected=lambda _: True,
            has_address=lambda _: True,
            listeners=Listeners(
                lambda decision, _now: self.decisions.append(decision), lambda end, _now: self.ends.append(end)
            ),
        )

    def now(self) -> Now:
        return Now(self.at_s, NOW_MS + round((self.at_s - 1000) * 1000))

    def choose(self, ask: Ask | None = None) -> NodeId:
        candidate = self.router.choose(ask or chat(99), REQUEST, (), self.now())
        assert candidate is not None
        return candidate.node

    def order(self, provider: NodeId = A, number: int = 1) -> Ask:
        ask = chat(number)
        self.router.ordered(ask, provider, M, self.now())
        return ask

    def serve(self, provider: NodeId = A, number: int = 1, *, first_s: float = 0.5, tokens: int = 41) -> None:
        """A whole job: the first token after a while, then ten a second."""
        ask = self.order(provider, number)
        self.router.accepted(ask.job)
        self.at_s += first_s
        for count in range(1, tokens + 1):
            self.router.heard(ask.job, count, self.now())
            self.at_s += 0.1
        self.router.done(ask.job, RECEIPT, self.now())
        self.router.forget(ask.job)

    def fail(self, code: Refusal, provider: NodeId = A, *, accepted: bool = False, retry_after_ms: int = 0) -> None:
        ask = self.order(provider)
        if accepted:
            self.router.accepted(ask.job)
        self.router.failed(ask.job, provider, M, code, self.now(), retry_after_ms=retry_after_ms)
        self.router.forget(ask.job)

    def standing(self, provider: NodeId = A) -> Standing:
        (verdict,) = [each for each in self.router.explain(REQUEST, self.now()) if each.node == provider]
        assert verdict.rank is not None
        return verdict.rank.standing

    def tier(self, provider: NodeId = A) -> Tier:
        (verdict,) = [each for each in self.router.explain(REQUEST, self.now()) if each.node == provider]
        assert verdict.rank is not None
        return verdict.rank.tier


def test_a_job_is_measured_by_our_clock() -> None:
    market = Market("a", "b")
    market.serve(first_s=0.5)
    (end,) = market.ends
    assert (end.provider, end.model, end.result, end.is_accepted) == (A, M, Result.DONE, True)
    assert end.first_token_s == pytest.approx(0.5)
    assert end.tokens_per_s == pytest.approx(10)
    assert end.receipt == RECEIPT
    assert market.standing().has_served
    assert market.router.active == 0


def test_time_in_a_queue_is_not_its_speed() -> None:
    market = Market("a")
    ask = market.order()
    for _ in range(3):
        market.at_s += 5
        market.router.waits(ask.job, market.now())
    market.at_s += 0.25
    market.router.heard(ask.job, 1, market.now())
    market.router.waits(ask.job, market.now())
    market.router.done(ask.job, RECEIPT, market.now())
    assert market.ends[0].first_token_s == pytest.approx(0.25)


def test_a_few_tokens_give_no_rate() -> None:
    market = Market("a")
    market.serve(tokens=5)
    assert market.ends[0].tokens_per_s is None
    assert market.standing().tokens_per_s == pytest.approx(Standing().tokens_per_s)


def test_a_job_given_up_says_nothing_but_how_fast_it_was() -> None:
    market = Market("a")
    ask = market.order()
    market.at_s += 3
    market.router.heard(ask.job, 1, market.now())
    market.router.forget(ask.job)
    assert market.ends == []
    standing = market.standing()
    assert (standing.jobs, standing.open_jobs) == (0, 0)
    assert standing.first_token_s > 1
    market.router.forget(ask.job)


def test_open_orders_count_as_load() -> None:
    market = Market("a", "b")
    for number in range(OFFER.concurrency):
        market.order(A, number)
        assert market.standing().open_jobs == number + 1
    assert market.tier() is Tier.FULL
    assert {market.choose(chat(90 + number)) for number in range(20)} == {B}


@pytest.mark.parametrize(
    ("code", "accepted", "result", "bad"),
    [
        (Refusal.DEADLINE, False, Result.SILENT, 1),
        (Refusal.DEADLINE, True, Result.SILENT, 1),
        (Refusal.PEER_LOST, False, Result.FAILED, 1),
        (Refusal.ENGINE_FAILED, True, Result.FAILED, 1),
        (Refusal.PROTOCOL, True, Result.FAILED, 1),
        (Refusal.BUSY, False, Result.REFUSED, 0),
        (Refusal.NOT_FREE, False, Result.REFUSED, 0),
        (Refusal.NO_ROUTE, False, Result.NOT_REACHED, 0),
    ],
)
def test_what_is_held_against_a_provider(code: Refusal, accepted: bool, result: Result, bad: int) -> None:
    market = Market("a")
    market.fail(code, accepted=accepted)
    assert [end.result for end in market.ends] == [result]
    account = market.reputation.account(A, M, market.now().wall_ms)
    assert (account.bad, account.ok, account.refused) == (bad, 0, result is Result.REFUSED)
    assert market.tier() is Tier.RESTING


def test_what_is_wrong_with_the_order_is_no_reason_to_leave_a_provider_alone() -> None:
    market = Market("a")
    market.fail(Refusal.CONTEXT_EXCEEDED)
    assert market.tier() is Tier.READY


def test_who_was_never_reached_rests_and_is_told_so() -> None:
    market = Market("a", "b")
    market.router.failed(chat().job, A, M, Refusal.PEER_LOST, market.now())
    assert market.ends == [AttemptEnd(A, M, Result.NOT_REACHED)]
    assert market.tier() is Tier.RESTING
    assert market.reputation.account(A, M, NOW_MS).bad == 0
    market.router.failed(chat().job, A, None, Refusal.PEER_LOST, market.now())
    assert len(market.ends) == 1


def test_each_failure_in_a_row_rests_twice_as_long_and_a_job_done_ends_it() -> None:
    market = Market("a", "b")
    rests = []
    for _ in range(8):
        market.fail(Refusal.DEADLINE)
        rests.append(market.standing().rest_s)
    assert rests == [min(REST_S * 2**number, REST_S_MAX) for number in range(8)]
    market.at_s += REST_S_MAX
    assert market.standing().rest_s == 0
    market.fail(Refusal.DEADLINE)
    assert market.standing().rest_s == REST_S_MAX
    market.serve()
    assert market.standing().rest_s == 0
    market.fail(Refusal.DEADLINE)
    assert market.standing().rest_s == REST_S
    # Long ago is not in a row.
    market.at_s += REST_S + REST_S_MAX + 1
    market.fail(Refusal.DEADLINE)
    assert market.standing().rest_s == REST_S


def test_a_refusal_holds_as_long_as_it_says_within_reason() -> None:
    market = Market("a")
    market.fail(Refusal.BUSY, retry_after_ms=7000)
    assert market.standing().rest_s == 7
    market.fail(Refusal.BUSY, retry_after_ms=10**15)
    assert market.standing().rest_s == REST_S_MAX
    market.fail(Refusal.NOT_FREE)
    assert market.standing().rest_s == 3600


def test_the_resting_are_asked_when_nobody_else_is_there() -> None:
    market = Market("a", "b")
    market.fail(Refusal.DEADLINE)
    assert {market.choose() for _ in range(20)} == {B}
    market.fail(Refusal.DEADLINE, B)
    market.fail(Refusal.DEADLINE, B)
    assert {market.choose() for _ in range(20)} == {A}


def test_an_order_that_is_written_anew_is_nobodys_fault() -> None:
    market = Market("a")
    ask = market.order()
    market.router.withdraw(ask.job)
    assert market.standing().open_jobs == 0
    market.router.ordered(ask, A, M, market.now())
    market.router.ordered(ask, B, M, market.now())
    assert market.standing().open_jobs == 0
    assert market.ends == []


def long_chat(number: int, *more: str) -> Ask:
    texts = ("x" * PREFIX_CHARACTERS_MIN, *more)
    messages = tuple(ChatMessage(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return replace(chat(number), request=JobRequest(messages=messages))


def test_the_next_turn_goes_where_the_last_one_was_read() -> None:
    names = [f"p{number}" for number in range(40)]
    market = Market(*names)
    for number, name in enumerate(names):
        for _ in range(4 if name == "p7" else 8):
            market.serve(signing_key(name).node, number, tokens=9)
    provider = signing_key("p7").node
    first = long_chat(200)
    market.router.ordered(first, provider, M, market.now())
    market.router.done(first.job, RECEIPT, market.now())
    market.router.forget(first.job)
    assert provider not in {market.choose(chat(100 + number)) for number in range(20)}
    assert {market.choose(long_chat(300 + n, "answer", f"question {n}")) for n in range(20)} == {provider}
    # Not where it is much worse.
    market.fail(Refusal.DEADLINE, provider)
    assert provider not in {market.choose(long_chat(400 + n, "answer", f"question {n}")) for n in range(20)}


def test_decisions_are_told_with_what_spoke_against_the_others() -> None:
    market = Market("a", "b", "c")
    market.fail(Refusal.DEADLINE)
    chosen = market.choose()
    decision = market.decisions[-1]
    assert decision.chosen is not None
    assert decision.chosen.node == chosen
    against = {verdict.node: verdict.against for verdict in decision.verdicts}
    assert against[A] is Exclusion.RESTING
    assert against[chosen] is None
    assert len(against) == 3


def test_a_job_that_searches_is_one_decision_until_somebody_is_found() -> None:
    market = Market("a")
    nowhere = replace(REQUEST, context_tokens=10**6)
    for _ in range(5):
        assert market.router.choose(chat(), nowhere, (), market.now()) is None
    assert len(market.decisions) == 1
    assert market.router.choose(chat(), REQUEST, (), market.now()) is not None
    assert market.router.choose(chat(), nowhere, (), market.now()) is None
    assert len(market.decisions) == 3


def test_asking_whether_there_is_somebody_is_no_decision() -> None:
    market = Market("a")
    assert market.router.consider(REQUEST, market.now()).chosen is not None
    assert market.router.consider(replace(REQUEST, model="other"), market.now()).chosen is None
    assert market.decisions == []
    assert market.router.active == 0
