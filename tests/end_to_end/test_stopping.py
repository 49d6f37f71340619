"""A node that is stopped loses no job: those that run are finished, or go on elsewhere when that takes too long."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from infernet.ipc import client as ipc
from tests.helpers_cli import Home
from tests.helpers_cluster import Cluster, loopback_cluster, plans
from tests.helpers_end_to_end import until
from tests.helpers_engine import WORDS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MODEL = "model-a"
PROVIDERS, ASKER = ("n1", "n2"), "n3"
# Two seconds and a half of answer.
TOKENS = 50
PACE = ("--tokens-per-s", "20", "--answer-tokens", "100000")
WHOLE = "".join(WORDS[index % len(WORDS)] for index in range(TOKENS))
SOON_S = 10.0


class Question:
    """A question under way, and who answers it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.text = ""
        self.provider = ""

    async def ask(self) -> None:
        answer = await self._cluster[ASKER].ask(MODEL, max_tokens=TOKENS, timeout_s=60)
        assert answer.is_whole, answer.reason
        self.text = answer.text

    async def until_it_runs(self) -> None:
        """Wait until somebody works on it."""
        await until(self._runs, "the answer has begun", SOON_S)

    def _runs(self) -> bool:
        self.provider = next((name for name in PROVIDERS if jobs_running(self._cluster, name)), "")
        return bool(self.provider)


@asynccontextmanager
async def under_way() -> AsyncIterator[tuple[Cluster, Question]]:
    """A question in the middle of its answer; when the block ends, the answer is waited for and must be right."""
    async with loopback_cluster(plans(3, 2, (MODEL,), aggregators=0), PACE) as cluster:
        await cluster.start_all()
        await cluster.until_full("before the question", 30)
        question = Question(cluster)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(question.ask)
            await question.until_it_runs()
            yield cluster, question
        assert question.text == WHOLE


def jobs_running(cluster: Cluster, name: str) -> int:
    status = ipc.call(Home(cluster[name].home).config.socket_path, "status")
    return int(status["jobs_running"])


async def until_gone(cluster: Cluster, name: str) -> None:
    await until(lambda: not cluster[name].is_running, f"{name} has ended", SOON_S)


async def test_stop_waits_for_the_job_that_runs() -> None:
    async with under_way() as (cluster, question):
        home = Home(cluster[question.provider].home)
        outcome = await trio.to_thread.run_sync(home.run, "stop")
        assert outcome.code == 0, outcome.err
        assert outcome.err.startswith("waiting for 1 job to end (")
        await until_gone(cluster, question.provider)
        log = cluster[question.provider].log.read_text()
        assert "node.drained" in log
        assert "node.not_drained" not in log


async def test_stop_now_waits_for_nothing_and_the_answer_goes_on_elsewhere() -> None:
    async with under_way() as (cluster, question):
        home = Home(cluster[question.provider].home)
        outcome = await trio.to_thread.run_sync(home.run, "stop", "--now", "--json")
        assert outcome.json["how"] == "asked"
        assert question.text == "", "the answer was not waited for"


async def test_a_limit_that_is_too_short_cuts_the_job_and_the_answer_goes_on_elsewhere() -> None:
    async with under_way() as (cluster, question):
        home = Home(cluster[question.provider].home)
        outcome = await trio.to_thread.run_sync(home.run, "stop", "--wait", "0.5")
        assert outcome.code == 0, outcome.err
        assert question.text == "", "the answer was not waited for"
        assert "node.not_drained" in cluster[question.provider].log.read_text()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_waits_and_the_second_does_not(first: signal.Signals) -> None:
    async with under_way() as (cluster, question):
        node = cluster[question.provider]
        node.send_signal(first)
        await until(lambda: "node.draining" in node.log.read_text(), "it has heard", SOON_S)
        assert jobs_running(cluster, question.provider) == 1
        node.send_signal(signal.SIGTERM)
        await until_gone(cluster, question.provider)
        assert question.text == "", "the answer was not waited for"
