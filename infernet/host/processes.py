"""A process that another command started, held so that its number cannot come to mean a later one."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from infernet.host.lock import running_pid

if TYPE_CHECKING:
    import psutil


class NodeProcess:
    """The process that runs a node, from before its end until it is gone.

    It gives its lock back first, and is busy for seconds after that: it takes its engines down, and what it runs from
    lies on the disk until then.
    """

    def __init__(self, pid_file: Path, pid: int) -> None:
        """`pid` is what the lock says now."""
        self.pid = pid
        self._pid_file = pid_file
        self._process = _process(pid)
        # The number was given to another process meanwhile, unless this one has the lock still.
        if running_pid(pid_file) != pid:
            self._process = None

    def is_gone(self) -> bool:
        """Whether nothing of it is left. A process that nobody has waited for is gone."""
        # Seen from another container it has another number, or none; and who looks at a lock of its own is no node.
        if self._process is None or self.pid == os.getpid():
            return running_pid(self._pid_file) != self.pid
        return self._status() in (None, "zombie", "dead")

    def is_suspended(self) -> bool:
        """Whether it was told to stand still, so that it can neither answer nor end."""
        return self._status() in ("stopped", "tracing-stop")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens where it is gone."""
        import psutil

        if self._process is not None:
            # Looks whether the number is still this process's.
            with contextlib.suppress(psutil.Error):
                self._process.send_signal(number)

    def _status(self) -> str | None:
        import psutil

        if self._process is None:
            return None
        try:
            return str(self._process.status()) if self._process.is_running() else None
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            return "unknown"


def work_done(pid: int) -> tuple[float, ...] | None:
    """Figures of a process and its children that stand still only where none of them computes or reads; None where they
    are not shown.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        figures = [_work_of(process)]
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                figures.append(_work_of(child))
    except psutil.Error:
        return None
    return tuple(map(sum, zip(*figures, strict=True)))


def _work_of(process: psutil.Process) -> tuple[float, ...]:
    import psutil

    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        read = (0.0, 0.0)
        # Of a process that is kept from being looked into they are not shown.
        with contextlib.suppress(psutil.Error, AttributeError):
            counters = process.io_counters()
            read = float(counters.read_count), float(counters.read_bytes)
        return times.user, times.system, float(memory.rss), *read


def _process(pid: int) -> psutil.Process | None:
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
