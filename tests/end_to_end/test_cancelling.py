"""A job that its user cancels leaves the engine idle soon, wherever it was: over the real path, with the real engine.

A cancel takes effect between two batches. While the answer is written a batch is one token; while the prompt is read it
is as many as the engine takes at once, and one more of those may pass. How long it took is printed (`pytest -s`), with
and without the time in which the processes were ready to run and the machine did something else.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from rich.console import Console

from infernet.answers import AskOptions
from infernet.node import Node
from protocol.effects import JobAccepted, JobText
from protocol.records import ChatMessage
from tests.helpers_end_to_end import JOB_S, NodeProcess, asker

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]

IDLE_S_MAX = 1.0
# Read for several seconds on one thread, and still within the context of a slot.
LONG_WORDS = 900
# How often the provider is looked at: this much of what is measured is the looking.
LOOK_S = 0.01


@dataclass(frozen=True)
class Idle:
    """How long until the engine was idle, and how long of that some thread of the provider waited for a core."""

    after_s: float
    waited_s: float

    @property
    def own_s(self) -> float:
        return max(0.0, self.after_s - self.waited_s)


def waited_s(provider: NodeProcess) -> float:
    """How long the threads of a provider and its engine have waited for a core so far (Linux, schedstat)."""
    total_ns = 0
    for pid in (provider.process.pid, provider.engine_pid()):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total_ns += int((thread / "schedstat").read_text().split()[1])
    return total_ns / 1e9


@dataclass
class Trials:
    """What was measured, in seconds from the cancel until the engine had no run."""

    decoding: list[Idle] = field(default_factory=list)
    prefilling: list[Idle] = field(default_factory=list)
    batch_s: float = 0.0

    def show(self) -> None:
        for name, idles in (("writing", self.decoding), ("reading", self.prefilling)):
            for kind, values in (("", [idle.after_s for idle in idles]), ("own time ", [idle.own_s for idle in idles])):
                ordered = sorted(values)
                median_s, p99_s = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
                text = (
                    f"{len(ordered)} cancelled while {name}, {kind}median {median_s:.2f} s, p99 {p99_s:.2f} s, worst "
                )
                Console(width=120).print(f"{text}{ordered[-1]:.2f} s (one batch of a prompt: {self.batch_s:.2f} s)")


def question(rng: random.Random, words: int) -> AskOptions:
    """Never twice the same, so that nothing can be remembered."""
    text = " ".join(rng.choice(("dragon", "knight", "castle", "river", "forest", "sword")) for _ in range(words))
    return AskOptions(messages=(ChatMessage("user", text),), max_tokens=600, temperature=0.0, seed=1)


async def until_idle(provider: NodeProcess) -> Idle:
    """How long until the provider's engine has no run."""
    began_s, waited_before_s = time.monotonic(), waited_s(provider)

    def wait() -> None:
        while provider.status()["engine"]["runs_active"]:
            time.sleep(LOOK_S)

    with trio.fail_after(JOB_S):
        await trio.to_thread.run_sync(wait, abandon_on_cancel=True)
    return Idle(time.monotonic() - began_s, waited_s(provider) - waited_before_s)


async def cancel_while_writing(node: Node, provider: NodeProcess, rng: random.Random) -> Idle:
    tokens = rng.randint(1, 12)
    with trio.fail_after(JOB_S):
        async with node.ask(question(rng, 4)) as events:
            async for event in events:
                if isinstance(event, JobText) and event.output_tokens >= tokens:
                    break
    return await until_idle(provider)


async def cancel_while_reading(node: Node, provider: NodeProcess, rng: random.Random) -> Idle:
    with trio.fail_after(JOB_S):
        async with node.ask(question(rng, LONG_WORDS)) as events:
            async for event in events:
                assert not isinstance(event, JobText), "the prompt was read too fast for this test"
                if isinstance(event, JobAccepted):
                    break
            await trio.sleep(rng.uniform(0.0, 1.0))
    return await until_idle(provider)


async def batch_of(node: Node, provider: NodeProcess, rng: random.Random) -> float:
    """How long one batch of a prompt takes here, by the first token of a prompt of several."""
    words, batch = 200, 16
    async with node.ask(question(rng, words)) as events:
        async for event in events:
            if isinstance(event, JobAccepted):
                accepted_s, tokens = trio.current_time(), event.prompt_tokens
            if isinstance(event, JobText):
                took_s = trio.current_time() - accepted_s
                break
    await until_idle(provider)
    return took_s / (tokens / batch)


async def cancelled(provider: NodeProcess, count: int) -> Trials:
    trials, rng = Trials(), random.Random(7)
    async with asker(provider.address) as node:
        trials.batch_s = await batch_of(node, provider, rng)
        for number in range(count):
            if number % 5:
                trials.decoding.append(await cancel_while_writing(node, provider, rng))
            else:
                trials.prefilling.append(await cancel_while_reading(node, provider, rng))
        with trio.fail_after(JOB_S):
            await node.driver.wait_for(lambda: node.driver.peer.statistics().jobs_asked == 0)
    assert provider.status()["engine"]["slots_leaked"] == 0
    trials.show()
    return trials


def assert_soon(trials: Trials) -> None:
    assert max(idle.own_s for idle in trials.decoding) <= IDLE_S_MAX
    assert max(idle.own_s for idle in trials.prefilling) <= IDLE_S_MAX + trials.batch_s


async def test_cancelled_jobs_leave_the_engine_idle_within_a_second(shared_provider: NodeProcess) -> None:
    assert_soon(await cancelled(shared_provider, 30))


@pytest.mark.nightly
async def test_a_thousand_cancelled_jobs_leave_the_engine_idle_within_a_second(shared_provider: NodeProcess) -> None:
    assert_soon(await cancelled(shared_provider, 1000))
