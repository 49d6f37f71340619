"""Checks of the two databases, each on a copy: opening one, even to read, writes beside it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from infernet import store
from infernet.doctor.contract import Check, Finding, Situation, fail, in_thread, ok, part_of, skip, text_of, warn
from infernet.host.files import reason_of
from infernet.money.store import MoneyStore
from infernet.store import StoreError

COPY_BYTES_MAX: Final = 128 * 1024 * 1024
_COPY_DEADLINE_S: Final = 20.0


class _TooLarge(Exception):
    """The file would take too long to copy, or more room than there is."""


@contextmanager
def _copied(path: Path) -> Iterator[Path]:
    """A copy of a database, with what its log holds. Raises OSError and _TooLarge."""
    sources = [path, path.with_name(path.name + "-wal")]
    size = sum(source.stat().st_size for source in sources if source.is_file())
    if size > COPY_BYTES_MAX:
        raise _TooLarge
    with tempfile.TemporaryDirectory(prefix="infernet-doctor-") as folder:
        if shutil.disk_usage(folder).free < 2 * size:
            raise _TooLarge
        for source in sources:
            if source.is_file():
                shutil.copyfile(source, Path(folder) / source.name)
        yield Path(folder) / path.name


def _store(situation: Situation) -> Finding:
    path = situation.here.store_file
    if situation.pid is not None:
        return skip("the running node has it open")
    if not path.is_file():
        return ok("there is none yet: the node makes it")
    try:
        with _copied(path) as copy, closing(sqlite3.connect(copy)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
    except _TooLarge:
        return skip(f"{path} is too large to be looked at on a copy")
    except OSError as error:
        return fail(f"{path} cannot be read ({reason_of(error)})", f"check the owner of {path}")
    except sqlite3.Error as error:
        found, version = str(error), 0
    if found != "ok":
        return warn(
            f"{path} is damaged ({found}): the peers and experience of earlier runs are lost",
            "nothing: `infernet start` keeps the file aside and begins a new one. If it happens again, check the disk",
        )
    if version > store.SCHEMA_VERSION:
        return fail(
            f"{path} was written by a newer infernet (schema {version}, this one reads up to {store.SCHEMA_VERSION})",
            f"upgrade infernet, or move {path} away to begin a new one",
        )
    return ok(f"{path} is whole")


def _money(situation: Situation) -> Finding:
    path = situation.here.money_file
    if situation.status is not None:
        trouble = text_of(part_of(situation.status, "money"), "trouble")
        fix = "see `infernet wallet`; nothing is paid or earned until it is put right, then restart the node"
        return fail(f"the running node says: {trouble}", fix) if trouble else ok("the running node writes to it")
    if situation.pid is not None:
        return skip("a running node has it open")
    if not path.is_file():
        return ok("there is none yet: the node makes it where it has a coordinator")
    try:
        with _copied(path) as copy:
            return _examined(situation, path, copy)
    except _TooLarge:
        return skip(f"{path} is too large to be looked at on a copy; `infernet start` checks it")
    except OSError as error:
        return fail(f"{path} cannot be read ({reason_of(error)})", f"check the owner of {path}")


def _examined(situation: Situation, path: Path, copy: Path) -> Finding:
    try:
        with closing(MoneyStore(copy, read_only=True)) as money:
            proofs = money.proofs()
    except StoreError as error:
        text = str(error).replace(str(copy), str(path))
        if "newer infernet" in text:
            return fail(text.partition(": ")[0], "upgrade infernet; do not move the file away, it holds money")
        return fail(
            text.partition(". It may hold")[0],
            f"copy it and {path.name}-wal aside, then put back a backup, or what `sqlite3 {path.name} .recover` saves",
        )
    pinned = situation.loaded.config.coordinator_key if situation.loaded is not None else None
    if any(proof.coordinator == pinned for proof in proofs):
        return fail(
            "the coordinator has signed two different ledgers, and nothing is paid through it",
            "redeem and take out what you have (`infernet wallet`), and show others `infernet wallet proof`",
        )
    return ok(f"{path} is whole")


CHECKS: Final = (
    Check(
        id="store.whole",
        title="Memory of peers is whole",
        looks="Whether `node.sqlite3` can be read and is not of a newer version: a copy of it is checked.",
        remedy="Damage costs only what was learnt of peers: the next start keeps the file aside and begins a new one. "
        "A file of a newer version needs that version.",
        examine=in_thread(_store),
        needs=("home.writable", "node.running"),
        deadline_s=_COPY_DEADLINE_S,
    ),
    Check(
        id="money.store",
        title="Money store is whole",
        looks="Whether `money.sqlite3` can be read, is not of a newer version, and holds no proof that the coordinator "
        "keeps two ledgers. A copy of it is checked; where a node runs, that one is asked.",
        remedy="It may hold vouchers that are not redeemed, so it is never moved aside by itself. Copy it and its "
        "`-wal` away, then put back a backup or what `sqlite3 money.sqlite3 .recover` saves.",
        examine=in_thread(_money),
        needs=("home.writable", "ipc.answers"),
        deadline_s=_COPY_DEADLINE_S,
    ),
)
