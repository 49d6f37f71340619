"""The jobs of the public chat: who ran what, when, how many tokens, how it ended. Never what was said."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

import aiosqlite

from protocol.ids import JobId, NodeId

COORDINATOR_RESTARTED: Final = "coordinator_restarted"


@dataclass(frozen=True, slots=True)
class Job:
    """One row. `outcome` is a word of a closed list (how it ended), never text from a peer."""

    job: JobId
    kind: str
    status: str
    provider: NodeId | None
    model: str | None
    created_ms: int
    ended_ms: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    outcome: str | None = None


def _from_row(row: Any) -> Job:
    return Job(JobId(row[0]), row[1], row[2], NodeId(row[3]) if row[3] is not None else None, *row[4:])


# ---------------------------------------------------------------- in a transaction


def put(connection: sqlite3.Connection, job: Job) -> None:
    """Insert or replace the row; the job's events stay."""
    connection.execute(
        """
        INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (job) DO UPDATE SET
            status = excluded.status, provider = excluded.provider, model = excluded.model,
            ended_ms = excluded.ended_ms, prompt_tokens = excluded.prompt_tokens,
            output_tokens = excluded.output_tokens, outcome = excluded.outcome
        """,
        (
            job.job,
            job.kind,
            job.status,
            job.provider,
            job.model,
            job.created_ms,
            job.ended_ms,
            job.prompt_tokens,
            job.output_tokens,
            job.outcome,
        ),
    )


def fail_open(connection: sqlite3.Connection, now_ms: int) -> int:
    """End the jobs that an earlier process left open: their texts were only in its memory. Returns how many."""
    return connection.execute(
        "UPDATE jobs SET status = 'failed', outcome = ?, ended_ms = ? WHERE ended_ms IS NULL",
        (COORDINATOR_RESTARTED, now_ms),
    ).rowcount


def delete_ended_before(connection: sqlite3.Connection, time_ms: int) -> int:
    """Forget old jobs and their events."""
    return connection.execute("DELETE FROM jobs WHERE ended_ms < ?", (time_ms,)).rowcount


# ---------------------------------------------------------------- readers


async def select_one(reader: aiosqlite.Connection, job: JobId) -> Job | None:
    """The row of this job."""
    rows = await reader.execute_fetchall("SELECT * FROM jobs WHERE job = ?", (job,))
    return next((_from_row(row) for row in rows), None)


async def count_completed(reader: aiosqlite.Connection, since_ms: int) -> int:
    """How many jobs were completed since."""
    rows = await reader.execute_fetchall(
        "SELECT count(*) FROM jobs WHERE ended_ms >= ? AND status = 'completed'", (since_ms,)
    )
    return int(next(iter(rows))[0])
