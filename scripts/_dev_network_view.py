"""What a network looks like from outside: everything asked of the nodes themselves, as a table or as lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from _dev_network_nodes import Answer, NodeProcess, Nodes


@dataclass
class Seen:
    """What one node said of itself last."""

    is_up: bool = False
    peers: int = 0
    records: int = 0
    jobs: int = 0
    #: The ids of those that it is connected to, or has an address of.
    reachable: frozenset[str] = frozenset()
    #: Seconds after the start of the network until those were all providers; None as long as they are not.
    full_after_s: float | None = None
    memory_bytes: int = 0
    cpu_s: float = 0.0


@dataclass
class Watch:
    """Looks at all nodes again and again."""

    network: Nodes
    started_s: float = field(default_factory=trio.current_time)
    seen: dict[str, Seen] = field(default_factory=dict)

    @property
    def providers(self) -> frozenset[str]:
        """The ids of all that run and serve something."""
        nodes = self.network.all.values()
        return frozenset(node.node.hex() for node in nodes if node.plan.role == "provider" and node.is_running)

    async def look(self) -> None:
        """Ask every node once, all at the same time."""
        async with trio.open_nursery() as nursery:
            for node in self.network.all.values():
                nursery.start_soon(self._look_at, node)

    async def _look_at(self, node: NodeProcess) -> None:
        seen = self.seen.setdefault(node.name, Seen())
        try:
            status, known = await node.status(), await node.known()
        except OSError:
            seen.is_up = False
            return
        seen.is_up = True
        seen.peers, seen.records, seen.jobs = status["peers"], status["records"], status["jobs_running"]
        seen.reachable = frozenset(peer["node_id"] for peer in known if peer["connected"] or peer["addresses"])
        seen.memory_bytes, seen.cpu_s = node.memory_bytes(), node.cpu_s()
        others = self.providers - {node.node.hex()}
        if seen.full_after_s is None and others <= seen.reachable:
            seen.full_after_s = trio.current_time() - self.started_s

    @property
    def is_full(self) -> bool:
        """Whether every node that runs can reach every provider that runs, as far as it knows."""
        running = [node for node in self.network.all.values() if node.is_running]
        return all(self.seen[node.name].full_after_s is not None for node in running if node.name in self.seen)

    def forget(self) -> None:
        """Measure the time to the full view anew, from now on."""
        self.started_s = trio.current_time()
        for seen in self.seen.values():
            seen.full_after_s = None

    def full_after_s(self) -> list[float]:
        """When each running node had the full view, in order."""
        running = [self.seen[node.name] for node in self.network.all.values() if node.is_running]
        return sorted(seen.full_after_s for seen in running if seen.full_after_s is not None)


def view_table(watch: Watch) -> Table:
    """The network as a table; `reach` counts the providers that a node knows how to reach, `all s` says since when."""
    title = f"{len(watch.network.all)} nodes, {trio.current_time() - watch.started_s:.0f} s"
    table = _table(title, ("node", "role", "where", "serves"), ("peers", "reach", "all s", "jobs", "MB", "CPU s"))
    wanted = watch.providers
    for node in watch.network.all.values():
        seen = watch.seen.get(node.name, Seen())
        others = wanted - {node.node.hex()}
        table.add_row(
            node.name,
            node.plan.role,
            _where(node) if seen.is_up else "starts" if node.is_running else "gone",
            " ".join(node.plan.models),
            str(seen.peers),
            f"{len(others & seen.reachable)}/{len(others)}",
            "" if seen.full_after_s is None else f"{seen.full_after_s:.1f}",
            str(seen.jobs),
            f"{seen.memory_bytes / 1e6:.0f}",
            f"{seen.cpu_s:.1f}",
        )
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table that fits a narrow terminal."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for word in words:
        table.add_column(word, overflow="ellipsis", no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _where(node: NodeProcess) -> str:
    if node.address is not None:
        return node.address.split("/")[2]
    return "dials only" if node.place is None else f"({node.place.host})"


# ---------------------------------------------------------------- everybody asks for everything


@dataclass(frozen=True)
class Asked:
    """One question of the check."""

    node: str
    model: str
    answer: Answer


async def ask_everything(nodes: Iterable[NodeProcess], models: Sequence[str], at_once: int = 8) -> list[Asked]:
    """Let every node ask every model that another one serves."""
    asked: list[Asked] = []
    places = trio.CapacityLimiter(at_once)

    async def ask(node: NodeProcess, model: str) -> None:
        async with places:
            asked.append(Asked(node.name, model, await node.ask(model)))

    nodes = list(nodes)
    async with trio.open_nursery() as nursery:
        for node in nodes:
            for model in models:
                # A node never sends a job to itself.
                if any(model in other.plan.models for other in nodes if other is not node):
                    nursery.start_soon(ask, node, model)
    return sorted(asked, key=lambda each: (each.node, each.model))


def asked_table(asked: Sequence[Asked]) -> Table:
    """Who got what: seconds to the first word, or why there was none."""
    models = sorted({each.model for each in asked})
    table = _table("Every node asks every model. Seconds to the first word, or what went wrong:", ["node"], models)
    cells = {(each.node, each.model): each.answer for each in asked}
    for name in dict.fromkeys(each.node for each in asked):
        row = [_cell(cells.get((name, model))) for model in models]
        table.add_row(name, *row)
    return table


def _cell(answer: Answer | None) -> str:
    if answer is None:
        return ""
    return f"{answer.first_text_s:.2f}" if answer.is_whole else answer.code


# ---------------------------------------------------------------- telling


class Teller:
    """Says what happens: a line each for people, or an object each for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(file=sys.stdout, highlight=False)

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Something happened."""
        if self.as_json:
            sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
            sys.stdout.flush()
        else:
            # Whole lines: an address or a folder that is cut in two cannot be copied. And no markup: all of it is text.
            self.console.print(text, soft_wrap=True, markup=False)

    def show(self, table: Table) -> None:
        """A table, for people only."""
        if not self.as_json:
            self.console.print(table)
