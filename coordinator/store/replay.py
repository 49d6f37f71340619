"""Which signed requests were used: a sliding window of counters per key (version 2), nonces per key (version 1).

Both are written in the transaction of the request's effect, so a request has its effect exactly when it is marked as
used, across restarts too. Nothing is kept for a key that is not registered, and no key's requests can push out
another's.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from protocol.envelope import AUTH_WINDOW_S, AuthenticatedRequest, ReplayWindow
from protocol.ids import NodeId

# A version 1 request is valid for AUTH_WINDOW_S before and after its time; a nonce is remembered longer than that.
NONCE_LIFETIME_MS: Final = (2 * AUTH_WINDOW_S + 2) * 1000
# Of one key at a time: 30 requests a second, 100 times what a node sends.
NONCES_PER_NODE_MAX: Final = 4096
# The window of a key that left is kept until none of its requests can still be in date.
WINDOW_LIFETIME_MS: Final = NONCE_LIFETIME_MS


class Replayed(Exception):
    """This request was used before."""


class TooManyRequests(Exception):
    """This key has sent more requests than are remembered; it must wait."""


def use(connection: sqlite3.Connection, request: AuthenticatedRequest, now_ms: int) -> None:
    """Mark a request as used, in the transaction of its effect. Raises Replayed or TooManyRequests."""
    if request.counter is not None:
        _use_counter(connection, request.node, request.counter, now_ms)
    elif request.nonce is not None:
        _use_nonce(connection, request.node, request.nonce, now_ms)
    else:
        raise AssertionError("an authenticated request has a counter or a nonce")


def _use_counter(connection: sqlite3.Connection, node: NodeId, counter: int, now_ms: int) -> None:
    # SPEC 02: The coordinator MUST accept each counter of a node at most once, and mark it in the same transaction as
    #   the effect of the request.
    row = connection.execute("SELECT highest, bitmap FROM replay_windows WHERE node = ?", (node,)).fetchone()
    window = ReplayWindow(row[0], int.from_bytes(row[1], "big")) if row else ReplayWindow()
    if not window.accept(counter):
        raise Replayed
    # SPEC 02: The coordinator MUST store both numbers with the node, so that a restart forgets nothing.
    bitmap = window.bitmap.to_bytes((window.bitmap.bit_length() + 7) // 8, "big")
    connection.execute(
        """
        INSERT INTO replay_windows (node, highest, bitmap, used_ms) VALUES (?, ?, ?, ?)
        ON CONFLICT (node) DO UPDATE SET highest = excluded.highest, bitmap = excluded.bitmap,
            used_ms = excluded.used_ms
        """,
        (node, window.highest, bitmap, now_ms),
    )


def _use_nonce(connection: sqlite3.Connection, node: NodeId, nonce: str, now_ms: int) -> None:
    used: int = connection.execute("SELECT count(*) FROM nonces WHERE node = ?", (node,)).fetchone()[0]
    if used >= NONCES_PER_NODE_MAX:
        raise TooManyRequests
    # SPEC 02: The coordinator MUST refuse a nonce that it has accepted from this key within the time in which the
    #   request would be valid.
    try:
        connection.execute("INSERT INTO nonces VALUES (?, ?, ?)", (node, nonce, now_ms + NONCE_LIFETIME_MS))
    except sqlite3.IntegrityError:
        raise Replayed from None


def prune(connection: sqlite3.Connection, now_ms: int) -> None:
    """Forget nonces that have expired, and windows of keys that left long enough ago."""
    connection.execute("DELETE FROM nonces WHERE expires_ms < ?", (now_ms,))
    connection.execute(
        "DELETE FROM replay_windows WHERE used_ms < ? AND node NOT IN (SELECT node FROM nodes)",
        (now_ms - WINDOW_LIFETIME_MS,),
    )
