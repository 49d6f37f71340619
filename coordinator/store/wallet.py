"""What a key has, locks, earns and has taken out, added up from what the ledger keeps."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiosqlite

from protocol.ids import NodeId
from protocol.ledger import available

# As `protocol.accounts.cuts_uusd` cuts the running total of each lease; a division by zero would be NULL.
_FEE: Final = "claimed_uusd * fee_bps / 10000"
_RELAY: Final = f"(claimed_uusd - {_FEE}) * relay_bps / max(10000 - fee_bps, 1)"
_EARNED: Final = f"""
    SELECT coalesce(sum(claimed_uusd - {_FEE} - {_RELAY}), 0), coalesce(sum({_FEE}), 0) FROM leases WHERE provider = ?
"""  # noqa: S608 - constants above
_RELAYED: Final = f"SELECT coalesce(sum({_RELAY}), 0) FROM leases WHERE relay = ?"  # noqa: S608 - constants above
_SPENT: Final = """
    SELECT coalesce(sum((cap_uusd - claimed_uusd) * (1 - is_closed)), 0), coalesce(sum(claimed_uusd), 0)
    FROM leases WHERE account = ?
"""
_PAID_OUT: Final = """
    SELECT coalesce(sum(amount_uusd * (1 - is_resolved)), 0),
           coalesce(sum(amount_uusd * (is_resolved AND kind = 'settle-payout')), 0)
    FROM payouts JOIN entries ON entries.number = payouts.entry WHERE account = ?
"""


@dataclass(frozen=True, slots=True)
class Wallet:
    """Micro-USD of one key. `earned_uusd` is after fees and the relay's cut, `fees_uusd` what the coordinator took."""

    available_uusd: int
    locked_uusd: int
    spent_uusd: int
    earned_uusd: int
    fees_uusd: int
    relayed_uusd: int
    payout_pending_uusd: int
    withdrawn_uusd: int


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """What one entry did to an account."""

    entry: int
    at_ms: int
    kind: str
    amount_uusd: int
    body: bytes


async def read(reader: aiosqlite.Connection, node: NodeId) -> Wallet:
    """The wallet of a key; all zero for one that the ledger has never heard of."""

    async def one(statement: str, key: object) -> sqlite3.Row:
        return next(iter(await reader.execute_fetchall(statement, (key,))))

    async with _one_moment(reader):
        rows = list(
            await reader.execute_fetchall("SELECT account, balance FROM accounts WHERE name = ?", (available(node),))
        )
        account, balance = rows[0] if rows else (None, 0)
        earned, fees = await one(_EARNED, node)
        (relayed,) = await one(_RELAYED, node)
        locked, spent = await one(_SPENT, account)
        pending, withdrawn = await one(_PAID_OUT, account)
    return Wallet(balance, locked, spent, earned, fees, relayed, pending, withdrawn)


@asynccontextmanager
async def _one_moment(reader: aiosqlite.Connection) -> AsyncIterator[None]:
    """What is read in the block is of one moment: what moves meanwhile would be counted twice, or not at all."""
    try:
        await reader.execute("BEGIN")
        yield
    finally:
        # It is in the connection's queue before anything waits, so it ends the block of a caller that gives up, too.
        await reader.execute("COMMIT")


async def history(reader: aiosqlite.Connection, node: NodeId, before: int, limit: int) -> list[HistoryRow]:
    """Entries below this number that moved the key's money, the newest first."""
    rows = await reader.execute_fetchall(
        """
        SELECT number, at_ms, kind, sum(amount), body
        FROM postings JOIN accounts USING (account) JOIN entries ON entries.number = postings.entry
        WHERE name = ? AND entry < ? GROUP BY entry ORDER BY entry DESC LIMIT ?
        """,
        (available(node), before, limit),
    )
    return [HistoryRow(*row) for row in rows]
