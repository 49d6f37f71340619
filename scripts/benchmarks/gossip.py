"""What gossip costs a simulated peer, and how long it takes: the figures of specs/04.

Real peers on a simulated network: one-way latency 30 ms on average, everybody has heard of one node at the start. Bytes
are those of frames, without what TCP, Noise and yamux add. Processor time is that of the machine for one peer, the
simulator's own work included.

With `--room` a peer's directory holds so many records and not everybody's, as on a network of a million: then what is
counted is how many of the other providers of its models a provider knows.

With `--benchmark` providers are as fast as a real machine, and say so, which makes their records longer.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from infernet.engines.benchmark import read
from protocol.events import SetOffer
from protocol.ids import NodeId
from protocol.records import Availability
from protocol.sim import Scenario, Simulation, Speed, Topology
from protocol.sim.network import Network

# Peers start at this rate, which is a storm: a network of this size grows over days.
STARTS_PER_S = 33.0
STEP_S = 0.25
CALM_S = 60.0
# The last of a million pairs tells of chance.
NEARLY = 0.99
CHANGES = 5
# As many serve each model whatever the size of the network: more peers, more models.
PEERS_PER_MODEL = 100


@dataclass
class Row:
    """One size of network. Times in seconds, costs for one peer."""

    peers: int
    nearly_full_view_s: float
    full_view_s: float
    start_bytes: float
    idle_bytes: float
    bytes_per_minute: float
    messages_per_minute: float
    cpu_ms_per_minute: float
    neighbours: float
    most_neighbours: int
    news_median_s: float
    news_all_s: float
    change_bytes: float


@dataclass
class NarrowRow:
    """A network larger than a directory: costs of one peer, and what providers know of others with their models."""

    peers: int
    room: int
    idle_bytes: float
    bytes_per_minute: float
    cpu_ms_per_minute: float
    neighbours: float
    known_least: float
    known_mean: float


def speeds_in(path: Path) -> tuple[Speed, ...]:
    """The speeds of a machine, from the file that `infernet benchmark` keeps: one for each model that it measured."""
    benchmark = read(path)
    measured = [(speed.prompt_tokens_per_s, speed.tokens_per_s) for speed in benchmark.models] if benchmark else []
    speeds = tuple(Speed(reads, writes) for reads, writes in measured if reads and writes)
    if not speeds:
        raise SystemExit(f"{path} holds no speeds: it is the benchmark.json that `infernet benchmark` keeps")
    return speeds


def measure(peers: int, minutes: float, seed: int, speeds: tuple[Speed, ...]) -> Row:
    """Start a network, let it run, and change a few of its records."""
    start_s = peers / STARTS_PER_S
    scenario = Scenario(
        seed=seed,
        peers=peers,
        providers=max(1, peers // 5),
        models=10,
        topology=Topology.STAR,
        start_s=start_s,
        speeds=speeds,
    )
    simulation = Simulation(scenario, [])
    sent = simulation.network
    nearly_full_view_s = None
    while not simulation.has_converged():
        simulation.run(simulation.now_s + STEP_S)
        if nearly_full_view_s is None and _known_share(simulation) >= NEARLY:
            nearly_full_view_s = max(0.0, simulation.now_s - start_s)
    full_view_s = simulation.now_s - start_s
    start_bytes = sent.bytes_sent / peers
    # Young nodes still meet each other; then, before the first records are renewed, nothing happens at all.
    simulation.run(start_s + 4 * CALM_S)
    before = sent.bytes_sent
    simulation.run(simulation.now_s + CALM_S)
    idle_bytes = (sent.bytes_sent - before) / peers * 60 / CALM_S
    # All records are renewed once in ten minutes.
    before, messages, used_s = sent.bytes_sent, sent.messages_sent, time.process_time()
    simulation.run(simulation.now_s + minutes * 60)
    cpu_s, share = time.process_time() - used_s, 1 / peers / minutes
    per_minute, messages_per_minute = (sent.bytes_sent - before) * share, (sent.messages_sent - messages) * share
    statistics = [host.peer.statistics() for host in simulation.hosts if host.peer is not None]
    neighbours = [each.neighbours for each in statistics]
    medians, alls, costs = zip(*(_change(simulation, sent, number) for number in range(CHANGES)), strict=True)
    return Row(
        peers,
        nearly_full_view_s if nearly_full_view_s is not None else full_view_s,
        full_view_s,
        start_bytes,
        idle_bytes,
        per_minute,
        messages_per_minute,
        cpu_s * share * 1000,
        sum(neighbours) / peers,
        max(neighbours),
        sorted(medians)[CHANGES // 2],
        max(alls),
        sorted(costs)[CHANGES // 2],
    )


def _known_share(simulation: Simulation) -> float:
    """Of all pairs of peers, how many know the other one."""
    records = sum(host.peer.statistics().records for host in simulation.hosts if host.peer is not None)
    return records / len(simulation.hosts) ** 2


def measure_narrow(peers: int, room: int, minutes: float, seed: int, speeds: tuple[Speed, ...]) -> NarrowRow:
    """Start a network in which nobody has room for everybody, and let it run."""
    scenario = Scenario(
        seed=seed,
        peers=peers,
        providers=peers // 5,
        models=max(1, peers // PEERS_PER_MODEL),
        topology=Topology.STAR,
        start_s=peers / STARTS_PER_S,
        records_max=room,
        speeds=speeds,
    )
    simulation = Simulation(scenario, [])
    sent = simulation.network
    simulation.run(scenario.start_s + 4 * CALM_S)
    before = sent.bytes_sent
    simulation.run(simulation.now_s + CALM_S)
    idle_bytes = (sent.bytes_sent - before) / peers * 60 / CALM_S
    before, used_s = sent.bytes_sent, time.process_time()
    simulation.run(simulation.now_s + minutes * 60)
    share = 1 / peers / minutes
    neighbours = sum(host.peer.statistics().neighbours for host in simulation.hosts if host.peer is not None)
    known = _known_of_own_models(simulation)
    return NarrowRow(
        peers,
        room,
        idle_bytes,
        (sent.bytes_sent - before) * share,
        (time.process_time() - used_s) * share * 1000,
        neighbours / peers,
        min(known),
        sum(known) / len(known),
    )


def _known_of_own_models(simulation: Simulation) -> list[float]:
    """For each provider the share of the other providers of its models that it has a record of."""
    serving: defaultdict[str, set[NodeId]] = defaultdict(set)
    providers = [host for host in simulation.hosts if host.offer is not None and host.offer.models]
    for host in providers:
        assert host.offer is not None
        for model in host.offer.models:
            serving[model.name].add(host.node)
    shares = []
    for host in providers:
        assert host.offer is not None
        assert host.peer is not None
        others = set().union(*(serving[model.name] for model in host.offer.models)) - {host.node}
        held = sum(host.peer.directory.get(node) is not None for node in others)
        shares.append(held / len(others) if others else 1.0)
    return shares


def _change(simulation: Simulation, sent: Network, number: int) -> tuple[float, float, float]:
    """One peer says something new: when half of the others know, when all do, and what it cost each."""
    hosts = simulation.hosts
    host = hosts[number * len(hosts) // CHANGES]
    assert host.offer is not None
    simulation.run(simulation.now_s + 15.0)
    quiet = sent.bytes_sent
    simulation.run(simulation.now_s + 10.0)
    quiet = sent.bytes_sent - quiet
    before, began_s = sent.bytes_sent, simulation.now_s
    drained = Availability.DRAINING if number % 2 else Availability.AVAILABLE
    host.receive(SetOffer(replace(host.offer, availability=drained, name=f"changed {number}")))
    sequence = host.sequence_of(host.node)
    reached: Counter[str] = Counter()
    half_s = all_s = 0.0
    while not all_s and simulation.now_s < began_s + 60.0:
        simulation.run(simulation.now_s + 0.02)
        reached["now"] = sum(other.sequence_of(host.node) >= sequence for other in hosts)
        half_s = half_s or (simulation.now_s - began_s if 2 * reached["now"] >= len(hosts) else 0.0)
        all_s = simulation.now_s - began_s if reached["now"] == len(hosts) else 0.0
    simulation.run(began_s + 10.0)
    return half_s, all_s, max(0, sent.bytes_sent - before - quiet) / len(hosts)


def main() -> None:
    """Print a table, one line for each size."""
    parser = argparse.ArgumentParser(description="Measure gossip in simulation.")
    parser.add_argument("--peers", type=int, nargs="+", default=[20, 100, 300, 1000])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is watched (default: ten minutes)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", type=int, help="records that a directory holds (default: everybody's)")
    parser.add_argument(
        "--benchmark",
        type=Path,
        metavar="FILE",
        help="benchmark.json of a node: providers are as fast as it says, and say so (default: they say nothing)",
    )
    arguments = parser.parse_args()
    speeds = speeds_in(arguments.benchmark) if arguments.benchmark is not None else ()
    # Peers and their records stay to the end: looking for garbage among a million of them finds none.
    gc.disable()
    if arguments.room is not None:
        print("| peers | room | idle bytes/min | bytes/min | CPU ms/min | neighbours | known: least | known: mean |")
        print("|---" * 8 + "|")
        for peers in arguments.peers:
            narrow = measure_narrow(peers, arguments.room, arguments.minutes, arguments.seed, speeds)
            print(
                f"| {narrow.peers} | {narrow.room} | {narrow.idle_bytes:.0f} | {narrow.bytes_per_minute:.0f} "
                f"| {narrow.cpu_ms_per_minute:.0f} | {narrow.neighbours:.1f} | {narrow.known_least:.2f} "
                f"| {narrow.known_mean:.3f} |",
                flush=True,
            )
            gc.collect()
        return
    columns = (
        "peers",
        "99 % known after the last start",
        "all known",
        "bytes until then",
        "idle bytes/min",
        "bytes/min",
        "messages/min",
        "CPU ms/min",
        "neighbours (most)",
        "news: half",
        "news: all",
        "bytes per change",
    )
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for peers in arguments.peers:
        row = measure(peers, arguments.minutes, arguments.seed, speeds)
        print(
            f"| {row.peers} | {row.nearly_full_view_s:.1f} s | {row.full_view_s:.1f} s | {row.start_bytes:.0f} "
            f"| {row.idle_bytes:.0f} | {row.bytes_per_minute:.0f} | {row.messages_per_minute:.0f} "
            f"| {row.cpu_ms_per_minute:.0f} | {row.neighbours:.1f} ({row.most_neighbours}) "
            f"| {row.news_median_s:.2f} s | {row.news_all_s:.2f} s | {row.change_bytes:.0f} |",
            flush=True,
        )
        gc.collect()


if __name__ == "__main__":
    main()
