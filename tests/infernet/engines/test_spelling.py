"""Tokens are told with the text that they spell, never before it, and none is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.spelling import Spelling, pack, unpack
from infernet.engines.stops import StopMatcher

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=20)


@given(tokens)
def test_ids_travel_as_they_are(ids: list[int]) -> None:
    assert unpack(pack(ids)) == ids
    assert unpack(pack(ids) + b"x") == ids


def test_what_was_read_before_comes_first() -> None:
    spelling = Spelling([7, 8])
    spelling.sampled("ab", [1])
    assert unpack(spelling.given("ab")) == [7, 8, 1]
    assert spelling.given("") == b""


def test_a_token_that_ends_in_text_held_back_waits_for_it() -> None:
    spelling = Spelling([])
    spelling.sampled("ab", [1])
    spelling.sampled("cd", [2, 3])
    assert unpack(spelling.given("abc")) == [1]
    assert unpack(spelling.given("d")) == [2, 3]


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=12), st.text("ab", min_size=1, max_size=3))
def test_the_tokens_told_always_spell_a_beginning_of_the_text_given(pieces: list[str], stop: str) -> None:
    spelling, stops = Spelling([]), StopMatcher([stop])
    given_text, told = "", []
    for number, piece in enumerate(pieces):
        spelling.sampled(piece, [number])
        text = stops.feed(piece)
        given_text += text
        told += unpack(spelling.given(text))
        assert told == list(range(len(told)))
        assert given_text.startswith("".join(pieces[: len(told)]))
        if stops.stopped:
            return
