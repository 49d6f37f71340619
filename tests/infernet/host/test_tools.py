"""infernet/host/tools.py: a tool ends, or is ended, and what it says has a bound."""

from __future__ import annotations

import time

import pytest

from infernet.host.tools import OUTPUT_BYTES_MAX, ToolError, run_tool


def test_its_code_and_both_of_its_outputs() -> None:
    ended = run_tool(["sh", "-c", "echo out; echo err >&2; echo; exit 3"], 30)
    assert (ended.code, sorted(ended.text.split()), ended.last_line) == (3, ["err", "out"], "err")
    assert run_tool(["true"], 30).last_line == "it does not say why"


def test_it_gets_nothing_to_read_and_speaks_english() -> None:
    assert run_tool(["sh", "-c", "cat; echo $LC_ALL"], 30).text == "C\n"


def test_one_that_is_not_there() -> None:
    with pytest.raises(ToolError, match="cannot be run"):
        run_tool(["/nonexistent/tool"], 30)


def test_one_that_does_not_end_is_ended() -> None:
    begun_s = time.monotonic()
    for script in ("exec sleep 60", "exec >&- 2>&-; exec sleep 60"):
        with pytest.raises(ToolError, match="did not end within"):
            run_tool(["sh", "-c", script], 0.2)
    assert time.monotonic() - begun_s < 30


def test_one_that_says_too_much_is_ended() -> None:
    with pytest.raises(ToolError, match=f"more than {OUTPUT_BYTES_MAX}"):
        run_tool(["yes"], 30)
