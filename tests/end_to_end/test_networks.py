"""Networks of real processes, from one bootstrap address: every node gets every model that any node serves.

Also after the bootstrap node was killed, and after the network was cut apart and healed. The engines are doubles that
answer at once; everything else is the product. How long it took is printed (`pytest -s`).
"""

from __future__ import annotations

import itertools
import random

import pytest
import trio

from _dev_network_detour import Detour
from _dev_network_faults import Faults
from tests.helpers_cluster import Cluster, loopback_cluster, namespace_cluster, plans

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MODELS = ("model-a", "model-b", "model-c", "model-d")


async def test_a_few_find_each_other_and_everything_is_answered() -> None:
    """The short form, for every run."""
    async with loopback_cluster(plans(8, 4, MODELS)) as cluster:
        await live_through_a_death(cluster, within_s=20)
        cluster.show("8 nodes on loopback")


async def live_through_a_death(cluster: Cluster, within_s: float) -> None:
    """Start, ask everything, kill the node that everybody was told of, and ask everything again."""
    await cluster.start_all()
    await cluster.until_full("from one bootstrap address", within_s)
    await cluster.until_everything_is_answered("from one bootstrap address", within_s)
    await cluster.kill("n1")
    await cluster.until_full("bootstrap killed", within_s)
    await cluster.until_everything_is_answered("bootstrap killed", 2 * within_s)


@pytest.mark.namespaces
async def test_a_network_that_was_cut_apart_grows_together_again() -> None:
    planned = plans(6, 4, MODELS[:2])
    groups = (["n1", "n3", "n5"], ["n2", "n4", "n6"])
    async with loopback_cluster(planned, with_faults=True) as cluster:
        await live_through_a_partition(cluster, groups, within_s=30)
        cluster.show("6 nodes on loopback, cut apart and healed")


async def live_through_a_partition(cluster: Cluster, groups: tuple[list[str], list[str]], within_s: float) -> None:
    """Cut the network in two; each half goes on by itself; heal it, and all is well again."""
    if not cluster.running:
        await cluster.start_all()
    await cluster.until_full("before the cut", within_s)
    cluster.partition(groups)
    await cluster.until_apart(*groups, within_s)
    await cluster.until_everything_is_answered("one half alone", within_s, groups[0])
    await cluster.until_everything_is_answered("the other half alone", within_s, groups[1])
    cluster.heal()
    await cluster.until_full("healed", 2 * within_s)
    await cluster.until_everything_is_answered("healed", 2 * within_s)


@pytest.mark.namespaces
async def test_nodes_behind_routers_are_asked_like_any_others() -> None:
    planned = plans(6, 4, MODELS)
    async with namespace_cluster(planned, [["n3"], ["n4", "n6"]]) as (cluster, _):
        await cluster.start_all()
        await cluster.until_full("three of six behind routers", 60)
        await cluster.until_everything_is_answered("three of six behind routers", 60)
        cluster.show("6 nodes in namespaces, 3 of them behind 2 routers")


# ---------------------------------------------------------------- the long forms


@pytest.mark.nightly
@pytest.mark.namespaces
async def test_twenty_on_loopback() -> None:
    planned = plans(20, 8, (*MODELS, "model-e"), aggregators=2)
    async with loopback_cluster(planned, with_faults=True) as cluster:
        await live_through_a_death(cluster, within_s=60)
        names = [plan.name for plan in planned if plan.name != "n1"]
        await live_through_a_partition(cluster, (names[::2], names[1::2]), within_s=120)
        cluster.show("20 nodes on loopback")


@pytest.mark.nightly
@pytest.mark.namespaces
async def test_ten_in_namespaces_some_behind_others() -> None:
    planned = plans(10, 6, (*MODELS, "model-e"), aggregators=2)
    async with namespace_cluster(planned, [["n5"], ["n6", "n10"], ["n9"]]) as (cluster, internet):
        await cluster.start_all()
        await cluster.until_full("four of ten behind routers", 120)
        await cluster.until_everything_is_answered("four of ten behind routers", 120)
        await cluster.kill("n1")
        await cluster.until_full("bootstrap killed", 120)
        await cluster.until_everything_is_answered("bootstrap killed", 120)

        hosts = {node.name: node.place.host for node in cluster.running if node.place and node.address}
        pairs = [(hosts[one], hosts[other]) for one in ("n2", "n7") for other in ("n3", "n4", "n8")]
        for one, other in [*pairs, *(pair[::-1] for pair in pairs)]:
            internet.block(one, other)
        # Long enough for both sides to notice that the other one is silent.
        await cluster.until_apart(["n2", "n7"], ["n3", "n4", "n8"], 120)
        for one, other in [*pairs, *(pair[::-1] for pair in pairs)]:
            internet.unblock(one, other)
        cluster.begin()
        await cluster.until_everything_is_answered("healed", 240)
        cluster.show("10 nodes in namespaces, 4 of them behind 3 routers")


@pytest.mark.nightly
@pytest.mark.namespaces
async def test_eight_over_slow_and_lossy_lines() -> None:
    planned = plans(8, 4, MODELS, aggregators=2)
    line = Faults(delay_s=0.08, jitter_s=0.02, loss=0.02)
    async with namespace_cluster(planned, [["n4"], ["n8"]]) as (cluster, internet), trio.open_nursery() as nursery:
        detour = Detour(internet.detour_device(), lambda *_: line, random.Random(1))
        await nursery.start(detour.run)
        hosts = {node.place.seen_as for node in cluster.network.all.values() if node.place is not None}
        for source, target in itertools.permutations(hosts, 2):
            internet.send_by_detour(source, target)
        await cluster.start_all()
        await cluster.until_full("160 ms there and back, 2 % lost", 120)
        await cluster.until_everything_is_answered("160 ms there and back, 2 % lost", 120)
        cluster.show("8 nodes in namespaces, 2 of them behind routers, over slow and lossy lines")
        nursery.cancel_scope.cancel()
