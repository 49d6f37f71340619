"""infernet/cli/schedule.py: hours in the file, as a picture, and what is none."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from infernet.cli import schedule
from infernet.cli.schedule import picture
from infernet.config import load, save
from infernet.host.lock import hold_lock
from infernet.settings.hours import Week
from infernet.settings.time_zone import offset_of
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode

pytestmark = pytest.mark.anyio

Capture = pytest.CaptureFixture[str]

BERLIN = offset_of("Europe/Berlin")
WEDNESDAY_S = int(datetime(2026, 11, 25, 20, 10, tzinfo=ZoneInfo("Europe/Berlin")).timestamp())


@pytest.fixture(autouse=True)
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is Wednesday evening."""
    monkeypatch.setattr(schedule.time, "time", lambda: WEDNESDAY_S + 0.5)


def test_hours_are_set_shown_and_taken_back(home: Home, capsys: Capture) -> None:
    assert "at any time" in invoke(capsys, "schedule").out
    words = ("22:00-07:00", "sat,sun 00:00-24:00", "--zone", "Europe/Berlin")
    outcome = invoke(capsys, "schedule", "set", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "outside its hours until 22:00" in outcome.out
    assert load().config.serve_hours == ("22:00-07:00", "sat,sun 00:00-24:00")
    assert load().config.serve_zone == "Europe/Berlin"
    shown = invoke(capsys, "schedule", "--json").json
    assert (shown["open"], shown["until"]) == (False, "2026-11-25T21:00:00Z")
    assert shown["week"]["wed"] == ["00:00-07:00", "22:00-24:00"]
    assert shown["week"]["sun"] == ["00:00-24:00"]
    assert "at any time" in invoke(capsys, "schedule", "clear").out
    assert (load().config.serve_hours, load().config.serve_zone) == ((), None)


async def test_a_running_node_is_paused_and_goes_on(home: Home, capsys: Capture) -> None:
    node = FakeNode()
    async with running(node, home.config):
        paused = await invoke_beside(capsys, "schedule", "pause")
        assert (paused.code, node.state["paused"]) == (0, True)
        assert "no new jobs until `infernet schedule resume`; what it has begun it finishes: 2 jobs" in paused.out
        resumed = await invoke_beside(capsys, "schedule", "resume", "--json")
        assert resumed.json == {"paused": False, "running": 2, "asked": 0, "forwarded": 0}
        assert (resumed.code, node.state["paused"]) == (0, False)


def test_nobody_is_paused_where_no_node_runs(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "schedule", "pause")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no node is running" in outcome.complaint


def test_the_picture_in_the_help_is_what_is_drawn() -> None:
    week = Week.read(["22:00-07:00", "sat,sun 00:00-24:00"])
    drawn = picture(week, WEDNESDAY_S, BERLIN, schedule._BLOCKS)
    assert "\n".join(f"  {line}" for line in drawn) in schedule.EXAMPLES
    assert all(len(line) < 79 for line in drawn)


def test_half_hours_that_are_open_in_part_look_different() -> None:
    (monday,) = [line for line in picture(Week.read(["01:10-02:40"]), 0, BERLIN, schedule._PLAIN) if "mon" in line]
    assert monday == "  mon  ..+##+" + "." * 42


def test_where_blocks_cannot_be_printed_the_week_is_drawn_with_letters(home: Home) -> None:
    outcome = home.run("schedule", "set", "22:00-07:00", PYTHONIOENCODING="ascii")
    assert (outcome.code, outcome.err) == (0, "")
    assert "  mon  ##############..............................####\n" in outcome.out


@pytest.mark.parametrize("words", [["sat", "sun", "10:00-12:00"], ["sat,sun", "10:00-12:00"], ["sat, sun 10:00-12:00"]])
def test_days_without_quotes_belong_to_the_times_after_them(home: Home, capsys: Capture, words: list[str]) -> None:
    assert invoke(capsys, "schedule", "set", *words, "mon", "1:00-2:00").code == 0
    assert load().config.serve_hours == ("sat,sun 10:00-12:00", "mon 01:00-02:00")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["set"], "say when"),
        (["set", "mon"], "say when"),
        (["set", "1:00-2:00", "mon"], "say when"),
        (["set", "25:00-26:00"], "HOURS must be like"),
        (["set", *[f"{hour % 24}:{hour:02}-23:59" for hour in range(33)]], "HOURS must be 32 at most"),
        (["set", "1:00-2:00", "--zone", "Mars/Olympus"], "--zone must be the name"),
        (["set", "1:00-2:00", "--zone", "../../etc/passwd"], "--zone must be the name"),
        (["set", "1:00-2:00", "--zone", "America"], "--zone must be the name"),
        (["--zone", "UTC"], "schedule set"),
        (["clear", "1:00-2:00"], "schedule set"),
        (["weekly"], "there is no action 'weekly'"),
    ],
)
def test_what_is_no_schedule_changes_nothing(home: Home, capsys: Capture, words: list[str], complaint: str) -> None:
    outcome = invoke(capsys, "schedule", *words)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not home.config.config_file.exists()


def test_a_file_and_an_environment_may_hold_hours_and_the_latter_wins(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(home.config.config_file, {"serve_hours": ("01:00-02:00",)}, keep=False)
    assert 'serve_hours = ["01:00-02:00"]' in home.config.config_file.read_text()
    monkeypatch.setenv("INFERNET_SERVE_HOURS", "22:00-07:00; sat, sun 0:00-24:00")
    assert load().config.serve_hours == ("22:00-07:00", "sat,sun 00:00-24:00")
    outcome = invoke(capsys, "schedule", "set", "03:00-04:00")
    assert "INFERNET_SERVE_HOURS is set" in outcome.err


def test_a_broken_hour_in_the_file_is_one_line(home: Home, capsys: Capture) -> None:
    home.config.config_dir.mkdir(parents=True)
    home.config.config_file.write_text('serve_hours = ["whenever"]\n')
    outcome = invoke(capsys, "schedule", "set", "03:00-04:00")
    assert outcome.code == 1
    assert "serve_hours must be like" in outcome.complaint
    assert "whenever" in home.config.config_file.read_text()


def test_who_runs_no_jobs_is_told_and_a_running_node_is_to_be_restarted(home: Home, capsys: Capture) -> None:
    save(home.config.config_file, {"role": "client"}, keep=False)
    home.config.state_dir.mkdir(parents=True, mode=0o700)
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "schedule", "set", "03:00-04:00")
    assert outcome.code == 0
    assert "the role of this node is client" in outcome.err
    assert "infernet start" in outcome.err
