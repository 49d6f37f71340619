"""A job that its user cancels leaves the engine idle soon, wherever it was: over the real path, with the real engine.

A cancel takes effect between two batches. While the answer is written a batch is one token; while the prompt is read it
is as many as the engine takes at once, and one more of those may pass. How long it took is printed (`pytest -s`).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import pytest
import trio
from rich.console import Console

from infernet.node import AskOptions, Node
from protocol.events import JobAccepted, JobText
from protocol.records import ChatMessage
from tests.helpers_end_to_end import JOB_S, NodeProcess, asker

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]

IDLE_S_MAX = 1.0
# Read for several seconds on one thread, and still within the context of a slot.
LONG_WORDS = 900
# The batches of half of such a prompt.
HALF_A_PROMPT = 30
# How often the provider is looked at: this much of what is measured is the looking.
LOOK_S = 0.01


@dataclass
class Trials:
    """What was measured, in seconds from the cancel until the engine had no run."""

    decoding_s: list[float] = field(default_factory=list)
    prefilling_s: list[float] = field(default_factory=list)
    batch_s: float = 0.0

    def show(self) -> None:
        for name, values in (("writing", self.decoding_s), ("reading", self.prefilling_s)):
            ordered = sorted(values)
            median_s, p99_s = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            text = f"{len(ordered)} cancelled while {name}: median {median_s:.2f} s, p99 {p99_s:.2f} s, "
            Console(width=120).print(f"{text}worst {ordered[-1]:.2f} s (one batch of a prompt: {self.batch_s:.2f} s)")


def question(rng: random.Random, words: int) -> AskOptions:
    """Never twice the same, so that nothing can be remembered."""
    text = " ".join(rng.choice(("dragon", "knight", "castle", "river", "forest", "sword")) for _ in range(words))
    return AskOptions(messages=(ChatMessage("user", text),), max_tokens=600, temperature=0.0, seed=1)


async def until_idle(provider: NodeProcess) -> float:
    """How long until the provider's engine has no run."""
    began_s = time.monotonic()

    def wait() -> None:
        while provider.status()["engine"]["runs_active"]:
            time.sleep(LOOK_S)

    with trio.fail_after(JOB_S):
        await trio.to_thread.run_sync(wait, abandon_on_cancel=True)
    return time.monotonic() - began_s


async def cancel_while_writing(node: Node, provider: NodeProcess, rng: random.Random) -> float:
    tokens = rng.randint(1, 12)
    with trio.fail_after(JOB_S):
        async with node.ask(question(rng, 4)) as events:
            async for event in events:
                if isinstance(event, JobText) and event.output_tokens >= tokens:
                    break
    return await until_idle(provider)


async def cancel_while_reading(node: Node, provider: NodeProcess, rng: random.Random) -> float:
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
                trials.decoding_s.append(await cancel_while_writing(node, provider, rng))
            else:
                trials.prefilling_s.append(await cancel_while_reading(node, provider, rng))
        with trio.fail_after(JOB_S):
            await node.driver.wait_for(lambda: node.driver.peer.statistics().jobs_asked == 0)
    assert provider.status()["engine"]["slots_leaked"] == 0
    trials.show()
    return trials


async def test_cancelled_jobs_leave_the_engine_idle_soon(shared_provider: NodeProcess) -> None:
    """Nine of ten within a second, so that a machine which does something else for a moment is no failure."""
    trials = await cancelled(shared_provider, 50)
    assert sorted(trials.decoding_s)[35] <= IDLE_S_MAX
    assert sorted(trials.prefilling_s)[8] <= IDLE_S_MAX + trials.batch_s
    assert max(trials.prefilling_s) < HALF_A_PROMPT * trials.batch_s, "the rest of the prompt was not read"


@pytest.mark.nightly
async def test_a_thousand_cancelled_jobs_leave_the_engine_idle_within_a_second(shared_provider: NodeProcess) -> None:
    """For a machine that does nothing else."""
    trials = await cancelled(shared_provider, 1000)
    assert max(trials.decoding_s) <= IDLE_S_MAX
    assert max(trials.prefilling_s) <= IDLE_S_MAX + trials.batch_s
