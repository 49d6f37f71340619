"""The same request gets the same answer, another under its key is a conflict, and both go with their transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from coordinator.store import idempotency
from coordinator.store.idempotency import KEPT_DAYS, Answer, Conflict
from coordinator.store.migrations import migrate
from tests.helpers_ledger_commands import NOW_MS, node

HASH, OTHER = b"h" * 32, b"o" * 32
ANSWER = Answer(200, b'{"data":1}')


@pytest.fixture
def tx() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        yield connection


def find(tx: sqlite3.Connection, number: int = 1, endpoint: str = "e", request_hash: bytes = HASH) -> Answer | None:
    return idempotency.find(tx, node(number), endpoint, "key", request_hash)


def test_an_answer_is_found_again_by_its_own_request_alone(tx: sqlite3.Connection) -> None:
    assert find(tx) is None
    idempotency.put(tx, node(1), "e", "key", HASH, ANSWER, NOW_MS)
    assert find(tx) == ANSWER
    assert find(tx, number=2) is None
    assert find(tx, endpoint="f") is None
    with pytest.raises(Conflict):
        find(tx, request_hash=OTHER)
    with pytest.raises(sqlite3.IntegrityError):
        idempotency.put(tx, node(1), "e", "key", OTHER, ANSWER, NOW_MS)


def test_it_is_undone_with_the_effect(tx: sqlite3.Connection) -> None:
    tx.execute("BEGIN")
    idempotency.put(tx, node(1), "e", "key", HASH, ANSWER, NOW_MS)
    tx.execute("ROLLBACK")
    assert find(tx) is None


def test_it_is_forgotten_after_its_days(tx: sqlite3.Connection) -> None:
    idempotency.put(tx, node(1), "e", "key", HASH, ANSWER, NOW_MS)
    idempotency.prune(tx, NOW_MS + KEPT_DAYS * 86_400_000)
    assert find(tx) == ANSWER
    idempotency.prune(tx, NOW_MS + KEPT_DAYS * 86_400_000 + 1)
    assert find(tx) is None
