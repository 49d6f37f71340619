"""What the command does besides serving: back up, restore, check. Each prints one line and returns an exit code."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from coordinator.config import Config
from coordinator.identity import KEY_NAME, KeyRefused, load_or_create_key
from coordinator.printing import fail, say
from coordinator.server import CannotStart, prepare_home
from coordinator.store.backup import BackupRefused, SignLease, back_up, restore
from coordinator.store.db import DATABASE_NAME, StoreRefused
from coordinator.store.journal import JournalRefused
from coordinator.store.ledger import Head
from coordinator.store.ledger_check import Drift, check_file
from coordinator.store.migrations import SchemaRefused
from protocol.claims import lease_record
from protocol.codec import decode_record
from protocol.envelope import Signer, sign_record
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.ledger import OpenLease
from protocol.money_records import LeaseRequestRecord
from protocol.records import Signed


def run_backup(config: Config, target: Path) -> int:
    """Back up the database, also while the server runs."""
    return _report("backed up", lambda: back_up(config.home_path, target))


def run_restore(config: Config, backup: Path, journal: Path | None) -> int:
    """Make a database out of a backup and a journal."""

    def work() -> Head:
        prepare_home(config.home_path)
        if not (config.home_path / KEY_NAME).exists():
            raise BackupRefused(f"put {KEY_NAME} into {config.home_path} first: leases are signed with it")
        key = load_or_create_key(config.home_path)
        return restore(backup, journal, config.home_path, lease_signer(key), _warn)

    return _report("restored", work)


def run_check(config: Config, *, verifies_signatures: bool = False) -> int:
    """Decide every command of the ledger again and compare; also while the server runs."""

    def work() -> Head:
        path = config.home_path / DATABASE_NAME
        if not path.exists():
            raise BackupRefused(f"there is no database in {config.home_path}; choose another --home")
        return check_file(path, replayed_entries_max=sys.maxsize, verifies_signatures=verifies_signatures)

    return _report("in order", work)


def lease_signer(key: Signer) -> SignLease:
    """Signs again what the coordinator once signed for a lease: the same words, by a new signature."""

    def sign(command: OpenLease, head: Head, at_ms: int) -> tuple[NodeId, bytes, Signed] | None:
        try:
            request = decode_record(command.request.body, LeaseRequestRecord)
        except RemoteProtocolError:
            return None  # opened by no request
        signed = sign_record(lease_record(request, command, key.node, head.entry, at_ms), key)
        return command.client, request.request, signed

    return sign


def _warn(text: str) -> None:
    sys.stderr.write(f"infernet-coordinator: warning: {text}\n")


def _report(what: str, work: Callable[[], Head]) -> int:
    try:
        head = work()
    except (BackupRefused, JournalRefused, StoreRefused, KeyRefused, SchemaRefused, CannotStart) as refused:
        return fail(refused)
    except Drift as drift:
        return fail(f"the ledger does not agree with itself: {drift}")
    except (sqlite3.Error, OSError) as error:
        return fail(error)
    return say(f"{what}: {head.entry} entries, head {head.head.hex()}\n")
