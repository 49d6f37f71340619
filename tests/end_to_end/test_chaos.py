"""Ten real processes under load while they are killed, cut apart, slowed down and set to the wrong time.

The short form runs always, the long one (`--nightly`, `--chaos-minutes`) for half an hour. Whatever happens, every job
ends, soon after the last fault at the latest; no answer is wrong; and nothing is left over in a node that lived through
it all. The faults of a seed are always the same, what they hit is not: the processes are real.
"""

from __future__ import annotations

import faulthandler
import random
from collections import Counter
from typing import Any

import pytest
import trio
from rich.console import Console
from rich.table import Table

from tests.helpers_chaos import Chaos
from tests.helpers_cluster import loopback_cluster, plans

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.namespaces]

MODELS = ("model-a", "model-b", "model-c")
ENDED_WITHIN_S = 30.0
QUIET_WITHIN_S = 60.0
# A provider, an aggregator and an asker live through everything: what they leak adds up.
SPARED = frozenset({"n6", "n7", "n10"})
# Per connection more or less than before there may be so many files and tasks more or less; and some in all, which are
# born and die at any moment.
FILES_PER_PEER, FILES_SLACK = 2, 6
TASKS_PER_PEER, TASKS_SLACK = 16, 20
SEED = 7
# An answer ends where the asker wants no more, so that its length says whether it is whole.
WITHOUT_END = ("--answer-tokens", "100000")


async def live_through(seconds: float, between_s: float, lull_s_max: float) -> None:
    """The whole: quiet, chaos, healing, quiet."""
    async with loopback_cluster(plans(10, 6, MODELS), WITHOUT_END, with_faults=True) as cluster:
        await cluster.start_all()
        await cluster.until_full("before", 30)
        await cluster.until_everything_is_answered("before", 30)
        chaos = Chaos(cluster, random.Random(SEED), SPARED, lull_s_max=lull_s_max)
        before = await quiet_insides(chaos)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chaos.load)
            await chaos.rage(seconds, between_s)
            await chaos.heal()
            chaos.stop_asking()
            last_s = await chaos.until_all_ended(ENDED_WITHIN_S)

        chaos.require_right_answers()
        await cluster.until_full("after", QUIET_WITHIN_S)
        await cluster.until_everything_is_answered("after", QUIET_WITHIN_S)
        after, leaks = await insides_without_leaks(chaos, before)
        report(chaos, last_s, before, after)
        chaos.require_quiet_logs()
        assert not leaks, leaks


async def quiet_insides(chaos: Chaos) -> dict[str, dict[str, Any]]:
    """What the nodes count of themselves when no job runs and none is open."""
    insides: dict[str, dict[str, Any]] = {}
    with trio.move_on_after(QUIET_WITHIN_S):
        while True:
            insides = {node.name: await node.insides() for node in chaos.cluster.running}
            if not any(inside["jobs"] for inside in insides.values()):
                return insides
            await trio.sleep(0.2)
    busy = {name: inside["jobs"] for name, inside in insides.items() if inside["jobs"]}
    raise AssertionError(f"jobs go on though nobody asks: {busy}")


async def insides_without_leaks(
    chaos: Chaos, before: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the nodes count once nothing is left over in those that were spared, and what is, if that stays.

    Those that just met ask each other this and that: what is there for a moment is no leak.
    """
    after = await quiet_insides(chaos)
    with trio.move_on_after(QUIET_WITHIN_S):
        while leaks := [leak for name in sorted(SPARED) for leak in leaks_of(name, before[name], after[name])]:
            await trio.sleep(0.5)
            after = await quiet_insides(chaos)
    return after, leaks


def leaks_of(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Files, tasks and streams are what the connections of the moment need; what is more, in words."""
    more_peers = max(0, after["peers"] - before["peers"])
    files = after["files"] - before["files"] - FILES_PER_PEER * more_peers
    tasks = sum(after["tasks"].values()) - sum(before["tasks"].values()) - TASKS_PER_PEER * more_peers
    grown = (Counter(after["tasks"]) - Counter(before["tasks"])).most_common(5)
    found = {
        f"{name} has {files} files too many: {before['files']} -> {after['files']}": files > FILES_SLACK,
        f"{name} has {tasks} tasks too many: {grown}": tasks > TASKS_SLACK,
        # One gossip stream each way, and a question now and then.
        f"{name} has {after['open_streams']} streams": after["open_streams"] > 4 * after["peers"] + 8,
        # ... and one for each relay's place, which the protocol does not see.
        f"{name} keeps {after['transport_streams']} streams": after["transport_streams"] > after["open_streams"] + 8,
        f"{name} minds {after['peer_streams']} streams": after["peer_streams"] > after["open_streams"] + 8,
    }
    return [text for text, is_found in found.items() if is_found]


def report(chaos: Chaos, last_s: float, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print what was done and what came of it."""
    table = Table(title=f"{sum(chaos.faults.values())} faults, {len(chaos.asked)} questions")
    for column in ("what", "how many"):
        table.add_column(column)
    for what, count in (*sorted(chaos.faults.items()), *chaos.outcomes().most_common(), *chaos.reasons()):
        table.add_row(what, str(count))
    table.add_row("last job ended after healing", f"{last_s:.1f} s")
    for name in sorted(SPARED):
        for thing in ("peers", "files", "threads", "open_streams", "transport_streams"):
            table.add_row(f"{name}: {thing}", f"{before[name][thing]} -> {after[name][thing]}")
        table.add_row(
            f"{name}: tasks", f"{sum(before[name]['tasks'].values())} -> {sum(after[name]['tasks'].values())}"
        )
    Console(width=120).print(table)


async def test_a_short_storm() -> None:
    await live_through(12, between_s=0.8, lull_s_max=5)


@pytest.mark.nightly
async def test_a_long_storm(request: pytest.FixtureRequest) -> None:
    # That it takes longer than any other test is no sign that it hangs.
    faulthandler.cancel_dump_traceback_later()
    seconds = 60 * request.config.getoption("--chaos-minutes")
    # Longer than the silence after which a connection is given up.
    await live_through(seconds, between_s=2.5, lull_s_max=40)
