"""The core as one object: what every route needs, built once, started and stopped with the server."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from coordinator import version
from coordinator.config import Config
from coordinator.core.chats import Chats
from coordinator.core.driver import PeerDriver
from coordinator.core.heartbeats import NotRegistered, check_heartbeat, record_heartbeat
from coordinator.core.limits import RateLimiter
from coordinator.core.links import Links
from coordinator.core.payments import Payments
from coordinator.core.settlement import Settlement
from coordinator.core.settlement_upkeep import SettlementUpkeep
from coordinator.core.sponsor import Sponsor
from coordinator.store import jobs, nodes, replay
from coordinator.store.db import Database, StoreBusy, StoreFailed
from protocol import events as e
from protocol.envelope import SigningKey
from protocol.gossip import GossipConfig
from protocol.ids import NodeId, short
from protocol.link import Closing
from protocol.peer import Peer, PeerConfig
from protocol.records import Signed
from protocol.sealing import HpkeSealer

UPKEEP_INTERVAL_S: Final = 60.0
# After a shutdown was asked for, running jobs have this long to be cancelled at their providers.
SHUTDOWN_GRACE_S: Final = 1.0
RECORDS_MAX: Final = 65_536
DAY_MS: Final = 24 * 60 * 60 * 1000

log = structlog.get_logger(__name__)


def wall_clock_ms() -> int:
    """The system's clock in milliseconds."""
    return time.time_ns() // 1_000_000


class Core:
    """Owns links, chats and upkeep. The clocks are passed in, so that tests can turn them."""

    def __init__(
        self,
        config: Config,
        key: SigningKey,
        database: Database,
        *,
        wall_ms: Callable[[], int] = wall_clock_ms,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.key = key
        self.database = database
        self.wall_ms = wall_ms
        self.monotonic_s = monotonic_s
        self.started_s = monotonic_s()
        self.registrations = RateLimiter(config.registrations_per_hour, "registrations", monotonic_s)
        self.node_requests = RateLimiter(config.node_requests_per_hour, "requests of nodes", monotonic_s)
        self.deposits = RateLimiter(config.deposits_per_hour, "deposits", monotonic_s)
        self.settlement = Settlement(config, key, database, wall_ms, self._on_close_wish)
        self.settlement_upkeep = SettlementUpkeep(config, key, database, self.settlement, wall_ms)
        self.payments = Payments(config, database, self.settlement, wall_ms, monotonic_s)
        self.links = Links(self.on_announce, self.settlement.claim_many)
        self.chats = Chats(config, database, self.links, wall_ms, self.spawn)
        self.sponsor = Sponsor(config, key.node, database, self.settlement, wall_ms, self.spawn)
        self.chat_rate = RateLimiter(config.chats_per_hour, "chats", monotonic_s)
        self.is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._driver: PeerDriver | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def driver(self) -> PeerDriver:
        """The protocol's peer of this process, running from `start` on."""
        assert self._driver is not None, "the core has not been started"
        return self._driver

    async def start(self) -> None:
        """End what an earlier process left open, start the peer and the upkeep."""
        await self.settlement_upkeep.start()
        await self.payments.start()
        left_open = await self.database.write(lambda tx: jobs.fail_open(tx, self.wall_ms()))
        if left_open:
            log.warning("jobs_failed_by_restart", jobs=left_open)
        now = e.Now(asyncio.get_running_loop().time(), self.wall_ms())
        config = PeerConfig(
            agent=f"infernet-coordinator/{version()}"[:48],
            gossip=GossipConfig(interval_s=None),
            directory_records_max=RECORDS_MAX,
            dials=False,
            # Providers on links learn why the chat went elsewhere.
            reports=True,
        )
        peer = Peer(config, self.key, HpkeSealer(), random.SystemRandom(), now)
        self._driver = PeerDriver(peer, self.links, self.chats.on_effect, self.wall_ms, self.sponsor.on_money)
        self.links.attach(self._driver)
        self.chats.attach(self._driver)
        await self.sponsor.attach(self._driver)
        self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())

    async def stop(self) -> None:
        """Cancel the jobs, close streams and links, finish what is being written. Calling it again does nothing."""
        if self.is_stopping or self._driver is None:
            return
        self.is_stopping = True
        if self._upkeep is not None:
            self._upkeep.cancel()
        self.chats.end_all("the coordinator is shutting down; ask again in a moment")
        self._driver.handle(e.Shutdown())
        # Providers end a cancelled job with a receipt; without the wait they would see a broken stream instead.
        if not await self._driver.wait_until_idle(SHUTDOWN_GRACE_S):
            log.warning("shutdown_with_jobs", jobs=self._driver.peer.statistics().jobs_asked)
        self.links.close_all("the coordinator is shutting down")
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._driver.stop()
        await self.payments.stop()
        try:
            await self.settlement_upkeep.stop()
        finally:
            self.settlement.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the request that caused it. What it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed", exc_info=error)

    async def on_announce(self, node: NodeId, record: Signed) -> None:
        """A node's heartbeat came over its link. Raises RemoteProtocolError when it does not hold."""
        now_ms = self.wall_ms()
        heartbeat = check_heartbeat(record, node, now_ms)
        try:
            await self.database.write(lambda tx: record_heartbeat(tx, heartbeat, record, now_ms))
        except NotRegistered:
            log.info("heartbeat_refused", node=short(node), reason="it has removed itself; it must register again")
            return
        self.learn(node, record)

    def _on_close_wish(self, provider: NodeId, record: Signed) -> None:
        self.links.tell(provider, Closing(record))

    def learn(self, node: NodeId, record: Signed) -> None:
        """Tell the peer what a linked node offers. Others cannot be reached from here, so they would only crowd it."""
        if node in self.links:
            self.driver.handle(e.LearnRecord(record))

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.database.write(self._prune)
            except (sqlite3.Error, StoreBusy, StoreFailed):
                log.exception("upkeep_failed")
            await asyncio.sleep(UPKEEP_INTERVAL_S)

    def _prune(self, tx: sqlite3.Connection) -> None:
        now_ms = self.wall_ms()
        nodes.delete_unseen_since(tx, now_ms - self.config.node_kept_days * DAY_MS)
        jobs.delete_ended_before(tx, now_ms - self.config.job_kept_days * DAY_MS)
        replay.prune(tx, now_ms)
