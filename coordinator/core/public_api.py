"""What anyone may read: overview, nodes by role, models, peers, health, and the coordinator's own key."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Final

from quart import Blueprint, Response, request

from coordinator import version
from coordinator.core import views
from coordinator.core.core import DAY_MS, Core
from coordinator.core.http import BadRequest, json_response
from coordinator.store import jobs, nodes
from coordinator.store.db import StoreBusy, StoreClosed
from protocol.constants import P2P_PORT, PROTOCOL_VERSION
from protocol.ids import npub
from protocol.link import LINK_PATH

LIMIT_DEFAULT: Final = 25
PEERS_LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
# Of more live nodes than this the most recently heard are looked at.
NODES_SCANNED_MAX: Final = 500
HEALTH_DEADLINE_S: Final = 2.0


def public_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("public_api", __name__)

    async def latest(limit: int, role: str | None = None, *, live: bool = False) -> list[nodes.Node]:
        since_ms = core.wall_ms() - views.LIVE_MS if live else 0
        async with core.database.reader() as reader:
            found = await nodes.select_latest(reader, limit=limit, role=role, seen_since_ms=since_ms)
        return [node for node in found if not live or views.is_live(node, core.wall_ms())]

    @api.get("/api/v1/coordinator")
    async def coordinator() -> Response:
        node = core.key.node
        return json_response(
            {
                "key": node.hex(),
                "npub": npub(node),
                "version": version(),
                "protocol_version": PROTOCOL_VERSION,
                "envelope_versions": [1, 2],
                "link_path": LINK_PATH,
                "p2p_port": P2P_PORT,
                "time_ms": core.wall_ms(),
            }
        )

    @api.get("/api/health")
    async def health() -> Response:
        try:
            async with asyncio.timeout(HEALTH_DEADLINE_S), core.database.reader() as reader:
                await reader.execute("SELECT 1")
                ok = not core.database.failed.done()
        except (sqlite3.Error, StoreBusy, StoreClosed, TimeoutError):
            ok = False
        body = {
            "ok": ok,
            "uptime_s": int(core.monotonic_s() - core.started_s),
            "node_env": "production",
            "commit": None,
            "version": version(),
            "links": len(core.links),
            "payments": core.payments.health(),
        }
        return json_response(body, 200 if ok else 503)

    @api.get("/api/overview")
    async def overview() -> Response:
        now_ms = core.wall_ms()
        async with core.database.reader() as reader:
            live = await nodes.count_live(reader, now_ms - views.LIVE_MS)
            done = await jobs.count_completed(reader, now_ms - DAY_MS)
            last_ms = await nodes.last_seen_ms(reader)
        models = {name for node in await latest(NODES_SCANNED_MAX, live=True) for name in _served(node)}
        ago = f"{max(0, now_ms - last_ms) // 1000} s ago" if last_ms is not None else "never"
        cards = [
            _card("Online nodes", live, "heard in the last 60 s"),
            _card("Models served", len(models), "by nodes that are online"),
            _card("Jobs", done, "completed here in the last 24 h"),
            _card("Last heartbeat", ago, "of any node"),
        ]
        return json_response({"cards": cards})

    @api.get("/api/nodes")
    async def all_nodes() -> Response:
        return await listing(None, views.node_view)

    @api.get("/api/providers")
    async def providers() -> Response:
        return await listing("provider", views.provider_view)

    @api.get("/api/aggregators")
    async def aggregators() -> Response:
        return await listing("aggregator", views.node_view)

    @api.get("/api/clients")
    async def clients() -> Response:
        return await listing("client", views.node_view)

    async def listing(role: str | None, view: Any) -> Response:
        limit, status = _limit(LIMIT_DEFAULT), request.args.get("status")
        found = await latest(limit if status is None else NODES_SCANNED_MAX, role)
        now_ms = core.wall_ms()
        shown = [view(node, now_ms) for node in found if status in (None, views.status_of(node, now_ms))]
        return json_response({"data": shown[:limit]})

    @api.get("/api/models")
    async def models() -> Response:
        limit = _limit(LIMIT_MAX)
        found: dict[str, dict[str, Any]] = {}
        for node in await latest(NODES_SCANNED_MAX, "provider", live=True):
            heartbeat = views.heartbeat_of(node)
            contexts = {offer.name: offer.context_tokens for offer in heartbeat.models} if heartbeat else {}
            for name in _served(node):
                model = found.setdefault(name, _model(name))
                model["providers"] += 1
                # The chat can only use nodes that keep a link open to this coordinator.
                model["chat"] = model["chat"] or node.node in core.links
                model["context_length"] = max(model["context_length"] or 0, contexts.get(name, 0)) or None
        ranked = sorted(found.values(), key=lambda model: (-model["providers"], model["name"]))
        return json_response({"data": ranked[:limit]})

    @api.get("/api/peers")
    async def peers() -> Response:
        limit = _limit(PEERS_LIMIT_DEFAULT)
        shown = []
        for node in await latest(NODES_SCANNED_MAX, live=True):
            addresses = views.multiaddrs(node)
            if addresses:
                shown.append(views.peer_view(node, addresses))
            if len(shown) == limit:
                break
        return json_response({"data": shown})

    return api


def _served(node: nodes.Node) -> list[str]:
    served: list[str] = node.specs.get("served_models", [])
    return served


def _model(name: str) -> dict[str, Any]:
    family = name.split(":")[0]
    return {
        "id": name,
        "name": name,
        "family": family,
        "context_length": None,
        "visibility": "public",
        "providers": 0,
        "chat": False,
    }


def _card(label: str, value: int | str, note: str) -> dict[str, int | str]:
    return {"label": label, "value": value, "note": note}


def _limit(default: int) -> int:
    text = request.args.get("limit")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise BadRequest("limit takes a whole number")
    return max(1, min(LIMIT_MAX, int(text)))
