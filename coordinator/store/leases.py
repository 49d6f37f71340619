"""Leases, beside the state that the ledger keeps: what was signed, who wants one closed or complains, when it ends."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

import aiosqlite

from coordinator.store.ledger import LEASE_COLUMNS, lease_from_row
from protocol.ids import LeaseId, NodeId
from protocol.ledger import Lease, available
from protocol.money_records import ComplaintRecord
from protocol.records import Signed

# What one side can make this store keep about one lease.
COMPLAINTS_PER_SIDE_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class ListedLease:
    """A lease as its parties see it. `close_wish` is what its payer signed, if it wants no more of it."""

    lease: Lease
    close_wish: Signed | None


# ---------------------------------------------------------------- in a transaction


def put_record(tx: sqlite3.Connection, lease: LeaseId, client: NodeId, request: bytes, signed: Signed) -> None:
    """Keep what the coordinator signed for this request."""
    tx.execute(
        "INSERT INTO lease_records VALUES (?, ?, ?, ?, ?)", (lease, client, request, signed.body, signed.signature)
    )


def find_record(tx: sqlite3.Connection, lease: LeaseId, client: NodeId) -> Signed | None:
    """What was signed for this client under this id, byte for byte."""
    row = tx.execute(
        "SELECT body, signature FROM lease_records WHERE lease = ? AND client = ?", (lease, client)
    ).fetchone()
    return Signed(*row) if row is not None else None


def is_request_used(tx: sqlite3.Connection, client: NodeId, request: bytes) -> bool:
    """Whether this client has asked for a lease under this number before."""
    row = tx.execute("SELECT 1 FROM lease_records WHERE client = ? AND request = ?", (client, request)).fetchone()
    return row is not None


def count_open(tx: sqlite3.Connection, account: str) -> int:
    """How many leases of this account are open."""
    count: int = tx.execute(
        "SELECT count(*) FROM leases JOIN accounts USING (account) WHERE name = ? AND is_closed = 0", (account,)
    ).fetchone()[0]
    return count


def due(tx: sqlite3.Connection, downtime_ms: int, now_ms: int, limit: int) -> list[LeaseId]:
    """Open leases whose time for claims is over, the coordinator having been away for so long in all; oldest first."""
    rows = tx.execute(
        """
        SELECT lease FROM leases WHERE is_closed = 0 AND claim_by_ms - downtime_ms < ?
        ORDER BY claim_by_ms - downtime_ms LIMIT ?
        """,
        (now_ms - downtime_ms, limit),
    )
    return [LeaseId(row[0]) for row in rows]


def put_close_wish(tx: sqlite3.Connection, lease: LeaseId, signed: Signed, now_ms: int) -> None:
    """Keep that the payer wants no more of a lease; the first such word stays."""
    tx.execute(
        "INSERT INTO close_wishes VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (lease, signed.body, signed.signature, now_ms),
    )


def put_complaint(tx: sqlite3.Connection, complaint: ComplaintRecord, signed: Signed, now_ms: int) -> bool:
    """Keep a complaint, once for each job, attempt and kind; False when this side has as many as it may have."""
    about = (complaint.lease, complaint.complainant, complaint.job, complaint.attempt, int(complaint.kind))
    same = """
        SELECT 1 FROM complaints WHERE lease = ? AND complainant = ? AND job = ? AND attempt = ? AND kind = ?
    """
    if tx.execute(same, about).fetchone() is not None:
        return True
    count = tx.execute("SELECT count(*) FROM complaints WHERE lease = ? AND complainant = ?", about[:2]).fetchone()[0]
    if count >= COMPLAINTS_PER_SIDE_MAX:
        return False
    values = (*about, signed.body, signed.signature, now_ms)
    tx.execute("INSERT INTO complaints VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    return True


# ---------------------------------------------------------------- readers

_LIST: Final = f"""
    SELECT {LEASE_COLUMNS}, close_wishes.body, close_wishes.signature
    FROM leases JOIN accounts USING (account) LEFT JOIN close_wishes ON close_wishes.lease = leases.lease
"""  # noqa: S608 - the columns are a constant


def _listed(row: Any) -> ListedLease:
    return ListedLease(lease_from_row(row[:-2]), Signed(row[-2], row[-1]) if row[-2] is not None else None)


async def list_of(
    reader: aiosqlite.Connection, node: NodeId, *, as_provider: bool, is_closed: bool, limit: int
) -> list[ListedLease]:
    """Leases that name this key as provider, or that its account has paid for; the newest first."""
    where, key = ("provider = ?", node) if as_provider else ("name = ?", available(node))
    rows = await reader.execute_fetchall(
        f"{_LIST} WHERE {where} AND is_closed = ? ORDER BY leases.rowid DESC LIMIT ?", (key, is_closed, limit)
    )
    return [_listed(row) for row in rows]
