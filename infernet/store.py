"""What a node remembers across restarts: the peers it met, what its jobs taught it, and small values of its own.

One SQLite file in the state directory. Every call is synchronous, short (a few milliseconds at worst) and safe from
any thread; from trio, run those that write with `trio.to_thread.run_sync`. A file that is damaged is moved aside and
said so, never deleted; a file of a newer schema is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from infernet.host.files import make_private_directory, reason_of
from protocol.ids import NodeId
from protocol.records import Heartbeat, Signed
from protocol.reputation import OWN_MAX, SavedExperience

# A peer met long ago is a poor hint; the newest are enough to find the rest again.
PEERS_MAX: Final = 1024
# Keys cost nothing, and whoever has many could push everybody else out of here. That we dialled somebody and were
# answered costs an address at least: a peer that was reached stays before those heard of up to this much later.
REACHED_COUNTS_MS: Final = 7 * 24 * 60 * 60 * 1000
# As many providers' models as the protocol's memory holds.
EXPERIENCE_MAX: Final = OWN_MAX
BUSY_TIMEOUT_S: Final = 5.0

# One entry for each version of the schema; `user_version` says how many have been applied. Never edit, only append.
MIGRATIONS: Final = (
    """
    CREATE TABLE peers (
        node BLOB PRIMARY KEY CHECK (length(node) = 32),
        sequence INTEGER NOT NULL,
        seen_at_ms INTEGER NOT NULL,
        addresses TEXT NOT NULL,
        body BLOB NOT NULL,
        signature BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX peers_by_age ON peers (seen_at_ms);
    CREATE TABLE local (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE peers ADD COLUMN reached_at_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE peers ADD COLUMN reached_address TEXT;
    """,
    """
    CREATE TABLE experience (
        provider BLOB NOT NULL CHECK (length(provider) = 32),
        model TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        ok REAL NOT NULL,
        bad REAL NOT NULL,
        refused REAL NOT NULL,
        silent REAL NOT NULL,
        first_token_s REAL NOT NULL,
        first_token_weight REAL NOT NULL,
        tokens_per_s REAL NOT NULL,
        tokens_per_s_weight REAL NOT NULL,
        PRIMARY KEY (provider, model)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX experience_by_age ON experience (at_ms);
    """,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)


class StoreError(Exception):
    """The store cannot be used; one line: what happened, why, what to do."""


class SavedPeer(Struct, frozen=True):
    """A peer that was met: its last heartbeat, perhaps long expired, and when this node last learnt it.

    `reached_at_ms` is when this node last connected to it, 0 for never. The address at which it did comes first.
    """

    node: NodeId
    addresses: tuple[str, ...]
    record: Signed
    seen_at_ms: int
    reached_at_ms: int


class Store:
    """An open store. `recovered` says in one line what was found damaged and where it was put, or is None."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`, or make it. Raises StoreError."""
        self.path = path
        self.recovered: str | None = None
        self._lock = threading.Lock()
        try:
            self._database = self._open_or_recover()
        except OSError as error:
            raise StoreError(
                f"cannot use the store {path} ({reason_of(error)}): make its folder yours, "
                "or choose another with INFERNET_HOME"
            ) from None

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._database.close()

    # ------------------------------------------------------------ peers

    def save_peers(self, learnt: Iterable[tuple[Heartbeat, Signed]], now_ms: int) -> None:
        """Remember heartbeats that were verified; older ones than those held are ignored. Raises StoreError."""
        rows = [
            (heartbeat.node, heartbeat.sequence, now_ms, json.dumps(heartbeat.addresses), record.body, record.signature)
            for heartbeat, record in learnt
        ]
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO peers (node, sequence, seen_at_ms, addresses, body, signature) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (node) DO UPDATE SET "
                "sequence = excluded.sequence, seen_at_ms = excluded.seen_at_ms, addresses = excluded.addresses, "
                "body = excluded.body, signature = excluded.signature WHERE excluded.sequence > sequence",
                rows,
            )
            database.execute(
                "DELETE FROM peers WHERE node IN (SELECT node FROM peers ORDER BY "
                "max(iif(reached_at_ms, reached_at_ms + ?, 0), seen_at_ms) DESC LIMIT -1 OFFSET ?)",
                (REACHED_COUNTS_MS, PEERS_MAX),
            )

    def note_reached(self, reached: Iterable[tuple[NodeId, str | None]], now_ms: int) -> None:
        """Remember that peers were dialled and answered, and at which address. Raises StoreError.

        Those that are not saved stay unknown: without a record there is nothing to remember them by.
        """
        with self._transaction() as database:
            database.executemany(
                "UPDATE peers SET reached_at_ms = ?, reached_address = coalesce(?, reached_address) WHERE node = ?",
                [(now_ms, address, node) for node, address in reached],
            )

    def peers(self, limit: int = PEERS_MAX) -> list[SavedPeer]:
        """The peers met, those reached before those heard of, last first.

        Records are as they came: verify them as if they came from a stranger. Raises StoreError.
        """
        with self._transaction() as database:
            rows = database.execute(
                "SELECT node, addresses, body, signature, seen_at_ms, reached_at_ms, reached_address "
                "FROM peers ORDER BY max(iif(reached_at_ms, reached_at_ms + ?, 0), seen_at_ms) DESC LIMIT ?",
                (REACHED_COUNTS_MS, limit),
            ).fetchall()
        return [_saved_peer(*row) for row in rows]

    # ------------------------------------------------------------ what our jobs taught us

    def save_experience(self, experience: Iterable[SavedExperience]) -> None:
        """Remember experience with providers, in place of what was held of the same. Raises StoreError."""
        rows = [structs.astuple(each) for each in experience]
        with self._transaction() as database:
            database.executemany(
                "INSERT OR REPLACE INTO experience (provider, model, at_ms, ok, bad, refused, silent, first_token_s, "
                "first_token_weight, tokens_per_s, tokens_per_s_weight) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            database.execute(
                "DELETE FROM experience WHERE (provider, model) IN "
                "(SELECT provider, model FROM experience ORDER BY at_ms DESC LIMIT -1 OFFSET ?)",
                (EXPERIENCE_MAX,),
            )

    def experience(self) -> list[SavedExperience]:
        """All of it, oldest first. Raises StoreError."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT provider, model, at_ms, ok, bad, refused, silent, first_token_s, first_token_weight, "
                "tokens_per_s, tokens_per_s_weight FROM experience ORDER BY at_ms"
            ).fetchall()
        return [SavedExperience(NodeId(provider), *rest) for provider, *rest in rows]

    # ------------------------------------------------------------ values of our own

    def get(self, name: str) -> bytes | None:
        """A value that was put, or None. Raises StoreError."""
        with self._transaction() as database:
            row = database.execute("SELECT value FROM local WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, name: str, value: bytes) -> None:
        """Keep a value under a name. Raises StoreError."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO local VALUES (?, ?)", (name, value))

    # ------------------------------------------------------------ the file

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN")
                    yield self._database
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.path} cannot be used now: {error}") from error

    def _open_or_recover(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise StoreError(f"cannot use the store {self.path}: {error}") from error
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        self.recovered = f"the store {self.path} was damaged and lies now at {aside}; a new one was begun"
        try:
            return self._open()
        except sqlite3.Error as error:
            raise StoreError(f"cannot make the store {self.path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        make_private_directory(self.path.parent)
        # SQLite gives its side files the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            (check,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if check != "ok":
                raise _Damaged(check)
            database.execute("PRAGMA journal_mode = WAL")
            # What is lost in a power cut is learnt again; the file stays whole either way.
            database.execute("PRAGMA synchronous = NORMAL")
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer infernet (schema {version}, this one reads up to "
                f"{SCHEMA_VERSION}): upgrade infernet, or move the file away to begin a new one"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _saved_peer(
    node: bytes,
    addresses: str,
    body: bytes,
    signature: bytes,
    seen_at_ms: int,
    reached_at_ms: int,
    reached_address: str | None,
) -> SavedPeer:
    best = () if reached_address is None else (reached_address,)
    every = tuple(dict.fromkeys((*best, *json.loads(addresses))))
    return SavedPeer(NodeId(node), every, Signed(body, signature), seen_at_ms, reached_at_ms)


class _Damaged(sqlite3.DatabaseError):
    """The check of the file found something."""


def _is_damage(error: sqlite3.Error) -> bool:
    # Extended codes keep the primary one in their low byte.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
