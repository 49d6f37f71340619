"""What the node wants of a run while a thread works on it: to go on, or to stop."""

from __future__ import annotations

import threading


class Wishes:
    """Set on one thread, looked at on another. A run that holds waits until it may go on."""

    def __init__(self, *, holds: bool = False) -> None:
        self.cancelled = threading.Event()
        self._may_go_on = threading.Event()
        if not holds:
            self._may_go_on.set()

    def cancel(self) -> None:
        """Stop, also where it waits."""
        self.cancelled.set()
        self._may_go_on.set()

    def proceed(self) -> None:
        """Go on."""
        self._may_go_on.set()

    def wait(self) -> bool:
        """Wait until the run may go on; False when it is to stop."""
        self._may_go_on.wait()
        return not self.cancelled.is_set()
