"""Who the workers of a cluster are, as the owner wrote them down: public keys, or multiaddrs that say who answers."""

from __future__ import annotations

from collections.abc import Sequence

from infernet.own_addresses import peer_of
from protocol.ids import NodeId, node_id_from_text


def worker_of(text: str) -> NodeId:
    """Who a worker is, of what `settings.read_worker` gave."""
    return peer_of(text) if text.startswith("/") else node_id_from_text(text)


def addresses_in(texts: Sequence[str]) -> tuple[str, ...]:
    """Those of them that say where somebody is."""
    return tuple(text for text in texts if text.startswith("/"))
