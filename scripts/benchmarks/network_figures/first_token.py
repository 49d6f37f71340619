"""Time to the first token for one asker, 16 and 64 at the same moment, each a node of its own with one question.

Beside it stands the same engine, at the same pace, asked within one process: what is left is the network.
"""

from __future__ import annotations

import itertools
from typing import Final

import trio
from _figures import Figure, Options, quantile

from _dev_network_nodes import NodeProcess, Plan
from protocol.effects import RunEngine
from protocol.events import EngineText
from protocol.ids import RunId
from protocol.jobs import default_sampling
from protocol.records import ChatMessage, JobRequest, Kind
from tests.helpers_cluster import loopback_cluster
from tests.helpers_engine import PacedEngine, Recorder

NEEDS_ROOT: Final = False
COUNTS: Final = (1, 16, 64)
TOKENS_PER_S: Final = 20.0
TOKENS: Final = 20
PACE: Final = ("--tokens-per-s", str(TOKENS_PER_S), "--engine-slots", "64", "--answer-tokens", str(TOKENS))


async def measure(options: Options) -> list[Figure]:
    """Ask together, several times; medians and the slowest twentieth."""
    counts = COUNTS[:2] if options.quick else COUNTS
    rounds = 1 if options.quick else 5
    plans = [Plan("n1", "provider", ("paced",)), *(Plan(f"n{2 + index}") for index in range(max(counts)))]
    figures = []
    async with loopback_cluster(plans, PACE) as cluster:
        await cluster.start_all()
        await cluster.until_full("start", 120)
        askers = [node for node in cluster.running if node.name != "n1"]
        await _first_tokens(askers[: max(counts)])
        for count in counts:
            asked, alone = [], []
            for _ in range(rounds):
                asked += await _first_tokens(askers[:count])
                alone += await _engine_alone(count)
            for name, share in (("median", 0.5), ("p95", 0.95)):
                figures.append(
                    Figure(
                        f"first token, {count} at once, {name}",
                        quantile(asked, share) * 1000,
                        "ms",
                        f"the engine asked directly by {count}",
                        quantile(alone, share) * 1000,
                    )
                )
    return figures


async def _first_tokens(askers: list[NodeProcess]) -> list[float]:
    """All ask at once; seconds from the question to the first text."""
    times: list[float] = []

    async def ask(node: NodeProcess) -> None:
        answer = await node.ask("paced", max_tokens=TOKENS)
        assert answer.is_whole, answer.reason
        times.append(answer.first_text_s)

    async with trio.open_nursery() as nursery:
        for node in askers:
            nursery.start_soon(ask, node)
    return times


async def _engine_alone(count: int) -> list[float]:
    """The engine in this process, asked by so many at once."""
    engine, recorder = PacedEngine("paced", tokens_per_s=TOKENS_PER_S, slots=64, answer_tokens=TOKENS), Recorder()
    firsts: dict[int, float] = {}
    numbers = itertools.count(1)

    def report(event: object) -> None:
        if isinstance(event, EngineText):
            firsts.setdefault(event.run, trio.current_time())
        recorder.report(event)  # type: ignore[arg-type]  # what an engine reports is what a recorder takes

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run, report)
        started_s = trio.current_time()
        request = JobRequest(messages=(ChatMessage("user", "why"),))
        for _ in range(count):
            run = RunId(next(numbers))
            engine.start(RunEngine(run, Kind.CHAT, "paced", request, default_sampling(1), 2048, TOKENS))
        await recorder.until(lambda: len(firsts) == count)
        nursery.cancel_scope.cancel()
    return [first_s - started_s for first_s in firsts.values()]
