"""Schema steps: applied once, in order, whole; a newer or foreign database is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from coordinator.store.migrations import MIGRATIONS, SchemaRefused, migrate


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def test_steps_are_applied_once_and_in_order(connection: sqlite3.Connection) -> None:
    steps = (("CREATE TABLE a (x INTEGER) STRICT",), ("ALTER TABLE a ADD COLUMN y INTEGER",))
    migrate(connection, steps[:1])
    connection.execute("INSERT INTO a VALUES (1)")
    migrate(connection, steps)
    migrate(connection, steps)
    assert version(connection) == 2
    assert connection.execute("SELECT * FROM a").fetchall() == [(1, None)]


def test_a_step_that_fails_leaves_the_schema_as_it_was(connection: sqlite3.Connection) -> None:
    migrate(connection, (("CREATE TABLE a (x INTEGER) STRICT",),))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, (("",), ("CREATE TABLE b (x INTEGER) STRICT", "CREATE TABLE nonsense (")))
    assert version(connection) == 1
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("a",)]


def test_a_newer_schema_is_refused_with_what_to_do(connection: sqlite3.Connection) -> None:
    migrate(connection)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(SchemaRefused, match="upgrade"):
        migrate(connection)


def test_another_programs_database_is_refused(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(SchemaRefused, match="another program"):
        migrate(connection)


def test_no_column_could_hold_a_prompt_or_an_answer(connection: sqlite3.Connection) -> None:
    migrate(connection)
    columns = {
        f"{table}.{column[1]}"
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        if table.startswith("job")
        for column in connection.execute(f"PRAGMA table_info({table})").fetchall()
    }
    texts = {"kind", "status", "model", "outcome"}
    assert {name for name in columns if name.split(".")[1] in texts} == {
        "jobs.kind", "jobs.status", "jobs.model", "jobs.outcome", "job_events.kind",
    }  # fmt: skip
    assert not [
        name for name in columns for word in ("title", "prompt_text", "input", "result", "data") if word in name
    ]


def test_a_database_of_the_first_steps_is_brought_up_to_date(connection: sqlite3.Connection) -> None:
    for number in range(1, len(MIGRATIONS)):
        migrate(connection, MIGRATIONS[:number])
    migrate(connection)
    assert version(connection) == len(MIGRATIONS)
    with closing(sqlite3.connect(":memory:")) as fresh:
        migrate(fresh)
        assert tables(connection) == tables(fresh)


def tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema").fetchall()}
