"""What a source of peers is, and the one door through which it hands over what it finds.

The door counts, bounds and names: whatever a source does, it costs the node no more than the peers per minute that it
was given, and who looks at the status sees which source found how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog
import trio

from infernet.driver import Driver
from protocol import constants as c
from protocol.events import LearnAddresses, LearnRecord
from protocol.ids import NodeId, peer_id
from protocol.rates import Rates
from protocol.records import Signed

log = structlog.get_logger(__name__)

_MINUTE_S: Final = 60.0


class Finds:
    """Takes what one source finds. `per_minute` bounds nodes and records alike; what is beyond is counted and lost."""

    def __init__(self, source: str, driver: Driver, per_minute: int) -> None:
        self._source = source
        self._driver = driver
        self._node = driver.peer.node
        self._rates: Rates[str] = Rates(per_minute / _MINUTE_S, per_minute)
        self.found = 0
        self.dropped = 0

    async def addresses(self, node: NodeId, addresses: Sequence[str], *, connect: bool = False) -> None:
        """A node may be reached at these multiaddrs; with `connect`, keep a connection to it.

        Addresses that lead to another node are left out.
        """
        usable = tuple(address for address in addresses if _leads_to(node, address))[: c.HEARTBEAT_ADDRESSES_MAX]
        if node != self._node and usable and self._admit():
            await self._driver.post_with_backpressure(LearnAddresses(node, usable, connect))

    async def record(self, record: Signed) -> None:
        """A heartbeat, to be verified like one of a stranger."""
        if self._admit():
            await self._driver.post_with_backpressure(LearnRecord(record))

    def _admit(self) -> bool:
        # SPEC 03: A node MUST bound what each source may cost it: how many nodes a minute, how long a text, how many
        #   addresses a node.
        if self._rates.take(self._source, trio.current_time()):
            self.found += 1
            return True
        self.dropped += 1
        # Said at 1, 2, 4, 8 ...: a flood must not become one of the log.
        if self.dropped & (self.dropped - 1) == 0:
            log.warning("discovery.too_many", source=self._source, dropped=self.dropped)
        return False


def _leads_to(node: NodeId, address: str) -> bool:
    """Whether an address does not name somebody else at its end. What it is made of is the transport's to judge."""
    *_, name, value = ("", "", *address.split("/"))
    return len(address) <= c.ADDRESS_CHARACTERS_MAX and (name != "p2p" or value == peer_id(node))


class Source(Protocol):
    """Looks for peers in one way."""

    #: One word for logs and status.
    name: str
    #: How many nodes or records it may bring in a minute.
    per_minute: int

    async def run(self, finds: Finds) -> None:
        """Look for peers until cancelled, or return when there is no more to find.

        What goes wrong outside (no network, no answer) is the source's own affair: it tries again.
        """
        ...
