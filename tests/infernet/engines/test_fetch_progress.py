"""How far a download has come: a bar for people, lines for pipes and for those who want no control sequences."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from infernet.engines.fetch_progress import shown_progress


@pytest.mark.parametrize(("environ", "has_bar"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_bar_is_drawn_on_a_terminal_unless_somebody_says_no(environ: dict[str, str], has_bar: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, highlight=False, _environ={"TERM": "xterm", **environ})
    with shown_progress(console, "tiny") as progress:
        for done in range(0, 101, 5):
            progress(done * 1_000_000, 100_000_000)
    assert ("\x1b" in screen.getvalue()) is has_bar
    if not has_bar:
        assert screen.getvalue().splitlines() == [f"tiny: {done} of 100 MB" for done in range(10, 101, 10)]
