"""What a process that this program starts gives up: it runs code that meets strangers, and may be broken into."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

# linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
# The node's network must stay quick while the process takes every cycle it can get.
_NICENESS: Final = 5
# When memory runs out the kernel is to end this process, and not the node.
_OOM_SCORE: Final = "800"


def harden() -> None:
    """Give up core dumps, new privileges, being inspected, the terminal's Ctrl-C, and the right to be first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    if sys.platform == "linux":
        # Inside some containers the file is read-only; then nothing is different.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
