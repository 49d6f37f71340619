"""The process between the node and a program of llama.cpp: it ends the program when the node is gone, however that was.

The node holds the other end of its standard input and never writes to it. What the program says goes where this
process's own output goes, and this process ends as the program did. Standard library only: it has to start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

from infernet.host.hardening import harden

# linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> int:
    """Run a program with its arguments to its end; gives its exit status, or ends by the signal that ended it."""
    if not words:
        return 2
    harden()
    # Loaded before the fork: nothing may be imported after it.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    keeper = os.getpid()
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with(keeper, libc))
    except OSError as error:
        print(f"cannot start: {error.strerror}", file=sys.stderr)  # noqa: T201 - read by the node
        return 126
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    status = process.wait()
    if status < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def die_with(keeper: int, libc: ctypes.CDLL | None) -> None:
    """Have the kernel end this process when its parent, the keeper, is killed. Linux only."""
    if libc is None:
        return
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # The kernel tells nothing of a keeper that was killed before it was asked to.
    if os.getppid() != keeper:
        os._exit(1)


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
