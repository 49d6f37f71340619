"""The public chat over real HTTP: asking, streaming, resuming, cancelling, refusing, and what is kept of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator import hypercorn_cures
from coordinator.core import chat_api
from coordinator.store import job_events, jobs
from protocol.errors import Refusal
from protocol.ids import JobId
from protocol.records import FreePolicy, Outcome
from tests.helpers_coordinator import (
    MODEL,
    Script,
    Served,
    SseEvent,
    ask,
    linked,
    model_offer,
    read_events,
    serving,
    stream,
    text_of,
    until,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def reading(served: Served, job: str, **headers: str | bytes) -> AsyncIterator[AsyncIterator[SseEvent]]:
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()]
    async with served.http.stream("GET", f"/api/chat/stream/{job}", headers=raw) as response:
        yield read_events(response.aiter_lines())


async def next_of(events: AsyncIterator[SseEvent], kind: str) -> SseEvent:
    async with asyncio.timeout(10):
        while (event := await anext(events)).kind != kind:
            pass
        return event


async def row_of(served: Served, job: str) -> jobs.Job | None:
    async with served.app.core.database.reader() as reader:
        return await jobs.select_one(reader, JobId(bytes.fromhex(job)))


async def stored(served: Served, job: str, status: str) -> jobs.Job:
    """The row, once the store says that the job is there: rows are written beside the answer, not before it."""
    async with asyncio.timeout(10):
        while True:
            row = await row_of(served, job)
            if row is not None and row.status == status:
                return row


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def status_of(served: Served, job: str) -> dict[str, Any]:
    fields: dict[str, Any] = (await served.http.get(f"/api/chat/{job}/status")).json()
    return fields


# ---------------------------------------------------------------- streaming


async def test_an_answer_streams_from_a_linked_node_to_the_reader(served: Served) -> None:
    async with linked(served) as node:
        answer = (await ask(served, "What is the capital of France?", maxTokens=99, temperature=0)).json()
        events = await stream(served, answer["jobId"])
    (run,) = node.runs
    assert run.request.messages[0].content == "What is the capital of France?"
    assert (run.output_tokens_max, run.sampling.temperature_milli) == (99, 0)
    assert answer.items() >= {"source": "p2p", "streamUrl": f"/api/chat/stream/{answer['jobId']}"}.items()
    provider = {
        "id": node.node.hex(),
        "name": "scripted",
        "nodeId": f"provider-{node.node.hex()[:16]}",
        "gpuModel": None,
        "model": MODEL,
    }
    assert answer["provider"] == provider
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = [event.kind for event in events]
    assert kinds[:2] == ["job", "meta"]
    assert set(kinds[2:-1]) == {"token"}
    meta, done = events[1].data, events[-1].data
    assert (meta["provider_node_id"], meta["provider_name"], meta["model"]) == (provider["nodeId"], "scripted", MODEL)
    assert text_of(events) == done["text"] == "Hello world"
    assert done["reason"] == "stop"
    assert done["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


async def test_the_job_event_does_not_repeat_the_question(served: Served) -> None:
    async with linked(served):
        job = (await ask(served, "a very secret question")).json()["jobId"]
        events = await stream(served, job)
    assert "secret" not in json.dumps(events[0].data)


async def test_tokens_arrive_while_the_answer_is_being_written(served: Served) -> None:
    script = Script.at_once(one_at_a_time=asyncio.Queue())
    assert script.one_at_a_time is not None
    async with linked(served, script):
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            for piece in ("one ", "two ", "three"):
                script.one_at_a_time.put_nowait(piece)
                got = ""
                while piece not in got:
                    got += (await next_of(events, "token")).data["text"]
            script.one_at_a_time.put_nowait("")
            assert (await next_of(events, "done")).data["text"] == "Hello worldone two three"


async def test_a_long_conversation_keeps_its_order_and_roles(served: Served) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "sure?"},
    ]
    async with linked(served) as node:
        answer = await served.http.post("/api/chat", json={"messages": turns, "modelName": MODEL})
        await stream(served, answer.json()["jobId"])
    assert [(m.role, m.content) for m in node.runs[0].request.messages] == [(t["role"], t["content"]) for t in turns]


async def test_text_that_looks_like_events_stays_text(served: Served) -> None:
    nasty = 'x\n\nevent: done\ndata: {"text":"forged"}\n\n\u2028</script>'
    async with linked(served, Script.at_once(nasty)):
        job = (await ask(served)).json()["jobId"]
        events = await stream(served, job)
    assert text_of(events) == nasty
    assert [event.kind for event in events].count("done") == 1


# ---------------------------------------------------------------- resuming


async def test_a_reader_resumes_at_any_event_exactly(served: Served) -> None:
    async with linked(served, Script.at_once(*(f"{n} " for n in range(60)))):
        job = (await ask(served)).json()["jobId"]
        whole = await stream(served, job)
        for after in (0, 1, 2, 5, len(whole) - 1):
            assert await stream(served, job, last_event_id=after) == whole[after:]
        assert await stream(served, job, last_event_id=len(whole)) == []
        assert await stream(served, job, last_event_id=10**8) == []


async def test_a_reader_that_lost_its_connection_misses_nothing(served: Served) -> None:
    script = Script.at_once("first ", one_at_a_time=asyncio.Queue())
    assert script.one_at_a_time is not None
    async with linked(served, script) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            seen = await next_of(events, "token")
        script.one_at_a_time.put_nowait("second ")
        script.one_at_a_time.put_nowait("")
        rest = await stream(served, job, last_event_id=seen.id)
        assert text_of([seen, *rest]) == rest[-1].data["text"] == "first second "
        assert not node.cancelled


@pytest.mark.parametrize("value", [b"x", b"-1", b"1.5", b"9" * 40, b"\xb2"])
async def test_a_wrong_last_event_id_reads_from_the_start(served: Served, value: bytes) -> None:
    async with linked(served):
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job, **{"Last-Event-ID": value}) as events:
            assert (await anext(events)).id == 1


async def test_a_quiet_stream_is_kept_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_api, "PING_INTERVAL_S", 0.01)
    async with linked(served, Script()):
        job = (await ask(served)).json()["jobId"]
        async with served.http.stream("GET", f"/api/chat/stream/{job}") as response:
            lines = response.aiter_lines()
            async with asyncio.timeout(10):
                pings = 0
                while pings < 3:
                    pings += await anext(lines) == ": ping"


# ---------------------------------------------------------------- cancelling


async def test_cancel_stops_the_engine_and_tells_the_reader(served: Served) -> None:
    async with linked(served, Script()) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            await next_of(events, "meta")
            answer = await served.http.post(f"/api/chat/{job}/cancel")
            assert answer.json() == {"id": job, "status": "cancelled"}
            assert (await next_of(events, "error")).data["code"] == "cancelled"
        await until(lambda: node.cancelled, "the engine was told to stop")
        await until(lambda: node.peer.statistics().jobs_running == 0)
        await until(lambda: served.app.core.driver.peer.statistics().jobs_asked == 0, "the receipt has come")
        again = await served.http.post(f"/api/chat/{job}/cancel")
        assert again.json()["status"] == "cancelled"


async def test_the_job_is_cancelled_when_its_last_reader_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path, chat_grace_s=0.05) as served, linked(served, Script()) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as first:
            await next_of(first, "meta")
            async with reading(served, job) as second:
                await next_of(second, "meta")
            chat = served.app.core.chats.get(JobId(bytes.fromhex(job)))
            assert chat is not None
            await until(lambda: chat.readers == 1, "the second reader is gone")
            assert chat.timer is None, "one reader is left"
        await until(lambda: node.cancelled, "the engine was told to stop")
        assert (await status_of(served, job))["status"] == "cancelled"


async def test_a_reader_who_comes_back_in_time_finds_the_job_running(tmp_path: Path) -> None:
    script = Script()
    async with serving(tmp_path, chat_grace_s=30) as served, linked(served, script) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            await next_of(events, "meta")
        chat = served.app.core.chats.get(JobId(bytes.fromhex(job)))
        assert chat is not None
        await until(lambda: chat.timer is not None, "the grace period has begun")
        async with reading(served, job) as events:
            await next_of(events, "meta")
            assert chat.timer is None
            script.begin.set()
            script.finish.set()
            await next_of(events, "done")
        assert not node.cancelled


async def test_a_job_that_nobody_reads_is_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path, chat_first_reader_s=0.05) as served, linked(served, Script()) as node:
        await ask(served)
        await until(lambda: node.cancelled, "the engine was told to stop")


async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_cures, "SEND_DEADLINE_S", 0.2)
    monkeypatch.setattr(hypercorn_cures, "CLOSE_DEADLINE_S", 0.2)
    # An honest answer would fit into the kernel's buffers.
    monkeypatch.setattr("coordinator.core.chats.ANSWER_BYTES_MIN", 64 * 1024 * 1024)
    big = Script.at_once(*["x" * 1000] * 8000)
    offer = {"models": (model_offer(context_tokens=16_000),)}
    async with serving(tmp_path, chat_output_tokens_max=8000) as served, linked(served, big, **offer):
        job = (await ask(served)).json()["jobId"]
        chat = served.app.core.chats.get(JobId(bytes.fromhex(job)))
        assert chat is not None
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            tasks = len(asyncio.all_tasks())
            client.send(f"GET /api/chat/stream/{job} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(lambda: chat.readers == 1, "the reader is there")
            await until(lambda: chat.readers == 0, "the reader was cut off")
            await until(lambda: len(asyncio.all_tasks()) <= tasks, "nothing of its connection is left")
        assert (await served.http.get("/api/health")).status_code == 200


async def test_readers_of_one_chat_are_bounded_and_a_look_at_the_headers_is_not_a_reader(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_api, "READERS_MAX", 1)
    async with linked(served, Script()):
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            await next_of(events, "meta")
            assert (await served.http.get(f"/api/chat/stream/{job}")).status_code == 429
        looked = await served.http.head(f"/api/chat/stream/{job}")
        assert (looked.status_code, looked.headers["content-type"]) == (200, "text/event-stream")


# ---------------------------------------------------------------- refusing


async def test_without_a_provider_the_answer_says_what_to_do(served: Served) -> None:
    answer = await ask(served)
    assert answer.status_code == 503
    assert answer.json()["error"] == "no provider is online"
    assert answer.json()["source"] == "none"
    assert "infernet start" in answer.json()["hint"]


async def test_a_model_that_nobody_serves_is_named(served: Served) -> None:
    async with linked(served):
        answer = await ask(served, modelName="gpt-17")
    assert answer.status_code == 503
    assert answer.json()["error"] == "no provider that is online serves gpt-17"


async def test_a_node_that_registered_but_has_no_link_is_never_asked(served: Served) -> None:
    async with linked(served, models=(model_offer("theirs"),)) as node:
        pass
    await until(lambda: node.node not in served.app.core.links)
    async with linked(served, models=(model_offer("mine"),)):
        assert (await ask(served, modelName="theirs")).status_code == 503
        assert (await ask(served, modelName="mine")).status_code == 200


async def test_a_node_that_answers_nobody_for_free_is_not_asked(served: Served) -> None:
    async with linked(served, free_policy=FreePolicy.NOBODY) as node:
        answer = await ask(served)
    assert answer.status_code == 503
    assert "for free" in answer.json()["error"]
    assert not node.runs


async def test_a_node_that_does_not_know_the_coordinator_refuses_and_the_asker_hears_it(served: Served) -> None:
    async with linked(served, free_policy=FreePolicy.KNOWN, knows_coordinator=False) as node:
        answer = await ask(served)
    assert answer.status_code == 503
    assert answer.json()["error"]
    assert not node.runs


async def test_a_provider_that_is_full_says_when_to_come_back(served: Served) -> None:
    async with linked(served, Script(), knows_coordinator=False):
        answers = [await ask(served) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert answers[2].json()["hint"] == "try again in a moment"


async def test_the_next_provider_is_tried_when_the_first_fails_before_its_first_token(served: Served) -> None:
    failing = Script(failure=Refusal.ENGINE_FAILED)
    async with linked(served, failing) as first:
        job = (await ask(served)).json()["jobId"]
        await until(lambda: first.runs, "the only provider was chosen")
        async with linked(served, Script.at_once("from the second")) as second:
            failing.begin.set()
            events = await stream(served, job)
    assert text_of(events) == "from the second"
    metas = [event.data["provider"]["id"] for event in events if event.kind == "meta"]
    assert metas == [first.node.hex(), second.node.hex()]


async def test_a_provider_that_vanishes_in_the_middle_ends_the_stream_with_a_reason(served: Served) -> None:
    script = Script.at_once("half an ", one_at_a_time=asyncio.Queue())
    async with linked(served, script) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            await next_of(events, "token")
            await node.close()
            error = (await next_of(events, "error")).data
    assert error["code"] == "peer_lost"
    assert (await status_of(served, job)).items() >= {"status": "failed", "error": "peer_lost"}.items()


async def test_an_answer_whose_provider_vanishes_goes_on_at_another_one_and_says_so(served: Served) -> None:
    script = Script.at_once("half ", "an ", one_at_a_time=asyncio.Queue())
    async with linked(served, script) as first:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            got = ""
            while got != "half an ":
                got += (await next_of(events, "token")).data["text"]
            async with linked(served, Script.at_once("answer")) as second:
                await first.close()
                resumed = (await next_of(events, "resumed")).data
                done = (await next_of(events, "done")).data
    (run,) = second.runs
    assert run.request.continuation == "half an "
    assert (resumed["lost"]["id"], resumed["provider"]["id"]) == (first.node.hex(), second.node.hex())
    assert (resumed["attempt"], resumed["prompt_tokens"], resumed["output_tokens_before"]) == (2, 5, 2)
    assert done["text"] == "half an answer"
    assert done["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert [(part["provider"]["id"], part["completion_tokens"]) for part in done["served"]] == [
        (first.node.hex(), 2),
        (second.node.hex(), 1),
    ]
    row = await stored(served, job, "completed")
    assert (row.provider, row.output_tokens) == (second.node, 3)


async def test_a_chat_that_waits_for_a_slot_says_where_it_stands(served: Served) -> None:
    script = Script.at_once(one_at_a_time=asyncio.Queue())
    assert script.one_at_a_time is not None
    async with linked(served, script, models=(model_offer(concurrency=1),)):
        first = (await ask(served)).json()["jobId"]
        async with reading(served, first) as events:
            await next_of(events, "token")
            second = asyncio.create_task(ask(served))
            answer = (await second).json()
            async with reading(served, answer["jobId"]) as waiting:
                queued = (await next_of(waiting, "queued")).data
                assert (queued["position"], queued["provider"]["name"]) == (0, "scripted")
                assert 0 < queued["wait_ms"] <= 10_000
                script.one_at_a_time.put_nowait("")
                await next_of(waiting, "meta")
                script.one_at_a_time.put_nowait("")
                assert (await next_of(waiting, "done")).data["text"] == "Hello world"


async def test_an_answer_that_is_cut_at_its_length_says_so(served: Served) -> None:
    async with linked(served, Script.at_once(outcome=Outcome.LENGTH)):
        job = (await ask(served)).json()["jobId"]
        events = await stream(served, job)
    assert events[-1].data["reason"] == "length"


async def test_more_text_than_the_tokens_can_hold_ends_the_job(served: Served) -> None:
    async with linked(served, Script.at_once(*["y" * 16_000] * 8)) as node:
        job = (await ask(served)).json()["jobId"]
        events = await stream(served, job)
        assert events[-1].data["code"] == "protocol"
        await until(lambda: node.peer.statistics().jobs_running == 0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "user", "content": "x"}] * 257},
        {"messages": [{"role": "user", "content": "x" * 8193}]},
        {"messages": [{"role": "user", "content": "ä" * 4097}]},
        {"messages": [{"role": "user", "content": "x"}], "temperature": 2.1},
        {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
        {"messages": [{"role": "user", "content": "x"}], "maxTokens": "many"},
        {"messages": [{"role": "user", "content": "x"}], "modelName": "m" * 129},
        [],
        7,
    ],
)
async def test_a_wrong_question_is_a_400_that_says_why(served: Served, body: Any) -> None:
    async with linked(served) as node:
        answer = await served.http.post("/api/chat", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not node.runs


async def test_more_tokens_than_allowed_are_cut_to_what_is(served: Served) -> None:
    async with linked(served, Script.at_once("x")) as node:
        for wanted in (10**9, 0, -5):
            assert (await ask(served, maxTokens=wanted)).status_code == 200
        await until(lambda: len(node.runs) == 3)
    assert [run.output_tokens_max for run in node.runs] == [512, 1, 1]


@pytest.mark.parametrize("name", ["", "(any available)", None])
async def test_any_model_means_any_model(served: Served, name: str | None) -> None:
    async with linked(served):
        assert (await ask(served, modelName=name)).status_code == 200


@pytest.mark.parametrize("job", ["x", "0" * 31, "0" * 32, "A" * 32, "%00", "..%2f..", "é"])
async def test_an_unknown_job_is_a_404(served: Served, job: str) -> None:
    for path in (f"stream/{job}", f"{job}/status"):
        assert (await served.http.get(f"/api/chat/{path}")).status_code == 404
    assert (await served.http.post(f"/api/chat/{job}/cancel")).status_code == 404


# ---------------------------------------------------------------- limits


async def test_chats_per_hour_and_at_once_are_limited_per_network(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limit_loopback": True, "chats_per_hour": 3, "chats_at_once_per_client": 1}
    async with serving(tmp_path, **settings) as served, linked(served, Script()):
        first = await ask(served)
        assert first.status_code == 200
        crowded = await ask(served)
        assert (crowded.status_code, "already" in crowded.json()["error"]) == (429, True)
        await served.http.post(f"/api/chat/{first.json()['jobId']}/cancel")
        for _ in range(2):
            job = (await ask(served)).json()["jobId"]
            await served.http.post(f"/api/chat/{job}/cancel")
        spent = await ask(served)
        assert (spent.status_code, "too many chats" in spent.json()["error"]) == (429, True)
        assert int(spent.headers["retry-after"]) > 60


async def test_all_chats_together_are_bounded_on_loopback_too(tmp_path: Path) -> None:
    async with serving(tmp_path, chats_at_once=2) as served, linked(served, Script()):
        assert [(await ask(served)).status_code for _ in range(3)] == [200, 200, 429]


# ---------------------------------------------------------------- what is kept


async def test_what_is_kept_is_counts_and_hash_never_text(served: Served, tmp_path: Path) -> None:
    async with linked(served, Script.at_once("CANARY-ANSWER")):
        job = (await ask(served, "CANARY-QUESTION")).json()["jobId"]
        await stream(served, job)
    row = await stored(served, job, "completed")
    assert (row.status, row.outcome, row.prompt_tokens, row.output_tokens) == ("completed", "stop", 5, 1)
    async with served.app.core.database.reader() as reader:
        kept = await job_events.select_of_job(reader, row.job)
    assert [(event.sequence, event.kind) for event in kept] == [(1, "job"), (2, "meta"), (3, "token"), (4, "done")]
    assert kept[-1].running_hash is not None
    for name, content in files_of(tmp_path).items():
        assert b"CANARY" not in content, name


async def test_a_job_in_flight_at_a_crash_ends_as_failed_by_the_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, linked(served, Script()):
        job = (await ask(served)).json()["jobId"]
        running = await stored(served, job, "running")
    async with serving(tmp_path) as served:
        # A crash leaves the row as it was while the job ran; the orderly shutdown above has ended it.
        await served.app.core.database.write(lambda tx: jobs.put(tx, dataclasses.replace(running, ended_ms=None)))
    async with serving(tmp_path) as served:
        assert (await status_of(served, job)).items() >= {"status": "failed", "error": "coordinator_restarted"}.items()
        (event,) = await stream(served, job)
        assert (event.kind, event.data["code"]) == ("error", "coordinator_restarted")
        assert "restarted" in event.data["message"]


async def test_a_finished_answer_leaves_memory_and_the_stream_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, chat_keep_s=0.05) as served, linked(served):
        job = (await ask(served)).json()["jobId"]
        await stream(served, job)
        await until(lambda: served.app.core.chats.get(JobId(bytes.fromhex(job))) is None)
        (event,) = await stream(served, job)
        assert "never stored" in event.data["message"]
        assert (await status_of(served, job))["status"] == "completed"


async def test_shutting_down_ends_streams_with_a_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, linked(served, Script()) as node:
        job = (await ask(served)).json()["jobId"]
        async with reading(served, job) as events:
            await next_of(events, "meta")
            served.stop.set()
            error = (await next_of(events, "error")).data
            assert error == {"message": "the coordinator is shutting down; ask again in a moment", "code": "shutdown"}
        await until(lambda: node.cancelled, "the engine was told to stop")


async def test_many_readers_and_chats_at_once(served: Served) -> None:
    script = Script.at_once(*(f"{n} " for n in range(40)))
    async with linked(served, script, models=(model_offer(concurrency=64),)):
        answers = await asyncio.gather(*(ask(served) for _ in range(16)))
        assert {answer.status_code for answer in answers} == {200}
        streams = await asyncio.gather(
            *(stream(served, answer.json()["jobId"]) for answer in answers for _ in range(2))
        )
    expected = "".join(f"{n} " for n in range(40))
    assert {text_of(events) for events in streams} == {expected}
