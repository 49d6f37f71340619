"""The inbox of webhooks: each body that was rightly signed, once, with what came of it."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Final, Literal

KEPT_DAYS: Final = 30

Outcome = Literal["queued", "settled", "unknown", "unreadable", "other"]


def seen(tx: sqlite3.Connection, body: bytes) -> bool:
    """Whether this body has come before; it is counted again if so."""
    # SPEC 07: The coordinator MUST do nothing about a webhook whose body it has had before.
    changed = tx.execute(
        "UPDATE webhooks SET copies = copies + 1 WHERE body_hash = ?", (hashlib.sha256(body).digest(),)
    ).rowcount
    return changed == 1


def put(
    tx: sqlite3.Connection, body: bytes, signature: str, received_ms: int, payment: str | None, outcome: Outcome
) -> None:
    """Keep a body that has not come before."""
    tx.execute(
        "INSERT INTO webhooks VALUES (?, ?, ?, ?, 1, ?, ?)",
        (hashlib.sha256(body).digest(), body, signature, received_ms, payment, outcome),
    )


def prune(tx: sqlite3.Connection, now_ms: int) -> None:
    """Forget what came long ago: a webhook that is older than minutes is not taken any more."""
    tx.execute("DELETE FROM webhooks WHERE received_ms < ?", (now_ms - KEPT_DAYS * 86_400_000,))
