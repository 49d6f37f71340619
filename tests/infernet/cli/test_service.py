"""infernet/cli/service.py: the node under systemd, whose tools are doubles here."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infernet.cli import service
from infernet.cli.__main__ import main
from infernet.host.files import make_private_directory
from infernet.host.lock import hold_lock
from tests.helpers_cli import DEADLINE_S, Home, invoke
from tests.helpers_systemd import FakeSystemd, fake_systemd


@pytest.fixture
def fake(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    monkeypatch.setattr(service.sys, "platform", "linux")
    fake = fake_systemd(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(fake.config_home))
    # The tests' own; the nodes that run here are told in their files.
    monkeypatch.delenv("INFERNET_MDNS", raising=False)
    return fake


@pytest.fixture
def ready(home: Home, fake: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> FakeSystemd:
    """After init."""
    assert main(["init", "--yes"]) == 0
    capsys.readouterr()
    return fake


def test_it_is_installed_shown_and_removed(ready: FakeSystemd, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "service", "install")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Written to {ready.unit}." in outcome.out
    assert "The node runs" in outcome.out
    assert "enable-linger" in outcome.out
    assert home.config.state_dir.is_dir(), "systemd leaves out folders that are not there"
    text = invoke(capsys, "service", "unit").out
    assert ready.unit.read_text() == text
    assert f"Environment=INFERNET_HOME={home.path}\n" in text
    shown = invoke(capsys, "service", "status")
    assert (shown.code, shown.err) == (0, "")
    assert "active (running): provider fake" in shown.out
    again = invoke(capsys, "service", "install", "--json")
    assert (again.json["changed"], again.json["started"]) == (False, False)
    removed = invoke(capsys, "service", "uninstall")
    assert (removed.code, removed.out) == (0, f"Removed {ready.unit}.\n")
    assert not ready.unit.exists()
    assert home.config.key_file.exists()
    assert "nothing to remove" in invoke(capsys, "service", "uninstall").out
    status = invoke(capsys, "service", "status", "--json")
    assert (status.code, status.json["installed"], status.json["active"]) == (1, False, False)
    assert "`infernet service install`" in invoke(capsys, "service", "status").out


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_the_service_of_another_home_is_left_alone(
    ready: FakeSystemd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str
) -> None:
    assert invoke(capsys, "service", "install").code == 0
    before = ready.unit.read_bytes()
    monkeypatch.setenv("INFERNET_HOME", str(tmp_path / "another"))
    assert main(["init", "--yes"]) == 0
    outcome = invoke(capsys, "service", action)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "another home" in outcome.err
    assert ready.unit.read_bytes() == before


def test_without_a_key_nothing_is_installed(fake: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "service", "install")
    assert (outcome.code, outcome.out) == (1, "")
    assert "infernet init" in outcome.complaint
    assert not fake.unit.exists()


def test_a_node_that_runs_already_is_left_alone(
    ready: FakeSystemd, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "service", "install")
    assert outcome.code == 0
    assert f"A node runs already (process {os.getpid()})" in outcome.out
    assert ready.calls() == ["daemon-reload", "enable infernet.service"]


def test_a_node_of_the_service_goes_on_as_it_was_started(
    ready: FakeSystemd, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    ready.set_active()
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "service", "install")
    assert "goes on as it was started" in outcome.out
    assert "runs already" not in outcome.out


def test_settings_of_the_environment_are_told_of(
    ready: FakeSystemd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_SLOTS", "2")
    outcome = invoke(capsys, "service", "install", "--no-start")
    assert outcome.code == 0
    assert "does not see INFERNET_SLOTS" in outcome.err
    assert "SLOTS" not in ready.unit.read_text()


def test_what_the_tool_says_is_shown_in_one_clean_line(ready: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> None:
    ready.fail_at("enable")
    outcome = invoke(capsys, "service", "install")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "Failed to enable: no such thing" in outcome.err
    assert "\x1b" not in outcome.err
    assert not ready.unit.exists()


def test_what_its_owner_added_is_left_and_told_of(ready: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "service", "install").code == 0
    added = ready.unit.with_name("infernet.service.d")
    added.mkdir()
    assert invoke(capsys, "service", "uninstall", "--json").json["left"] == str(added)


def test_the_systems_unit_is_printed_and_never_written(fake: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "service", "unit", "--system")
    assert (outcome.code, outcome.err) == (0, "")
    assert "User=infernet" in outcome.out
    assert "useradd --system" in outcome.out
    for action in ("install", "uninstall", "status", "logs"):
        refused = invoke(capsys, "service", action, "--system")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert fake.calls() == []


def test_the_journal_in_words_and_for_programs(ready: FakeSystemd, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"timestamp": "2026-11-29T09:34:17Z", "level": "info", "event": "node.started", "port": 46337}
    ready.write_journal(f"fake is up\n{json.dumps(event)}\nnative \x1b[2J words\n")
    outcome = invoke(capsys, "service", "logs", "--lines", "7")
    assert outcome.out.splitlines() == [
        "fake is up",
        "2026-11-29 09:34:17 info    node.started  port=46337",
        "native words",
    ]
    lines = invoke(capsys, "service", "logs", "-f", "--json").json_lines
    assert lines == [{"text": "fake is up"}, event, {"text": "native \x1b[2J words"}]
    calls = (ready.programs / "journal-calls").read_text().splitlines()
    assert calls == [
        "--user --unit infernet.service --output=cat --no-pager --quiet --lines=7",
        "--user --unit infernet.service --output=cat --no-pager --quiet --lines=200 --follow",
    ]
    # As where there is no log file: what was asked for is not there.
    ready.write_journal("")
    nothing = invoke(capsys, "service", "logs")
    assert (nothing.code, nothing.err.count("\n")) == (1, 1)
    assert "there is no service" in nothing.complaint
    assert invoke(capsys, "service", "install").code == 0
    silent = invoke(capsys, "service", "logs")
    assert (silent.code, "the journal has nothing of this service" in silent.err) == (0, True)
    ready.write_journal("", code=1)
    failed = invoke(capsys, "service", "logs")
    assert (failed.code, failed.err.count("\n")) == (1, 1)


def test_on_macos_the_log_file_is_read_and_the_list_printed(
    home: Home, fake: FakeSystemd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.sys, "platform", "darwin")
    text = invoke(capsys, "service", "unit").out
    assert "<string>--log-to-file</string>" in text
    assert invoke(capsys, "service", "logs").code == 1
    make_private_directory(home.config.state_dir)
    home.config.log_file.write_text('{"event": "node.started"}\n')
    assert invoke(capsys, "service", "logs").out == "node.started\n"


def test_elsewhere_there_is_no_service(
    fake: FakeSystemd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.sys, "platform", "freebsd14")
    outcome = invoke(capsys, "service", "status")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)


@pytest.mark.slow
def test_the_command_of_the_unit_runs_the_node_and_tells_systemd(
    ready: FakeSystemd, home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As systemd would start it: nothing but its environment, and a socket to tell how it goes."""
    assert (
        main(["config", "set", "--p2p-port", "0", "--engine", "none", "--listen-hosts", "127.0.0.1", "--no-mdns"]) == 0
    )
    unit = invoke(capsys, "service", "unit").out
    settings = [line.partition("=")[2] for line in unit.splitlines() if line.startswith(("ExecStart=", "Environment="))]
    command, *environment = settings
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(DEADLINE_S)
        environ = dict(item.split("=", 1) for item in environment)
        environ |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        with subprocess.Popen(
            shlex.split(command), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        ) as process:
            try:
                told = {manager.recv(4096).decode() for _ in range(2)}
                ready_words = next(text for text in told if text.startswith("READY=1"))
                assert f"MAINPID={process.pid}" in ready_words
                assert "WATCHDOG=1" in told
                process.terminate()
                assert manager.recv(4096).decode().startswith("STOPPING=1")
                assert process.wait(DEADLINE_S) == 0
            finally:
                process.kill()
    assert sys.executable in command
