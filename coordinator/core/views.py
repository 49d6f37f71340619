"""Rows as the public sees them: the shapes of the existing API, filled with what was measured or not at all.

Live means: a signed record was seen at most 60 s ago. What is not known (processor, interconnects, reputation,
place) stays null; addresses appear only for nodes that advertise them.
"""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from coordinator.core.specs import clean_text
from coordinator.store.nodes import Node
from protocol import codec
from protocol import constants as c
from protocol.errors import RemoteProtocolError
from protocol.ids import peer_id
from protocol.records import Heartbeat

LIVE_MS: Final = 60_000
UUSD: Final = 1_000_000


def iso_time(time_ms: int) -> str:
    """A wall-clock time as clients read it, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_live(node: Node, now_ms: int) -> bool:
    """Whether it was heard just now and did not say goodbye."""
    return node.status != "offline" and now_ms - node.last_seen_ms <= LIVE_MS


def status_of(node: Node, now_ms: int) -> str:
    """What to show: what the node said last, while that is news."""
    return node.status if is_live(node, now_ms) else "offline"


def heartbeat_of(node: Node) -> Heartbeat | None:
    """The node's own record, decoded; its signature was verified when it came."""
    return _decoded(node.record.body) if node.record is not None else None


@lru_cache(maxsize=2048)
def _decoded(body: bytes) -> Heartbeat | None:
    try:
        return codec.decode_record(body, Heartbeat)
    except RemoteProtocolError:
        return None  # stored by a version whose rules were others; the next heartbeat replaces it


def gpu_summary(node: Node) -> str | None:
    """`2 × NVIDIA GeForce RTX 4090 (24-48gb)`, or None without a GPU."""
    gpus = node.specs.get("gpus") or []
    if not gpus:
        return None
    model = gpus[0]["model"] or gpus[0]["vendor"]
    count = f"{len(gpus)} × " if len(gpus) > 1 else ""
    return f"{count}{model} ({gpus[0]['vram_tier']})"


def price_display(node: Node) -> str | None:
    """The lowest price for a million output tokens, or None when the node publishes none."""
    heartbeat = heartbeat_of(node)
    if heartbeat is None or not heartbeat.models:
        return None
    if any(offer.is_free for offer in heartbeat.models):
        return "free"
    lowest_uusd = min(offer.price_out_uusd for offer in heartbeat.models)
    return f"${lowest_uusd // UUSD}.{lowest_uusd % UUSD // 10_000:02d} per 1M tokens"


def multiaddrs(node: Node) -> list[str]:
    """Where the node says it can be reached, each with its PeerId; empty when it does not advertise."""
    suffix = f"/p2p/{peer_id(node.node)}"
    heartbeat = heartbeat_of(node)
    if heartbeat is not None:
        plain = [clean_text(address, c.ADDRESS_CHARACTERS_MAX) for address in heartbeat.addresses]
        return [address if "/p2p/" in address else address + suffix for address in plain]
    if node.address is None or node.port is None:
        return []
    try:
        kind = f"ip{ipaddress.ip_address(node.address).version}"
    except ValueError:
        kind = "dns"
    return [f"/{kind}/{node.address}/tcp/{node.port}{suffix}"]


def node_view(node: Node, now_ms: int) -> dict[str, Any]:
    """One row of `/api/nodes`."""
    return {
        "id": node.node.hex(),
        "node_id": node.node_id,
        "name": node.name,
        "role": node.role,
        "status": status_of(node, now_ms),
        "location": None,
        "capacity": gpu_summary(node),
        "last_seen": iso_time(node.last_seen_ms),
    }


def provider_view(node: Node, now_ms: int) -> dict[str, Any]:
    """One row of `/api/providers`."""
    return {
        "id": node.node.hex(),
        "node_id": node.node_id,
        "name": node.name,
        "status": status_of(node, now_ms),
        "gpu_summary": gpu_summary(node),
        "cpu_summary": None,
        "fabric": None,
        "price_display": price_display(node),
        "reputation": None,
        "served_models": node.specs.get("served_models", []),
    }


def peer_view(node: Node, addresses: list[str]) -> dict[str, Any]:
    """One row of `/api/peers`: enough to dial, and the record with which to check all of it."""
    gpus = node.specs.get("gpus") or []
    record = base64.b64encode(codec.encode_value(node.record)).decode() if node.record is not None else None
    return {
        "pubkey": node.node.hex(),
        "multiaddr": addresses[0],
        "multiaddrs": addresses,
        "last_seen": iso_time(node.last_seen_ms),
        "served_models": node.specs.get("served_models", []),
        "gpu_model": gpus[0]["model"] if gpus else None,
        "gpu_count": node.specs.get("gpu_count", 0),
        "cpu": None,
        "interconnects": None,
        "record": record,
    }


def own_row(node: Node) -> dict[str, Any]:
    """A node's row, as it sees it itself."""
    return {
        "id": node.node.hex(),
        "node_id": node.node_id,
        "public_key": node.node.hex(),
        "role": node.role,
        "name": node.name,
        "status": node.status,
        "address": node.address,
        "port": node.port,
        "specs": node.specs,
        "gpu_model": gpu_summary(node),
        "created_at": iso_time(node.created_ms),
        "last_seen": iso_time(node.last_seen_ms),
    }
