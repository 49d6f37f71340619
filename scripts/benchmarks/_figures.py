"""What a figure of `scripts/bench network` is: a number that was measured, beside another one from the same run.

A number alone says how fast the machine was. So each figure names what it is compared with, measured moments before or
after on the same machine, and is read as the ratio of the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Figure:
    """One number, and the one that it is compared with, in the same unit."""

    what: str
    value: float
    unit: str
    baseline: str
    baseline_value: float

    @property
    def ratio(self) -> float:
        """How many times the baseline."""
        return self.value / self.baseline_value if self.baseline_value else math.nan

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Options:
    """What was asked of all figures: `quick` is for seeing that they work."""

    quick: bool


class Room(Protocol):
    """A module of `network_figures`: one figure, or a few that come from one measurement.

    NEEDS_ROOT: whether it makes network namespaces.
    """

    NEEDS_ROOT: bool

    @staticmethod
    async def measure(options: Options) -> list[Figure]: ...


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def cpu_of(work: Callable[[], object], seconds: float) -> float:
    """Seconds of CPU that one run of something takes, over about so many seconds."""
    runs, started_s = 0, time.process_time()
    while (used_s := time.process_time() - started_s) < seconds:
        work()
        runs += 1
    return used_s / runs
