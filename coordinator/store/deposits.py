"""Deposits: what was asked for, how far each has come, and which of them somebody has to look at."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

import aiosqlite

from coordinator.payments.deposit_rules import Deposit, Stage
from protocol.ids import NodeId

_COLUMNS: Final = tuple(field.name for field in fields(Deposit))
_NAMES: Final = ", ".join(_COLUMNS)
_PLACES: Final = ", ".join("?" * len(_COLUMNS))
_SETS: Final = ", ".join(f"{name} = ?" for name in _COLUMNS[1:])
_SELECT: Final = f"SELECT {_NAMES} FROM deposits "  # noqa: S608 - the columns are constants of this program
_INSERT: Final = f"INSERT INTO deposits ({_NAMES}) VALUES ({_PLACES})"  # noqa: S608 - as above
_UPDATE: Final = f"UPDATE deposits SET {_SETS} WHERE deposit = ?"  # noqa: S608 - as above


def _row(deposit: Deposit) -> tuple[Any, ...]:
    return tuple(getattr(deposit, name) for name in _COLUMNS)


def _deposit(row: Any) -> Deposit:
    named: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    named.update(
        node=NodeId(named["node"]),
        stage=Stage(named["stage"]),
        is_expired=bool(named["is_expired"]),
        is_failed=bool(named["is_failed"]),
    )
    return Deposit(**named)


# ---------------------------------------------------------------- in a transaction


def insert(tx: sqlite3.Connection, deposit: Deposit) -> None:
    """Keep a new one."""
    tx.execute(_INSERT, _row(deposit))


def update(tx: sqlite3.Connection, deposit: Deposit) -> None:
    """Write what has changed of one."""
    row = _row(deposit)
    tx.execute(_UPDATE, (*row[1:], row[0]))


def get(tx: sqlite3.Connection, deposit: bytes) -> Deposit | None:
    """One, by our own id."""
    row = tx.execute(_SELECT + "WHERE deposit = ?", (deposit,)).fetchone()
    return _deposit(row) if row is not None else None


def find_request(tx: sqlite3.Connection, node: NodeId, request: str) -> Deposit | None:
    """What a client has asked for under this number."""
    row = tx.execute(_SELECT + "WHERE node = ? AND request = ?", (node, request)).fetchone()
    return _deposit(row) if row is not None else None


def find_payment(tx: sqlite3.Connection, gateway_id: str) -> Deposit | None:
    """The deposit behind a payment of the gateway."""
    row = tx.execute(_SELECT + "WHERE gateway_id = ?", (gateway_id,)).fetchone()
    return _deposit(row) if row is not None else None


def count_waiting(tx: sqlite3.Connection, node: NodeId, since_ms: int) -> int:
    """How many invoices a key has asked for since then that were not paid."""
    count: int = tx.execute(
        "SELECT count(*) FROM deposits WHERE node = ? AND created_ms > ? AND stage IN ('new', 'open', 'closed')",
        (node, since_ms),
    ).fetchone()[0]
    return count


def credited_since(tx: sqlite3.Connection, since_ms: int) -> int:
    """What was credited, or held, since then."""
    total: int = tx.execute(
        "SELECT coalesce(sum(credited_uusd), 0) FROM deposits WHERE stage IN ('credited', 'held') AND ended_ms > ?",
        (since_ms,),
    ).fetchone()[0]
    return total


def due(tx: sqlite3.Connection, now_ms: int, limit: int) -> list[Deposit]:
    """Those that the gateway is to be asked about, the longest due first."""
    rows = tx.execute(_SELECT + "WHERE next_poll_ms <= ? ORDER BY next_poll_ms LIMIT ?", (now_ms, limit))
    return [_deposit(row) for row in rows]


def next_due_ms(tx: sqlite3.Connection) -> int | None:
    """When the gateway is to be asked next."""
    due_ms: int | None = tx.execute("SELECT min(next_poll_ms) FROM deposits").fetchone()[0]
    return due_ms


# ---------------------------------------------------------------- readers


async def list_of(reader: aiosqlite.Connection, node: NodeId, limit: int) -> list[Deposit]:
    """Those of one key that have an invoice, the newest first."""
    where = "WHERE node = ? AND stage <> 'new' ORDER BY created_ms DESC LIMIT ?"
    return _all(await reader.execute_fetchall(_SELECT + where, (node, limit)))


async def list_to_review(reader: aiosqlite.Connection, limit: int) -> list[Deposit]:
    """Those that wait for a person, the oldest first."""
    where = "WHERE stage IN ('held', 'review') ORDER BY created_ms LIMIT ?"
    return _all(await reader.execute_fetchall(_SELECT + where, (limit,)))


async def read_one(reader: aiosqlite.Connection, deposit: bytes) -> Deposit | None:
    """One, by our own id."""
    return next(iter(_all(await reader.execute_fetchall(_SELECT + "WHERE deposit = ?", (deposit,)))), None)


def _all(rows: Iterable[Any]) -> list[Deposit]:
    return [_deposit(row) for row in rows]
