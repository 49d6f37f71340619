"""infernet/discovery/joining.py: every node that is joined gets a connection, or a reason why not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.discovery.joining import JOIN_TIMEOUT_S, Joining
from protocol.events import DialFailed, LearnAddresses, PeerConnected
from tests.helpers_discovery import RecordingDriver
from tests.helpers_records import ASKER, PROVIDER, signing_key

pytestmark = pytest.mark.anyio

ADDRESS = "/ip4/203.0.113.7/tcp/46337"
OTHER = signing_key("other")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_each_node_gets_its_own_result() -> None:
    driver = RecordingDriver()
    driver.connected = frozenset({signing_key("friend").node})
    joining = Joining(driver.as_driver())
    wanted = {key.node: [ADDRESS] for key in (PROVIDER, OTHER, ASKER, signing_key("friend"), signing_key("silent"))}
    results: dict[bytes, str] = {}

    async def join() -> None:
        results.update(await joining.join(wanted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        await trio.testing.wait_all_tasks_blocked()
        # Whoever joins waits for it: what failed before is tried again at once.
        assert LearnAddresses(PROVIDER.node, (ADDRESS,), connect=True, at_once=True) in driver.events
        joining.observe(DialFailed(OTHER.node, "connection refused"))
        joining.observe(PeerConnected(PROVIDER.node, ADDRESS, inbound=False))
        started_s = trio.current_time()
    assert trio.current_time() - started_s == JOIN_TIMEOUT_S
    assert results == {
        PROVIDER.node: "",
        OTHER.node: "connection refused",
        ASKER.node: "this is the node itself",
        signing_key("friend").node: "",
        signing_key("silent").node: "no answer within 25 s",
    }
    assert [event.peer for event in driver.addresses()].count(ASKER.node) == 0


async def test_two_who_wait_for_one_node_both_hear_and_nobody_is_left_behind() -> None:
    joining = Joining(RecordingDriver().as_driver())
    heard: list[dict[bytes, str]] = []

    async def join() -> None:
        heard.append(dict(await joining.join({PROVIDER.node: [ADDRESS]})))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        nursery.start_soon(join)
        await trio.testing.wait_all_tasks_blocked()
        joining.observe(PeerConnected(PROVIDER.node, ADDRESS, inbound=True))
    assert heard == [{PROVIDER.node: ""}] * 2
    with trio.move_on_after(1):
        await joining.join({PROVIDER.node: [ADDRESS]})
    joining.observe(DialFailed(PROVIDER.node, "too late"))
    joining.observe(DialFailed(OTHER.node, "nobody asked"))
