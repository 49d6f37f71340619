"""infernet/discovery/coordinator_list.py: asked now and then, more often while it lists nobody."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.coordinator_client import CoordinatorUnreachable
from infernet.discovery import coordinator_list as module
from infernet.discovery.coordinator_list import ASK_AGAIN_S, ASK_S, CoordinatorList
from infernet.proxy import Proxy
from protocol.records import Signed
from tests.helpers_discovery import RecordingDriver

pytestmark = pytest.mark.anyio

PROXY = Proxy("127.0.0.1", 9050)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_it_is_asked_again_soon_while_it_lists_nobody_and_rarely_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_s: list[float] = []

    async def fetch(url: str, limit: int, proxy: Proxy | None) -> list[Signed]:
        assert (url, limit, proxy) == ("http://c.example", 100, PROXY)
        asked_s.append(trio.current_time())
        if len(asked_s) == 1:
            raise CoordinatorUnreachable("it is down")
        return [] if len(asked_s) == 2 else [Signed(b"1", bytes(64)), Signed(b"2", bytes(64))]

    monkeypatch.setattr(module, "fetch_peers", fetch)
    driver = RecordingDriver()
    started_s = trio.current_time()
    with trio.move_on_after(100):
        await CoordinatorList("http://c.example", PROXY).run(driver.finds())
    assert [round(at_s - started_s) for at_s in asked_s] == [0, ASK_AGAIN_S, 2 * ASK_AGAIN_S, 2 * ASK_AGAIN_S + ASK_S]
    assert [event.record.body for event in driver.records()] == [b"1", b"2", b"1", b"2"]
