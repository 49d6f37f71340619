"""infernet/draining.py: how the end came is told once, and as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs

from infernet.draining import Draining
from infernet.driver import Driver

pytestmark = pytest.mark.anyio


class Work:
    """A double of the driver: how many jobs are left, and what the node was told."""

    def __init__(self, running: int) -> None:
        self.running = running
        self.told: list[Any] = []
        self.peer = SimpleNamespace(
            statistics=lambda: SimpleNamespace(
                jobs_running=self.running, jobs_asked=0, forwards=SimpleNamespace(active=0)
            )
        )

    def command(self, command: Any) -> None:
        self.told.append(command)


@pytest.mark.parametrize(("running", "how"), [(0, "node.drained"), (1, "node.not_drained")])
async def test_the_end_by_the_limit_is_told_once_and_as_it_was(running: int, how: str) -> None:
    stopped = []
    draining = Draining(cast("Driver", Work(running)), lambda: stopped.append(True))
    with capture_logs() as lines, trio.fail_after(10):
        draining.begin(0)
        await draining.run()
        # What was cut short has ended, too, and then the node hears that nothing is left.
        draining.drained()
    assert [line["event"] for line in lines] == ["node.draining", how]
    assert stopped == [True]


async def test_the_last_job_that_ends_in_time_ends_it_and_the_limit_no_more() -> None:
    work, stopped = Work(1), []
    draining = Draining(cast("Driver", work), lambda: stopped.append(True))
    with capture_logs() as lines, trio.fail_after(10):
        draining.begin(60)
        work.running = 0
        draining.drained()
        draining.begin(0)
        await draining.run()
    assert [line["event"] for line in lines] == ["node.draining", "node.drained"]
    assert stopped == [True]
