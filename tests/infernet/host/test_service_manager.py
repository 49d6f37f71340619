"""infernet/host/service_manager.py: installed once, gone without a trace, nothing half done; the tools are doubles."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from infernet.host import service_manager
from infernet.host.service_manager import Installed, Launchd, ServiceError, Systemd, write_whole
from infernet.host.service_units import MARK
from infernet.host.tools import Ended, ToolError
from tests.helpers_systemd import FakeSystemd, fake_systemd

UNIT = f"# {MARK.capitalize()}\n[Service]\n".encode()
NEWER = UNIT + b"Nice=5\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = fake_systemd(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(fake.config_home))
    return fake


@pytest.fixture
def systemd(fake: FakeSystemd) -> Systemd:
    return Systemd(fake.config_home)


def files(fake: FakeSystemd) -> list[str]:
    """All that lies where units lie."""
    return sorted(str(path.relative_to(fake.config_home)) for path in fake.config_home.rglob("*") if not path.is_dir())


UNIT_FILE = "systemd/user/infernet.service"
LINK = "systemd/user/default.target.wants/infernet.service"


def test_it_is_installed_started_and_taken_away_without_a_trace(systemd: Systemd, fake: FakeSystemd) -> None:
    assert not systemd.state().is_installed
    assert systemd.install(UNIT, start=True) == Installed(is_changed=True, is_started=True, is_stale=False)
    assert files(fake) == [LINK, UNIT_FILE]
    assert fake.unit.read_bytes() == UNIT
    assert stat.S_IMODE(fake.unit.stat().st_mode) == 0o644
    assert fake.calls() == ["daemon-reload", "enable infernet.service", "start infernet.service"]
    state = systemd.state()
    assert (state.is_installed, state.is_enabled, state.is_active) == (True, True, True)
    assert (state.pid, state.restarts, state.words) == (4711, 2, "active (running): provider fake")
    assert systemd.uninstall()
    assert files(fake) == []
    assert fake.calls()[3:] == ["disable --now infernet.service", "daemon-reload", "reset-failed infernet.service"]
    state = systemd.state()
    assert (state.is_installed, state.is_active, state.pid) == (False, False, None)


def test_twice_is_once(systemd: Systemd, fake: FakeSystemd) -> None:
    systemd.install(UNIT, start=True)
    assert systemd.install(UNIT, start=True) == Installed(is_changed=False, is_started=False, is_stale=False)
    assert systemd.uninstall()
    before = fake.calls()
    assert not systemd.uninstall()
    assert fake.calls() == before


def test_a_newer_unit_does_not_end_what_runs(systemd: Systemd, fake: FakeSystemd) -> None:
    systemd.install(UNIT, start=True)
    assert systemd.install(NEWER, start=True) == Installed(is_changed=True, is_started=False, is_stale=True)
    assert fake.unit.read_bytes() == NEWER
    assert "restart" not in " ".join(fake.calls())


def test_without_a_start_it_only_begins_at_the_next_login(systemd: Systemd, fake: FakeSystemd) -> None:
    assert not systemd.install(UNIT, start=False).is_started
    assert fake.calls() == ["daemon-reload", "enable infernet.service"]


def test_where_the_manager_cannot_be_reached_nothing_is_written(systemd: Systemd, fake: FakeSystemd) -> None:
    fake.fail_at("show")
    with pytest.raises(ServiceError, match=r"cannot be asked .*no such thing.*--system"):
        systemd.install(UNIT, start=True)
    with pytest.raises(ServiceError, match="cannot be asked"):
        systemd.state()
    assert files(fake) == []


@pytest.mark.parametrize("step", ["daemon-reload", "enable"])
def test_what_fails_in_the_middle_is_undone(systemd: Systemd, fake: FakeSystemd, step: str) -> None:
    fake.fail_at(step)
    with pytest.raises(ServiceError, match=f"systemctl {step} failed .Failed to {step}"):
        systemd.install(UNIT, start=True)
    assert files(fake) == []
    fake.fail_at()
    systemd.install(UNIT, start=False)
    fake.fail_at(step)
    with pytest.raises(ServiceError):
        systemd.install(NEWER, start=True)
    assert fake.unit.read_bytes() == UNIT


def test_a_start_that_fails_leaves_the_unit_for_another_try(systemd: Systemd, fake: FakeSystemd) -> None:
    fake.fail_at("start")
    with pytest.raises(ServiceError, match="infernet service logs"):
        systemd.install(UNIT, start=True)
    assert fake.unit.read_bytes() == UNIT


def test_somebody_elses_unit_is_never_touched(systemd: Systemd, fake: FakeSystemd) -> None:
    fake.unit.parent.mkdir(parents=True)
    fake.unit.write_text("[Service]\nExecStart=/bin/true\n")
    for act in (lambda: systemd.install(UNIT, start=True), systemd.uninstall):
        with pytest.raises(ServiceError, match="was not written by this program"):
            act()
    assert fake.unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert fake.calls() == []


def test_files_are_removed_although_the_manager_is_not_there(systemd: Systemd, fake: FakeSystemd) -> None:
    systemd.install(UNIT, start=False)
    fake.fail_at("show")
    assert systemd.uninstall()
    assert files(fake) == []
    # A link that a unit left behind, too.
    fake.link.parent.mkdir(parents=True, exist_ok=True)
    fake.link.symlink_to(fake.unit)
    assert systemd.uninstall()
    assert not fake.link.is_symlink()


def test_a_write_that_fails_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unit"
    write_whole(path, UNIT)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service_manager.os, "fsync", fail)
    with pytest.raises(ServiceError, match="no space left"):
        write_whole(path, NEWER)
    assert path.read_bytes() == UNIT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("ActiveState=failed\nSubState=failed\nResult=watchdog\n", "failed (failed), because of watchdog"),
        ("MainPID=99999999999999999999\nNRestarts=x\nActiveState=\x1b[31mactive", "\x1b[31mactive"),
        ("no equals\n=\n====\n", ""),
    ],
)
def test_whatever_the_tool_says_is_taken_for_no_more_than_it_is(tmp_path: Path, text: str, words: str) -> None:
    state = Systemd(tmp_path, lambda _words, _timeout_s: Ended(0, text)).state()
    assert (state.words, state.pid, state.is_active, state.restarts) == (words, None, False, None)


def test_a_tool_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    def refuse(_words: Sequence[str], _timeout_s: float) -> Ended:
        raise ToolError("systemctl cannot be run (no such file or directory)")

    systemd = Systemd(tmp_path, refuse)
    with pytest.raises(ServiceError, match="systemctl cannot be run"):
        systemd.install(UNIT, start=True)
    assert not systemd.uninstall()


def test_whether_the_users_services_outlive_a_logout(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, linger=tmp_path)
    assert not systemd.lingers
    (tmp_path / pwd.getpwuid(os.getuid()).pw_name).touch()
    assert systemd.lingers


# ---------------------------------------------------------------- launchd


class FakeLaunchctl:
    """A double of launchctl: it knows whether one service is loaded."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.fails = False
        self.calls: list[list[str]] = []

    def __call__(self, words: Sequence[str], _timeout_s: float) -> Ended:
        self.calls.append(list(words[1:]))
        match words[1]:
            case "bootstrap":
                if self.fails:
                    return Ended(5, "Bootstrap failed: 5: Input/output error\n")
                self.is_loaded = True
            case "bootout":
                was_loaded, self.is_loaded = self.is_loaded, False
                return Ended(0 if was_loaded else 3, "")
            case "print":
                if not self.is_loaded:
                    return Ended(113, "Could not find service in domain for user gui: 501\n")
                return Ended(0, "gui/501/infernet.node = {\n\tstate = running\n\tpid = 88\n}\n")
        return Ended(0, "")


def test_launchd_loads_it_once_and_forgets_it(tmp_path: Path) -> None:
    tool = FakeLaunchctl()
    launchd = Launchd(tmp_path, 501, tool)
    assert launchd.install(UNIT, start=True) == Installed(is_changed=True, is_started=True, is_stale=False)
    assert ["bootstrap", "gui/501", str(launchd.path)] in tool.calls
    assert launchd.path == tmp_path / "Library" / "LaunchAgents" / "infernet.node.plist"
    state = launchd.state()
    assert (state.is_active, state.pid, state.words) == (True, 88, "running")
    assert launchd.install(NEWER, start=True) == Installed(is_changed=True, is_started=False, is_stale=True)
    assert launchd.uninstall()
    assert not launchd.path.exists()
    assert (launchd.state().is_active, launchd.state().words) == (False, "not loaded")
    assert not launchd.uninstall()


def test_a_list_that_launchd_does_not_take_is_put_back(tmp_path: Path) -> None:
    tool = FakeLaunchctl()
    tool.fails = True
    launchd = Launchd(tmp_path, 501, tool)
    with pytest.raises(ServiceError, match="Bootstrap failed"):
        launchd.install(UNIT, start=True)
    assert not launchd.path.exists()
