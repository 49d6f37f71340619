"""Heads of the ledger that the coordinator has signed: the first for each number of entries, kept for good."""

from __future__ import annotations

import sqlite3

import aiosqlite

from protocol.records import Signed


def put(tx: sqlite3.Connection, entry: int, signed: Signed) -> None:
    """Keep a head, unless one with this number is there."""
    tx.execute("INSERT INTO heads VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (entry, signed.body, signed.signature))


async def select_newest(reader: aiosqlite.Connection) -> Signed | None:
    """The head that was signed last."""
    rows = await reader.execute_fetchall("SELECT body, signature FROM heads ORDER BY entry DESC LIMIT 1")
    return next((Signed(*row) for row in rows), None)
