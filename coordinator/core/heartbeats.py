"""What registering and heartbeats change: from what a node said, checked, to its row."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from typing import Final

from coordinator.core import specs
from coordinator.store import nodes
from protocol import constants as c
from protocol.envelope import open_record
from protocol.errors import BadSignature, Stale
from protocol.ids import NodeId
from protocol.records import Availability, Heartbeat, Role, Signed

# What a newer node may say and this version does not know offers nothing and takes no jobs.
ROLE_WORDS: Final = {
    Role.UNKNOWN: "client",
    Role.PROVIDER: "provider",
    Role.AGGREGATOR: "aggregator",
    Role.CLIENT: "client",
}
STATUS_WORDS: Final = {
    Availability.UNKNOWN: "offline",
    Availability.AVAILABLE: "available",
    Availability.DRAINING: "draining",
    Availability.OFFLINE: "offline",
}
_DERIVED: Final = re.compile(r"(?:provider|aggregator|client)-([0-9a-f]{16})")


class NotRegistered(Exception):
    """No row of this key: the node registers first."""


class NodeIdTaken(Exception):
    """Another key registered this textual id."""


def check_heartbeat(record: Signed, node: NodeId, now_ms: int) -> Heartbeat:
    """Open a node's own signed heartbeat. Raises BadFrame, BadSignature or Stale."""
    heartbeat = open_record(record, Heartbeat)
    # SPEC 07: The coordinator MUST refuse a heartbeat that is not signed by the node that brings it.
    if heartbeat.node != node:
        raise BadSignature("the heartbeat is of another node")
    if abs(now_ms - heartbeat.issued_at_ms) > c.CLOCK_SKEW_MS_MAX:
        raise Stale("the heartbeat is more than 60 s away from this clock")
    if not 0 < heartbeat.expires_at_ms - heartbeat.issued_at_ms <= c.HEARTBEAT_LIFETIME_MS_MAX:
        raise Stale("the heartbeat claims a lifetime that the protocol does not allow")
    return heartbeat


def derived_node_id(role: str, node: NodeId) -> str:
    """The textual id of a node that states none."""
    return f"{role}-{node.hex()[:16]}"


def is_free_for(tx: sqlite3.Connection, node_id: str, node: NodeId) -> bool:
    """Whether this key may register this textual id: nobody else has it, and nobody else's is derived to it."""
    derived = _DERIVED.fullmatch(node_id)
    if derived is not None and derived[1] != node.hex()[:16]:
        return False
    return nodes.owner_of(tx, node_id) in (None, node)


def register_from_heartbeat(tx: sqlite3.Connection, heartbeat: Heartbeat, record: Signed, now_ms: int) -> nodes.Node:
    """Create or refresh the row of one of our nodes. Raises NodeIdTaken."""
    row = nodes.get(tx, heartbeat.node)
    if row is None:
        role = ROLE_WORDS[heartbeat.role]
        row = nodes.Node(
            node=heartbeat.node,
            role=role,
            node_id=derived_node_id(role, heartbeat.node),
            name="",
            status="offline",
            address=None,
            port=None,
            specs={},
            record=None,
            record_sequence=None,
            record_expires_ms=None,
            created_ms=now_ms,
            last_seen_ms=0,
        )
        if not is_free_for(tx, row.node_id, heartbeat.node):
            raise NodeIdTaken
    return _put_if_newer(tx, row, heartbeat, record, now_ms)


def record_heartbeat(tx: sqlite3.Connection, heartbeat: Heartbeat, record: Signed, now_ms: int) -> nodes.Node:
    """Take a heartbeat of a registered node if it is its newest. Raises NotRegistered."""
    row = nodes.get(tx, heartbeat.node)
    if row is None:
        raise NotRegistered
    return _put_if_newer(tx, row, heartbeat, record, now_ms)


def _put_if_newer(
    tx: sqlite3.Connection, row: nodes.Node, heartbeat: Heartbeat, record: Signed, now_ms: int
) -> nodes.Node:
    # SPEC 01: The receiver of a heartbeat MUST keep the one with the highest sequence per node.
    if row.record_sequence is not None and heartbeat.sequence <= row.record_sequence:
        return row
    row = dataclasses.replace(
        row,
        role=ROLE_WORDS[heartbeat.role],
        name=specs.clean_name(heartbeat.name),
        status=STATUS_WORDS[heartbeat.availability],
        address=None,
        port=None,
        specs=specs.stored(specs.from_heartbeat(heartbeat)),
        record=record,
        record_sequence=heartbeat.sequence,
        record_expires_ms=heartbeat.expires_at_ms,
        last_seen_ms=now_ms,
    )
    nodes.put(tx, row)
    return row
