"""The peers of earlier runs, and what this run learns for the next one. Those that were really reached come first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from infernet.discovery.contract import Finds
from infernet.store import PEERS_MAX, SavedPeer, Store, StoreError
from protocol import constants as c
from protocol.ids import NodeId
from protocol.records import Heartbeat, Signed

log = structlog.get_logger(__name__)

# A crash forgets at most this much of what was learnt of other nodes.
SAVE_S: Final = 30.0
# Peers that were only heard of are told of this much later: by then somebody who was reached before has answered, or
# nobody will.
HEARD_OF_DELAY_S: Final = 20.0
# Learnt and not yet written, the oldest making room: keys cost nothing, and a stranger can send records without end.
UNSAVED_MAX: Final = c.DIRECTORY_RECORDS_MAX


class SavedPeers:
    """A source: reads the store once, then writes to it now and then."""

    name = "saved"
    #: Each with its addresses and its record.
    per_minute = 2 * PEERS_MAX

    def __init__(self, store: Store, clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._clock_ms = clock_ms
        self._learnt: dict[NodeId, tuple[Heartbeat, Signed]] = {}
        self._reached: dict[NodeId, str | None] = {}

    def learn(self, heartbeat: Heartbeat, record: Signed) -> None:
        """A newer record of a node is known."""
        self._learnt[heartbeat.node] = (heartbeat, record)
        if len(self._learnt) > UNSAVED_MAX:
            del self._learnt[next(iter(self._learnt))]

    def reached(self, node: NodeId, address: str | None) -> None:
        """We dialled a node and it proved its key; `address` is where, if that is known."""
        self._reached[node] = address
        if len(self._reached) > UNSAVED_MAX:
            del self._reached[next(iter(self._reached))]

    async def run(self, finds: Finds) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, finds)
            while True:
                await trio.sleep(SAVE_S)
                await self.save()

    async def _tell(self, finds: Finds) -> None:
        try:
            peers = await trio.to_thread.run_sync(self._store.peers)
        except StoreError as error:
            log.warning("store.failed", reason=str(error))
            return
        for peer in peers:
            if peer.reached_at_ms:
                await self._tell_of(peer, finds)
        await trio.sleep(HEARD_OF_DELAY_S)
        for peer in peers:
            if not peer.reached_at_ms:
                await self._tell_of(peer, finds)

    async def _tell_of(self, peer: SavedPeer, finds: Finds) -> None:
        await finds.addresses(peer.node, peer.addresses)
        # An older record has expired, whatever it says.
        if self._clock_ms() - peer.seen_at_ms < c.HEARTBEAT_LIFETIME_MS_MAX:
            await finds.record(peer.record)

    async def save(self) -> None:
        """Write what was learnt since the last time, in a thread; what cannot be written is tried again."""
        learnt, self._learnt = self._learnt, {}
        reached, self._reached = self._reached, {}
        if not learnt and not reached:
            return
        try:
            await trio.to_thread.run_sync(self._write, list(learnt.values()), list(reached.items()), self._clock_ms())
        except StoreError as error:
            log.warning("store.failed", reason=str(error))
            self._learnt = dict(list({**learnt, **self._learnt}.items())[-UNSAVED_MAX:])
            self._reached = dict(list({**reached, **self._reached}.items())[-UNSAVED_MAX:])

    def _write(
        self, learnt: list[tuple[Heartbeat, Signed]], reached: list[tuple[NodeId, str | None]], now_ms: int
    ) -> None:
        self._store.save_peers(learnt, now_ms)
        self._store.note_reached(reached, now_ms)
