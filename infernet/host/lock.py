"""One process per node: the lock that its process holds, and finding that process.

The lock is on the file with the process id. The kernel frees it when the process is gone, however it went, so a file
left behind by a crash means nothing, and a process id is believed only while the lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infernet.host.files import FilesError, make_private_directory, reason_of, way_out

_LOOKERS_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.005


class AlreadyRunning(Exception):
    """Another process of this user runs this node."""

    def __init__(self, pid: int | None) -> None:
        which = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"this node is running already ({which}): see `infernet status`, or end it with `infernet stop`"
        )
        self.pid = pid


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Be the one process that runs this node. Raises AlreadyRunning or FilesError."""
    try:
        make_private_directory(path.parent)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        _take(file)
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _unusable(path, error) from None
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _take(file: int) -> None:
    """Hold the lock alone. Raises AlreadyRunning."""
    deadline = time.monotonic() + _LOOKERS_TIMEOUT_S
    while not _try_lock(file, fcntl.LOCK_EX):
        # Commands that only look share the lock, for a moment; they must not pass for a node.
        if not _try_lock(file, fcntl.LOCK_SH) or time.monotonic() > deadline:
            raise AlreadyRunning(_read_pid(file))
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(_POLL_S)


def running_pid(path: Path) -> int | None:
    """The process that runs this node, None when there is none. Raises FilesError when that cannot be told."""
    try:
        # What is no file must not be waited for.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        # Shared, so that two commands that look at the same time do not see each other.
        return None if _try_lock(file, fcntl.LOCK_SH) else _read_pid(file)
    finally:
        os.close(file)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _read_pid(file: int) -> int | None:
    text = os.pread(file, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


def _unusable(path: Path, error: OSError) -> FilesError:
    reason = reason_of(error)
    return FilesError(f"cannot use {path} ({reason}): {way_out(error)}")
