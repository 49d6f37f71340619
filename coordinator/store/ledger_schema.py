"""The tables of the ledger, as a step of the schema.

STRICT does not keep SQLite from storing `1.0` or `'7'` as integers, so types are also checked in Python
(`protocol.accounts.check_entry`). REPLACE deletes without firing triggers for DELETE, so what must never change also
refuses to be inserted twice.
"""

from __future__ import annotations

from typing import Final

_APPEND_ONLY: Final = """
CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: {table}'); END
"""


def _append_only(table: str) -> tuple[str, str]:
    return (_APPEND_ONLY.format(table=table, verb="UPDATE"), _APPEND_ONLY.format(table=table, verb="DELETE"))


LEDGER_STEP: Final[tuple[str, ...]] = (
    # Balances are a cache of the postings; `ledger_check` compares them. Accounts of the world outside go below zero.
    """
    CREATE TABLE accounts (
        account    INTEGER PRIMARY KEY,
        name       TEXT NOT NULL UNIQUE,
        asset      TEXT NOT NULL,
        balance    INTEGER NOT NULL CHECK (typeof(balance) = 'integer'),
        is_outside INTEGER NOT NULL CHECK (is_outside IN (0, 1)),
        CHECK (balance >= 0 OR is_outside = 1)
    ) STRICT
    """,
    """
    CREATE TABLE entries (
        number       INTEGER PRIMARY KEY,
        at_ms        INTEGER NOT NULL,
        kind         TEXT NOT NULL,
        reference    TEXT UNIQUE,
        command_hash BLOB CHECK (length(command_hash) = 32),
        body         BLOB NOT NULL,
        head         BLOB NOT NULL CHECK (length(head) = 32),
        CHECK ((reference IS NULL) = (command_hash IS NULL))
    ) STRICT
    """,
    *_append_only("entries"),
    """
    CREATE TRIGGER entries_in_order BEFORE INSERT ON entries
    WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM entries)
    BEGIN SELECT RAISE(ABORT, 'entries are numbered without gaps'); END
    """,
    """
    CREATE TABLE postings (
        entry    INTEGER NOT NULL REFERENCES entries (number),
        position INTEGER NOT NULL,
        account  INTEGER NOT NULL REFERENCES accounts (account),
        amount   INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND amount <> 0),
        PRIMARY KEY (entry, position)
    ) STRICT, WITHOUT ROWID
    """,
    *_append_only("postings"),
    """
    CREATE TRIGGER postings_once BEFORE INSERT ON postings
    WHEN EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry AND position = NEW.position)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: postings'); END
    """,
    # With the amount, so that histories and sums need nothing but this index.
    "CREATE INDEX postings_by_account ON postings (account, entry, amount)",
    # `entry` is the last one that changed the lease.
    """
    CREATE TABLE leases (
        lease          BLOB PRIMARY KEY CHECK (length(lease) = 32),
        entry          INTEGER NOT NULL REFERENCES entries (number),
        account        INTEGER NOT NULL REFERENCES accounts (account),
        payer          BLOB NOT NULL CHECK (length(payer) = 32),
        provider       BLOB NOT NULL CHECK (length(provider) = 32),
        relay          BLOB CHECK (length(relay) = 32),
        relay_bps      INTEGER NOT NULL,
        fee_bps        INTEGER NOT NULL,
        cap_uusd       INTEGER NOT NULL CHECK (typeof(cap_uusd) = 'integer'),
        claimed_uusd   INTEGER NOT NULL CHECK (claimed_uusd BETWEEN 0 AND cap_uusd),
        is_closed      INTEGER NOT NULL CHECK (is_closed IN (0, 1)),
        serve_until_ms INTEGER NOT NULL,
        claim_by_ms    INTEGER NOT NULL,
        downtime_ms    INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX leases_by_account ON leases (account, is_closed)",
    "CREATE INDEX leases_by_provider ON leases (provider, is_closed)",
    "CREATE INDEX leases_by_relay ON leases (relay) WHERE relay IS NOT NULL",
    "CREATE INDEX leases_open_by_end ON leases (claim_by_ms - downtime_ms) WHERE is_closed = 0",
    """
    CREATE TRIGGER leases_only_advance BEFORE UPDATE ON leases
    WHEN OLD.is_closed OR NEW.claimed_uusd < OLD.claimed_uusd OR NEW.cap_uusd <> OLD.cap_uusd
    BEGIN SELECT RAISE(ABORT, 'a lease is closed, or would go back'); END
    """,
    # What was signed for whom, so that the same request gets the same bytes again.
    """
    CREATE TABLE lease_records (
        lease     BLOB PRIMARY KEY REFERENCES leases (lease),
        client    BLOB NOT NULL CHECK (length(client) = 32),
        request   BLOB NOT NULL CHECK (length(request) = 16),
        body      BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64),
        UNIQUE (client, request)
    ) STRICT
    """,
    """
    CREATE TABLE close_wishes (
        lease     BLOB PRIMARY KEY REFERENCES leases (lease),
        body      BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64),
        at_ms     INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE complaints (
        lease       BLOB NOT NULL REFERENCES leases (lease),
        complainant BLOB NOT NULL CHECK (length(complainant) = 32),
        job         BLOB NOT NULL CHECK (length(job) = 16),
        attempt     INTEGER NOT NULL,
        kind        INTEGER NOT NULL,
        body        BLOB NOT NULL,
        signature   BLOB NOT NULL CHECK (length(signature) = 64),
        at_ms       INTEGER NOT NULL,
        PRIMARY KEY (lease, complainant, job, attempt, kind)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE payouts (
        intent      BLOB PRIMARY KEY,
        entry       INTEGER NOT NULL REFERENCES entries (number),
        account     INTEGER NOT NULL REFERENCES accounts (account),
        amount_uusd INTEGER NOT NULL CHECK (typeof(amount_uusd) = 'integer' AND amount_uusd > 0),
        is_resolved INTEGER NOT NULL CHECK (is_resolved IN (0, 1))
    ) STRICT
    """,
    "CREATE INDEX payouts_by_account ON payouts (account)",
    """
    CREATE TABLE heads (
        entry     INTEGER PRIMARY KEY,
        body      BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64)
    ) STRICT
    """,
    # downtime_ms: how long nobody could claim, in all. last_alive_ms: when somebody could, most recently.
    """
    CREATE TABLE settlement (
        name  TEXT PRIMARY KEY CHECK (name IN ('downtime_ms', 'last_alive_ms')),
        value INTEGER NOT NULL CHECK (typeof(value) = 'integer')
    ) STRICT, WITHOUT ROWID
    """,
)
