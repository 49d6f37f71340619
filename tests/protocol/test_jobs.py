"""The rules of a job that both sides share."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import constants as c
from protocol.errors import LocalProtocolError
from protocol.jobs import (
    ENDED,
    TRANSITIONS,
    JobState,
    advance,
    check_request,
    cost_uusd,
    default_sampling,
    is_free,
    parts,
    running_hash,
)
from protocol.records import ChatMessage, JobRequest, Kind
from tests.helpers_records import order

O, Q, A, R, X, D, F, C = (  # noqa: E741 - the columns of the table below
    JobState.OFFERED,
    JobState.QUEUED,
    JobState.ACCEPTED,
    JobState.RUNNING,
    JobState.CANCELLING,
    JobState.DONE,
    JobState.FAILED,
    JobState.CANCELLED,
)
# The whole table, written down a second time on purpose: what specs/05 says, and nothing else.
ALLOWED = {
    (O, A), (O, F), (O, X), (O, C), (O, Q),
    (Q, O), (Q, F), (Q, C),
    (A, R), (A, D), (A, F), (A, X),
    (R, D), (R, F), (R, X),
    (X, C), (X, D), (X, F),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, JobState)))
def test_every_transition_is_allowed_or_refused_as_the_table_says(old: JobState, new: JobState) -> None:
    if (old, new) in ALLOWED:
        assert advance(old, new) is new
    else:
        with pytest.raises(AssertionError):
            advance(old, new)


def test_ended_jobs_stay_ended_and_every_other_can_end() -> None:
    assert {D, F, C} == ENDED
    reachable = {O}
    for _ in JobState:
        reachable |= {new for old in reachable for new in TRANSITIONS[old]}
    assert reachable == set(JobState)
    assert all(TRANSITIONS[state] & {D, F, C} for state in JobState if state not in ENDED)


def test_cost_is_rounded_up_once_over_cumulative_counts() -> None:
    free, dear = order(), order(price_in_uusd=1, price_out_uusd=2, price_job_uusd=7)
    assert is_free(free)
    assert not is_free(dear)
    assert cost_uusd(free, 10_000, 10_000) == 0
    assert cost_uusd(dear, 0, 0) == 7
    assert cost_uusd(dear, 1, 0) == 8
    assert cost_uusd(dear, 1_000_000, 0) == 8
    assert cost_uusd(dear, 999_999, 1) == 9
    assert cost_uusd(dear, 1_000_000, 500_000) == 9


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 99)))
def test_debt_never_shrinks_and_never_exceeds_its_exact_value_by_one(
    price_in: int, price_out: int, prompt: int, steps: list[int]
) -> None:
    priced = order(price_in_uusd=price_in, price_out_uusd=price_out)
    debts = [cost_uusd(priced, prompt, tokens) for tokens in itertools.accumulate(steps)]
    assert debts == sorted(debts)
    for debt, tokens in zip(debts, itertools.accumulate(steps), strict=True):
        exact = prompt * price_in + tokens * price_out
        assert exact <= debt * 1_000_000 < exact + 1_000_000
        assert debt <= c.INTEGER_MAX


def test_the_running_hash_depends_on_every_field_and_on_the_order() -> None:
    base = (bytes(32), 1, 2, 3, b"sealed")
    variants = {running_hash(*base)}
    for place, value in enumerate([b"\x01" * 32, 9, 9, 9, b"other"]):
        changed = list(base)
        changed[place] = value
        variants.add(running_hash(*changed))  # type: ignore[arg-type]
    assert len(variants) == 6
    expected = bytes(32) + (1).to_bytes(8, "big") + (2).to_bytes(8, "big") + (3).to_bytes(8, "big") + b"sealed"
    assert running_hash(*base) == hashlib.sha256(expected).digest()


GREETING = (ChatMessage("user", "hi"),)


@pytest.mark.parametrize(
    ("kind", "request_", "good"),
    [
        (Kind.CHAT, JobRequest(messages=GREETING), True),
        (Kind.CHAT, JobRequest(messages=GREETING, continuation="so far", stop=("\n",)), True),
        (Kind.CHAT, JobRequest(), False),
        (Kind.CHAT, JobRequest(messages=(ChatMessage("tool", "hi"),)), False),
        (Kind.CHAT, JobRequest(messages=GREETING, prompt="x"), False),
        (Kind.CHAT, JobRequest(messages=GREETING, inputs=("x",)), False),
        (Kind.COMPLETION, JobRequest(prompt="once"), True),
        (Kind.COMPLETION, JobRequest(), False),
        (Kind.COMPLETION, JobRequest(prompt="once", messages=GREETING), False),
        (Kind.COMPLETION, JobRequest(prompt="once", inputs=("x",)), False),
        (Kind.EMBEDDING, JobRequest(inputs=("x",)), True),
        (Kind.EMBEDDING, JobRequest(), False),
        (Kind.EMBEDDING, JobRequest(inputs=("x",), prompt="once"), False),
        (Kind.EMBEDDING, JobRequest(inputs=("x",), messages=GREETING), False),
        (Kind.EMBEDDING, JobRequest(inputs=("x",), continuation="so far"), False),
        (Kind.EMBEDDING, JobRequest(inputs=("x",), stop=("\n",)), False),
    ],
)
def test_requests_fit_their_kind(kind: Kind, request_: JobRequest, good: bool) -> None:
    assert (check_request(kind, request_) is None) == good


def test_a_request_of_an_unknown_kind_fits_nothing() -> None:
    assert check_request(Kind.UNKNOWN, JobRequest(inputs=("x",))) is not None
    assert check_request(Kind.UNKNOWN, JobRequest(messages=GREETING)) is not None


@pytest.mark.parametrize("temperature", [-0.1, 2.1, float("nan"), float("inf")])
def test_default_sampling_refuses_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(LocalProtocolError):
        default_sampling(1, temperature=temperature)


@given(st.binary(max_size=300))
def test_parts_put_together_are_the_prompt(data: bytes) -> None:
    sealed = data * 1000
    first, rest = parts(sealed)
    assert b"".join([first, *rest]) == sealed
    assert len(first) <= c.SEALED_INLINE_BYTES_MAX
    assert all(0 < len(part) <= c.SEALED_PART_BYTES_MAX for part in rest)
