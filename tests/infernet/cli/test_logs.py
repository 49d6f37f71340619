"""infernet/cli/logs.py: the last lines, and those that come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from infernet.cli import logs
from infernet.host.files import make_private_directory
from tests.helpers_cli import Home, invoke

EVENTS = [{"timestamp": f"2026-11-29T09:34:0{number}Z", "level": "info", "event": f"e{number}"} for number in range(5)]


@pytest.fixture
def logged(home: Home) -> Home:
    make_private_directory(home.config.state_dir)
    append(home, *EVENTS)
    return home


def append(home: Home, *events: dict[str, str]) -> None:
    with home.config.log_file.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_the_last_lines_for_people_and_for_programs(logged: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "logs", "--lines", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == ["2026-11-29 09:34:03 info    e3", "2026-11-29 09:34:04 info    e4"]
    outcome = invoke(capsys, "logs", "--json")
    assert outcome.json_lines == EVENTS


def test_without_a_log_it_says_where_one_would_be(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "logs")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert str(home.config.log_file) in outcome.err
    assert "`infernet start` begins one" in outcome.err
    assert invoke(capsys, "logs", "--json").json["log_file"] == str(home.config.log_file)


@pytest.mark.parametrize("word", ["-1", "x", "1.5", "100001", "9" * 5000, "\N{SUPERSCRIPT TWO}"])
def test_a_count_that_is_none_is_a_misuse(logged: Home, capsys: pytest.CaptureFixture[str], word: str) -> None:
    outcome = invoke(capsys, "logs", f"--lines={word}")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def test_it_goes_on_over_a_new_file_until_it_is_interrupted(
    logged: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = logged.config.log_file

    def happenings() -> Iterator[Callable[[], object]]:
        yield lambda: append(logged, {"event": "five"})
        yield lambda: file.replace(file.with_name("daemon.log.1"))
        yield lambda: append(logged, {"event": "six"})

    steps = happenings()

    def wait() -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(logs, "_wait", wait)
    outcome = invoke(capsys, "logs", "-f", "--lines", "1", "--json")
    assert (outcome.code, outcome.err) == (130, "")
    assert [event["event"] for event in outcome.json_lines] == ["e4", "five", "six"]
