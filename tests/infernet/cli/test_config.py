"""infernet/cli/config.py: settings are shown, and what is wrong in the file can be mended with the program."""

from __future__ import annotations

import pytest

from infernet.cli.__main__ import main
from infernet.config import values_in
from infernet.host.lock import hold_lock
from tests.helpers_cli import Home, invoke

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def ready(home: Home, capsys: Capture) -> Home:
    """A home after init."""
    assert main(["init", "--yes"]) == 0
    return home


def spoil(home: Home, *lines: str) -> None:
    with home.config.config_file.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_a_bad_value_is_mended_by_setting_another(ready: Home, capsys: Capture) -> None:
    spoil(ready, 'slots = "many" # so many')
    assert "slots must be" in invoke(capsys, "config", "set", "--log-level", "debug").complaint
    outcome = invoke(capsys, "config", "set", "--slots", "3")
    assert (outcome.code, outcome.err) == (0, "")
    assert values_in(ready.config.config_file)["slots"] == 3


def test_several_bad_values_are_mended_together(ready: Home, capsys: Capture) -> None:
    spoil(ready, "slots = 0", "threads = -1", "models = 7")
    before = ready.config.config_file.read_bytes()
    assert "threads must be" in invoke(capsys, "config", "set", "--slots", "3").complaint
    assert ready.config.config_file.read_bytes() == before
    # Who sets one model takes the others out.
    assert invoke(capsys, "config", "set", "--slots", "3", "--threads", "2", "--model", "some.gguf").code == 0
    values = values_in(ready.config.config_file)
    assert (values["slots"], values["threads"], values.get("models")) == (3, 2, None)


def test_what_is_put_in_its_place_is_looked_at(ready: Home, capsys: Capture) -> None:
    spoil(ready, 'slots = "many"')
    outcome = invoke(capsys, "config", "set", "--slots", "0")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--slots must be" in outcome.complaint


def test_a_port_that_no_node_dials_is_set_and_started_with_a_warning(ready: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "config", "set", "--p2p-port", "807")
    assert outcome.code == 0
    assert "warning: nodes dial no port below 1024" in outcome.err
    assert invoke(capsys, "config", "set", "--p2p-port", "0").err == ""
    with hold_lock(ready.config.pid_file):
        outcome = invoke(capsys, "start", "--p2p-port", "807")
    assert outcome.code == 1
    assert "warning: nodes dial no port below 1024" in outcome.err.splitlines()[0]
