"""infernet/tui/app.py: what the screen shows, at two sizes, and what each key does. Pictures lie in golden/ as text.

A picture that is no longer right is written beside its file as `.new`, to be looked at and put in its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from infernet.tui.app import LiveView
from infernet.tui.feed import Away, LogLines, Snapshot, Told
from infernet.tui.panels import KEYS, Look
from tests.helpers_tui import (
    LARGE,
    SMALL,
    FakeSource,
    Watched,
    busy,
    hostile_snapshot,
    job,
    line,
    peer,
    screen_of,
    snapshot,
    status,
    watched,
)

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"
SIZES = [pytest.param(SMALL, id="80x24"), pytest.param(LARGE, id="120x40")]


@pytest.fixture
def anyio_backend() -> str:
    """Textual's loop."""
    return "asyncio"


def assert_pictured(view: Watched, name: str, size: tuple[int, int]) -> None:
    """The screen is the picture of this name."""
    file = GOLDEN / f"{name}_{size[0]}x{size[1]}.txt"
    lines = view.screen.splitlines()
    assert len(lines) == size[1]
    assert all(cell_len(each) <= size[0] for each in lines)
    known = file.read_text("utf-8") if file.exists() else ""
    if view.screen != known:
        file.with_suffix(".new").write_text(view.screen, "utf-8")
    assert view.screen == known


async def test_before_anybody_has_answered_nothing_is_said_to_be_none() -> None:
    async with watched() as view:
        await view.drawn()
        first, shown = view.screen.splitlines()[0], view.screen
        assert first == "infernet  asking the node of this machine"
        assert not any(word in shown for word in ("none", "nothing:", "not connected", "0 running", "no job"))
        for name in ("engine", "coordinator", "peers", "jobs", "earned"):
            assert f"\n{name:13}-\n" in shown
        await view.told(Snapshot(snapshot()))
        assert "\nengine       -" not in view.screen


@pytest.mark.parametrize(("size", "is_told"), [((50, 20), True), ((79, 24), True), ((80, 23), True), ((80, 24), False)])
async def test_a_screen_that_is_too_small_is_told_of_in_one_line(size: tuple[int, int], is_told: bool) -> None:
    async with watched(size) as view:
        await busy(view)
        last = view.screen.splitlines()[-1]
        told = f"cut off: {size[0]}x{size[1]}, made for 80x24  q quit  ? help"
        assert last == (told if is_told else KEYS)


@pytest.mark.parametrize("size", SIZES)
async def test_before_there_is_a_node_it_says_how_to_start_one(size: tuple[int, int]) -> None:
    async with watched(size) as view:
        await view.told(Away("no node is running here: `infernet start` in another terminal"))
        assert_pictured(view, "away", size)


@pytest.mark.parametrize("size", SIZES)
async def test_a_node_at_work(size: tuple[int, int]) -> None:
    async with watched(size) as view:
        await busy(view)
        assert_pictured(view, "overview", size)


@pytest.mark.parametrize("size", SIZES)
async def test_each_panel(size: tuple[int, int]) -> None:
    async with watched(size) as view:
        await busy(view)
        for key, name in {"2": "jobs", "3": "peers", "4": "gpus", "5": "log"}.items():
            await view.press(key)
            assert_pictured(view, name, size)


@pytest.mark.parametrize("size", SIZES)
async def test_what_strangers_wrote_is_shown_as_text(size: tuple[int, int]) -> None:
    async with watched(size) as view:
        await view.told(Snapshot(hostile_snapshot()), LogLines([line("error", "[b]x[/b]\x1b[2J", reason="\x07\u202e")]))
        for key, name in {"1": "overview", "2": "jobs", "3": "peers", "5": "log"}.items():
            await view.press(key)
            assert_pictured(view, f"hostile_{name}", size)
            assert not any(letter in view.screen for letter in "\x1b\x07\u202e")


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (79, 23), (300, 100)])
async def test_no_size_breaks_it(size: tuple[int, int]) -> None:
    async with watched(size) as view:
        await busy(view)
        await view.told(Snapshot(hostile_snapshot()))
        for key in ("2", "3", "4", "5", "1", "question_mark", "question_mark", "d", "n"):
            await view.press(key)
        assert len(screen_of(view.view)) == size[1]


async def test_without_a_screen_nothing_is_drawn() -> None:
    """Before the first one is there, and after the last one has gone."""
    LiveView(FakeSource(), Look(has_colour=False))._draw()


async def test_a_node_that_went_away_is_shown_as_it_was_and_found_again() -> None:
    async with watched() as view:
        await busy(view)
        await view.told(Away("the node here went away"))
        assert "not connected: the node here went away" in view.screen
        assert "What follows is how it was." in view.screen
        assert "no job runs here now" in view.screen
        await view.told(Snapshot(snapshot(40, status=status(name="back"))))
        assert view.screen.startswith("back  provider")


async def test_what_matters_is_in_the_first_line() -> None:
    async with watched() as view:
        for changes, words in (
            ({"ends_in_s": 90.0}, "ending, in 1 min 30 s at the latest"),
            ({"hours": {"words": "outside its hours until 22:00"}}, "outside its hours until 22:00"),
            ({"paused": True}, "paused by its owner"),
            ({"coordinator": {"url": "https://c.example", "state": "waiting", "last_error": "no"}}, "link waiting"),
            ({}, "running"),
        ):
            await view.told(Snapshot(snapshot(status=status(**changes))))
            assert words in view.screen.splitlines()[0]


async def test_tab_goes_round_and_numbers_go_straight() -> None:
    async with watched() as view:
        await busy(view)
        seen = []
        for _ in range(5):
            await view.press("tab")
            seen.append(view.view._panel)
        assert seen == ["jobs", "peers", "gpus", "log", "overview"]
        await view.press("shift+tab")
        assert view.view._panel == "log"
        await view.press("3")
        assert view.view._panel == "peers"


async def test_a_long_list_is_scrolled() -> None:
    async with watched() as view:
        await busy(view, peers=[peer(number) for number in range(1, 100)], peers_left_out=5)
        await view.press("3")
        assert "node-1 " in view.screen
        await view.press("end")
        assert "... and 5 more" in view.screen
        assert "node-1 " not in view.screen
        await view.press("home", "pagedown")
        assert "node-1 " not in view.screen
        await view.press("pageup", "down", "up")
        assert "node-1 " in view.screen


async def test_the_end_of_the_log_stays_in_view_until_somebody_scrolls_up() -> None:
    async with watched() as view:
        await view.told(LogLines([line("info", f"event.{number}") for number in range(100)]))
        await view.press("5")
        assert "event.99" in view.screen
        await view.told(LogLines([line("info", "event.new")]))
        assert "event.new" in view.screen
        await view.press("home")
        await view.told(LogLines([line("info", "event.newer")]))
        assert "event.newer" not in view.screen
        assert "event.0" in view.screen


async def test_the_log_is_filtered_as_one_types_and_whole_again_after_escape() -> None:
    async with watched() as view:
        await busy(view)
        await view.press("slash", *"STORE", "space", *"full")
        assert "store.failed" in view.screen
        assert "node.started" not in view.screen
        assert "1 of 4 lines have: STORE full" in view.screen
        # Letters are words of the filter, and no keys: nothing was asked of the node.
        assert view.source.wishes == []
        await view.press("enter")
        await view.press("1")
        assert "node.started" in view.screen
        await view.press("5")
        assert "node.started" not in view.screen
        await view.press("escape")
        assert "node.started" in view.screen


async def test_help_lies_over_the_view_until_any_key() -> None:
    async with watched() as view:
        await busy(view)
        await view.press("question_mark")
        assert_pictured(view, "help", SMALL)
        # News go on behind it.
        await view.told(Snapshot(snapshot(50, status=status(name="renamed"))))
        await view.press("x")
        assert view.screen.startswith("renamed")
        await view.press("question_mark", "tab")
        assert view.screen.startswith("renamed")


@pytest.mark.parametrize(("key", "wishes"), [("y", ["drain"]), ("n", []), ("escape", []), ("enter", []), ("q", [])])
async def test_the_node_is_drained_only_after_a_yes(key: str, wishes: list[str]) -> None:
    async with watched() as view:
        await busy(view)
        await view.press("d")
        assert "1 run for others, 1 wait and are sent elsewhere" in view.screen
        assert view.source.wishes == []
        await view.press(key)
        assert view.source.wishes == wishes
        if wishes:
            await view.told(Told("the node takes no new jobs"))
            assert view.screen.splitlines()[-1] == "the node takes no new jobs"
            await view.press("1")
        assert view.screen.splitlines()[-1] == KEYS


async def test_nothing_is_drained_where_nothing_runs() -> None:
    async with watched() as view:
        await view.told(Away("no node is running here"))
        await view.press("d", "y")
        assert view.source.wishes == []
        assert "no node to drain" in view.screen


@pytest.mark.parametrize("before", ["1", "question_mark", "slash"])
async def test_ctrl_c_leaves_from_anywhere(before: str) -> None:
    async with watched() as view:
        await view.pilot.press(before, "ctrl+c")
        assert view.view._exit


async def test_r_asks_again_and_q_leaves() -> None:
    async with watched() as view:
        await view.press("r")
        assert view.source.wishes == ["refresh"]
        await view.press("q")
        assert view.view._exit
    assert view.source.wishes == ["refresh", "stop"]


async def test_without_colour_no_cell_has_one() -> None:
    colours = {}
    for has_colour in (True, False):
        async with watched(has_colour=has_colour) as view:
            await busy(view, jobs=[job()], status=status(ends_in_s=3.0))
            strips = view.view.screen._compositor.render_strips()
            styles = [segment.style for strip in strips for segment in strip if segment.style is not None]
            named = {style.color.name for style in styles if style.color is not None}
            colours[has_colour] = named - {"default", "ansi_default"}
    # Red, yellow and cyan, as the terminal has them.
    assert {"color(1)", "color(3)", "color(6)"} <= colours[True]
    assert colours[False] == set()
