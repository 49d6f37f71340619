"""How many calls the gateway still takes: a sliding minute and a sliding hour, with a share for each purpose.

The gateway grants an address 100 requests a minute and a user 1,000 an hour. We stay below both, because its clock and
its counting are not ours.

Whoever makes throw-away keys can ask for as many invoices as he likes, and each is asked about for days. So every
purpose has a share that those two never take, however much of it is unused. What costs money to cause, payouts and
questions about what was paid, leaves only each other's; and what is nobody's share is whose call is first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Final

CALLS_PER_MINUTE: Final = 90
CALLS_PER_HOUR: Final = 900


class Purpose(Enum):
    """What a call is for."""

    INVOICE = "invoice"
    POLL = "poll"
    # A webhook says that this one has been paid.
    PAID_POLL = "paid poll"
    PAYOUT = "payout"


# Of each window. Together they leave a third of it to whoever comes.
SHARES: Final = {Purpose.INVOICE: 0.2, Purpose.POLL: 0.2, Purpose.PAID_POLL: 0.15, Purpose.PAYOUT: 0.1}
_COSTS_MONEY: Final = (Purpose.PAID_POLL, Purpose.PAYOUT)


class _Window:
    """The calls of so many seconds, by their purpose."""

    def __init__(self, window_s: float, most: int) -> None:
        self._window_s = window_s
        self._most = most
        self._called: deque[tuple[float, Purpose]] = deque()
        self._used: Counter[Purpose] = Counter()

    def forget(self, now_s: float) -> None:
        """Leave out what was too long ago."""
        while self._called and self._called[0][0] <= now_s - self._window_s:
            self._used[self._called.popleft()[1]] -= 1

    def has_room(self, purpose: Purpose) -> bool:
        """Whether one more leaves others their share."""
        others = _COSTS_MONEY if purpose in _COSTS_MONEY else SHARES
        # SPEC 07: The coordinator MUST keep a share of its calls to the gateway for payments of which a webhook says
        #   that they were paid, whatever else there is to ask.
        kept = sum(
            max(0, int(self._most * SHARES[other]) - self._used[other]) for other in others if other is not purpose
        )
        return len(self._called) + 1 + kept <= self._most

    def add(self, now_s: float, purpose: Purpose) -> None:
        """Count one."""
        self._called.append((now_s, purpose))
        self._used[purpose] += 1


class CallBudget:
    """Counts calls. `monotonic_s` is a clock that never goes back."""

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        per_minute: int = CALLS_PER_MINUTE,
        per_hour: int = CALLS_PER_HOUR,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._windows = (_Window(60.0, per_minute), _Window(3600.0, per_hour))
        self._has_called = False

    def take(self, purpose: Purpose) -> bool:
        """Count a call, unless it would take from a window what is another purpose's share."""
        now_s = self._monotonic_s()
        for window in self._windows:
            window.forget(now_s)
        if not all(window.has_room(purpose) for window in self._windows):
            return False
        for window in self._windows:
            window.add(now_s, purpose)
        self._has_called = True
        return True

    def wait_s(self) -> float:
        """After how long a call that was refused is worth another try."""
        return 5.0 if self._has_called else 0.0
