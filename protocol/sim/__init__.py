"""The simulator: the real protocol on a simulated network, in virtual time, repeatable from a seed.

`Simulation(Scenario(seed=7, peers=50, providers=10)).run(60.0)` builds fifty peers, each the very `Peer` that a node
runs, and feeds them events in the order of a heap. What travels between them is encoded bytes, so the codec and its
limits are in the loop. Nothing here reads a clock or draws randomness that the seed did not give; `trace` is a hash
over every event delivered, and the same scenario always ends with the same one.

Reading order: `scenario` (what can be said), `simulation` (how it is built and run), `host` (one machine),
`network` (what lies between), `engine`, `checkers` (the judges), `summary` (the figures).
"""

from protocol.sim.scenario import (
    Clog,
    Crash,
    EngineProfile,
    Faults,
    Happening,
    Partition,
    Scenario,
    Speed,
    Topology,
    Workload,
)
from protocol.sim.simulation import Simulation, SimulationFailed

__all__ = [
    "Clog",
    "Crash",
    "EngineProfile",
    "Faults",
    "Happening",
    "Partition",
    "Scenario",
    "Simulation",
    "SimulationFailed",
    "Speed",
    "Topology",
    "Workload",
]
