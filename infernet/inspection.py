"""What a node tells its owner of itself: every number is measured when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import trio
from msgspec import structs

import infernet
from infernet.being_reached import BeingReached
from infernet.cluster.membership import Cluster
from infernet.config import Config
from infernet.discovery.dht import Dht
from infernet.discovery.discovery import Discovery
from infernet.draining import Draining
from infernet.driver import Driver
from infernet.engines.contract import Engine
from infernet.link_carrier import LinkCarrier
from infernet.money import Money
from infernet.tally import Tally
from infernet.transport.contract import Transport
from infernet.why import Situation, WhyRequest, asking, serving
from protocol.counting import JobCounts
from protocol.gpus import as_words
from protocol.ids import npub, peer_id
from protocol.records import Availability, Gpu, ModelOffer, Role

# Of those for whom jobs were forwarded, the latest are shown.
FORWARDED_PAIRS_SHOWN: Final = 32


class Inspection:
    """Looks at the parts of a node. `link` and `started_at_s` (the loop's clock) are set when there are any."""

    def __init__(
        self,
        config: Config,
        driver: Driver,
        *,
        engine: Engine | None,
        models: Callable[[], tuple[ModelOffer, ...]],
        transport: Transport | None,
        reached: BeingReached,
        discovery: Discovery,
        dht: Dht | None,
        draining: Draining,
        tally: Tally,
        cluster: Cluster | None = None,
        money: Money | None = None,
        gpus: Callable[[], tuple[Gpu, ...]] = tuple,
    ) -> None:
        self._config = config
        self._driver = driver
        self._engine = engine
        self._models = models
        self._transport = transport
        self._reached = reached
        self._discovery = discovery
        self._dht = dht
        self._draining = draining
        self._money = money
        self._gpus = gpus
        self._tally = tally
        self._cluster = cluster
        self.link: LinkCarrier | None = None
        self.started_at_s = 0.0

    def status(self) -> dict[str, Any]:
        """What `infernet status --json` prints; every number is measured here and now."""
        statistics = self._driver.peer.statistics()
        engine = self._engine.statistics() if self._engine is not None else None
        ourselves = self._driver.peer.directory.get(self._driver.peer.node)
        return {
            "version": infernet.__version__,
            "node_id": self._driver.peer.node.hex(),
            "npub": npub(self._driver.peer.node),
            "peer_id": peer_id(self._driver.peer.node),
            "name": self._config.name,
            "role": self._config.role.name.lower(),
            "uptime_s": round(trio.current_time() - self.started_at_s, 1),
            "addresses": self._transport.addresses() if self._transport is not None else [],
            "advertised_addresses": self._reached.advertised(),
            "reached": self._reached.status(),
            "models": [offer.name for offer in self._models()],
            "gpus": [as_words(gpu) for gpu in self._gpus()],
            "engine": {
                "state": engine.state.value,
                "runs_active": engine.runs_active,
                "runs_total": engine.runs_total,
                "restarts": engine.restarts,
                "slots_leaked": engine.slots_leaked,
                "last_error": engine.last_error,
            }
            if engine is not None
            else None,
            "coordinator": {
                "url": self._config.coordinator_url,
                "state": self.link.state,
                "last_error": "" if self.link.connected else self.link.last_error,
            }
            if self.link is not None
            else None,
            # Also of a node that keeps no link: it has money there all the same.
            "coordinator_url": self._config.coordinator_url,
            "money": self._money.status() if self._money is not None else None,
            "peers": statistics.connections,
            "peers_known": statistics.records - (ourselves is not None),
            "records": statistics.records,
            "discovered": self._discovery.statistics(),
            "cluster": self._cluster.status() if self._cluster is not None else None,
            "dht": self._dht.status() if self._dht is not None else None,
            "streams": statistics.streams,
            "open_streams": self._driver.open_streams,
            "jobs_asked": statistics.jobs_asked,
            "jobs_forwarded": self._forwarded() if self._config.forward else None,
            "jobs_running": statistics.jobs_running,
            "jobs_waiting": statistics.jobs_waiting,
            "ends_in_s": self._draining.left().seconds_left if self._draining.has_begun else None,
            "counts": self._counts(statistics.jobs),
            "zombie_chunks": statistics.zombie_chunks,
            "bad_frames": statistics.bad_frames,
            "transport": asdict(self._transport.statistics()) if self._transport is not None else None,
        }

    def _counts(self, jobs: JobCounts) -> dict[str, Any]:
        """What has been done since the start."""
        return {
            "jobs": structs.asdict(jobs),
            "asked": self._tally.asked(),
            "heartbeats": self._tally.heartbeats(trio.current_time()),
        }

    def why(self, request: WhyRequest) -> dict[str, Any]:
        """What `infernet why --json` prints. Foreign text is not cleaned."""
        peer, now = self._driver.peer, self._driver.now()
        answer: dict[str, Any] = {"asking": asking(peer, request, now), "serving": None}
        if self._config.role is Role.PROVIDER:
            answer["serving"] = serving(peer, self._situation(), now)
        return answer

    def _situation(self) -> Situation:
        engine = self._engine.statistics() if self._engine is not None else None
        own = self._driver.peer.directory.get(self._driver.peer.node)
        statistics, reached = self._driver.peer.statistics(), self._reached.status()
        return Situation(
            role=self._config.role,
            models=[offer.name for offer in self._models()],
            engine=engine.state.value if engine is not None else None,
            engine_error=engine.last_error if engine is not None else "",
            availability=own.heartbeat.availability if own is not None else Availability.AVAILABLE,
            free_for=self._config.free_for,
            peers=statistics.connections,
            coordinator=self._config.coordinator_url if self.link is not None else None,
            is_linked=self.link is not None and self.link.connected,
            link_error=self.link.last_error if self.link is not None else "",
            is_published=bool(self._reached.advertised()),
            reach_advice="" if reached["reachability"] in ("unknown", "reached") else reached["advice"],
            jobs_running=statistics.jobs_running,
            slots=self._config.slots,
        )

    def _forwarded(self) -> dict[str, Any]:
        peer = self._driver.peer
        pairs = [
            {"asker": asker.hex(), "provider": provider.hex(), **asdict(account)}
            for asker, provider, account in peer.forward_accounts()[-FORWARDED_PAIRS_SHOWN:]
        ]
        return {**structs.asdict(peer.statistics().forwards), "pairs": pairs}

    def peers(self) -> list[dict[str, Any]]:
        """Every node whose heartbeat is held: what `infernet peers --json` prints. Foreign text is not cleaned."""
        now_ms = self._driver.now().wall_ms
        connected = self._driver.connected_peers()
        return [
            {
                "node_id": heartbeat.node.hex(),
                "peer_id": peer_id(heartbeat.node),
                "name": heartbeat.name,
                "role": heartbeat.role.name.lower(),
                "availability": heartbeat.availability.name.lower(),
                "connected": heartbeat.node in connected,
                "ourselves": heartbeat.node == self._driver.peer.node,
                "models": [offer.name for offer in heartbeat.models],
                "load": heartbeat.load,
                "addresses": list(heartbeat.addresses),
                "age_s": round((now_ms - heartbeat.issued_at_ms) / 1000, 1),
            }
            for heartbeat in (entry.heartbeat for entry in self._driver.peer.directory.entries())
        ]
