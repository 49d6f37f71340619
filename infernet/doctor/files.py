"""Checks of folders, disk and log files."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Final

from infernet.config import Config
from infernet.doctor.contract import Check, Finding, Situation, fail, in_thread, ok, warn
from infernet.host.files import FilesError, require_private_directory
from infernet.log import FILE_BYTES_MAX

# Vouchers must be written before they count; below this one busy hour may fill the disk.
FREE_BYTES_MIN: Final = 64 * 1024 * 1024
FREE_BYTES_WANTED: Final = 1024 * 1024 * 1024
FREE_FILES_MIN: Final = 100
CRASH_IS_RECENT_S: Final = 7 * 24 * 3600.0
_LINE_BYTES_MAX: Final = 4096


def _folders(config: Config) -> tuple[Path, ...]:
    return config.config_dir, config.state_dir, config.data_dir


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _writable(situation: Situation) -> Finding:
    for folder in _folders(situation.here):
        place = _nearest(folder)
        if not place.is_dir():
            return fail(f"{place} is not a folder", f"move it away: `mv {_quoted(place)} {_quoted(place)}.old`")
        if situation.machine.statvfs(place).f_flag & os.ST_RDONLY:
            return fail(
                f"the disk of {place} can only be read",
                "mount it for writing, or choose another folder with INFERNET_HOME",
            )
        if not os.access(place, os.W_OK | os.X_OK):
            if place.stat().st_uid == os.getuid():
                found = f"{place} is yours and cannot be written"
                return fail(found, f"let yourself in: `chmod u+rwx {_quoted(place)}`")
            return fail(f"{place} cannot be written", f"make it yours: `chown -R {os.getuid()} {_quoted(place)}`")
    return ok("the folders can be written")


def _private(situation: Situation) -> Finding:
    for folder in (situation.here.state_dir, situation.here.socket_path.parent):
        try:
            require_private_directory(folder, create=False)
        except FilesError as error:
            return fail(str(error).partition(": ")[0], f"run `chmod 700 {_quoted(folder)}`, once it is yours")
    return ok("nobody else can put anything where the node's socket is")


def _disk(situation: Situation) -> Finding:
    least: tuple[int, Path] | None = None
    for folder in (situation.here.state_dir, situation.here.data_dir):
        space = situation.machine.statvfs(_nearest(folder))
        free = space.f_bavail * space.f_frsize
        least = min(least or (free, folder), (free, folder))
    assert least is not None
    free, folder = least
    found = f"{free // 1_000_000} MB are free at {folder}"
    fix = f"make room there (`du -sh {_quoted(folder)}`), or choose another disk with INFERNET_HOME"
    if free < FREE_BYTES_MIN:
        return fail(f"{found}: what is earned may not be kept", fix)
    return warn(found, fix) if free < FREE_BYTES_WANTED else ok(found)


def _inodes(situation: Situation) -> Finding:
    for folder in (situation.here.state_dir, situation.here.data_dir):
        space = situation.machine.statvfs(_nearest(folder))
        # Some file systems have no fixed number, and say 0 of 0.
        if space.f_files and space.f_favail < FREE_FILES_MIN:
            return fail(
                f"the disk of {folder} has room for {space.f_favail} more files",
                f"delete small files there: `df -i {_quoted(_nearest(folder))}` shows how many there are",
            )
    return ok("the disk has room for more files")


def _log_size(situation: Situation) -> Finding:
    path = situation.here.log_file
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return ok("there is no log yet")
    if size > 2 * FILE_BYTES_MAX:
        return warn(
            f"{path} has {size // 1_000_000} MB and is not begun anew",
            f"stop the node, then `mv {_quoted(path)} {_quoted(path)}.old`, and start it again",
        )
    return ok(f"the log has {size // 1000} kB ({path})")


def _crash(situation: Situation) -> Finding:
    path = situation.here.state_dir / "crash.log"
    try:
        age_s = time.time() - path.stat().st_mtime
        with path.open("rb") as file:
            line = file.readline(_LINE_BYTES_MAX).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ok("no command has broken")
    if age_s > CRASH_IS_RECENT_S:
        return ok(f"the last command that broke did so {age_s // 86_400:.0f} days ago")
    return warn(
        f"a command broke {age_s // 3600:.0f} hours ago: {line}",
        f"tell those who make infernet (`infernet report`), then `rm {_quoted(path)}`",
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


CHECKS: Final = (
    Check(
        id="home.writable",
        title="Folders can be written",
        looks="The folders of settings, state and data, or those in which they will be made.",
        remedy="Make them yours with `chown`, or, where they are, writable with `chmod u+rwx`; mount the disk for "
        "writing, or choose another place with `INFERNET_HOME`.",
        examine=in_thread(_writable),
        needs=("config.home",),
    ),
    Check(
        id="home.private",
        title="State is yours alone",
        looks="Whether others can write to the folder of the node's socket. Commands refuse a socket there, because "
        "whoever put it there would read your questions.",
        remedy="`chmod 700` the folder.",
        examine=in_thread(_private),
        needs=("home.writable",),
    ),
    Check(
        id="disk.free",
        title="Disk has room",
        looks="Free bytes where state and models are kept: a failure below 64 MiB, a warning below 1 GiB. With a full "
        "disk a provider takes no paid job.",
        remedy="Make room, or move everything to another disk and set `INFERNET_HOME`.",
        examine=in_thread(_disk),
        needs=("home.writable",),
    ),
    Check(
        id="disk.inodes",
        title="Disk takes more files",
        looks="Whether the disk can hold more files, however small.",
        remedy="Delete small files; `df -i` shows where there are none left.",
        examine=in_thread(_inodes),
        needs=("home.writable",),
    ),
    Check(
        id="log.size",
        title="Log is bounded",
        looks="The size of `daemon.log`, which is begun anew at 5 MiB. What grows beyond that is written past the "
        "log's rules, by native code above all.",
        remedy="Stop the node, move the file away, and start it again.",
        examine=in_thread(_log_size),
        needs=("home.writable",),
    ),
    Check(
        id="log.crash",
        title="No command has broken",
        looks="Whether a command ended with something unexpected in the last seven days (`crash.log`).",
        remedy="Send `infernet report` to those who make infernet, and delete `crash.log`.",
        examine=in_thread(_crash),
        needs=("home.writable",),
    ),
)
