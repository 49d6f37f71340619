"""The nodes: who registered, what each says it can do, and when it was last heard.

`specs` holds only what `core.specs` lets through. `record` is the node's own signed heartbeat, byte for byte, so that
others can verify it for themselves; nodes of other programs have none.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

import aiosqlite

from protocol.ids import NodeId
from protocol.records import Signed


@dataclass(frozen=True, slots=True)
class Node:
    """One row. `status` is what the node said last; whether it is live follows from `last_seen_ms`."""

    node: NodeId
    role: str
    node_id: str
    name: str
    status: str
    address: str | None
    port: int | None
    specs: dict[str, Any]
    record: Signed | None
    record_sequence: int | None
    record_expires_ms: int | None
    created_ms: int
    last_seen_ms: int


def _from_row(row: Any) -> Node:
    node, role, node_id, name, status, address, port, specs, *rest = row
    body, signature, sequence, expires_ms, created_ms, seen_ms = rest
    record = Signed(body, signature) if body is not None else None
    place = (status, address, port)
    times = (expires_ms, created_ms, seen_ms)
    return Node(NodeId(node), role, node_id, name, *place, json.loads(specs), record, sequence, *times)


# ---------------------------------------------------------------- in a transaction


def get(connection: sqlite3.Connection, node: NodeId) -> Node | None:
    """The row of this key."""
    row = connection.execute("SELECT * FROM nodes WHERE node = ?", (node,)).fetchone()
    return _from_row(row) if row else None


def owner_of(connection: sqlite3.Connection, node_id: str) -> NodeId | None:
    """The key that registered this textual id."""
    row = connection.execute("SELECT node FROM nodes WHERE node_id = ?", (node_id,)).fetchone()
    return NodeId(row[0]) if row else None


def put(connection: sqlite3.Connection, node: Node) -> None:
    """Insert the row, or replace everything in it but the time of its creation."""
    connection.execute(
        """
        INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (node) DO UPDATE SET
            role = excluded.role, node_id = excluded.node_id, name = excluded.name, status = excluded.status,
            address = excluded.address, port = excluded.port, specs = excluded.specs,
            record_body = excluded.record_body, record_signature = excluded.record_signature,
            record_sequence = excluded.record_sequence, record_expires_ms = excluded.record_expires_ms,
            last_seen_ms = excluded.last_seen_ms
        """,
        (
            node.node,
            node.role,
            node.node_id,
            node.name,
            node.status,
            node.address,
            node.port,
            json.dumps(node.specs, separators=(",", ":")),
            node.record.body if node.record else None,
            node.record.signature if node.record else None,
            node.record_sequence,
            node.record_expires_ms,
            node.created_ms,
            node.last_seen_ms,
        ),
    )


def delete(connection: sqlite3.Connection, node: NodeId) -> bool:
    """Remove the row; False when there was none."""
    return connection.execute("DELETE FROM nodes WHERE node = ?", (node,)).rowcount > 0


def delete_unseen_since(connection: sqlite3.Connection, time_ms: int) -> int:
    """Remove the nodes that were last heard before this; they register again when they return."""
    return connection.execute("DELETE FROM nodes WHERE last_seen_ms < ?", (time_ms,)).rowcount


# ---------------------------------------------------------------- readers


async def select_latest(
    reader: aiosqlite.Connection, *, limit: int, role: str | None = None, seen_since_ms: int = 0
) -> list[Node]:
    """The most recently heard nodes first, of one role or of all."""
    rows = await reader.execute_fetchall(
        "SELECT * FROM nodes WHERE last_seen_ms >= ? AND role = ifnull(?, role) ORDER BY last_seen_ms DESC LIMIT ?",
        (seen_since_ms, role, limit),
    )
    return [_from_row(row) for row in rows]


async def select_one(reader: aiosqlite.Connection, node: NodeId) -> Node | None:
    """The row of this key."""
    rows = await reader.execute_fetchall("SELECT * FROM nodes WHERE node = ?", (node,))
    return next((_from_row(row) for row in rows), None)


async def count_live(reader: aiosqlite.Connection, seen_since_ms: int) -> int:
    """How many nodes were heard since and do not say that they are offline."""
    rows = await reader.execute_fetchall(
        "SELECT count(*) FROM nodes WHERE last_seen_ms >= ? AND status != 'offline'", (seen_since_ms,)
    )
    return int(next(iter(rows))[0])


async def last_seen_ms(reader: aiosqlite.Connection) -> int | None:
    """When any node was heard last."""
    rows = await reader.execute_fetchall("SELECT max(last_seen_ms) FROM nodes")
    found: int | None = next(iter(rows))[0]
    return found
