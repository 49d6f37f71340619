"""Stopping without losing a job: no new ones, those that run may finish, within a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from infernet.driver import Driver
from protocol.events import Drain

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobsLeft:
    """What a node that drains still does: jobs that it runs, its own questions, jobs of others that it passes on.

    `ends_in_s` is infinite for one that does not drain.
    """

    running: int
    asked: int
    forwarded: int
    ends_in_s: float

    def __str__(self) -> str:
        return f"{self.running} running, {self.asked} asked, {self.forwarded} forwarded"


class Draining:
    """Waits for the last job, or for the limit, and then stops the node."""

    def __init__(self, driver: Driver, stop: Callable[[], None]) -> None:
        self._driver = driver
        self._stop = stop
        self._limit = trio.CancelScope()
        self._begun = trio.Event()
        self._is_over = False

    @property
    def has_begun(self) -> bool:
        """Whether the node takes no new jobs."""
        return self._begun.is_set()

    def begin(self, limit_s: float) -> None:
        """Take no more jobs, and stop when the last one has ended or after this long. Once begun, only the sooner
        limit counts.
        """
        self._limit.deadline = min(self._limit.deadline, trio.current_time() + limit_s)
        if self._begun.is_set():
            return
        self._begun.set()
        log.info("node.draining", detail=f"{self.left()}, for {limit_s:g} s at most")
        self._driver.command(Drain())

    def left(self) -> JobsLeft:
        """What is still to be done now."""
        statistics = self._driver.peer.statistics()
        seconds = round(max(0.0, self._limit.deadline - trio.current_time()), 1)
        return JobsLeft(statistics.jobs_running, statistics.jobs_asked, statistics.forwards.active, seconds)

    def drained(self) -> None:
        """The last job has ended; where the limit cut it short, that was told."""
        if not self._is_over:
            self._end()

    async def run(self) -> None:
        """Keep the limit."""
        with self._limit:
            await trio.sleep_forever()
        if not self._is_over:
            self._end()

    def _end(self) -> None:
        self._is_over, left = True, self.left()
        if left.running or left.asked or left.forwarded:
            log.warning("node.not_drained", detail=str(left))
        else:
            log.info("node.drained")
        self._stop()
