"""infernet/tui/model.py: whatever a node, a log or a driver says becomes numbers within bounds and single lines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infernet.tui.model import HISTORY_MAX, LOG_LINES_MAX, ROWS_MAX, Model
from infernet.tui.panels import PANELS, Look, header, panel, tabs
from tests.helpers_tui import HOSTILE, hostile_snapshot, job, line, peer, snapshot, status

json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=4,
)
KNOWN = ("status", "jobs", "peers", "at_s", "output_tokens", "jobs_left_out", "peers_left_out")
IN_STATUS = ("name", "engine", "coordinator", "money", "models", "counts", "hours", "ends_in_s", "uptime_s", "reached")
ROWS = ("asker", "model", "models", "name", "how", "waits", "age_s", "tokens_per_s", "round_trip_ms", "load")


def of(names: tuple[str, ...], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), values, max_size=len(names))


snapshots = of(KNOWN, json_like | st.lists(of(ROWS, json_like), max_size=4) | of(IN_STATUS, json_like))


@given(snapshots, st.integers(1, 130), st.integers(1, 50), st.booleans())
@settings(deadline=None, max_examples=60)
def test_whatever_is_said_can_be_drawn(data: dict[str, Any], width: int, height: int, has_colour: bool) -> None:
    model, look = Model(), Look(has_colour)
    for _ in range(2):
        model.take_snapshot(data)
    lines = [header(model, look, width), tabs(model, look, "jobs", width)]
    for name in PANELS:
        lines += panel(model, look, name, width, height)
    for each in lines:
        assert each.cell_len <= width
        assert each.plain.isprintable() or not each.plain.replace("\u200d", "").replace("\u200c", "").strip()


def test_the_pace_is_what_was_written_between_two_looks() -> None:
    model = Model()
    for at_s, tokens in ((10.0, 100), (11.0, 130), (13.0, 130), (13.5, 155)):
        model.take_snapshot(snapshot(at_s=at_s, output_tokens=tokens))
    assert list(model.history) == [30.0, 0.0, 50.0]
    assert model.tokens_per_s == 50.0
    # A node that was started anew counts from nothing.
    model.take_snapshot(snapshot(at_s=1.0, output_tokens=0))
    model.take_snapshot(snapshot(at_s=2.0, output_tokens=7))
    assert list(model.history) == [30.0, 0.0, 50.0, 7.0]
    model.take_away("gone")
    assert model.tokens_per_s == 0.0


def test_everything_is_bounded() -> None:
    model = Model()
    model.take_snapshot(hostile_snapshot())
    assert len(model.jobs) == len(model.peers) == ROWS_MAX
    assert (model.jobs_left_out, model.peers_left_out) == (7, 10**15)
    assert (model.node.earned_uusd, model.node.unclaimed_uusd) == (10**15, 0)
    for number in range(2 * HISTORY_MAX):
        model.take_snapshot(snapshot(number))
    assert len(model.history) == HISTORY_MAX
    model.take_log([line("info", "x")] * (3 * LOG_LINES_MAX))
    assert len(model.log) == LOG_LINES_MAX


@pytest.mark.parametrize(
    ("row", "state"),
    [(job(waits=True), "waits"), (job(output_tokens=0), "reads"), (job(), "writes"), ({}, "reads")],
)
def test_a_job_waits_reads_or_writes(row: dict[str, Any], state: str) -> None:
    model = Model()
    model.take_snapshot(snapshot(jobs=[row]))
    assert [each.state for each in model.jobs] == [state]


def test_rows_that_are_none_are_left_out() -> None:
    model = Model()
    model.take_snapshot(snapshot(jobs=[None, "x", 7, job()], peers={"a": 1}))
    assert (len(model.jobs), len(model.peers)) == (1, 0)


def test_names_are_cleaned_and_markup_in_them_is_text() -> None:
    model = Model()
    model.take_snapshot(snapshot(peers=[peer(name=HOSTILE)]))
    (row,) = model.peers
    assert row.name.startswith("[bold red]x[/] root# gnp.exe")
    assert not any(letter in row.name for letter in "\x1b\x07\u202e\n")


def test_lines_of_the_log_keep_their_level_and_are_found_by_words() -> None:
    model = Model()
    model.take_log([line("warning", "engine.slow_cancel"), line("info", "node.started"), "Fatal: native", "[]", "{"])
    assert [row.level for row in model.log] == ["warning", "info", "", "", ""]
    model.log_filter = "NODE started"
    assert [row.level for row in model.shown_log()] == ["info"]
    model.take_log([], "there is no log")
    assert model.log_trouble == "there is no log"


def test_what_loads_is_told_with_how_long() -> None:
    model = Model()
    for engine, words in (
        ({"state": "starting", "loading_s": 75}, "loading for 1 min 15 s: no model"),
        ({"state": "ready", "loading_s": None}, "ready: no model"),
        ({"state": "starting", "loading_s": HOSTILE}, "starting: no model"),
    ):
        model.take_snapshot(snapshot(status=status(engine=engine, models=[])))
        lines = [each.plain for each in panel(model, Look(False), "overview", 100, 30)]
        assert any(words in each for each in lines), lines
