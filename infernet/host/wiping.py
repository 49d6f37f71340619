"""Removing a node's folders for good: only what is this user's own, and keys are overwritten before they go.

Overwriting does what a program can do. A disk that writes elsewhere each time, a snapshot or a backup may keep a copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from infernet.host.files import reason_of

_KEY_BYTES_MAX: Final = 64 * 1024
# What nodes write, by folder; with drafts, older files, and what a damaged database was moved aside as.
OF_SETTINGS: Final = (
    *("config.toml*", ".config.toml.*", "identity.key*", ".identity.key.*"),
    *("coordinators.json*", ".coordinators.json.*"),
    # What is left of the earlier program's settings.
    *("config.json.old", ".config.json.old.*"),
)
OF_RECORDS: Final = (
    *("daemon.*", "node.sqlite3*", "money.sqlite3*", "crash.log*", "benchmark.json*", ".benchmark.json*"),
    *("verified", "verified/*"),
)
OF_MODELS: Final = (
    *("models", "models/*.gguf*", "models/.*.gguf*", "models/.*.whl.part*"),
    # What is left of fetches by earlier versions.
    *("models/.fetch-*", "models/.fetch-*/*"),
)


class CannotWipe(Exception):
    """Something cannot or must not be removed; one line for people."""


def check(folder: Path) -> bool:
    """Whether there is such a folder. Raises CannotWipe for what is no folder of this user's."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotWipe(f"cannot look at {folder} ({reason_of(error)}): check its owner and mode") from None
    if not stat.S_ISDIR(status.st_mode):
        raise CannotWipe(f"{folder} is not a folder but leads elsewhere: remove it yourself")
    if status.st_uid != os.getuid():
        raise CannotWipe(f"{folder} belongs to another user, who alone may remove it")
    return True


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder, as far as they can be looked at."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(where) / name).lstat().st_size
    return total


def strangers(folder: Path, ours: Sequence[str]) -> list[Path]:
    """What lies in a folder and was not written by a node: names that none of these patterns knows.

    INFERNET_HOME may be a folder in which people keep other things, under names as common as `config` and `data`.
    Raises CannotWipe.
    """
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise CannotWipe(f"cannot look into {folder} ({reason_of(error)}): check its owner and mode")

    for where, folders, names in os.walk(folder, onerror=fail):
        for name in sorted((*folders, *names)):
            path = Path(where) / name
            if not any(fnmatchcase(str(path.relative_to(folder)), pattern) for pattern in ours):
                found.append(path)
        # Of a folder that is not ours one name says enough.
        folders[:] = [name for name in folders if Path(where) / name not in found]
    return found


def wipe(folder: Path, keys: str) -> None:
    """Remove a folder with all that is in it; files that `keys` (a pattern) names are overwritten first.

    Raises CannotWipe; what is left then can be removed by another try.
    """
    if not check(folder):
        return
    try:
        for key in folder.glob(keys):
            if key.is_file() and not key.is_symlink():
                _overwrite(key)
        shutil.rmtree(folder)
    except OSError as error:
        raise CannotWipe(f"cannot remove all of {folder} ({reason_of(error)}): put that right and try again") from None


def _overwrite(path: Path) -> None:
    # Never what a link leads to.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            os.pwrite(descriptor, bytes(min(status.st_size, _KEY_BYTES_MAX)), 0)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
