"""What a node tells its owner of itself: every number is measured when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import trio
from msgspec import structs, to_builtins

import infernet
from infernet.being_reached import BeingReached
from infernet.carriers.link import LinkCarrier
from infernet.carriers.transport import TransportCarrier
from infernet.cluster.membership import Cluster
from infernet.config import Config
from infernet.discovery.dht import Dht
from infernet.discovery.discovery import Discovery
from infernet.draining import Draining
from infernet.driver import Driver
from infernet.engines.contract import Engine, TellsParts, models_loading
from infernet.ipc.said import what_is_said
from infernet.ipc.why import Situation, WhyRequest, asking, serving
from infernet.money.performer import Money
from infernet.opening_hours import OpeningHours
from infernet.settings.models import settings_of
from infernet.tally import Tally
from infernet.transport.contract import Transport
from protocol.counting import JobCounts
from protocol.gpus import as_words
from protocol.ids import NodeId, npub, peer_id
from protocol.locality import is_circuit
from protocol.records import Availability, Gpu, ModelOffer, Role

# Of those for whom jobs were forwarded, the latest are shown.
FORWARDED_PAIRS_SHOWN: Final = 32
# Of jobs, of peers, and of the models of one peer.
LIVE_JOBS_MAX: Final = 64
LIVE_PEERS_MAX: Final = 128
LIVE_MODELS_MAX: Final = 4


class Inspection:
    """Looks at the parts of a node. `link`, `carrier` and `started_at_s` (the loop's clock) are set when there are
    any.
    """

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
        hours: OpeningHours,
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
        self._hours = hours
        self._cluster = cluster
        self.link: LinkCarrier | None = None
        self.carrier: TransportCarrier | None = None
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
            "aliases": self._aliases(),
            "gpus": [as_words(gpu) for gpu in self._gpus()],
            "engine": {
                "state": engine.state.value,
                "runs_active": engine.runs_active,
                "runs_total": engine.runs_total,
                "restarts": engine.restarts,
                "slots_leaked": engine.slots_leaked,
                "last_error": engine.last_error,
                "loading_s": engine.loading_s,
            }
            if engine is not None
            else None,
            "engines": self._parts(),
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
            "peers_by_role": self._peers_by_role(),
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
            "ends_in_s": self._draining.left().ends_in_s if self._draining.has_begun else None,
            "hours": self._hours.status(),
            "paused": self._hours.is_paused,
            "counts": self._counts(statistics.jobs),
            "zombie_chunks": statistics.zombie_chunks,
            "bad_frames": statistics.bad_frames,
            "traffic": {"in": dict(self.carrier.bytes_in), "out": dict(self.carrier.bytes_out)}
            if self.carrier
            else None,
            "transport": asdict(self._transport.statistics()) if self._transport is not None else None,
        }

    def _parts(self) -> list[dict[str, Any]]:
        """Which model runs where, with which engine; where it does not, why."""
        engine: object = self._engine
        return [to_builtins(part) for part in engine.parts()] if isinstance(engine, TellsParts) else []

    def _aliases(self) -> dict[str, list[str]]:
        """By which other names its models are asked for, those that it is still loading among them."""
        names = [*(offer.name for offer in self._models()), *models_loading(self._engine)]
        named = {name: settings_of(self._config.model_settings, name).aliases for name in names}
        return {name: list(aliases) for name, aliases in named.items() if aliases}

    def live(self) -> dict[str, Any]:
        """What somebody who watches is shown, again and again: no more rows than a screen has use for."""
        peer, now = self._driver.peer, self._driver.now()
        jobs = peer.jobs_now(now)
        known = [row for row in self.peers() if not row["ourselves"]]
        known.sort(key=lambda row: (not row["connected"], row["node_id"]))
        return {
            "at_s": now.monotonic_s,
            "wall_ms": now.wall_ms,
            "status": self.status(),
            "output_tokens": peer.statistics().jobs.output_tokens + sum(job.output_tokens for job in jobs),
            "jobs": [
                structs.asdict(job) | {"asker": job.asker.hex(), "age_s": round(job.age_s, 1)}
                for job in jobs[:LIVE_JOBS_MAX]
            ],
            "jobs_left_out": max(0, len(jobs) - LIVE_JOBS_MAX),
            "peers": [self._live_peer(row) for row in known[:LIVE_PEERS_MAX]],
            "peers_left_out": max(0, len(known) - LIVE_PEERS_MAX),
        }

    def _live_peer(self, row: dict[str, Any]) -> dict[str, Any]:
        shown = {name: row[name] for name in ("node_id", "name", "role", "availability", "connected", "load", "age_s")}
        shown |= {"models": row["models"][:LIVE_MODELS_MAX], "how": None, "round_trip_ms": None}
        if not row["connected"]:
            return shown
        node = NodeId(bytes.fromhex(row["node_id"]))
        if self.link is not None and self._driver.carrier_of(node) is self.link:
            return shown | {"how": "link"}
        round_trip_s = self._transport.round_trip_s(node) if self._transport is not None else None
        return shown | {
            "how": "relay" if is_circuit(self._driver.peer.connected_at(node)) else "direct",
            "round_trip_ms": round(1000 * round_trip_s, 1) if round_trip_s is not None else None,
        }

    def _peers_by_role(self) -> dict[str, int]:
        """How many other nodes are known, by what they do."""
        peer = self._driver.peer
        heartbeats = (entry.heartbeat for entry in peer.directory.entries())
        counts = Counter(heartbeat.role for heartbeat in heartbeats if heartbeat.node != peer.node)
        return {role.name.lower(): counts[role] for role in Role}

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
            hours="" if self._hours.is_open else self._hours.words(),
            is_paused=self._hours.is_paused,
            free_for=self._config.free_for,
            peers=statistics.connections,
            coordinator=self._config.coordinator_url if self.link is not None else None,
            is_linked=self.link is not None and self.link.connected,
            link_error=self.link.last_error if self.link is not None else "",
            is_published=bool(self._reached.advertised()),
            reach_advice="" if reached["reachability"] in ("unknown", "reached") else reached["advice"],
            jobs_running=statistics.jobs_running + statistics.jobs_own,
            slots=sum(offer.concurrency for offer in self._models()) or self._config.slots,
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
                "says": what_is_said(heartbeat),
                "load": heartbeat.load,
                "addresses": list(heartbeat.addresses),
                "age_s": round((now_ms - heartbeat.issued_at_ms) / 1000, 1),
            }
            for heartbeat in (entry.heartbeat for entry in self._driver.peer.directory.entries())
        ]
