"""What gossip costs each of 1,000 simulated peers per minute, beside the same among 50.

The code is that of the node; only the wire, the clock and the engine are simulated. Processor time is that of the
machine itself for everything that one peer does, the simulated wire included. It takes about nine minutes, nearly all
of them for the first half minute of a thousand: until then all are news to all.
"""

from __future__ import annotations

import time
from typing import Final

import trio
from _figures import Figure, Options

from protocol.sim import Scenario, Simulation

NEEDS_ROOT: Final = False
SMALL: Final = 50
START_S: Final = 30.0
COUNTED_S: Final = 30.0


async def measure(options: Options) -> list[Figure]:
    """Two sizes, one after the other."""
    large = 150 if options.quick else 1000
    small_bytes, small_ms = await trio.to_thread.run_sync(_per_minute, SMALL)
    large_bytes, large_ms = await trio.to_thread.run_sync(_per_minute, large)
    beside = f"{SMALL} simulated peers"
    return [
        Figure(f"bytes sent per peer and minute, {large} simulated", large_bytes, "B", beside, small_bytes),
        Figure(f"CPU per peer and minute, {large} simulated", large_ms, "ms", beside, small_ms),
    ]


def _per_minute(peers: int) -> tuple[float, float]:
    """Bytes sent and milliseconds of processor time of one peer in a minute, when all know each other."""
    simulation = Simulation(Scenario(seed=1, peers=peers, providers=peers // 10, models=5))
    wire = simulation.network
    simulation.run(START_S)
    sent, used_s = wire.bytes_sent, time.process_time()
    simulation.run(START_S + COUNTED_S)
    share = 60 / COUNTED_S / peers
    return (wire.bytes_sent - sent) * share, (time.process_time() - used_s) * share * 1000
