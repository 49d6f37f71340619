"""Stop strings: the answer ends before the first one, however its text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.stops import StopMatcher

# Few letters, so that stop strings, their beginnings and overlaps come often.
texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def pieces_through(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Feed pieces until the matcher stops."""
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.feed(piece)
        if matcher.stopped:
            return out, True
    return out + matcher.finish(), False


@given(pieces=st.lists(texts, max_size=8), stops=stops)
def test_the_text_before_the_stop_string_that_is_complete_first_is_given(pieces: list[str], stops: list[str]) -> None:
    whole = ""
    expected = None
    for piece in pieces:
        whole += piece
        found = [whole.find(stop) for stop in stops if stop in whole]
        if found:
            expected = whole[: min(found)]
            break
    assert pieces_through(pieces, stops) == ((whole, False) if expected is None else (expected, True))


@given(pieces=st.lists(texts, max_size=8), stops=stops)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_, whole = "", ""
    for piece in pieces:
        whole += piece
        given_ += matcher.feed(piece)
        if matcher.stopped:
            return
        held = whole[len(given_) :]
        assert whole.startswith(given_)
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stop", "before"),
    [
        (["Paris", " is", " nice"], " is", "Paris"),
        (["a", "b", "a", "b", "c"], "abc", "ab"),
        (["ab", "abx", "y"], "abxy", "ab"),
        (["\n", "\n", "User:"], "\n\nUser", ""),
    ],
)
def test_a_stop_string_may_lie_across_pieces(pieces: list[str], stop: str, before: str) -> None:
    assert pieces_through(pieces, [stop]) == (before, True)


@given(said=texts, pieces=st.lists(texts, max_size=8), stops=stops)
def test_what_was_said_before_counts_and_is_not_said_again(said: str, pieces: list[str], stops: list[str]) -> None:
    """As if all of it came from one engine, which holds back what may become a stop string."""
    one = StopMatcher(stops)
    before = one.feed(said)
    if one.stopped:
        return
    # Whoever was before let go everything; then what was let go too much cannot be taken back.
    out, whole = "", said
    matcher = StopMatcher(stops, said)
    for piece in pieces:
        whole += piece
        out += matcher.feed(piece)
        alone = one.feed(piece)
        before += alone
        assert matcher.stopped == one.stopped
        if matcher.stopped:
            break
    else:
        out += matcher.finish()
        before += one.finish()
    assert said + out == max(said, before, key=len)
