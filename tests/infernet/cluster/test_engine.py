"""infernet/cluster/engine.py and head.py: a model on two machines is served, withdrawn, and served again."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.cluster.engine import ClusterConfig, ClusterEngine, command
from infernet.engines.contract import EnginePart, EngineState, EngineUnavailable
from infernet.transport.contract import NotConnected, Stream
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import NodeId, RunId
from protocol.records import Kind, Outcome
from tests.helpers_engine import GREEDY, Recorder, chat
from tests.helpers_processes import is_running
from tests.helpers_rpc_cluster import (
    FIRST,
    HEAD,
    MODEL,
    QUICK,
    SECOND,
    STRANGER,
    Machines,
    children_of,
    end_program,
    engine_on,
    machines,
    programs,
)
from tests.helpers_transport import eventually

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(world: Machines, engine: ClusterEngine) -> AsyncIterator[Recorder]:
    """Run an engine on the head."""
    recorder = Recorder()
    engine.use_network(await world.network())
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run, recorder.report)
        yield recorder
        nursery.cancel_scope.cancel()


def order(number: int, text: str = "say something", tokens: int = 50) -> RunEngine:
    return RunEngine(RunId(number), Kind.CHAT, MODEL, chat(text), GREEDY, 1000, tokens)


def worker_status(engine: ClusterEngine, number: int) -> dict[str, Any]:
    status: dict[str, Any] = engine.cluster_status()["workers"][number]
    return status


def llama_server_of(engine: ClusterEngine) -> int:
    (child,) = children_of(engine.cluster_status()["llama_server_pid"])
    return child


async def ready(engine: ClusterEngine) -> None:
    await eventually(lambda: engine.statistics().state is EngineState.READY, "the model is served", 40)


async def answer(engine: ClusterEngine, recorder: Recorder, number: int) -> str:
    engine.start(order(number))
    end = await recorder.end_of(number)
    assert isinstance(end, EngineFinished), end
    assert (end.outcome, end.output_tokens) == (Outcome.STOP, 5)
    return recorder.answer(number)


async def test_two_machines_answer_together_and_only_when_both_are_there(tmp_path: Path) -> None:
    server = programs(tmp_path)
    engine = engine_on(server, FIRST, SECOND)
    changes: list[int] = []
    engine.on_change = lambda: changes.append(len(engine.models()))
    async with machines() as world:
        first = await world.lend(FIRST, server)
        async with serving(world, engine) as recorder:
            await eventually(lambda: worker_status(engine, 0)["attached"])
            assert engine.models() == ()
            engine.start(order(1))
            (refused,) = recorder.of(1)
            assert isinstance(refused, EngineFailed)
            assert refused.code is Refusal.ENGINE_UNAVAILABLE
            (part,) = engine.parts()
            # It waits for a machine, and loads nothing.
            assert (part.models, part.loading_s) == ((MODEL,), None)
            assert part.trouble.startswith("waits for the worker ")
            await world.lend(SECOND, server)
            await ready(engine)
            where = "2 other machines"
            assert engine.parts() == (EnginePart("cluster", (MODEL,), EngineState.READY, where, 0, 0, ""),)
            assert [offer.name for offer in engine.models()] == [MODEL]
            assert engine.models()[0].concurrency == 2
            assert await answer(engine, recorder, 2) == "Two machines said this."
            assert engine.statistics().runs_active == 0
            status = engine.cluster_status()
            assert (status["serving"], status["build"], status["restarts"]) == (True, "b11434 (unknown)", 0)
            # The weights went to both, and came back.
            assert all(worker["carried_bytes"] > 2_000_000 for worker in status["workers"])
            assert first.status()["carried_bytes"] > 2_000_000
            assert status["workers"][0]["devices"][0]["free_bytes"] == 2048 * 1024 * 1024
            process = llama_server_of(engine)
        await eventually(lambda: not is_running(process), "llama-server ends with its engine")
    assert changes[-2:] == [1, 0]


async def test_a_worker_that_dies_costs_the_answer_and_not_the_engine(tmp_path: Path) -> None:
    server = programs(tmp_path)
    engine = engine_on(server, FIRST, SECOND)
    async with machines() as world:
        await world.lend(FIRST, server)
        await world.lend(SECOND, server)
        async with serving(world, engine) as recorder:
            await ready(engine)
            engine.start(order(1, "go on forever", tokens=30_000))
            await recorder.until(lambda: bool(recorder.texts(1)))
            process = llama_server_of(engine)
            world.end(SECOND)
            end = await recorder.end_of(1)
            assert isinstance(end, EngineFailed)
            assert end.code is Refusal.ENGINE_FAILED
            await eventually(lambda: engine.models() == ())
            await eventually(lambda: not is_running(process), "the llama-server of the lost worker ends")
            await eventually(lambda: "worker" in engine.statistics().last_error, "the reason")
            assert worker_status(engine, 0)["attached"]
            await eventually(lambda: worker_status(engine, 1)["problem"])
            # The machine is switched on again.
            await world.lend(SECOND, server)
            await ready(engine)
            assert llama_server_of(engine) != process
            assert await answer(engine, recorder, 2) == "Two machines said this."
            assert engine.statistics().restarts >= 1
            assert recorder.ends()[RunId(1)] == 1


async def test_a_llama_server_that_crashes_is_started_again(tmp_path: Path) -> None:
    server = programs(tmp_path)
    # The adapter does not look: that nothing is offered any more is the supervisor's doing.
    engine = engine_on(server, FIRST, patience=replace(QUICK, server=replace(QUICK.server, look_interval_s=60)))
    told: list[int] = []
    engine.on_change = lambda: told.append(len(engine.models()))
    async with machines() as world:
        await world.lend(FIRST, server)
        async with serving(world, engine) as recorder:
            await ready(engine)
            assert told == [1]
            first = llama_server_of(engine)
            end_program(engine.cluster_status()["llama_server_pid"])
            await eventually(lambda: told[1:2] == [0], "the model is withdrawn")
            await eventually(lambda: engine.statistics().restarts == 1)
            assert "llama-server was ended by SIGKILL" in engine.cluster_status()["last_error"]
            await ready(engine)
            assert llama_server_of(engine) != first
            assert await answer(engine, recorder, 1) == "Two machines said this."


async def test_a_llama_server_that_hangs_is_ended(tmp_path: Path) -> None:
    server = programs(tmp_path)
    patience = replace(QUICK, hang_s=0.2, server=replace(QUICK.server, looks_max=1, doubt_s=0.2, next_s=0.3))
    engine = engine_on(server, FIRST, patience=patience)
    async with machines() as world:
        await world.lend(FIRST, server)
        async with serving(world, engine) as recorder:
            await ready(engine)
            engine.start(order(1, "go on forever", tokens=30_000))
            await recorder.until(lambda: bool(recorder.texts(1)))
            process = llama_server_of(engine)
            os.kill(process, signal.SIGSTOP)
            await eventually(lambda: not is_running(process), "the llama-server that hangs is ended", 40)
            await eventually(lambda: "did not answer any more" in engine.cluster_status()["last_error"], "the reason")


async def test_another_build_on_a_worker_is_told_and_nothing_is_started(tmp_path: Path) -> None:
    server, other = programs(tmp_path / "ours"), programs(tmp_path / "theirs", build=11500)
    engine = engine_on(server, FIRST, SECOND)
    async with machines() as world:
        await world.lend(FIRST, server)
        worker = await world.lend(SECOND, other)
        async with serving(world, engine):
            await eventually(lambda: "b11500" in worker_status(engine, 1)["problem"])
            problem = worker_status(engine, 1)["problem"]
            assert "b11500 (unknown), and this node's is b11434 (unknown)" in problem
            assert "same build" in problem
            assert "b11434" in worker.status()["problem"]
            assert engine.cluster_status()["llama_server_pid"] is None


async def test_a_worker_of_somebody_else_lets_this_head_not_in(tmp_path: Path) -> None:
    server = programs(tmp_path)
    engine = engine_on(server, FIRST)
    async with machines() as world:
        worker = await world.lend(FIRST, server, head=STRANGER)
        async with serving(world, engine):
            await eventually(lambda: "infernet cluster join" in worker_status(engine, 0)["problem"])
            assert worker.status()["strangers_refused"] >= 1
            assert worker.status()["attached"] is False


async def test_a_model_that_does_not_load_is_tried_again_and_told(tmp_path: Path) -> None:
    server = programs(tmp_path, refuses="failed to read magic")
    engine = engine_on(server, FIRST)
    async with machines() as world:
        await world.lend(FIRST, server)
        async with serving(world, engine):
            await eventually(lambda: engine.statistics().restarts >= 2)
            told = engine.cluster_status()["last_error"]
            assert told == "llama-server exited with status 1: the file is no GGUF model"
            assert engine.models() == ()


async def test_what_can_never_be_is_told_at_the_start(tmp_path: Path) -> None:
    class Nowhere:
        """No network."""

        async def open_stream(self, peer: NodeId) -> Stream:
            raise NotConnected(peer)

    engine = engine_on(str(tmp_path / "llama-server"), FIRST)
    with pytest.raises(EngineUnavailable, match="through a node that runs"):
        await engine.run(Recorder().report)
    engine.use_network(Nowhere())
    with pytest.raises(EngineUnavailable, match=r"is no program: build llama\.cpp with -DGGML_RPC=ON"):
        await engine.run(Recorder().report)


async def test_a_model_that_is_not_the_one_that_was_fetched_is_told_before_anything_is_started(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"other weights")
    engine = ClusterEngine(ClusterConfig((FIRST,), MODEL, path, fingerprint=bytes(32)))
    async with machines() as world:
        engine.use_network(await world.network())
        with pytest.raises(EngineUnavailable, match="is corrupt"):
            await engine.run(Recorder().report)


def test_the_command_line_has_everything_but_the_key(tmp_path: Path) -> None:
    config = ClusterConfig(
        (FIRST, SECOND), MODEL, Path("/models/m.gguf"), split=(3, 1), slots=2, context_tokens=1000, threads=3
    )
    words = command(config, Path("/bin/llama-server"), "127.0.0.1:7,127.0.0.1:8", tmp_path / "key")
    line = " ".join(words)
    assert words[0] == "/bin/llama-server"
    for part in (
        "--rpc 127.0.0.1:7,127.0.0.1:8 -ngl 99 --cache-ram 0",
        "--host 127.0.0.1 --port 0 --api-key-file",
        "--parallel 2 --ctx-size 2000 --tensor-split 3,1 --threads 3",
        f"--model /models/m.gguf --alias {MODEL}",
    ):
        assert part in line
    assert "--api-key " not in line
    assert HEAD.hex() not in line


async def test_a_disk_that_is_full_for_a_while_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = programs(tmp_path)
    make, tries = tempfile.mkdtemp, count()

    def full_once_for_each(prefix: str) -> str:
        # The worker is the first to need a folder, and the head comes once the worker has one.
        if prefix.startswith("infernet-cluster") and next(tries) in (0, 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(prefix=prefix)

    monkeypatch.setattr(tempfile, "mkdtemp", full_once_for_each)
    engine = engine_on(server, FIRST)
    async with machines() as world:
        await world.lend(FIRST, server)
        async with serving(world, engine):
            await ready(engine)
            assert "no space left on device" in engine.cluster_status()["last_error"]
            assert next(tries) == 4
