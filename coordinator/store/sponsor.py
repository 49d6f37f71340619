"""What the public chat may have signed on leases of its own: on disk before it signs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from protocol.effects import StoreMark
from protocol.events import RestorePayer
from protocol.records import Signed


def put(tx: sqlite3.Connection, mark: StoreMark, now_ms: int) -> None:
    """Keep the newest mark of a lease."""
    voucher = mark.voucher
    tx.execute(
        """
        INSERT INTO sponsor_marks VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (lease) DO UPDATE SET mark_uusd = excluded.mark_uusd, voucher_body = excluded.voucher_body,
            voucher_signature = excluded.voucher_signature, stored_ms = excluded.stored_ms
        """,
        (
            *(mark.lease, mark.request, mark.signed.body, mark.signed.signature, mark.mark_uusd),
            *((voucher.body, voucher.signature) if voucher is not None else (None, None)),
            now_ms,
        ),
    )


def kept(tx: sqlite3.Connection, since_ms: int) -> list[RestorePayer]:
    """Leases that were used since then; older ones are forgotten: nothing is served on them any more."""
    tx.execute("DELETE FROM sponsor_marks WHERE stored_ms < ?", (since_ms,))
    rows: Iterable[tuple[bytes, bytes, bytes, int, bytes | None, bytes | None]] = tx.execute(
        "SELECT request, body, signature, mark_uusd, voucher_body, voucher_signature FROM sponsor_marks"
    )
    return [
        RestorePayer(
            request,
            Signed(body, signature),
            mark_uusd,
            Signed(voucher, voucher_signature) if voucher is not None and voucher_signature is not None else None,
        )
        for request, body, signature, mark_uusd, voucher, voucher_signature in rows
    ]
