"""One command at a time in a folder: what another writes between our reading and our writing would be lost.

The lock is on the folder itself, so that it leaves no file behind; the kernel frees it when its process is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Reading, changing and writing a file of settings takes milliseconds.
TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02


@contextlib.contextmanager
def one_at_a_time(folder: Path, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Wait for one's turn in this folder, and have it. Raises TimeoutError when it does not come, or OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + timeout_s
        while not _is_ours(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another command has been writing into {folder} for {timeout_s:g} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: nobody can be waited for
    return True
