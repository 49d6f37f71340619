"""What belonging to a network of 50 costs a node that does nothing: bytes on its wire and processor time, per minute.

Each node is a process in a network namespace of its own, so that the kernel counts its bytes, TCP and IP included.
Beside the bytes stands the least that could do: every node gets every other's record once in each ten minutes. Beside
the processor time stands a node that is alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio
from _figures import Figure, Options, quantile

from _dev_network_namespaces import run_in
from _dev_network_nodes import NodeProcess
from protocol.constants import GOSSIP_REFRESH_S
from tests.helpers_cluster import Cluster, loopback_cluster, namespace_cluster, plans

NEEDS_ROOT: Final = True
MODELS: Final = ("model-a", "model-b", "model-c", "model-d", "model-e")
# Signature, framing and the fields of a provider's heartbeat with one model and one address.
RECORD_BYTES: Final = 480
SETTLING_S: Final = 45.0


async def measure(options: Options) -> list[Figure]:
    """Start them, let them settle, and count for a while."""
    count = 12 if options.quick else 50
    seconds = 15.0 if options.quick else 120.0
    alone_s = await _cpu_alone(seconds / 2)
    async with namespace_cluster(plans(count, count // 5, MODELS, aggregators=2), []) as (cluster, _):
        await cluster.start_all()
        await cluster.until_full("start", 120)
        await trio.sleep(SETTLING_S if not options.quick else 10)
        before = {node.name: (_bytes_of(node), node.cpu_s()) for node in cluster.running}
        await trio.sleep(seconds)
        after = {node.name: (_bytes_of(node), node.cpu_s()) for node in cluster.running}
        memory = [node.memory_bytes() / 1e6 for node in cluster.running]
    minutes = seconds / 60
    sent = [(after[name][0] - before[name][0]) / minutes for name in after]
    used = [(after[name][1] - before[name][1]) / minutes * 1000 for name in after]
    least = (count - 1) * RECORD_BYTES * 60 / GOSSIP_REFRESH_S
    once = "every record once each refresh"
    return [
        Figure(f"bytes in and out per node and minute, {count} nodes, median", quantile(sent, 0.5), "B", once, least),
        Figure("the same, the busiest node", max(sent), "B", once, least),
        Figure("CPU per node and minute, median", quantile(used, 0.5), "ms", "a node alone", alone_s * 1000),
        Figure("the same, the busiest node", max(used), "ms", "a node alone", alone_s * 1000),
        Figure("memory, the largest node", max(memory), "MB", "the smallest", min(memory)),
    ]


def _bytes_of(node: NodeProcess) -> float:
    """All bytes that went over a node's interface, both ways."""
    assert node.place is not None
    text = run_in(node.place.holder, lambda: Path("/proc/thread-self/net/dev").read_text())
    fields = next(line for line in text.splitlines() if "eth0" in line).partition(":")[2].split()
    return float(fields[0]) + float(fields[8])


async def _cpu_alone(seconds: float) -> float:
    """Processor time per minute of a node that knows nobody."""
    async with loopback_cluster(plans(1, 1, MODELS)) as cluster:
        return await _cpu_per_minute(cluster, seconds)


async def _cpu_per_minute(cluster: Cluster, seconds: float) -> float:
    await cluster.start_all()
    [node] = cluster.running
    await trio.sleep(2)
    before_s = node.cpu_s()
    await trio.sleep(seconds)
    return max(0.01, node.cpu_s() - before_s) * 60 / seconds
