"""A process is killed in the middle of a job: everyone else hears, soon, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from protocol import constants as c
from protocol.effects import JobDone, JobFailed, JobResumed, JobText
from protocol.errors import Refusal
from tests.helpers_cli import Home
from tests.helpers_end_to_end import (
    JOB_S,
    LONG,
    LONG_TOKENS,
    NOTICED_S,
    NodeProcess,
    answer,
    answer_of,
    asker,
    chat,
    first_text,
    provider,
    until,
)
from tests.helpers_market import Coordinator
from tests.helpers_processes import is_running

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]

# The node looks for a lost coordinator after a second or less, and then at most twice as long after each failure.
RELINKED_S = 20.0


async def test_the_asker_hears_that_its_provider_was_killed(starter_model_path: Path) -> None:
    with provider(starter_model_path) as doomed:
        engine_pid = doomed.engine_pid()
        async with asker(doomed.address) as node, node.ask(chat(LONG, LONG_TOKENS)) as events:
            await first_text(events)
            doomed.kill()
            # Somebody else may turn up, so a search comes before the bad news.
            with trio.fail_after(c.SEARCH_DEADLINE_S + NOTICED_S):
                rest = [event async for event in events]

            assert isinstance(rest[-1], JobFailed)
            assert rest[-1].code is Refusal.PEER_LOST
            await until(lambda: not is_running(engine_pid), "the engine ends with its node", NOTICED_S)
            with trio.fail_after(NOTICED_S):
                await node.driver.wait_for(lambda: node.driver.open_streams == 0)


async def test_a_provider_frees_the_slot_of_an_asker_that_was_killed(
    shared_provider: NodeProcess, empty_home: Home
) -> None:
    words = ("chat", "--peer", shared_provider.address, "--max-tokens", str(LONG_TOKENS), "--temperature", "0", LONG)
    process = await trio.lowlevel.open_process(
        empty_home.command(*words), env=empty_home.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    async with process.stdout:
        with trio.fail_after(JOB_S):
            assert await process.stdout.receive_some(), "the answer has begun"
        assert shared_provider.status()["jobs_running"] == 1

        process.kill()

        await process.wait()
    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)
    assert "Paris" in await answer_of(shared_provider)


async def test_an_answer_goes_on_where_it_was_when_the_engine_is_killed(shared_provider: NodeProcess) -> None:
    engine_pid, restarts = shared_provider.engine_pid(), shared_provider.status()["engine"]["restarts"]
    async with asker(shared_provider.address) as node:
        async with node.ask(chat(LONG, 60)) as events:
            await first_text(events)
            os.kill(engine_pid, signal.SIGKILL)
            with trio.fail_after(JOB_S):
                rest = [event async for event in events]

        done = rest[-1]
        assert isinstance(done, JobDone), done
        # There is no other provider. When nobody else turned up the engine was back.
        assert [(part.provider, part.attempt) for part in done.served] == [(done.receipt.provider, n) for n in (1, 2)]
        assert sum(isinstance(event, JobResumed) for event in rest) == 1
        assert shared_provider.process.poll() is None, "the node is up"
        await until(lambda: bool(shared_provider.status()["models"]), "the engine is back", JOB_S)
        assert shared_provider.status()["engine"]["restarts"] == restarts + 1
        assert "Paris" in await answer(node)
    await until(shared_provider.is_idle, "the provider is idle", NOTICED_S)


@pytest.mark.nightly
async def test_a_stream_between_peers_outlives_the_coordinator(starter_model_path: Path, tmp_path: Path) -> None:
    coordinator = await trio.to_thread.run_sync(Coordinator, tmp_path)
    try:
        init = ("--url", coordinator.url)
        with provider(starter_model_path, init=init) as linked:
            await until(lambda: bool(coordinator.models()), "the node is linked", JOB_S)
            async with asker(linked.address) as node:
                async with node.ask(chat(LONG, 150)) as events:
                    await first_text(events)
                    coordinator.kill()
                    with trio.fail_after(JOB_S):
                        rest = [event async for event in events]

                assert isinstance(rest[-1], JobDone)
                assert rest[-1].receipt.output_tokens > 50
                assert sum(isinstance(event, JobText) for event in rest) > 10, "it went on after the kill"
                assert "Paris" in await answer(node)

            assert linked.status()["coordinator"]["state"] != "connected"
            await trio.to_thread.run_sync(coordinator.start)
            await until(lambda: linked.status()["coordinator"]["state"] == "connected", "the link is back", RELINKED_S)
            await until(lambda: bool(coordinator.models()), "the coordinator lists the node again", NOTICED_S)
    finally:
        coordinator.close()
