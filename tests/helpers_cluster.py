"""Networks of real processes for tests: started from one bootstrap address, asked, cut apart, healed, and looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio
from rich.console import Console
from rich.table import Table

from _dev_network_faults import CUT, Faults, Weather
from _dev_network_namespaces import Internet
from _dev_network_nodes import (
    NodeProcess,
    Nodes,
    Plan,
    add_at,
    add_on_loopback,
    nodes,
    serve_proxy,
)
from _dev_network_view import Asked, Watch, ask_everything

LOOK_INTERVAL_S = 0.25


def plans(count: int, providers: int, models: Sequence[str], aggregators: int = 1) -> list[Plan]:
    """Nodes called n1, n2 ...: first the providers, who share the models out, then aggregators, then askers."""
    made = []
    for index in range(count):
        name = f"n{index + 1}"
        if index < providers:
            made.append(Plan(name, "provider", (models[index % len(models)],)))
        else:
            made.append(Plan(name, "aggregator" if index < providers + aggregators else "client"))
    return made


class Cluster:
    """A network whose nodes run, and what a test does to it."""

    def __init__(self, network: Nodes, weather: Weather) -> None:
        self.network = network
        self.weather = weather
        self.watch = Watch(network)
        #: What was measured, in the order in which it was: (what, how many nodes, seconds of the median, of the last).
        self.figures: list[tuple[str, int, float, float]] = []

    def __getitem__(self, name: str) -> NodeProcess:
        return self.network[name]

    @property
    def running(self) -> list[NodeProcess]:
        """The nodes that run."""
        return [node for node in self.network.all.values() if node.is_running]

    async def start_all(self) -> None:
        """The first node, then all others at once."""
        first, *others = self.network.all.values()
        await self.network.start(first)
        self.begin()
        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(self.network.start, node)

    def begin(self) -> None:
        """What is measured counts from now on."""
        self.watch.forget()

    async def until_full(self, what: str, within_s: float) -> None:
        """Wait until every node can reach every provider as far as it knows; note how long that took since `begin`."""
        with trio.move_on_after(within_s) as scope:
            while True:
                await self.watch.look()
                if self.watch.is_full:
                    break
                await trio.sleep(LOOK_INTERVAL_S)
        times = self.watch.full_after_s()
        if scope.cancelled_caught:
            lacking = [node.name for node in self.running if self.watch.seen[node.name].full_after_s is None]
            raise AssertionError(f"{what}: not within {within_s:g} s: {', '.join(lacking)} lack a provider")
        self.figures.append((what, len(times), times[len(times) // 2], times[-1]))

    async def until_everything_is_answered(self, what: str, within_s: float, group: Iterable[str] = ()) -> None:
        """Let every node ask every model that another one serves, again and again until all at once are answered."""
        names = set(group) or set(self.network.all)
        asking = [node for node in self.running if node.name in names]
        models = sorted({model for node in asking for model in node.plan.models})
        failed: list[Asked] = []
        with trio.move_on_after(within_s):
            while True:
                asked = await ask_everything(asking, models)
                failed = [each for each in asked if not each.answer.is_whole]
                if not failed:
                    first_s = sorted(each.answer.first_text_s for each in asked)
                    self.figures.append((f"{what}: first word", len(asked), first_s[len(asked) // 2], first_s[-1]))
                    took_s = trio.current_time() - self.watch.started_s
                    self.figures.append((f"{what}: all answered", len(asked), took_s, took_s))
                    return
        reasons = [f"{each.node} asks {each.model}: {each.answer.code} ({each.answer.reason})" for each in failed]
        raise AssertionError(
            f"{what}: not all answered within {within_s:g} s: {'; '.join(reasons) or 'no round ended'}"
        )

    async def until_apart(self, ones: Iterable[str], others: Iterable[str], within_s: float) -> None:
        """Wait until none of these is connected to any of those."""
        ones = list(ones)
        strangers = {self[name].node.hex() for name in others}
        with trio.fail_after(within_s):
            while True:
                peers = [peer for name in ones for peer in await self[name].known()]
                if not any(peer["connected"] and peer["node_id"] in strangers for peer in peers):
                    return
                await trio.sleep(LOOK_INTERVAL_S)

    async def kill(self, name: str) -> None:
        """Kill a node; what is measured counts from now on."""
        await self.network.kill(self[name])
        self.begin()

    def heal(self) -> None:
        """Fair weather; what is measured counts from now on."""
        self.weather.clear()
        self.begin()

    def partition(self, groups: Sequence[Sequence[str]], faults: Faults = CUT) -> None:
        """Let nothing through between groups."""
        self.weather.partition(groups, faults)

    def table(self, title: str) -> Table:
        """What was measured."""
        table = Table(title=title)
        table.add_column("what")
        for column in ("nodes or questions", "median s", "last s"):
            table.add_column(column, justify="right")
        for what, count, median_s, last_s in self.figures:
            table.add_row(what, str(count), f"{median_s:.2f}", f"{last_s:.2f}")
        return table

    def show(self, title: str) -> None:
        """Print what was measured."""
        Console(width=120).print(self.table(title))


@asynccontextmanager
async def loopback_cluster(
    planned: Sequence[Plan], words: Sequence[str] = (), *, with_faults: bool = False
) -> AsyncIterator[Cluster]:
    """Nodes on loopback, all told of the first one only; none of them runs yet. Faults need root."""
    weather = Weather()
    async with trio.open_nursery() as nursery, nodes() as network:
        bootstrap: str | None = None
        for number, plan in enumerate(planned, start=1):
            peers = () if bootstrap is None else ("--peers", bootstrap)
            node = add_on_loopback(network, plan, number, *peers, *words, behind_proxy=with_faults)
            if with_faults and node.address is not None:
                await serve_proxy(network, weather, node, nursery)
            bootstrap = bootstrap or node.address
        yield Cluster(network, weather)
        await network.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def namespace_cluster(
    planned: Sequence[Plan], routers: Sequence[Sequence[str]], words: Sequence[str] = ()
) -> AsyncIterator[tuple[Cluster, Internet]]:
    """Nodes in network namespaces, those named in `routers` behind one router each list. Needs root."""
    behind = {name: f"router {index}" for index, names in enumerate(routers) for name in names}
    with Internet() as internet:
        for router in dict.fromkeys(behind.values()):
            internet.nat(router)
        async with nodes() as network:
            bootstrap: str | None = None
            for plan in planned:
                peers = () if bootstrap is None else ("--peers", bootstrap)
                if plan.name in behind:
                    place = internet.behind(behind[plan.name], plan.name)
                else:
                    place = internet.public(plan.name)
                node = add_at(network, plan, place, *peers, *words, is_public=plan.name not in behind)
                bootstrap = bootstrap or node.address
            yield Cluster(network, Weather()), internet
