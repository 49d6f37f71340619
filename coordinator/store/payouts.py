"""Payouts: every intent to send, how far it has come, and what stops all of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

import aiosqlite

from coordinator.payments.payout_rules import Intent, PayoutState
from protocol.ids import NodeId

_COLUMNS: Final = tuple(field.name for field in fields(Intent))
_NAMES: Final = ", ".join(_COLUMNS)
_PLACES: Final = ", ".join("?" * len(_COLUMNS))
_SETS: Final = ", ".join(f"{name} = ?" for name in _COLUMNS[1:])
_SELECT: Final = f"SELECT {_NAMES} FROM payout_intents "  # noqa: S608 - the columns are constants of this program
_INSERT: Final = f"INSERT INTO payout_intents ({_NAMES}) VALUES ({_PLACES})"  # noqa: S608 - as above
_UPDATE: Final = f"UPDATE payout_intents SET {_SETS} WHERE intent = ?"  # noqa: S608 - as above
_SINCE: Final = "payouts_since_ms"
_FROZEN: Final = "payouts_frozen_ms"


@dataclass(frozen=True, slots=True)
class Stray:
    """A payout of the gateway's that does not fit, and why."""

    gateway_id: str
    reason: str
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """Why nothing is sent."""

    since_ms: int
    reason: str


def _row(intent: Intent) -> tuple[Any, ...]:
    return tuple(getattr(intent, name) for name in _COLUMNS)


def _intent(row: Any) -> Intent:
    named: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    named.update(
        node=NodeId(named["node"]), status=PayoutState(named["status"]), needs_person=bool(named["needs_person"])
    )
    return Intent(**named)


def _all(rows: Iterable[Any]) -> list[Intent]:
    return [_intent(row) for row in rows]


# ---------------------------------------------------------------- in a transaction


def insert(tx: sqlite3.Connection, intent: Intent) -> None:
    """Keep a new one."""
    tx.execute(_INSERT, _row(intent))


def update(tx: sqlite3.Connection, intent: Intent) -> None:
    """Write what has changed of one."""
    row = _row(intent)
    tx.execute(_UPDATE, (*row[1:], row[0]))


def get(tx: sqlite3.Connection, intent: bytes) -> Intent | None:
    """One, by its number."""
    row = tx.execute(_SELECT + "WHERE intent = ?", (intent,)).fetchone()
    return _intent(row) if row is not None else None


def find_request(tx: sqlite3.Connection, node: NodeId, request: str) -> Intent | None:
    """What a key has asked for under this number."""
    row = tx.execute(_SELECT + "WHERE node = ? AND request = ?", (node, request)).fetchone()
    return _intent(row) if row is not None else None


def find_open(tx: sqlite3.Connection, node: NodeId) -> Intent | None:
    """The one of a key that has not ended: there is one at most."""
    row = tx.execute(_SELECT + "WHERE node = ? AND ended_ms IS NULL", (node,)).fetchone()
    return _intent(row) if row is not None else None


def is_number_of_another(tx: sqlite3.Connection, gateway_id: str | None, intent: bytes) -> bool:
    """Whether the gateway has given this number to a payout that is not this one."""
    row = tx.execute("SELECT 1 FROM payout_intents WHERE gateway_id = ? AND intent <> ?", (gateway_id, intent))
    return row.fetchone() is not None


def resolution(tx: sqlite3.Connection, intent: bytes) -> PayoutState | None:
    """How it has ended as the ledger has it, if it has."""
    row = tx.execute(
        "SELECT kind FROM payouts JOIN entries ON entries.number = payouts.entry WHERE intent = ? AND is_resolved",
        (intent,),
    ).fetchone()
    if row is None:
        return None
    return PayoutState.CONFIRMED if row[0] == "settle-payout" else PayoutState.FAILED


def open_in(tx: sqlite3.Connection, *states: PayoutState) -> list[Intent]:
    """All that have not ended and are in one of these states, the oldest first."""
    marks = ", ".join("?" * len(states))
    where = f"WHERE ended_ms IS NULL AND status IN ({marks}) ORDER BY created_ms"
    return _all(tx.execute(_SELECT + where, states))


def ordered_since(tx: sqlite3.Connection, since_ms: int, node: NodeId | None = None) -> int:
    """What was ordered since then and has not come back, of one key or of all."""
    statement = "SELECT coalesce(sum(amount_uusd), 0) FROM payout_intents WHERE created_ms > ? AND status <> 'failed'"
    if node is None:
        total: int = tx.execute(statement, (since_ms,)).fetchone()[0]
    else:
        total = tx.execute(statement + " AND node = ?", (since_ms, node)).fetchone()[0]
    return total


def by_number(tx: sqlite3.Connection, numbers: Iterable[str], since_ms: int) -> dict[str, Intent]:
    """Those with these numbers, and all since an instant that the gateway has taken."""
    found = {one.intent.hex(): one for one in _all(tx.execute(_SELECT + "WHERE created_ms >= ?", (since_ms,)))}
    for number in numbers:
        if number not in found and len(number) == 32 and number == number.lower() and number.isalnum():
            try:
                one = get(tx, bytes.fromhex(number))
            except ValueError:
                continue  # somebody else's number
            if one is not None:
                found[number] = one
    return found


def since_ms(tx: sqlite3.Connection, now_ms: int) -> int:
    """From when on the gateway's list is to agree with ours; from now on, when it is asked for the first time."""
    tx.execute("INSERT INTO payments VALUES (?, ?, '') ON CONFLICT (name) DO NOTHING", (_SINCE, now_ms))
    value: int = tx.execute("SELECT value FROM payments WHERE name = ?", (_SINCE,)).fetchone()[0]
    return value


def freeze(tx: sqlite3.Connection, reason: str, now_ms: int) -> None:
    """Let nothing be sent; the first reason stays."""
    tx.execute("INSERT INTO payments VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING", (_FROZEN, now_ms, reason))


def frozen(tx: sqlite3.Connection) -> Frozen | None:
    """Why nothing is sent, if so."""
    row = tx.execute("SELECT value, text FROM payments WHERE name = ?", (_FROZEN,)).fetchone()
    return Frozen(*row) if row is not None else None


def unfreeze(tx: sqlite3.Connection, shown: Iterable[str]) -> bool:
    """A person has looked at these: they are known from now on. Whether payouts go on: not while there are others."""
    tx.executemany("UPDATE payout_strays SET is_known = 1 WHERE gateway_id = ?", [(each,) for each in shown])
    if tx.execute("SELECT 1 FROM payout_strays WHERE is_known = 0 LIMIT 1").fetchone() is not None:
        return False
    tx.execute("DELETE FROM payments WHERE name = ?", (_FROZEN,))
    return True


def put_stray(tx: sqlite3.Connection, gateway_id: str, reason: str, now_ms: int) -> bool:
    """Keep one that does not fit; whether a person has yet to look at it."""
    tx.execute("INSERT INTO payout_strays VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING", (gateway_id, reason, now_ms))
    is_known: int = tx.execute("SELECT is_known FROM payout_strays WHERE gateway_id = ?", (gateway_id,)).fetchone()[0]
    return not is_known


def list_strays(tx: sqlite3.Connection, limit: int) -> list[Stray]:
    """What does not fit and nobody has looked at."""
    rows = tx.execute(
        "SELECT gateway_id, reason, seen_ms FROM payout_strays WHERE is_known = 0 ORDER BY seen_ms LIMIT ?", (limit,)
    )
    return [Stray(*row) for row in rows]


def without_row(tx: sqlite3.Connection) -> list[bytes]:
    """Payouts that the ledger has set money aside for and that nobody would send: of an older backup."""
    rows = tx.execute(
        """
        SELECT intent FROM payouts WHERE is_resolved = 0 AND intent NOT IN (SELECT intent FROM payout_intents) LIMIT 100
        """
    )
    return [row[0] for row in rows]


def rich(tx: sqlite3.Connection, least_uusd: int, now_ms: int, limit: int) -> list[NodeId]:
    """Keys with so much available, an address that holds, and no payout on its way; whoever had one last comes last."""
    rows = tx.execute(
        """
        SELECT node FROM accounts JOIN payout_addresses ON name = 'available:' || lower(hex(node))
        WHERE balance >= ? AND default_from_ms <= ?
            AND node NOT IN (SELECT node FROM payout_intents WHERE ended_ms IS NULL)
        GROUP BY node
        ORDER BY (SELECT max(created_ms) FROM payout_intents WHERE payout_intents.node = payout_addresses.node), node
        LIMIT ?
        """,
        (least_uusd, now_ms, limit),
    )
    return [NodeId(row[0]) for row in rows]


# ---------------------------------------------------------------- readers


async def list_of(reader: aiosqlite.Connection, node: NodeId, limit: int) -> list[Intent]:
    """Those of one key, the newest first."""
    return _all(
        await reader.execute_fetchall(_SELECT + "WHERE node = ? ORDER BY created_ms DESC LIMIT ?", (node, limit))
    )


async def list_all(reader: aiosqlite.Connection, limit: int, *, is_open: bool) -> list[Intent]:
    """Those of everybody: what has not ended, or all; the newest first."""
    where = "WHERE ended_ms IS NULL " if is_open else ""
    return _all(await reader.execute_fetchall(_SELECT + where + "ORDER BY created_ms DESC LIMIT ?", (limit,)))
