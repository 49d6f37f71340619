"""How many calls the gateway still takes: a sliding minute and a sliding hour, with some kept for what is urgent.

The gateway grants an address 100 requests a minute and a user 1,000 an hour. We stay below both, because its clock and
its counting are not ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

CALLS_PER_MINUTE: Final = 90
CALLS_PER_HOUR: Final = 900
# Shares that are left for what is more urgent: polls for invoices and payouts, invoices for payouts.
KEPT_FROM_POLLS: Final = 0.3
KEPT_FROM_INVOICES: Final = 0.1
KEPT_FROM_PAYOUTS: Final = 0.0


class CallBudget:
    """Counts calls. `monotonic_s` is a clock that never goes back."""

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        per_minute: int = CALLS_PER_MINUTE,
        per_hour: int = CALLS_PER_HOUR,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._windows = ((60.0, per_minute), (3600.0, per_hour))
        self._called_s: deque[float] = deque()

    def take(self, kept: float, calls: int = 1) -> bool:
        """Count so many calls, unless they would leave less than this share of a window."""
        now_s = self._monotonic_s()
        while self._called_s and self._called_s[0] <= now_s - self._windows[-1][0]:
            self._called_s.popleft()
        for window_s, most in self._windows:
            recent = sum(1 for at_s in self._called_s if at_s > now_s - window_s)
            if recent + calls > most * (1 - kept):
                return False
        self._called_s.extend([now_s] * calls)
        return True

    def wait_s(self) -> float:
        """After how long a call that was refused is worth another try."""
        return 5.0 if self._called_s else 0.0
