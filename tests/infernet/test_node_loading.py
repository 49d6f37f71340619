"""A node whose engine takes long to load, or to come back: it is there all the while, and offers what has loaded."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.cli.running_node import loading
from infernet.engines.contract import EngineUnavailable
from infernet.engines.several import Part, SeveralEngines, Waits
from infernet.node import FIRST_OFFER_S, Node
from infernet.settings.models import ModelSettings
from protocol.effects import JobDone, JobFailed
from protocol.errors import Refusal
from protocol.records import Availability, Role
from tests.helpers_engine import LateEngine, PacedEngine
from tests.helpers_node import ask, config_of_nobody, key_of, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def heard(node: Node, of: Node) -> list[str] | None:
    """The models of one node that another has heard of; None where it has not heard of the node."""
    entry = node.driver.peer.directory.get(of.node_id)
    return [offer.name for offer in entry.heartbeat.models] if entry is not None else None


async def test_it_is_there_while_it_loads_and_offers_the_model_once_it_has_loaded() -> None:
    async with world() as w:
        engine = LateEngine()
        began_s = trio.current_time()
        provider = await w.start(engine, until_loaded=False)
        assert trio.current_time() - began_s <= FIRST_OFFER_S
        client = await w.start(None, provider)
        await settle(client, lambda: heard(client, provider) == [])
        assert provider.is_loading
        await trio.sleep(300)  # as long as it takes
        status = provider.status()
        assert status["models"] == []
        assert status["engine"]["state"] == status["engines"][0]["state"] == "starting"
        assert 300 <= status["engine"]["loading_s"] == status["engines"][0]["loading_s"] < 400

        engine.load()
        assert await provider.wait_loaded()
        await settle(client, lambda: heard(client, provider) == ["late"])
        assert provider.status()["engine"]["loading_s"] is provider.status()["engines"][0]["loading_s"] is None
        assert isinstance((await ask(client, question(max_tokens=3)))[-1], JobDone)


async def test_its_owner_hears_the_other_names_of_what_still_loads() -> None:
    async with world() as w:
        engine = LateEngine()
        settings = (ModelSettings(name="late", aliases=("tardy",)), ModelSettings(name="absent", aliases=("away",)))
        provider = await w.start(engine, until_loaded=False, model_settings=settings)
        assert provider.status()["models"] == []
        assert provider.status()["aliases"] == {"late": ["tardy"]}
        assert loading(provider.status(), "tardy").startswith("late: loading for ")
        assert loading(provider.status(), "away") == ""
        engine.load()
        assert await provider.wait_loaded()
        assert provider.status()["aliases"] == {"late": ["tardy"]}


async def test_an_engine_that_is_up_in_a_moment_is_in_the_first_heartbeat() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), until_loaded=False)
        assert trio.current_time() == 0.0
        assert not provider.is_loading
        assert provider.status()["models"] == ["paced"]


@pytest.mark.parametrize("ends", ["stop", "drain"])
async def test_it_is_stopped_at_once_while_it_loads(ends: str) -> None:
    async with trio.open_nursery() as nursery:
        engine = LateEngine()
        node = Node(config_of_nobody(role=Role.PROVIDER), key_of(1), transport=None, engine=engine)
        over = trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await node.run(task_status=task_status)
            over.set()

        await nursery.start(run)
        await engine.loads.wait()
        with trio.fail_after(3):
            node.stop() if ends == "stop" else node.drain(600)
            await over.wait()
        assert engine.left.is_set()


async def test_a_node_whose_engine_cannot_load_says_goodbye_and_why() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(EngineUnavailable, match="^no such file$"), flatten_subgroups=True):
        async with world() as w:
            client = await w.start(None)
            engine = LateEngine()
            provider = await w.start(engine, client, until_loaded=False)
            await settle(client, lambda: heard(client, provider) == [])
            engine.fail("no such file")
            assert not await provider.wait_loaded()
            await settle(client, lambda: _availability(client, provider) is Availability.OFFLINE)
            await trio.sleep_forever()


def _availability(node: Node, of: Node) -> Availability | None:
    entry = node.driver.peer.directory.get(of.node_id)
    return entry.heartbeat.availability if entry is not None else None


async def test_one_of_several_is_offered_while_another_loads() -> None:
    async with world() as w:
        quick, late = PacedEngine("quick"), LateEngine()
        parts = [Part("paced", quick, ("quick",)), Part("late", late, ("late",))]
        provider = await w.start(SeveralEngines(parts, waits=Waits(others_s=60)), until_loaded=False)
        client = await w.start(None, provider)
        await settle(client, lambda: heard(client, provider) == ["quick"])
        assert [part["loading_s"] is None for part in provider.status()["engines"]] == [True, False]
        assert provider.is_loading
        await trio.sleep(61)
        assert not provider.is_loading
        late.load()
        await settle(client, lambda: heard(client, provider) == ["quick", "late"])


async def test_a_job_for_a_model_that_is_being_loaded_again_is_told_so() -> None:
    async with world() as w:
        one, two = PacedEngine("one"), PacedEngine("two")
        parts = [Part("paced", engine, (engine.offer.name,)) for engine in (one, two)]
        provider = await w.start(SeveralEngines(parts))
        client = await w.start(None, provider)
        await settle(client, lambda: heard(client, provider) == ["one", "two"])
        one.break_down()
        assert provider.models_loading() == ("one",)
        # The asker has not heard of it yet.
        failed = (await ask(client, question(model="one", provider=provider.node_id)))[-1]
        assert isinstance(failed, JobFailed)
        assert (failed.code, failed.text) == (
            Refusal.ENGINE_UNAVAILABLE,
            "that model is being loaded here: try again in a minute",
        )
        one.recover()
        assert provider.models_loading() == ()
        await settle(client, lambda: heard(client, provider) == ["one", "two"])
        assert isinstance((await ask(client, question(model="one", max_tokens=3)))[-1], JobDone)
