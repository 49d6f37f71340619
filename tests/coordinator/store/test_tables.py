"""The tables' functions: nodes, replay, jobs and job_events on a real database."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.store import job_events, jobs, nodes, replay
from coordinator.store.db import Database, open_database
from protocol.envelope import AuthenticatedRequest
from protocol.ids import JobId, NodeId
from protocol.records import Signed

pytestmark = pytest.mark.anyio

ALICE = NodeId(b"\xa1" * 32)
BOB = NodeId(b"\xb0" * 32)
NOW_MS = 1_777_400_000_000


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(tmp_path)
    yield database
    await database.close()


def row(node: NodeId = ALICE, **changes: Any) -> nodes.Node:
    plain = nodes.Node(
        node, "provider", f"provider-{node.hex()[:8]}", "a name", "available", None, None, {"gpus": []},
        Signed(b"body", b"s" * 64), 5, NOW_MS + 1000, NOW_MS, NOW_MS,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def counted(node: NodeId, counter: int) -> AuthenticatedRequest:
    return AuthenticatedRequest(2, node, NOW_MS, counter, None)


def with_nonce(node: NodeId, nonce: str) -> AuthenticatedRequest:
    return AuthenticatedRequest(1, node, NOW_MS, None, nonce)


async def use(database: Database, request: AuthenticatedRequest, now_ms: int) -> None:
    await database.write(partial(replay.use, request=request, now_ms=now_ms))


async def test_a_node_comes_back_as_it_was_put(database: Database) -> None:
    await database.write(lambda tx: nodes.put(tx, row(address="10.0.0.1", port=46337)))
    async with database.reader() as reader:
        assert await nodes.select_one(reader, ALICE) == row(address="10.0.0.1", port=46337)
        assert await nodes.select_one(reader, BOB) is None


async def test_putting_again_replaces_all_but_the_creation(database: Database) -> None:
    await database.write(lambda tx: nodes.put(tx, row()))
    later = row(name="other", record=None, record_sequence=None, created_ms=NOW_MS + 9, last_seen_ms=NOW_MS + 9)
    await database.write(lambda tx: nodes.put(tx, later))
    assert await database.write(lambda tx: nodes.get(tx, ALICE)) == dataclasses.replace(later, created_ms=NOW_MS)


async def test_lists_are_newest_first_and_by_role(database: Database) -> None:
    await database.write(lambda tx: nodes.put(tx, row(last_seen_ms=NOW_MS)))
    await database.write(lambda tx: nodes.put(tx, row(BOB, role="client", last_seen_ms=NOW_MS + 5)))
    async with database.reader() as reader:
        assert [n.node for n in await nodes.select_latest(reader, limit=9)] == [BOB, ALICE]
        assert [n.node for n in await nodes.select_latest(reader, limit=1)] == [BOB]
        assert [n.node for n in await nodes.select_latest(reader, limit=9, role="provider")] == [ALICE]
        assert [n.node for n in await nodes.select_latest(reader, limit=9, seen_since_ms=NOW_MS + 1)] == [BOB]
        assert await nodes.count_live(reader, NOW_MS + 1) == 1
        assert await nodes.last_seen_ms(reader) == NOW_MS + 5


async def test_a_counter_is_used_once_across_restarts(database: Database, tmp_path: Path) -> None:
    await use(database, counted(ALICE, 1000), NOW_MS)
    await use(database, counted(ALICE, 999), NOW_MS)
    await database.close()
    again = open_database(tmp_path)
    for counter in (1000, 999):
        with pytest.raises(replay.Replayed):
            await use(again, counted(ALICE, counter), NOW_MS)
    await use(again, counted(ALICE, 998), NOW_MS)
    await use(again, counted(BOB, 1000), NOW_MS)
    await again.close()


async def test_a_nonce_is_used_once_per_key(database: Database) -> None:
    await use(database, with_nonce(ALICE, "n"), NOW_MS)
    await use(database, with_nonce(BOB, "n"), NOW_MS)
    with pytest.raises(replay.Replayed):
        await use(database, with_nonce(ALICE, "n"), NOW_MS)


async def test_r7_one_key_cannot_push_out_the_nonces_of_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: nonces of all keys shared one memory, and ten thousand of anybody's pushed out the others."""
    monkeypatch.setattr(replay, "NONCES_PER_NODE_MAX", 10)
    await use(database, with_nonce(ALICE, "mine"), NOW_MS)
    for number in range(10):
        await use(database, with_nonce(BOB, str(number)), NOW_MS)
    with pytest.raises(replay.TooManyRequests):
        await use(database, with_nonce(BOB, "one more"), NOW_MS)
    with pytest.raises(replay.Replayed):
        await use(database, with_nonce(ALICE, "mine"), NOW_MS)


async def test_nonces_are_kept_until_no_replay_could_be_in_date(database: Database) -> None:
    await use(database, with_nonce(ALICE, "n"), NOW_MS)
    await database.write(lambda tx: replay.prune(tx, NOW_MS + 120_000))
    with pytest.raises(replay.Replayed):
        await use(database, with_nonce(ALICE, "n"), NOW_MS)
    await database.write(lambda tx: replay.prune(tx, NOW_MS + 123_000))
    await use(database, with_nonce(ALICE, "n"), NOW_MS)


async def test_the_window_of_a_node_outlives_its_row_but_not_for_ever(database: Database) -> None:
    await database.write(lambda tx: nodes.put(tx, row()))
    await use(database, counted(ALICE, 7), NOW_MS)
    await database.write(lambda tx: nodes.delete(tx, ALICE))
    await database.write(lambda tx: replay.prune(tx, NOW_MS + 60_000))
    with pytest.raises(replay.Replayed):
        await use(database, counted(ALICE, 7), NOW_MS)
    await database.write(lambda tx: replay.prune(tx, NOW_MS + replay.WINDOW_LIFETIME_MS + 1))
    await use(database, counted(ALICE, 7), NOW_MS)


async def test_a_job_and_its_events(database: Database) -> None:
    job = jobs.Job(JobId(b"j" * 16), "chat", "assigned", None, "m", NOW_MS)
    await database.write(lambda tx: jobs.put(tx, job))
    await database.write(lambda tx: job_events.insert(tx, job_events.JobEvent(job.job, 1, "job", 0, None, NOW_MS)))
    done = dataclasses.replace(
        job, status="completed", provider=ALICE, ended_ms=NOW_MS + 5, prompt_tokens=3, output_tokens=9, outcome="stop"
    )
    await database.write(lambda tx: jobs.put(tx, done))
    async with database.reader() as reader:
        assert await jobs.select_one(reader, job.job) == done
        assert [event.kind for event in await job_events.select_of_job(reader, job.job)] == ["job"]
        assert await jobs.count_completed(reader, NOW_MS) == 1
    assert await database.write(lambda tx: jobs.delete_ended_before(tx, NOW_MS + 6)) == 1
    async with database.reader() as reader:
        assert await job_events.select_of_job(reader, job.job) == []


async def test_jobs_that_a_restart_left_open_end_as_failed(database: Database) -> None:
    job = jobs.Job(JobId(b"j" * 16), "chat", "running", ALICE, "m", NOW_MS)
    await database.write(lambda tx: jobs.put(tx, job))
    assert await database.write(lambda tx: jobs.fail_open(tx, NOW_MS + 1)) == 1
    assert await database.write(lambda tx: jobs.fail_open(tx, NOW_MS + 2)) == 0
    async with database.reader() as reader:
        found = await jobs.select_one(reader, job.job)
    assert found is not None
    assert (found.status, found.outcome, found.ended_ms) == ("failed", "coordinator_restarted", NOW_MS + 1)
