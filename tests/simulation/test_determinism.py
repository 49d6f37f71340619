"""The same scenario is the same run, event for event, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from protocol.sim import Clog, Crash, EngineProfile, Faults, Partition, Scenario, Simulation, Workload

# Everything that draws a number is in it.
SCENARIO = Scenario(
    seed=7,
    peers=12,
    providers=4,
    models=2,
    publish_share=0.7,
    engine=EngineProfile(failure_rate=0.1),
    faults=Faults(loss=0.05, split=0.3, replay=0.2, clock_skew_ms_max=500),
    happenings=(Crash(12.0, 1, 3.0), Partition(18.0, 5.0, (2, 3)), Clog(15.0, 2.0, 4)),
    workload=Workload(jobs=20, cancel_share=0.2, embedding_share=0.2),
)

IN_ANOTHER_PROCESS = """
from tests.simulation.test_determinism import SCENARIO, Simulation
simulation = Simulation(SCENARIO)
simulation.run(40.0)
print(simulation.trace)
"""


def trace_of(scenario: Scenario) -> str:
    simulation = Simulation(scenario)
    simulation.run(40.0)
    assert simulation.events > 2000
    assert simulation.summary.jobs_done > 5
    return simulation.trace


def trace_in_another_process(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_one_seed_gives_one_trace_here_and_in_processes_that_hash_differently() -> None:
    here = trace_of(SCENARIO)
    assert here == trace_of(SCENARIO)
    assert trace_in_another_process("1") == trace_in_another_process("2") == here


def test_another_seed_gives_another_trace() -> None:
    assert trace_of(replace(SCENARIO, seed=8)) != trace_of(SCENARIO)


def test_a_trace_grows_with_every_event() -> None:
    simulation = Simulation(SCENARIO)
    traces = set()
    for second in range(1, 6):
        simulation.run(float(second))
        traces.add(simulation.trace)
    assert len(traces) == 5
