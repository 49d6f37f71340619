"""For tests of discovery: a driver that keeps what it is told, and sources that do what a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import trio

from infernet.discovery.contract import Finds
from infernet.driver import Driver
from protocol.events import Event, LearnAddresses, LearnRecord
from protocol.ids import NodeId
from tests.helpers_records import ASKER


class RecordingDriver:
    """A double of the driver: events are kept, and nobody acts on them."""

    def __init__(self, node: NodeId = ASKER.node) -> None:
        self.peer = self
        self.node = node
        self.events: list[Event] = []
        self.connected: frozenset[NodeId] = frozenset()

    async def post_with_backpressure(self, event: Event) -> None:
        self.events.append(event)
        await trio.lowlevel.checkpoint()

    def command(self, event: Event) -> None:
        self.events.append(event)

    def connected_peers(self) -> frozenset[NodeId]:
        return self.connected

    def addresses(self) -> list[LearnAddresses]:
        """What was learnt of where nodes are."""
        return [event for event in self.events if isinstance(event, LearnAddresses)]

    def records(self) -> list[LearnRecord]:
        """The heartbeats that were learnt."""
        return [event for event in self.events if isinstance(event, LearnRecord)]

    def as_driver(self) -> Driver:
        return cast("Driver", self)

    def finds(self, per_minute: int = 1000, source: str = "test") -> Finds:
        """The door of a source of this name."""
        return Finds(source, self.as_driver(), per_minute)


async def wait_for(condition: Callable[[], object], within_s: float = 60) -> None:
    """Look again and again until a condition holds."""
    with trio.fail_after(within_s):
        while True:
            if condition():
                return
            await trio.sleep(0.01)
