"""infernet/cluster/membership.py: real nodes over libp2p, one of which answers with the machines of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from infernet.cluster.engine import ClusterConfig, ClusterEngine
from infernet.cluster.membership import spoken_in_clusters
from infernet.engines.contract import EngineUnavailable
from infernet.engines.models import ModelMissing
from infernet.engines.selection import cluster_config, open_engine
from infernet.settings.models import ModelSettings
from infernet.settings.readers import Dollars
from protocol.clusters import CLUSTER_PROTOCOL
from protocol.effects import JobDone, JobFailed, JobText
from protocol.ids import npub
from protocol.records import Role
from tests.helpers_node import ask, config_of_nobody, key_of, question
from tests.helpers_rpc_cluster import MODEL, QUICK, programs, start_node
from tests.helpers_transport import eventually

pytestmark = pytest.mark.anyio

HEAD, WORKER, OTHER, ASKER = map(key_of, range(71, 75))


async def test_an_asker_is_answered_by_two_machines_and_loses_them_and_has_them_again(tmp_path: Path) -> None:
    server = programs(tmp_path)
    async with trio.open_nursery() as nursery:
        lent = {"cluster_head": HEAD.node, "llama_server": server}
        first, _ = await start_node(nursery, WORKER, **lent)
        second, scope = await start_node(nursery, OTHER, **lent)
        workers = (first.addresses()[0], second.addresses()[0])
        engine = ClusterEngine(
            ClusterConfig((WORKER.node, OTHER.node), MODEL, tmp_path / "m.gguf", server, slots=2), QUICK
        )
        head, _ = await start_node(nursery, HEAD, engine, cluster_workers=workers)
        await eventually(lambda: head.status()["models"] == [MODEL], "the model is offered", 60)
        assert first.status()["cluster"]["worker"]["attached"] is True
        assert first.status()["cluster"]["head"] is None
        assert all(worker["attached"] for worker in head.status()["cluster"]["head"]["workers"])
        asker, _ = await start_node(nursery, ASKER, role=Role.CLIENT, peers=(head.addresses()[0],))
        await eventually(lambda: asker.status()["records"] >= 2, "the asker knows the head", 60)
        events = await ask(asker, question("say something", max_tokens=40))
        assert isinstance(events[-1], JobDone), events[-1]
        assert "".join(event.text for event in events if isinstance(event, JobText)) == "Two machines said this."

        scope.cancel()
        await eventually(lambda: head.status()["models"] == [], "the model is withdrawn", 60)
        await eventually(lambda: head.status()["cluster"]["head"]["workers"][1]["problem"])
        events = await ask(asker, question("say something", max_tokens=40, timeout_s=0.5))
        assert isinstance(events[-1], JobFailed)
        # The node itself goes on.
        assert head.status()["peers"] >= 2
        nursery.cancel_scope.cancel()


async def test_a_node_that_is_nobodys_worker_does_not_know_the_protocol(tmp_path: Path) -> None:
    assert spoken_in_clusters(config_of_nobody()) == ()
    assert spoken_in_clusters(config_of_nobody(cluster_head=HEAD.node)) == (CLUSTER_PROTOCOL,)
    server = programs(tmp_path)
    async with trio.open_nursery() as nursery:
        worker, _ = await start_node(nursery, WORKER)
        engine = ClusterEngine(ClusterConfig((WORKER.node,), MODEL, tmp_path / "m.gguf", server), QUICK)
        head, _ = await start_node(nursery, HEAD, engine, cluster_workers=worker.addresses()[:1])

        def problem() -> str:
            workers = head.status()["cluster"]["head"]["workers"]
            return str(workers[0]["problem"])

        await eventually(lambda: "infernet cluster join" in problem(), within_s=60)
        assert worker.status()["cluster"] is None
        nursery.cancel_scope.cancel()


async def test_the_settings_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF")
    plain = {"engine": "cluster", "role": Role.PROVIDER, "model": str(path), "slots": 3, "context_tokens": 999}
    config = config_of_nobody(cluster_workers=(npub(WORKER.node),), cluster_split=(3, 1), threads=2, **plain)
    read = cluster_config(config)
    assert (read.workers, read.model, read.path) == ((WORKER.node,), "big", path)
    assert (read.split, read.slots, read.context_tokens, read.threads) == ((3, 1), 3, 999, 2)
    assert isinstance(await open_engine(config), ClusterEngine)
    two = (npub(WORKER.node), npub(OTHER.node))
    with pytest.raises(EngineUnavailable, match="no workers"):
        cluster_config(config_of_nobody(**plain))
    with pytest.raises(EngineUnavailable, match="1 shares for 2 workers"):
        cluster_config(config_of_nobody(cluster_workers=two, cluster_split=(1,), **plain))
    with pytest.raises(ModelMissing):
        cluster_config(config_of_nobody(cluster_workers=two, **plain | {"model": str(tmp_path / "gone.gguf")}))


def test_what_is_set_for_the_model_alone_holds_in_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF")
    own = ModelSettings(name="big", slots=1, context_tokens=512, threads=5, price_out_usd=Dollars(9))
    plain = {"engine": "cluster", "role": Role.PROVIDER, "model": str(path), "cluster_workers": (npub(WORKER.node),)}
    for_all = {"slots": 3, "threads": 2, "price_in_usd": Dollars(3), "price_out_usd": Dollars(2)}
    read = cluster_config(config_of_nobody(model_settings=(own,), **plain, **for_all))
    assert (read.slots, read.context_tokens, read.threads) == (1, 512, 5)
    assert (read.price_in_uusd, read.price_out_uusd, read.price_job_uusd) == (3, 9, 0)
