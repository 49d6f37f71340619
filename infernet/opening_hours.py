"""A provider's hours while it runs: it takes new jobs within them and none outside, and goes by the clock on the wall.

Outside of them it says `DRAINING`, as one that is being stopped does: jobs that run are finished, those that wait for a
slot are sent elsewhere, and connections of others are relayed as before. The clock is looked at twice a minute, so that
one that was set, or a machine that was asleep, makes no difference for long.

Its owner may pause it, too: then it is as outside of all hours until it is told to go on, or started anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from infernet.config import Config
from infernet.settings.hours import PAUSED, Week, described, words_of
from infernet.settings.time_zone import offset_of
from protocol.records import Availability, Role

log = structlog.get_logger(__name__)

LOOK_S: Final = 30.0
# A clock that shows the very instant may be a little behind the one that was slept by.
_LEAST_S: Final = 0.05


class OpeningHours:
    """Always open where no hours are set, or nothing is served anyway."""

    def __init__(self, config: Config, clock_ms: Callable[[], int], *, changed: Callable[[], None]) -> None:
        self._windows = config.serve_hours if config.role is Role.PROVIDER else ()
        self._zone = config.serve_zone
        self._week = Week.read(self._windows)
        self._offset = offset_of(config.serve_zone)
        self._clock_ms = clock_ms
        self._changed = changed
        self._is_paused = False
        self._told = self.is_open

    @property
    def is_open(self) -> bool:
        """Whether new jobs may be taken now."""
        return not self._is_paused and self._week.is_open(self._now_s(), self._offset)

    @property
    def is_paused(self) -> bool:
        """Whether its owner has it take no new jobs, whatever the hours."""
        return self._is_paused

    def pause(self, *, until_told: bool) -> None:
        """Take no new jobs until told to, or again within the hours."""
        if until_told != self._is_paused:
            self._is_paused = until_told
            log.info("hours.paused" if until_told else "hours.resumed")
        self._look()

    @property
    def availability(self) -> Availability:
        """What a heartbeat says."""
        return Availability.AVAILABLE if self.is_open else Availability.DRAINING

    def words(self) -> str:
        """Where in its hours the node is, for people; empty where it has none, and is not paused."""
        return PAUSED if self._is_paused else words_of(self._week, self._now_s(), self._offset)

    def status(self) -> dict[str, Any] | None:
        """For `infernet status --json`; None where there are no hours."""
        return described(self._week, self._now_s(), self._offset, self._zone) if self._windows else None

    async def run(self) -> None:
        """Tell when the hours begin or are over, until cancelled."""
        if not self._windows:
            return
        while True:
            self._look()
            await trio.sleep(self._pause_s())

    def _look(self) -> None:
        is_open = self.is_open
        if is_open != self._told:
            self._told = is_open
            if not self._is_paused and self._windows:
                log.info("hours.begun" if is_open else "hours.over", detail=self.words())
            self._changed()

    def _pause_s(self) -> float:
        change_s = self._week.next_change(self._now_s(), self._offset)
        if change_s is None:
            return LOOK_S
        return min(LOOK_S, max(_LEAST_S, change_s - self._clock_ms() / 1000))

    def _now_s(self) -> int:
        return self._clock_ms() // 1000
