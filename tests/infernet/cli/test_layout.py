"""infernet/cli/layout.py: nothing is broken inside a word, however narrow the terminal and wide its letters."""

from __future__ import annotations

import argparse
import importlib

import pytest
from rich.cells import cell_len

from infernet.cli.__main__ import HELP, VERBS
from infernet.cli.command import make_parser
from infernet.cli.layout import WRITTEN_FOR, cells, fitted, padded, table, usage_fitted

ADDRESS = "/ip4/192.168.7.7/tcp/46337/p2p/16Uiu2HAmS5rQKfPQhXb7v8PpVWzCqGZcA7Jgd9pKqkfy6oWkE1Zs"
COLUMNS = ("name", "node", "connected", "models", "load", "address")
ROWS = (
    ("provider-1a2b3c", "16Uiu2HAmS5rQKfPQ", "yes", "smollm2-135m-instruct, qwen2.5-7b", "0/4", ADDRESS),
    ("プロバイダ🚀", "16Uiu2HAmS5rQKfPR", "no", "-", "-", "-"),
)


def lines(width: int) -> list[str]:
    return [line for line, _ in table(COLUMNS, ROWS, width)]


@pytest.mark.parametrize("width", range(1, 200, 7))
def test_every_word_is_whole_at_any_width_and_only_words_are_wider(width: int) -> None:
    shown = lines(width)
    words = " ".join(shown).split()
    for row in ROWS:
        for word in " ".join(row).split():
            assert word in words or word == "-"
    for line in shown:
        assert cells(line) <= width or len(line.split()) <= 2, "a word that has no other place, and its name"


def test_where_all_fits_it_is_one_line_a_row() -> None:
    assert len(lines(200)) == 3
    assert lines(200)[1].split("  ")[0] == "provider-1a2b3c"


def test_what_does_not_fit_stands_below_its_row() -> None:
    head, first, below, second = lines(100)
    assert "address" not in head
    assert first.startswith("provider-1a2b3c  16Uiu2HAmS5rQKfPQ")
    assert below == f"    address  {ADDRESS}"
    assert second.startswith("プロバイダ🚀")


def test_one_cell_that_is_wider_than_the_others_does_not_move_them() -> None:
    rows = [("ok", "a check", "all is well here, and that is told in some words"), ("ok", "a key", f"it is {ADDRESS}")]
    rows += [("ok", "another", "all is well here, too")]
    shown = [line for line, _ in table(("", "check", "found"), rows, 60)]
    assert shown[1:] == [
        "ok  a check  all is well here, and that is told in some",
        "             words",
        "ok  a key",
        "    found  it is",
        f"           {ADDRESS}",
        "ok  another  all is well here, too",
    ]


def test_on_a_narrow_one_rows_are_fields() -> None:
    assert lines(20)[:3] == ["name       provider-1a2b3c", "node       16Uiu2HAmS5rQKfPQ", "connected  yes"]
    assert "" in lines(20), "between the rows"
    assert not any(is_heading for _, is_heading in table(COLUMNS, ROWS, 20))


def test_wide_letters_shift_nothing() -> None:
    head, first, second = lines(200)
    column = head.index("node")
    assert first[column:].startswith("16Uiu2HAmS5rQKfPQ")
    assert cell_len(second.partition("16Uiu2")[0]) == column
    assert cell_len(padded("日本", 6)) == 6


def test_a_table_without_rows_has_its_heading() -> None:
    assert [line for line, _ in table(("a", "b"), (), 80)] == ["a  b"]


# ---------------------------------------------------------------- texts of the program


def test_help_is_as_it_was_written_where_there_is_room() -> None:
    assert fitted(HELP, WRITTEN_FOR) == HELP
    assert fitted(HELP, 300) == HELP


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("verb", VERBS)
def test_help_loses_no_word_and_fits(verb: str, width: int) -> None:
    module = importlib.import_module(f"infernet.cli.{verb}")
    for text in (module.DESCRIPTION, module.EXAMPLES, HELP) if hasattr(module, "DESCRIPTION") else (HELP,):
        shown = fitted(text, width)
        assert shown.split() == text.split()
        # A command is copied whole.
        assert all(cells(line) <= width or line.startswith("  ") for line in shown.splitlines())


def test_prose_flows_and_lists_keep_their_form() -> None:
    prose = "a " * 52 + "word\nthat goes on\nand ends.\n\nset: an item"
    assert fitted(prose, 60).splitlines()[1:] == ["a " * 22 + "word that goes", "on", "and ends.", "", "set: an item"]
    listed = "examples:\n  infernet stop --wait 600   give long answers ten minutes\n  infernet stop   end it, and wait"
    assert fitted(listed, 40).splitlines() == [
        "examples:",
        "  infernet stop --wait 600",
        "      give long answers ten minutes",
        "  infernet stop   end it, and wait",
    ]


def test_usage_breaks_between_its_flags() -> None:
    assert usage_fitted("infernet stop", "[--now | --wait S] [--force]", 80) == (
        "infernet stop [--now | --wait S] [--force]"
    )
    assert usage_fitted("infernet stop", "[--now | --wait S] [--force]", 40).splitlines() == [
        "infernet stop [--now | --wait S]",
        "                [--force]",
    ]
    assert usage_fitted("infernet start", "VERB [--a [--b] ] [--c]", 30).splitlines() == [
        "infernet start VERB",
        "                [--a [--b] ]",
        "                [--c]",
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_usage_loses_no_word(verb: str) -> None:
    usage = getattr(importlib.import_module(f"infernet.cli.{verb}"), "USAGE", "")
    assert usage_fitted(f"infernet {verb}", usage, 40).split() == f"infernet {verb} {usage}".split()


@pytest.mark.parametrize("verb", VERBS)
def test_what_flags_mean_is_broken_between_words_alone(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    module = importlib.import_module(f"infernet.cli.{verb}")
    if hasattr(module, "add_arguments"):
        parser = make_parser(verb, module)
        words = parser.format_help().split()
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                assert set(((action.help or "") % vars(action)).split()) <= set(words)
