"""Putting the node under a service manager of its user, and taking it away again: systemd on Linux, launchd on macOS.

What is written is whole or not there, twice the same is once, and no file of somebody else is touched. The manager's
own tools do the rest; they are tested here by doubles, for the real ones do not run in the tests.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from infernet.host.files import reason_of, replace_whole
from infernet.host.service_units import LAUNCHD_LABEL, MARK, START_LIMIT_S, STOP_LIMIT_S, UNIT_NAME
from infernet.host.tools import Ended, ToolError, run_tool

TOOL_TIMEOUT_S: Final = 30.0
START_TIMEOUT_S: Final = START_LIMIT_S + 10.0
STOP_TIMEOUT_S: Final = STOP_LIMIT_S + 10.0
_FILE_BYTES_MAX: Final = 256 * 1024
_LINGER: Final = Path("/var/lib/systemd/linger")
_SHOWN: Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "Result",
    "StatusText",
)

Run = Callable[[Sequence[str], float], Ended]


class ServiceError(Exception):
    """The service manager cannot do it; one line for people."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What came of installing. `is_changed`: another file was there, or none; `is_stale`: the old one still runs."""

    is_changed: bool
    is_started: bool
    is_stale: bool


@dataclass(frozen=True, slots=True)
class State:
    """How the service is. `words` are the manager's own."""

    is_installed: bool
    is_enabled: bool
    is_active: bool
    pid: int | None
    restarts: int | None
    words: str


class Manager(Protocol):
    """A service manager."""

    path: Path

    def install(self, text: bytes, *, start: bool) -> Installed: ...

    def uninstall(self) -> bool: ...

    def state(self) -> State: ...


# ---------------------------------------------------------------- files


def read_ours(path: Path) -> bytes | None:
    """What is in the file that we wrote; None when there is none. Raises ServiceError for somebody else's."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"cannot read {path} ({reason_of(error)}): check its owner and mode") from None
    if MARK.encode() not in b"".join(data.splitlines()[:2]).replace(b"Written", b"written"):
        raise ServiceError(f"{path} was not written by this program: move it away, then try again")
    return data


def write_whole(path: Path, data: bytes) -> None:
    """Have this file, or the one from before. Raises ServiceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data, 0o644)
    except OSError as error:
        raise ServiceError(f"cannot write {path} ({reason_of(error)}): make the folder yours") from None


def _remove(path: Path) -> bool:
    """Whether there was one. Raises ServiceError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ServiceError(f"cannot remove {path} ({reason_of(error)}): remove it yourself") from None
    return True


# ---------------------------------------------------------------- systemd


class Systemd:
    """The user's own systemd."""

    def __init__(self, config_home: Path, run: Run = run_tool, linger: Path = _LINGER) -> None:
        self._folder = config_home / "systemd" / "user"
        self.path = self._folder / UNIT_NAME
        self._run = run
        self._linger = linger

    def install(self, text: bytes, *, start: bool) -> Installed:
        """Write the unit, enable it, and start it. Raises ServiceError: then all is as it was, or it did not start."""
        before = read_ours(self.path)
        self._require()
        was_active = self.state().is_active
        if before != text:
            write_whole(self.path, text)
        try:
            self._systemctl("daemon-reload")
            self._systemctl("enable", UNIT_NAME)
        except ServiceError:
            self._put_back(before)
            raise
        if start and not was_active:
            self._systemctl("start", UNIT_NAME, timeout_s=START_TIMEOUT_S)
        return Installed(before != text, start and not was_active, was_active and before != text)

    def _put_back(self, before: bytes | None) -> None:
        """Have what was there, whatever systemd says to that."""
        if before is None:
            _remove(self.path)
            _remove(self._wanted)
        else:
            write_whole(self.path, before)
        with contextlib.suppress(ServiceError):
            self._tool("daemon-reload")

    @property
    def _wanted(self) -> Path:
        """The link with which systemd remembers that the unit is enabled."""
        return self._folder / "default.target.wants" / UNIT_NAME

    def uninstall(self) -> bool:
        """End the service and remove its unit; gives whether there was one. Raises ServiceError."""
        was_there = read_ours(self.path) is not None
        is_reachable = self._reach() is None
        if was_there and is_reachable:
            self._systemctl("disable", "--now", UNIT_NAME, timeout_s=STOP_TIMEOUT_S)
        was_there |= _remove(self.path)
        was_there |= _remove(self._wanted)
        if was_there and is_reachable:
            self._systemctl("daemon-reload")
            # It is an error where nothing has failed.
            self._tool("reset-failed", UNIT_NAME)
        return was_there

    def state(self) -> State:
        """How the service is. Raises ServiceError when systemd does not say."""
        ended = self._tool("show", UNIT_NAME, f"--property={','.join(_SHOWN)}")
        if ended.code:
            raise ServiceError(self._unreachable(ended.last_line))
        shown = dict(line.split("=", 1) for line in ended.text.splitlines() if "=" in line)
        active, sub, text = (shown.get(name, "") for name in ("ActiveState", "SubState", "StatusText"))
        words = f"{active} ({sub})" if sub else active
        if shown.get("Result", "success") not in ("", "success"):
            words += f", because of {shown['Result']}"
        return State(
            is_installed=shown.get("LoadState") == "loaded",
            is_enabled=shown.get("UnitFileState") == "enabled",
            is_active=active in ("active", "activating", "reloading"),
            pid=_count(shown.get("MainPID")) or None,
            restarts=_count(shown.get("NRestarts")),
            words=f"{words}: {text}" if text else words,
        )

    @property
    def lingers(self) -> bool:
        """Whether the user's services run while the user is not logged in."""
        try:
            return (self._linger / pwd.getpwuid(os.getuid()).pw_name).exists()
        except (KeyError, OSError):
            return False

    def _require(self) -> None:
        if (reason := self._reach()) is not None:
            raise ServiceError(self._unreachable(reason))

    def _reach(self) -> str | None:
        """Why the manager cannot be spoken with; None when it can."""
        try:
            ended = self._run(self._words("show", "--property=Version"), TOOL_TIMEOUT_S)
        except ToolError as error:
            return str(error)
        return ended.last_line if ended.code else None

    @staticmethod
    def _unreachable(reason: str) -> str:
        return (
            f"this user's systemd cannot be asked ({reason}): log in as the user itself rather than by su or sudo; for "
            "the system's own manager see `infernet service unit --system`"
        )

    def _systemctl(self, *words: str, timeout_s: float = TOOL_TIMEOUT_S) -> None:
        ended = self._tool(*words, timeout_s=timeout_s)
        if ended.code:
            raise ServiceError(f"systemctl {words[0]} failed ({ended.last_line}): see `infernet service logs`")

    def _tool(self, *words: str, timeout_s: float = TOOL_TIMEOUT_S) -> Ended:
        try:
            return self._run(self._words(*words), timeout_s)
        except ToolError as error:
            raise ServiceError(str(error)) from None

    @staticmethod
    def _words(*words: str) -> list[str]:
        return ["systemctl", "--user", "--no-pager", "--no-ask-password", *words]


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 10 else None


# ---------------------------------------------------------------- launchd


class Launchd:
    """The user's own launchd. Written to launchctl(1), and not run on a real macOS."""

    def __init__(self, home: Path, uid: int, run: Run = run_tool) -> None:
        self.path = home / "Library" / "LaunchAgents" / f"{LAUNCHD_LABEL}.plist"
        self._domain = f"gui/{uid}"
        self._target = f"{self._domain}/{LAUNCHD_LABEL}"
        self._run = run

    def install(self, text: bytes, *, start: bool) -> Installed:
        """Write the list, and have it loaded, which starts it. Raises ServiceError."""
        before = read_ours(self.path)
        was_loaded = self.state().is_active
        if before != text:
            write_whole(self.path, text)
        if start and not was_loaded:
            ended = self._tool("bootstrap", self._domain, str(self.path), timeout_s=START_TIMEOUT_S)
            if ended.code:
                _remove(self.path) if before is None else write_whole(self.path, before)
                raise ServiceError(f"launchctl bootstrap failed ({ended.last_line}): is anybody logged in?")
        return Installed(before != text, start and not was_loaded, was_loaded and before != text)

    def uninstall(self) -> bool:
        """End the service and remove its list; gives whether there was one. Raises ServiceError."""
        was_there = read_ours(self.path) is not None
        if was_there:
            # It is an error where nothing is loaded.
            self._tool("bootout", self._target, timeout_s=STOP_TIMEOUT_S)
        return _remove(self.path)

    def state(self) -> State:
        """How the service is. Raises ServiceError when launchctl does not say."""
        ended = self._tool("print", self._target)
        shown = dict(line.strip().split(" = ", 1) for line in ended.text.splitlines() if " = " in line)
        is_loaded = ended.code == 0
        return State(
            is_installed=self.path.exists(),
            is_enabled=self.path.exists(),
            is_active=is_loaded,
            pid=_count(shown.get("pid")) if is_loaded else None,
            restarts=None,
            words=shown.get("state", "loaded") if is_loaded else "not loaded",
        )

    def _tool(self, *words: str, timeout_s: float = TOOL_TIMEOUT_S) -> Ended:
        try:
            return self._run(["launchctl", *words], timeout_s)
        except ToolError as error:
            raise ServiceError(str(error)) from None
