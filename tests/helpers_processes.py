"""For tests of real processes: wait for what they do, and find out whether they are still there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.01


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(POLL_INTERVAL_S)


def is_running(process_id: int) -> bool:
    """Whether a process is there and is more than an entry waiting to be collected."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def processes_below(home: Path) -> list[str]:
    """The command lines of all processes in whose environment a folder below this one is named."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environ = (directory / "environ").read_bytes()
            words = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is not ours
        if os.fsencode(home) in environ and words:
            found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
