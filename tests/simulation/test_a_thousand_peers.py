"""Hundreds of peers, by night a thousand, none with room for all: each hears what concerns it, each model is answered.

What costs what at this size is measured by `scripts/bench gossip` and told in specs/04.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from protocol.events import SetOffer
from protocol.ids import NodeId
from protocol.places import LEAVES_MAX, TAKEN_MAX
from protocol.records import Availability
from protocol.sim import Scenario, Simulation, Topology, Workload
from protocol.sim.host import Host
from protocol.views import CHOSEN_FOR_MODELS_MAX, CHOSEN_MIN, CHOSEN_MORE
from tests.helpers_machines import offer

MODELS = 10
# A tenth of the network, and five times as many as serve one model.
ROOM = 100
START_S = 30.0
JOBS = 60
NEIGHBOURS_MAX = CHOSEN_MIN + CHOSEN_MORE + CHOSEN_FOR_MODELS_MAX + TAKEN_MAX + LEAVES_MAX
KNOWN_SHARE_MIN = 0.9
NEWS_S = 5.0


def same_model(hosts: list[Host]) -> dict[str, list[Host]]:
    """Who serves each model."""
    serving: defaultdict[str, list[Host]] = defaultdict(list)
    for host in hosts:
        assert host.offer is not None
        for model in host.offer.models:
            serving[model.name].append(host)
    return serving


def knows(host: Host, node: NodeId) -> bool:
    assert host.peer is not None
    return host.peer.directory.get(node) is not None


@pytest.mark.slow
@pytest.mark.parametrize("peers", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_many_peers_with_room_for_a_part_of_them(peers: int) -> None:
    workload = Workload(jobs=JOBS, start_s=START_S + 15.0, jobs_per_s=12.0, any_model_share=0.0)
    simulation = Simulation(
        Scenario(
            seed=1,
            peers=peers,
            providers=peers // 5,
            models=MODELS,
            topology=Topology.STAR,
            start_s=START_S,
            records_max=ROOM,
            workload=workload,
        )
    )
    simulation.run(START_S + 30.0)

    statistics = [host.peer.statistics() for host in simulation.hosts if host.peer is not None]
    assert len(statistics) == peers
    assert min(each.neighbours for each in statistics) >= CHOSEN_MIN
    assert max(each.neighbours for each in statistics) <= NEIGHBOURS_MAX
    assert max(each.records for each in statistics) <= ROOM

    serving = same_model(simulation.hosts)
    shares = [
        sum(knows(host, other.node) for other in hosts if other is not host) / (len(hosts) - 1)
        for hosts in serving.values()
        for host in hosts
    ]
    assert sum(shares) / len(shares) >= KNOWN_SHARE_MIN

    # One of them has news: those who serve the same model hear of it, wherever they are.
    changed, *others = serving["model-3"]
    assert changed.offer is not None
    holders = [host for host in others if knows(host, changed.node)]
    simulation.feed(changed.index, SetOffer(offer(availability=Availability.DRAINING, models=changed.offer.models)))
    sequence = changed.sequence_of(changed.node)
    began_s = simulation.now_s
    assert simulation.run_until(
        lambda: all(host.sequence_of(changed.node) >= sequence for host in holders), began_s + NEWS_S
    )
    simulation.run(START_S + 60.0)
    simulation.finish()
    # Those whom nobody near has heard of are asked for farther away.
    assert (simulation.summary.jobs_done, simulation.summary.jobs_failed) == (JOBS, {})
