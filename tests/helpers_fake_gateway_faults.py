"""What the fake gateway can be told to do wrong: once, or at random with a seed.

Of an answer (`on` is create_payment, get_payment, create_payout or list_payouts):

    refuse         no effect, 400 or `status`             error_before   no effect, 500 or `status`
    timeout        effect, and no answer ever             error_after    effect, 500 or `status`
    silence        no effect, and no answer ever          cut            effect, half of an answer
    close          effect, and the connection closed      malformed      effect, and an answer that is not JSON
    slow           effect, an answer byte by byte         huge           effect, an answer without end
    redirect       effect, and a way to elsewhere         say            effect, and `fields` changed in the answer
    outcome        a payout that ends as `status`         echo           no effect, 400 that repeats the credential
    forget         after this, `times` payouts are gone   grow           after this, `times` others are there

Of a webhook (`on` is webhook):

    drop, duplicate (`times` more), hold (until released), reorder (after the next one), tamper, forge, stale, malformed
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

CALLS = ("create_payment", "get_payment", "create_payout", "list_payouts")
KINDS = (
    "refuse", "error_before", "timeout", "error_after", "silence", "cut", "close", "malformed", "slow", "huge",
    "redirect", "say", "outcome", "echo", "forget", "grow",
)  # fmt: skip
WEBHOOK_KINDS = ("drop", "duplicate", "hold", "reorder", "tamper", "forge", "stale", "malformed")


@dataclass(frozen=True)
class Fault:
    """One thing to go wrong."""

    on: str
    kind: str
    status: int | str | None = None
    times: int = 1
    retry_after_s: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = WEBHOOK_KINDS if self.on == "webhook" else KINDS if self.on in CALLS else ()
        if self.kind not in known:
            raise ValueError(f"no fault {self.kind!r} on {self.on!r}")


class Faults:
    """Faults that wait for their call, and rates by which others happen."""

    def __init__(self, seed: int) -> None:
        self._waiting: dict[str, deque[Fault]] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._rng = random.Random(seed)

    def add(self, fault: Fault) -> None:
        """Let this go wrong with the next call of its kind that has no fault yet."""
        self._waiting.setdefault(fault.on, deque()).append(fault)

    def set_rates(self, rates: dict[str, dict[str, float]], seed: int) -> None:
        """From now on let these go wrong by chance: call -> kind -> probability."""
        for on, kinds in rates.items():
            for kind in kinds:
                Fault(on, kind)
        self._rates, self._rng = rates, random.Random(seed)

    def take(self, on: str) -> Fault | None:
        """What goes wrong with this call. One number is drawn for each, so that a seed means the same every time."""
        drawn = self._rng.random() if on in self._rates else 1.0
        if self._waiting.get(on):
            return self._waiting[on].popleft()
        for kind, rate in self._rates.get(on, {}).items():
            if drawn < rate:
                return Fault(on, kind)
            drawn -= rate
        return None
