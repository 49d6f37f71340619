"""What happened to a job, in order: kinds, counts, the running hash and times. Never text, and never one per token."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

import aiosqlite

from protocol.ids import JobId


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One row. `running_hash` chains the chunks of the answer up to here, as the receipt does."""

    job: JobId
    sequence: int
    kind: str
    output_tokens: int
    running_hash: bytes | None
    at_ms: int


def insert(connection: sqlite3.Connection, event: JobEvent) -> None:
    """Append an event, in a transaction. The job's row must exist."""
    connection.execute(
        "INSERT INTO job_events VALUES (?, ?, ?, ?, ?, ?)",
        (event.job, event.sequence, event.kind, event.output_tokens, event.running_hash, event.at_ms),
    )


async def select_of_job(reader: aiosqlite.Connection, job: JobId) -> list[JobEvent]:
    """The events of a job in order."""
    rows: Any = await reader.execute_fetchall("SELECT * FROM job_events WHERE job = ? ORDER BY sequence", (job,))
    return [JobEvent(JobId(row[0]), *row[1:]) for row in rows]
