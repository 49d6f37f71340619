"""infernet/discovery/discovery.py: sources run side by side, and one that breaks is started again."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from infernet.discovery.contract import Finds
from infernet.discovery.discovery import RESTART_S_MAX, Discovery
from protocol.records import Signed
from tests.helpers_discovery import RecordingDriver

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class Listing:
    """Finds two records, and is done."""

    name = "listing"
    per_minute = 10

    async def run(self, finds: Finds) -> None:
        for body in (b"1", b"2"):
            await finds.record(Signed(body, bytes(64)))


class Breaking:
    """Breaks whenever it is started."""

    name = "breaking"
    per_minute = 10

    def __init__(self) -> None:
        self.starts_s: list[float] = []

    async def run(self, finds: Finds) -> None:
        self.starts_s.append(trio.current_time())
        raise ValueError("bytes of a stranger")


async def test_one_source_that_breaks_is_started_again_ever_later_and_hurts_no_other() -> None:
    driver = RecordingDriver()
    breaking = Breaking()
    discovery = Discovery(driver.as_driver(), [breaking, Listing()], random.Random(1))
    with trio.move_on_after(7200):
        await discovery.run()
    assert discovery.statistics() == {"breaking": 0, "listing": 2}
    pauses_s = [after - before for before, after in zip(breaking.starts_s, breaking.starts_s[1:], strict=False)]
    assert pauses_s[0] < 2
    assert max(pauses_s) <= 1.5 * RESTART_S_MAX
    assert 7200 / RESTART_S_MAX / 1.5 < len(breaking.starts_s) < 7200 / RESTART_S_MAX * 2 + 10


async def test_it_ends_when_every_source_has_nothing_more_to_find() -> None:
    with trio.fail_after(1):
        await Discovery(RecordingDriver().as_driver(), [Listing()], random.Random(1)).run()
