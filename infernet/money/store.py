"""What a node must not forget about money: how far it may have signed, and what it was given and has not redeemed.

One SQLite file of its own in the state directory, durable at every commit. Calls are synchronous, safe from any thread,
and wait for the disk: from trio, `infernet.money.writer` makes them in a thread. A damaged file is never moved aside
and never replaced: it is money, so the node does not start until its owner has decided.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from infernet.host.files import make_private_directory, reason_of
from infernet.store import StoreError
from protocol import codec
from protocol import constants as c
from protocol.accounts import cuts_uusd
from protocol.effects import Equivocation, StoreClaimed, StoreClosing, StoreMark, StoreVoucher
from protocol.events import RestorePayer, RestoreProvider
from protocol.ids import LeaseId, NodeId
from protocol.money_records import LeaseRecord
from protocol.records import Signed

BUSY_TIMEOUT_S: Final = 5.0
# What is over is kept for its owner to look at; of what is older, only the sum.
CLOSED_KEPT: Final = 4096
# A lease of ours is of no use once nothing can be claimed on it; a day more, for clocks that are off.
PAYER_KEPT_MS: Final = 24 * 60 * 60 * 1000
LOG_PIECE_BYTES: Final = 1 << 20
# The file may hold at most a gibibyte: far more than the leases of one node, far less than a disk.
PAGES_MAX: Final = 256 * 1024

# One entry for each version of the schema; `user_version` says how many have been applied. Never edit, only append.
MIGRATIONS: Final = (
    """
    CREATE TABLE payer_leases (
        lease BLOB PRIMARY KEY CHECK (length(lease) = 32),
        request BLOB NOT NULL CHECK (length(request) = 16),
        claim_by_ms INTEGER NOT NULL CHECK (claim_by_ms >= 0),
        cap_uusd INTEGER NOT NULL CHECK (cap_uusd > 0),
        mark_uusd INTEGER NOT NULL CHECK (mark_uusd BETWEEN 0 AND cap_uusd),
        is_closing INTEGER NOT NULL DEFAULT 0 CHECK (is_closing IN (0, 1)),
        body BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64),
        voucher_body BLOB,
        voucher_signature BLOB CHECK (length(voucher_signature) = 64),
        CHECK ((voucher_body IS NULL) = (voucher_signature IS NULL))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE provider_leases (
        number INTEGER PRIMARY KEY,
        lease BLOB NOT NULL UNIQUE CHECK (length(lease) = 32),
        coordinator BLOB NOT NULL CHECK (length(coordinator) = 32),
        serve_until_ms INTEGER NOT NULL CHECK (serve_until_ms >= 0),
        cap_uusd INTEGER NOT NULL CHECK (cap_uusd > 0),
        paid_uusd INTEGER NOT NULL CHECK (paid_uusd BETWEEN 0 AND cap_uusd),
        claimed_uusd INTEGER NOT NULL DEFAULT 0 CHECK (claimed_uusd BETWEEN 0 AND cap_uusd),
        earned_uusd INTEGER NOT NULL DEFAULT 0 CHECK (earned_uusd BETWEEN 0 AND claimed_uusd),
        is_closing INTEGER NOT NULL DEFAULT 0 CHECK (is_closing IN (0, 1)),
        is_closed INTEGER NOT NULL DEFAULT 0 CHECK (is_closed IN (0, 1)),
        body BLOB NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64),
        voucher_body BLOB,
        voucher_signature BLOB CHECK (length(voucher_signature) = 64),
        receipt_body BLOB,
        receipt_signature BLOB CHECK (length(receipt_signature) = 64),
        ack_body BLOB,
        ack_signature BLOB CHECK (length(ack_signature) = 64),
        CHECK (paid_uusd = 0 OR voucher_body IS NOT NULL),
        CHECK ((voucher_body IS NULL) = (voucher_signature IS NULL)),
        CHECK ((receipt_body IS NULL) = (receipt_signature IS NULL)),
        CHECK ((ack_body IS NULL) = (ack_signature IS NULL))
    ) STRICT;
    CREATE INDEX provider_leases_open ON provider_leases (number) WHERE is_closed = 0;
    CREATE TRIGGER provider_leases_only_grow BEFORE UPDATE ON provider_leases
    WHEN NEW.paid_uusd < OLD.paid_uusd OR NEW.claimed_uusd < OLD.claimed_uusd
        OR NEW.is_closing < OLD.is_closing OR NEW.is_closed < OLD.is_closed
    BEGIN SELECT RAISE(ABORT, 'what was paid, claimed and closed stays so'); END;
    CREATE TABLE equivocations (
        coordinator BLOB NOT NULL CHECK (length(coordinator) = 32),
        entry INTEGER NOT NULL,
        first_body BLOB NOT NULL,
        first_signature BLOB NOT NULL,
        second_body BLOB NOT NULL,
        second_signature BLOB NOT NULL,
        PRIMARY KEY (coordinator)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE totals (
        name TEXT PRIMARY KEY, uusd INTEGER NOT NULL CHECK (uusd >= 0)
    ) STRICT, WITHOUT ROWID;
    """,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)

Write = StoreMark | StoreVoucher | StoreClaimed | StoreClosing


class DiskLost(StoreError):
    """The disk did not keep what it was given: nothing can be relied on before the node is started anew."""


class Rejected(StoreError):
    """What was to be written contradicts what is there or cannot be: it never will be written."""


class MoneyTotals(Struct, frozen=True):
    """What this node has as a provider, in micro-USD.

    `earned_uusd` is what coordinators have acknowledged, after their cuts; `unclaimed_uusd` what vouchers of open
    leases pay beyond what was claimed; `lost_uusd` the same of leases that were closed without it.
    """

    earned_uusd: int
    claimed_uusd: int
    unclaimed_uusd: int
    unclaimed_leases: int
    lost_uusd: int


class KeptPayerLease(Struct, frozen=True):
    """A lease of ours, as it was kept. What is signed in it has not been verified again."""

    lease: LeaseId
    request: bytes
    signed: Signed
    mark_uusd: int
    voucher: Signed | None
    is_closing: bool


def accusation(proof: Equivocation) -> str:
    """What the owner is told of a coordinator that keeps two ledgers, in one line."""
    return (
        f"the coordinator has signed two different ledgers (entry {proof.entry}): redeem what you hold, take out what "
        "you have, and show others the proof, which `infernet wallet proof` prints"
    )


class MoneyStore:
    """An open store."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the store at `path`, or make it; with `read_only` beside a node that runs. Raises StoreError."""
        self.path = path
        self._lock = threading.Lock()
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        self._lost: DiskLost | None = None
        try:
            self._database = _open_to_read(path) if read_only else _open(path)
        except OSError as error:
            raise StoreError(
                f"cannot use the money store {path} ({reason_of(error)}): make its folder yours, "
                "or choose another with INFERNET_HOME"
            ) from None
        except sqlite3.Error as error:
            raise _refusal(path, error) from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._database.close()

    # ------------------------------------------------------------ writing

    def apply(self, writes: Iterable[Write]) -> None:
        """Put all of this on disk, or none of it. Raises StoreError, and DiskLost where trying again is of no use."""
        with self._transaction() as database:
            for write in writes:
                if isinstance(write, StoreMark):
                    _put_mark(database, write)
                elif isinstance(write, StoreVoucher):
                    _put_voucher(database, write)
                elif isinstance(write, StoreClosing):
                    database.execute("UPDATE provider_leases SET is_closing = 1 WHERE lease = ?", (write.lease,))
                else:
                    _put_claimed(database, write)

    def note_closing(self, lease: LeaseId) -> None:
        """A lease of ours is to be used no more. Raises StoreError."""
        with self._transaction() as database:
            database.execute("UPDATE payer_leases SET is_closing = 1 WHERE lease = ?", (lease,))

    def forget_old(self, now_ms: int) -> None:
        """Drop leases of ours that are long over, and all but the newest of those given to us. Raises StoreError."""
        with self._transaction() as database:
            database.execute("DELETE FROM payer_leases WHERE claim_by_ms < ?", (now_ms - PAYER_KEPT_MS,))
            old = (
                "SELECT number FROM provider_leases WHERE is_closed = 1 AND serve_until_ms < ? "
                "ORDER BY number DESC LIMIT -1 OFFSET ?"
            )
            which = (now_ms - c.CLOCK_SKEW_MS_MAX, CLOSED_KEPT)
            for name, amount in (
                ("earned", "earned_uusd"),
                ("claimed", "claimed_uusd"),
                ("lost", "max(0, paid_uusd - claimed_uusd)"),
            ):
                database.execute(
                    f"INSERT INTO totals SELECT ?, coalesce(sum({amount}), 0) FROM provider_leases "  # noqa: S608
                    f"WHERE number IN ({old}) "  # both are constants above
                    "ON CONFLICT (name) DO UPDATE SET uusd = uusd + excluded.uusd",
                    (name, *which),
                )
            database.execute(f"DELETE FROM provider_leases WHERE number IN ({old})", which)  # noqa: S608

    # ------------------------------------------------------------ reading

    def payer_leases(self) -> list[KeptPayerLease]:
        """Leases of ours. Raises StoreError."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT lease, request, body, signature, mark_uusd, voucher_body, voucher_signature, is_closing "
                "FROM payer_leases ORDER BY claim_by_ms"
            ).fetchall()
        return [
            KeptPayerLease(LeaseId(row[0]), row[1], Signed(row[2], row[3]), row[4], _signed(*row[5:7]), bool(row[7]))
            for row in rows
        ]

    def restore_payers(self) -> list[RestorePayer]:
        """What to tell the peer of leases of ours that may be used. Raises StoreError."""
        return [
            RestorePayer(kept.request, kept.signed, kept.mark_uusd, kept.voucher)
            for kept in self.payer_leases()
            if not kept.is_closing
        ]

    def restore_providers(self, coordinator: NodeId, now_ms: int) -> list[RestoreProvider]:
        """What to tell the peer of leases that this coordinator issued to us: those that are open, and those that are
        closed and could still be ordered under. Raises StoreError.
        """
        with self._transaction() as database:
            rows = database.execute(
                "SELECT body, signature, voucher_body, voucher_signature, receipt_body, receipt_signature, "
                "claimed_uusd, is_closing, is_closed FROM provider_leases "
                "WHERE (is_closed = 0 OR serve_until_ms > ?) AND coordinator = ? ORDER BY number",
                (now_ms - c.CLOCK_SKEW_MS_MAX, coordinator),
            ).fetchall()
        return [
            RestoreProvider(
                Signed(row[0], row[1]),
                _signed(*row[2:4]),
                _signed(*row[4:6]),
                row[6],
                is_closing=bool(row[7]),
                is_closed=bool(row[8]),
            )
            for row in rows
        ]

    def keep_proof(self, proof: Equivocation) -> None:
        """A coordinator keeps two ledgers: the first proof of it stays. Raises StoreError."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO equivocations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (proof.coordinator, proof.entry, *_columns(proof.first), *_columns(proof.second)),
            )

    def proofs(self) -> list[Equivocation]:
        """All such proofs, one for each coordinator. Raises StoreError."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT coordinator, entry, first_body, first_signature, second_body, second_signature "
                "FROM equivocations ORDER BY coordinator"
            ).fetchall()
        return [Equivocation(NodeId(row[0]), row[1], Signed(*row[2:4]), Signed(*row[4:6])) for row in rows]

    def proof_against(self, coordinator: NodeId) -> Equivocation | None:
        """The proof against this one, if there is any. Raises StoreError."""
        return next((proof for proof in self.proofs() if proof.coordinator == coordinator), None)

    def totals(self) -> MoneyTotals:
        """Sums over all leases given to us. Raises StoreError."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT coalesce(sum(earned_uusd), 0), coalesce(sum(claimed_uusd), 0), "
                "coalesce(sum(max(0, paid_uusd - claimed_uusd) * (1 - is_closed)), 0), "
                "coalesce(sum(paid_uusd > claimed_uusd AND NOT is_closed), 0), "
                "coalesce(sum(max(0, paid_uusd - claimed_uusd) * is_closed), 0) FROM provider_leases"
            ).fetchone()
            before: dict[str, int] = dict(database.execute("SELECT name, uusd FROM totals"))
        return MoneyTotals(
            row[0] + before.get("earned", 0),
            row[1] + before.get("claimed", 0),
            row[2],
            row[3],
            row[4] + before.get("lost", 0),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, and on disk when this returns."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            try:
                self._database.execute(self._begin)
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    # A commit that failed may have rolled back by itself.
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                trouble = _trouble(self.path, error)
                if isinstance(trouble, DiskLost):
                    self._lost = trouble
                raise trouble from error


# ---------------------------------------------------------------- rows


def _put_mark(database: sqlite3.Connection, write: StoreMark) -> None:
    record = codec.decode_record(write.signed.body, LeaseRecord)
    database.execute(
        "INSERT INTO payer_leases (lease, request, claim_by_ms, cap_uusd, mark_uusd, body, signature, voucher_body, "
        "voucher_signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (lease) DO UPDATE SET "
        "mark_uusd = excluded.mark_uusd, voucher_body = coalesce(excluded.voucher_body, voucher_body), "
        "voucher_signature = coalesce(excluded.voucher_signature, voucher_signature)",
        (
            *(write.lease, write.request, record.claim_by_ms, record.cap_uusd, write.mark_uusd),
            *_columns(write.signed),
            *_columns(write.voucher),
        ),
    )


def _put_voucher(database: sqlite3.Connection, write: StoreVoucher) -> None:
    record = codec.decode_record(write.signed.body, LeaseRecord)
    # The same amount again: another receipt. A lower one never replaces a higher one.
    database.execute(
        "INSERT INTO provider_leases (lease, coordinator, serve_until_ms, cap_uusd, paid_uusd, body, signature, "
        "voucher_body, voucher_signature, receipt_body, receipt_signature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (lease) DO UPDATE SET paid_uusd = excluded.paid_uusd, voucher_body = excluded.voucher_body, "
        "voucher_signature = excluded.voucher_signature, receipt_body = excluded.receipt_body, "
        "receipt_signature = excluded.receipt_signature WHERE excluded.paid_uusd >= paid_uusd",
        (
            *(write.lease, record.coordinator, record.serve_until_ms, record.cap_uusd, write.paid_uusd),
            *_columns(write.signed),
            *_columns(write.voucher),
            *_columns(write.receipt),
        ),
    )


def _put_claimed(database: sqlite3.Connection, write: StoreClaimed) -> None:
    row = database.execute("SELECT body FROM provider_leases WHERE lease = ?", (write.lease,)).fetchone()
    if row is None:
        return
    record = codec.decode_record(bytes(row[0]), LeaseRecord)
    # A coordinator that acknowledges more than it locked has not thereby paid it.
    claimed_uusd = min(write.claimed_uusd, record.cap_uusd)
    others_uusd = sum(cuts_uusd(claimed_uusd, record.fee_bps, record.relay_bps))
    database.execute(
        "UPDATE provider_leases SET claimed_uusd = ?, earned_uusd = ?, is_closed = max(is_closed, ?), "
        "ack_body = coalesce(?, ack_body), ack_signature = coalesce(?, ack_signature) "
        "WHERE lease = ? AND claimed_uusd <= ?",
        (
            *(claimed_uusd, claimed_uusd - others_uusd, write.is_closed),
            *_columns(write.acknowledgement),
            *(write.lease, claimed_uusd),
        ),
    )


def _columns(signed: Signed | None) -> tuple[bytes | None, bytes | None]:
    return (signed.body, signed.signature) if signed is not None else (None, None)


def _signed(body: bytes | None, signature: bytes | None) -> Signed | None:
    return Signed(body, signature) if body is not None and signature is not None else None


# ---------------------------------------------------------------- the file


def _open(path: Path) -> sqlite3.Connection:
    make_private_directory(path.parent)
    # SQLite gives its side files the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    write_again(path.with_name(f"{path.name}-wal"))
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute(f"PRAGMA max_page_count = {PAGES_MAX}")
        _check(database)
        for pragma, value, read_back in (("journal_mode", "WAL", "wal"), ("synchronous", "FULL", 2)):
            database.execute(f"PRAGMA {pragma} = {value}")
            (found,) = database.execute(f"PRAGMA {pragma}").fetchone()
            if found != read_back:
                raise StoreError(
                    f"the money store {path} cannot be kept durably ({pragma} stays {found}): put it on another disk "
                    "with INFERNET_HOME"
                )
        _migrate(database, path)
        _sync_directory(path.parent)
    except BaseException:
        database.close()
        raise
    return database


def write_again(log_file: Path) -> None:
    """Bring the log that the last process left to the disk. Raises OSError.

    After an fsync that failed the kernel may show what is not on disk and hold it for clean, and SQLite would believe
    it. Written over with what is read from it, it is dirty, and an fsync says the truth again.
    """
    try:
        file = os.open(log_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        offset = 0
        while piece := os.pread(file, LOG_PIECE_BYTES, offset):
            offset += os.pwrite(file, piece, offset)
        os.fsync(file)
    finally:
        os.close(file)


def _open_to_read(path: Path) -> sqlite3.Connection:
    # Not as a read-only file: what is in its log could not be seen when nobody else has it open.
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )
    try:
        database.execute("PRAGMA query_only = ON")
        _check(database)
        _require_known(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _Damaged(" ".join(str(found).split()))


def _require_known(database: sqlite3.Connection, path: Path) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer infernet (schema {version}, this one reads up to {SCHEMA_VERSION}): "
            "upgrade infernet; do not move the file away, it holds money"
        )
    return int(version)


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version = _require_known(database, path)
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _sync_directory(folder: Path) -> None:
    """The file's name must outlive a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Damaged(sqlite3.DatabaseError):
    """The check of the file found something."""


def _is_damage(error: sqlite3.Error) -> bool:
    # Extended codes keep the primary one in their low byte.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _refusal(path: Path, error: sqlite3.Error) -> StoreError:
    """Why it was not opened."""
    if not _is_damage(error):
        return StoreError(f"cannot use the money store {path}: {error}")
    return StoreError(
        f"the money store {path} is damaged ({error}). It may hold vouchers that are not redeemed, so nothing is begun "
        f"in its place: copy it and {path.name}-wal aside, put back a backup or what `sqlite3 {path.name} .recover` "
        "saves, or move it away yourself and lose what it holds"
    )


def _trouble(path: Path, error: sqlite3.Error) -> StoreError:
    # What was not synced may be gone from the kernel's memory, too, and a second try would only seem to succeed.
    if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC):
        return DiskLost(f"the disk under the money store {path} lost a write: check it, then restart the node")
    if isinstance(error, sqlite3.IntegrityError):
        return Rejected(f"the money store {path} takes no such row: {error}")
    return StoreError(f"the money store {path} cannot be written now: {error}")
