"""The application as a whole: without its pages, with its manners, and going down in order."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog

import coordinator
from coordinator import app
from coordinator.store.db import StoreFailed
from tests.helpers_coordinator import (
    NodeClient,
    Script,
    Served,
    ask,
    linked,
    meet_a_failed_fsync,
    serving,
    stream,
    until,
)

pytestmark = pytest.mark.anyio

WITHOUT_PAGES = """
import asyncio, sys
from pathlib import Path
import httpx
from tests.helpers_coordinator import ask, linked, serving, stream, text_of

async def main():
    async with serving(Path(sys.argv[1])) as served, linked(served):
        paths = ("/", "/chat", "/static/chat.js", "/api/nodes")
        statuses = [(await served.http.get(path)).status_code for path in paths]
        answer = text_of(await stream(served, (await ask(served)).json()["jobId"]))
        print(statuses, answer, "coordinator.web" in sys.modules)

asyncio.run(main())
"""


async def test_the_core_starts_and_chats_with_the_folder_of_pages_gone(tmp_path: Path) -> None:
    source = Path(coordinator.__file__).parent.parent
    copy = tmp_path / "source"
    for folder in ("coordinator", "protocol", "tests"):
        shutil.copytree(source / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(copy / "coordinator" / "web")
    home = tmp_path / "home"
    home.mkdir()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", WITHOUT_PAGES, str(home)],
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "[404, 404, 404, 200] Hello world False" in done.stdout, done.stderr[-2000:]


async def test_pages_can_be_switched_off(tmp_path: Path) -> None:
    async with serving(tmp_path, web=False) as served:
        assert (await served.http.get("/chat")).status_code == 404
        assert (await served.http.get("/api/nodes")).status_code == 200


async def test_every_answer_carries_the_security_headers(served: Served) -> None:
    for path in ("/", "/chat", "/static/chat.js", "/api/nodes", "/nothing", "/api/chat/stream/x"):
        headers = (await served.http.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


async def test_answers_of_the_api_are_not_cached(served: Served) -> None:
    async with linked(served):
        job = (await ask(served)).json()["jobId"]
        for path in ("/api/nodes", f"/api/chat/{job}/status", f"/api/chat/stream/{job}", "/api/nothing"):
            assert (await served.http.get(path)).headers["cache-control"] == "no-store"


async def test_the_log_of_a_chat_holds_no_text_no_path_with_its_job_and_no_query(served: Served) -> None:
    with structlog.testing.capture_logs() as lines:
        async with linked(served):
            job = (await ask(served, "CANARY-QUESTION")).json()["jobId"]
            await stream(served, job)
            await served.http.get("/api/nodes?limit=1&secret=CANARY-QUERY")
    text = json.dumps(lines)
    assert "CANARY" not in text
    assert job not in text
    assert "Hello" not in text
    assert {line["route"] for line in lines if line["event"] == "request"} >= {"/api/chat", "/api/chat/stream/<job>"}


async def test_the_store_being_gone_is_a_503_and_not_a_crash(served: Served) -> None:
    await served.app.core.database.close()
    answers = [await served.http.get("/api/nodes"), await served.http.get("/api/health")]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[1].json()["ok"] is False


async def test_a_disk_that_has_failed_is_a_503_and_what_was_kept_can_be_read(served: Served) -> None:
    node = NodeClient(served)
    assert (await node.register()).status_code == 200
    with pytest.raises(StoreFailed):
        await served.app.core.database.write(meet_a_failed_fsync)
    answers = [await node.register(), await served.http.get("/api/health"), await served.http.get("/api/nodes")]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert int(answers[0].headers["retry-after"]) > 0
    assert len(answers[2].json()["data"]) == 1


async def test_a_disk_that_stands_still_is_a_503_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "HANDLER_TIMEOUT_S", 0.1)
    disk = threading.Event()
    stuck = asyncio.create_task(served.app.core.database.write(lambda _: disk.wait(10)))
    try:
        answer = await NodeClient(served).register()
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        assert (await served.http.get("/api/nodes")).status_code == 200, "readers do not wait for the writer"
    finally:
        disk.set()
    await stuck


async def test_requests_at_once_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, requests_at_once=1) as served, linked(served, Script()):
        job = (await ask(served)).json()["jobId"]
        async with served.http.stream("GET", f"/api/chat/stream/{job}") as response:
            assert response.status_code == 200
            answer = await served.http.get("/api/nodes")
            assert (answer.status_code, "too many requests" in answer.json()["error"]) == (503, True)
        await until(lambda: served.app._requests == 0)
        assert (await served.http.get("/api/nodes")).status_code == 200


async def test_upkeep_forgets_what_is_old(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, linked(served):
        await stream(served, (await ask(served)).json()["jobId"])
        core = served.app.core
        await until(lambda: core.chats.running() == 0)
        served.clock.offset_ms += 31 * 24 * 60 * 60 * 1000
        await core.database.write(core._prune)
        async with core.database.reader() as reader:
            for table in ("nodes", "jobs", "job_events", "replay_windows", "nonces"):
                rows = await reader.execute_fetchall(f"SELECT count(*) FROM {table}")
                assert [tuple(row) for row in rows] == [(0,)], table
