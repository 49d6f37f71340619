"""The schema, as numbered steps. A step that was released is never edited; a change is a new step.

The number of steps applied is SQLite's `user_version`. A database with more steps than this program knows comes
from a newer version and is refused.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from coordinator.store.ledger_schema import LEDGER_STEP
from coordinator.store.payments_schema import PAYMENTS_STEP

APPLICATION_ID: Final = 0x494E4643  # "INFC": another program's database is refused too

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE nodes (
            node              BLOB PRIMARY KEY CHECK (length(node) = 32),
            role              TEXT NOT NULL CHECK (role IN ('provider', 'aggregator', 'client')),
            node_id           TEXT NOT NULL UNIQUE,
            name              TEXT NOT NULL,
            status            TEXT NOT NULL CHECK (status IN ('available', 'draining', 'offline')),
            address           TEXT,
            port              INTEGER,
            specs             TEXT NOT NULL,
            record_body       BLOB,
            record_signature  BLOB,
            record_sequence   INTEGER,
            record_expires_ms INTEGER,
            created_ms        INTEGER NOT NULL,
            last_seen_ms      INTEGER NOT NULL
        ) STRICT
        """,
        "CREATE INDEX nodes_by_last_seen ON nodes (last_seen_ms)",
        """
        CREATE TABLE replay_windows (
            node    BLOB PRIMARY KEY CHECK (length(node) = 32),
            highest INTEGER NOT NULL,
            bitmap  BLOB NOT NULL,
            used_ms INTEGER NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE nonces (
            node       BLOB NOT NULL,
            nonce      TEXT NOT NULL,
            expires_ms INTEGER NOT NULL,
            PRIMARY KEY (node, nonce)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX nonces_by_expiry ON nonces (expires_ms)",
        """
        CREATE TABLE jobs (
            job           BLOB PRIMARY KEY CHECK (length(job) = 16),
            kind          TEXT NOT NULL CHECK (kind IN ('chat', 'completion', 'embedding')),
            status        TEXT NOT NULL CHECK (status IN ('assigned', 'running', 'completed', 'failed', 'cancelled')),
            provider      BLOB,
            model         TEXT,
            created_ms    INTEGER NOT NULL,
            ended_ms      INTEGER,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            output_tokens INTEGER NOT NULL DEFAULT 0,
            outcome       TEXT
        ) STRICT
        """,
        "CREATE INDEX jobs_open ON jobs (status) WHERE ended_ms IS NULL",
        "CREATE INDEX jobs_by_end ON jobs (ended_ms)",
        """
        CREATE TABLE job_events (
            job           BLOB NOT NULL REFERENCES jobs (job) ON DELETE CASCADE,
            sequence      INTEGER NOT NULL,
            kind          TEXT NOT NULL,
            output_tokens INTEGER NOT NULL,
            running_hash  BLOB,
            at_ms         INTEGER NOT NULL,
            PRIMARY KEY (job, sequence)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    LEDGER_STEP,
    PAYMENTS_STEP,
)


class SchemaRefused(Exception):
    """This database is not one that this program may write to; the message says what to do."""


def migrate(connection: sqlite3.Connection, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    """Bring the schema up to date, one transaction per step. Raises SchemaRefused."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise SchemaRefused("the database belongs to another program; choose another --home")
    if version > len(migrations):
        raise SchemaRefused(
            f"the database has schema version {version} and this program knows {len(migrations)}: "
            "a newer infernet-coordinator wrote it; upgrade, or choose another --home"
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
