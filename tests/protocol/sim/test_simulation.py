"""A simulation as its user meets it: it runs, peers converge and serve, a broken rule is told with its scenario."""

from __future__ import annotations

import pytest

from protocol.events import Shutdown
from protocol.sim import Crash, Scenario, Simulation, Workload
from protocol.sim.checkers import Checker, Ending
from protocol.sim.simulation import SimulationFailed

SMALL = Scenario(seed=3, peers=6, providers=2, workload=Workload(jobs=6))


def test_peers_converge_and_jobs_are_done() -> None:
    simulation = Simulation(SMALL)
    assert not simulation.has_converged(), "nobody has started yet"
    assert simulation.run_until(simulation.has_converged, 60.0)
    simulation.run(20.0)
    assert simulation.settle(120.0)
    simulation.finish()
    assert simulation.summary.jobs_asked == simulation.summary.jobs_done == 6


def test_time_goes_to_the_instant_asked_for_and_no_further() -> None:
    simulation = Simulation(SMALL)
    simulation.run(2.5)
    assert simulation.now_s == 2.5
    assert not simulation.run_until(lambda: False, 3.0)
    assert simulation.now_s == 3.0


def test_a_command_to_a_machine_that_is_down_is_lost() -> None:
    simulation = Simulation(Scenario(peers=2, providers=1, happenings=(Crash(2.0, 1),)))
    simulation.at(3.0, 1, Shutdown())
    simulation.run(4.0)
    assert simulation.hosts[1].peer is None


def test_a_crash_without_a_restart_ends_with_the_healing() -> None:
    simulation = Simulation(Scenario(peers=3, providers=1, happenings=(Crash(2.0, 2),)))
    simulation.run(3.0)
    assert simulation.hosts[2].peer is None
    simulation.heal()
    assert simulation.run_until(simulation.has_converged, 60.0)


def test_more_providers_than_peers_is_no_scenario() -> None:
    with pytest.raises(AssertionError):
        Simulation(Scenario(peers=1, providers=2))


class NeverContent(Checker):
    """A judge of a test that finds fault with every ending."""

    def finish(self, ending: Ending) -> None:
        self.violations.append("nothing pleases me")


def test_what_a_judge_finds_is_told_with_the_scenario_that_shows_it_again() -> None:
    simulation = Simulation(SMALL, checkers=[NeverContent()])
    with pytest.raises(SimulationFailed, match=r"nothing pleases me\n1 violations in Scenario\(seed=3"):
        simulation.finish()


def test_a_scenario_can_be_pasted_from_its_repr() -> None:
    import protocol.sim
    from protocol.sim import scenario

    assert eval(repr(SMALL), vars(scenario) | vars(protocol.sim)) == SMALL
