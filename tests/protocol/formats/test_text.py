"""protocol/formats/text.py: what a stranger wrote cannot make a terminal do anything, however it is cut up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.formats.text import (
    SEQUENCE_CHARACTERS_MAX,
    TerminalCleaner,
    clean_line,
    clean_name,
    clean_text,
)

FORBIDDEN = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
FORBIDDEN |= {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080))}
FORBIDDEN |= {chr(code) for code in range(0xD800, 0xE000)}

# Mostly the characters that mean something, so that sequences come about.
hostile = st.text(
    st.sampled_from(
        [*"\x1b\x9b\x9d\x90\x98\x9e\x9f\x9c\x07\x18\x1a\x7f\x00\r\n\t []PX^_\\;?0mAHab(", "\u202e", "\ud800"]
    )
    | st.characters(),
    max_size=80,
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text,\n\tin two lines", "plain text,\n\tin two lines"),
        ("日本語 🇫🇷 👩‍🚀 नमस्ते café", "日本語 🇫🇷 👩‍🚀 नमस्ते café"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b[38;2;1;2;3mdeep\x1b[?1049h", "deep"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;c3RvbGVu\x1b\\after", "after"),
        ("\x9d52;c;c3RvbGVu\x9cafter", "after"),
        ("\x1bPdevice\x1b\\after\x1bXsos\x1b\\ \x1b^pm\x1b\\\x1b_apc\x1b\\.", "after ."),
        ("\x1b(Bcharset\x1b#8\x1bcreset", "charsetreset"),
        ("a\x1b\x1b[31mb", "ab"),
        ("\x1b]8;;http://evil\x1b[31mb", "b"),
        ("a\x1b[31\x18b\x1b[31\x1ac", "abc"),
        ("a\x1b]0;title\x18b\x1bPdevice\x1ac", "abc"),
        ("back\b\b\b\bspace\a\x00\x7f", "backspace"),
        ("progress 1\rprogress 2\r\n", "progress 1progress 2\n"),
        ("user\u202etxt.exe\u202c \u2066x\u2069", "usertxt.exe x"),
        ("hidden" + "".join(chr(0xE0000 + ord(c)) for c in "ignore"), "hidden"),
        ("broken \ud83d half", "broken \ufffd half"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_removed(raw: str, shown: str) -> None:
    assert clean_text(raw) == shown


def test_a_sequence_split_over_pieces_is_still_one() -> None:
    cleaner = TerminalCleaner()
    assert "".join(map(cleaner.feed, ["a\x1b", "[", "3", "1", "mb\x1b]0;ti", "tle\x1b", "\\c"])) == "abc"


def test_a_string_that_never_ends_eats_no_more_than_its_line() -> None:
    assert clean_text("a\x1b]0;no end\nthe rest") == "a\nthe rest"


def test_a_sequence_without_an_end_is_given_up() -> None:
    shown = clean_text("\x1b]" + "x" * (SEQUENCE_CHARACTERS_MAX + 100))
    assert 100 <= len(shown) <= 102
    assert clean_text("\x1b[" + "1" * (SEQUENCE_CHARACTERS_MAX + 100)).startswith("111")


@given(hostile)
def test_nothing_forbidden_ever_passes(raw: str) -> None:
    assert not set(clean_text(raw)) & FORBIDDEN


@given(hostile, st.lists(st.integers(0, 80), max_size=8))
def test_the_cut_into_pieces_does_not_matter(raw: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(bounds)]
    cleaner = TerminalCleaner()
    assert "".join(map(cleaner.feed, pieces)) == clean_text(raw)


@given(hostile)
def test_what_was_cleaned_stays_as_it_is(raw: str) -> None:
    shown = clean_text(raw)
    assert clean_text(shown) == shown


@given(hostile, st.integers(1, 40))
def test_a_line_is_one_line_of_limited_length(raw: str, characters_max: int) -> None:
    line = clean_line(raw, characters_max)
    assert len(line) <= characters_max
    assert len(line.splitlines()) <= 1
    assert line == line.strip()
    assert not set(line) & (FORBIDDEN | {"\t", "\u2028", "\u200e", "\ufeff"})


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("gpu box 7", "gpu box 7"),
        ("  many \t spaces\n and lines ", "many spaces and lines"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("sep\u2028arated", "sep arated"),
        ("میخ\u200cام", "میخ\u200cام"),
        ("\u200d\u200c", ""),
        ("\x1b[31m", ""),
        ("x" * 60, "x" * 47 + "…"),
    ],
)
def test_a_name_is_one_short_line(raw: str, shown: str) -> None:
    assert clean_name(raw) == shown
