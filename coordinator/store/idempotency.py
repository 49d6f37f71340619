"""Answers to requests that may come twice and have no number of their own in the ledger.

The row is written in the transaction of the effect: either both are there or neither. So the same request gets the same
answer, and another one under the same key is a conflict. A key never holds a time; what is older than any retry is
forgotten.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from protocol.ids import NodeId

KEPT_DAYS: Final = 30


class Conflict(Exception):
    """Another request was answered under this key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: an HTTP status and a body."""

    status: int
    body: bytes


def find(tx: sqlite3.Connection, node: NodeId, endpoint: str, key: str, request_hash: bytes) -> Answer | None:
    """The answer that this request got before, or None. Raises Conflict."""
    row = tx.execute(
        "SELECT request_hash, status, body FROM idempotency WHERE node = ? AND key = ? AND endpoint = ?",
        (node, key, endpoint),
    ).fetchone()
    if row is None:
        return None
    if row[0] != request_hash:
        raise Conflict
    return Answer(row[1], row[2])


def put(
    tx: sqlite3.Connection, node: NodeId, endpoint: str, key: str, request_hash: bytes, answer: Answer, now_ms: int
) -> None:
    """Keep the answer to a request that has not been answered before."""
    tx.execute(
        "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
        (node, key, endpoint, request_hash, answer.status, answer.body, now_ms),
    )


def prune(tx: sqlite3.Connection, now_ms: int) -> None:
    """Forget what nobody asks again."""
    tx.execute("DELETE FROM idempotency WHERE created_ms < ?", (now_ms - KEPT_DAYS * 86_400_000,))
