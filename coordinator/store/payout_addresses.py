"""Where the money of each key is paid out to, from when on, and which key may change that."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from protocol.formats.addresses import Address
from protocol.formats.coins import Pair
from protocol.ids import NodeId

ADDRESSES_PER_KEY_MAX: Final = 32


class TooManyAddresses(Exception):
    """This key has as many as it may have."""


@dataclass(frozen=True, slots=True)
class PayoutAddress:
    """A row. It may be paid to from `active_from_ms` on; of those the one chosen last is the default."""

    number: int
    node: NodeId
    code: str
    network: str
    address: str
    account: str
    destination_tag: int | None
    set_by: NodeId
    set_ms: int
    active_from_ms: int
    default_from_ms: int


_COLUMNS: Final = ", ".join(field.name for field in fields(PayoutAddress))
_SELECT: Final = f"SELECT {_COLUMNS} FROM payout_addresses "  # noqa: S608 - the columns are constants of this program


def _read(row: Any) -> PayoutAddress:
    return PayoutAddress(*row)


def payout_key(tx: sqlite3.Connection, node: NodeId) -> NodeId | None:
    """Which key may change the addresses of a key; None while nobody has said a word about it."""
    row = tx.execute("SELECT payout_key FROM payout_keys WHERE node = ?", (node,)).fetchone()
    return NodeId(row[0]) if row is not None else None


def is_payout_key(tx: sqlite3.Connection, key: NodeId) -> bool:
    """Whether this key may change anybody's addresses."""
    return tx.execute("SELECT 1 FROM payout_keys WHERE payout_key = ? LIMIT 1", (key,)).fetchone() is not None


def fix_payout_key(tx: sqlite3.Connection, node: NodeId, key: NodeId, now_ms: int) -> NodeId:
    """Set the payout key of a key, once and for all; the one that it has."""
    tx.execute("INSERT INTO payout_keys VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (node, key, now_ms))
    fixed = payout_key(tx, node)
    assert fixed is not None
    return fixed


def put(
    tx: sqlite3.Connection, node: NodeId, pair: Pair, address: Address, set_by: NodeId, now_ms: int, delay_ms: int
) -> PayoutAddress:
    """Choose an address: a new one holds after the delay, one that holds already at once. Raises TooManyAddresses."""
    before = find(tx, node, pair, address.text)
    if before is not None:
        if before.active_from_ms > now_ms:
            return before  # its time runs already
        tx.execute("UPDATE payout_addresses SET default_from_ms = ? WHERE number = ?", (now_ms, before.number))
        return replace(before, default_from_ms=now_ms)
    if len(list_of(tx, node)) >= ADDRESSES_PER_KEY_MAX:
        raise TooManyAddresses
    # SPEC 07: The coordinator MUST NOT pay to an address before 24 hours have passed since it was set.
    from_ms = now_ms + delay_ms
    tx.execute(
        """
        INSERT INTO payout_addresses
            (node, code, network, address, account, destination_tag, set_by, set_ms, active_from_ms, default_from_ms)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            *(node, pair.code, pair.network, address.text, address.account, address.destination_tag),
            *(set_by, now_ms, from_ms, from_ms),
        ),
    )
    made = find(tx, node, pair, address.text)
    assert made is not None
    return made


def find(tx: sqlite3.Connection, node: NodeId, pair: Pair, address: str) -> PayoutAddress | None:
    """An address of a key."""
    row = tx.execute(
        _SELECT + "WHERE node = ? AND code = ? AND network = ? AND address = ?",
        (node, pair.code, pair.network, address),
    ).fetchone()
    return _read(row) if row is not None else None


def remove(tx: sqlite3.Connection, number: int) -> None:
    """Forget one; a payout that has been ordered goes where it was ordered to."""
    tx.execute("DELETE FROM payout_addresses WHERE number = ?", (number,))


def list_of(tx: sqlite3.Connection, node: NodeId) -> list[PayoutAddress]:
    """All of a key, the one that was chosen last first."""
    rows = tx.execute(_SELECT + "WHERE node = ? ORDER BY default_from_ms DESC, number DESC", (node,))
    return [_read(row) for row in rows]


def default_of(addresses: Iterable[PayoutAddress], now_ms: int, pair: Pair | None = None) -> PayoutAddress | None:
    """Where money goes now, of all or of one pair."""
    holding = [
        each
        for each in addresses
        if each.default_from_ms <= now_ms and (pair is None or (each.code, each.network) == (pair.code, pair.network))
    ]
    return max(holding, key=lambda each: (each.default_from_ms, each.number), default=None)
