"""A simulated machine: its clocks, its life, its trace."""

from __future__ import annotations

from protocol.events import DEADLINE
from protocol.sim import Crash, Faults, Scenario, Simulation
from protocol.sim.host import Trace


def test_a_restarted_machine_has_its_key_and_nothing_else() -> None:
    simulation = Simulation(Scenario(peers=3, providers=1, happenings=(Crash(5.0, 1, 2.0),)))
    simulation.run(4.0)
    host = simulation.hosts[1]
    before = host.peer
    assert before is not None
    assert len(before.directory) > 1
    simulation.run(6.0)
    assert host.peer is None
    simulation.run(7.01)
    assert host.peer is not None
    assert host.peer is not before
    assert host.peer.node == before.node


def test_wall_clocks_are_skewed_within_bounds_and_go_with_the_schedule() -> None:
    simulation = Simulation(Scenario(peers=8, faults=Faults(clock_skew_ms_max=500)))
    walls = [host.now().wall_ms for host in simulation.hosts]
    assert 0 < max(walls) - min(walls) <= 1000
    simulation.run(10.0)
    assert all(host.now().wall_ms - wall == 10_000 for host, wall in zip(simulation.hosts, walls, strict=True))


def test_a_machine_that_is_down_takes_no_events() -> None:
    simulation = Simulation(Scenario(peers=1, providers=0))
    simulation.hosts[0].receive(DEADLINE)
    assert simulation.events == 0


def test_the_trace_tells_time_place_and_content_apart() -> None:
    def trace(*steps: tuple[float, int, object]) -> str:
        made = Trace()
        for step in steps:
            made.add(*step)
        return made.hexdigest()

    one = trace((1.0, 1, DEADLINE))
    assert one == trace((1.0, 1, DEADLINE))
    assert len({one, trace((1.5, 1, DEADLINE)), trace((1.0, 2, DEADLINE)), trace()}) == 4
