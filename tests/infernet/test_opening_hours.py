"""A provider that serves at some hours only: what others hear, what becomes of jobs, and clocks that are set."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.ipc.why import WhyRequest
from infernet.opening_hours import LOOK_S, OpeningHours
from infernet.settings.hours import Week, described
from infernet.settings.time_zone import offset_of
from protocol.effects import JobDone, JobFailed, JobText
from protocol.errors import LocalProtocolError, Refusal
from protocol.records import Availability, Role
from protocol.relays import FEATURE_RELAYS
from protocol.routing import Exclusion
from tests.helpers_engine import PacedEngine
from tests.helpers_node import EPOCH_MS, ask, config_of_nobody, question, settle, virtual_wall_ms, world

pytestmark = pytest.mark.anyio

# The virtual clock begins on Tuesday, 14 November 2023, at 22:13:20 UTC.
SECONDS_TO_MIDNIGHT = 6400
UNTIL_MIDNIGHT = {"serve_hours": ("22:00-24:00",), "serve_zone": "UTC"}
FROM_MIDNIGHT = {"serve_hours": ("00:00-07:00",), "serve_zone": "UTC"}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_a_provider_outside_its_hours_takes_no_job_says_so_and_comes_back_by_itself() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), **FROM_MIDNIGHT)
        client = await w.start(None, provider)
        await settle(client, lambda: client.driver.peer.directory.get(provider.node_id) is not None)
        refused = (await ask(client, question(provider=provider.node_id)))[-1]
        assert isinstance(refused, JobFailed)
        assert refused.code in (Refusal.DRAINING, Refusal.NO_PROVIDER)
        reasons = [node.get("reason", {}).get("name") for node in client.why(WhyRequest())["asking"]["nodes"]]
        assert Exclusion.DRAINING.name.lower() in reasons
        hours = provider.status()["hours"]
        assert (hours["open"], hours["words"]) == (False, "outside its hours until 00:00")
        assert hours["until"] == "2023-11-15T00:00:00Z"
        facts = provider.why(WhyRequest())["serving"]["facts"]
        assert facts[0]["text"] == "it takes no new jobs: it is outside its hours until 00:00"
        # It is not ending, and connected as before.
        assert provider.status()["ends_in_s"] is None
        assert provider.node_id in client.driver.connected_peers()
        await trio.sleep(SECONDS_TO_MIDNIGHT + 5)
        assert provider.status()["hours"]["words"] == "within its hours until 07:00"
        assert isinstance((await ask(client, question(provider=provider.node_id, max_tokens=3)))[-1], JobDone)


async def test_one_that_is_paused_takes_no_job_at_any_hour_until_it_is_told_to_go_on() -> None:
    async with world() as w, trio.open_nursery() as nursery:
        provider = await w.start(PacedEngine(tokens_per_s=1, slots=1))
        client = await w.start(None, provider)
        await settle(client, lambda: client.driver.peer.directory.get(provider.node_id) is not None)
        ends: list[object] = []

        async def ask_and_keep() -> None:
            ends.append((await ask(client, question(provider=provider.node_id, max_tokens=20)))[-1])

        nursery.start_soon(ask_and_keep)
        await settle(provider, lambda: provider.status()["jobs_running"] == 1)
        provider.pause(True)
        assert provider.status()["paused"]
        (fact,) = [fact for fact in provider.why(WhyRequest())["serving"]["facts"] if "no new jobs" in fact["text"]]
        assert (fact["text"], fact["advice"]) == (
            "it takes no new jobs: it is paused by its owner",
            "`infernet schedule resume`",
        )
        refused = (await ask(client, question(provider=provider.node_id)))[-1]
        assert isinstance(refused, JobFailed)
        assert refused.code in (Refusal.DRAINING, Refusal.NO_PROVIDER)
        # What it had begun is finished, and it goes on being there.
        await settle(provider, lambda: bool(ends))
        assert isinstance(ends[0], JobDone)
        assert provider.node_id in client.driver.connected_peers()
        provider.pause(False)
        assert not provider.status()["paused"]
        assert isinstance((await ask(client, question(provider=provider.node_id, max_tokens=3)))[-1], JobDone)


async def test_one_that_is_paused_stays_so_when_its_hours_begin() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), **FROM_MIDNIGHT)
        client = await w.start(None, provider)
        provider.pause(True)
        await trio.sleep(SECONDS_TO_MIDNIGHT + 5)
        refused = (await ask(client, question(provider=provider.node_id)))[-1]
        assert isinstance(refused, JobFailed)
        provider.pause(False)
        assert provider.status()["hours"]["words"] == "within its hours until 07:00"
        assert isinstance((await ask(client, question(provider=provider.node_id, max_tokens=3)))[-1], JobDone)


async def test_a_node_that_ends_is_neither_paused_nor_resumed() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(tokens_per_s=1, slots=1))
        client = await w.start(None, provider)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, question(provider=provider.node_id, max_tokens=20))
            await settle(provider, lambda: provider.status()["jobs_running"] == 1)
            provider.drain(60)
            for until_told in (True, False):
                with pytest.raises(LocalProtocolError, match="is ending"):
                    provider.pause(until_told)


async def test_a_client_has_nothing_to_pause() -> None:
    async with world() as w:
        client = await w.start(None)
        with pytest.raises(LocalProtocolError, match="a client, which runs no jobs"):
            client.pause(True)


async def test_what_runs_when_the_hours_are_over_is_finished_and_what_waits_goes_elsewhere() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(tokens_per_s=1, slots=1), **UNTIL_MIDNIGHT)
        client = await w.start(None, provider)
        await trio.sleep(SECONDS_TO_MIDNIGHT - 20)
        ends: list[JobDone | JobFailed] = []

        async def ask_and_keep(tokens: int) -> None:
            ends.append((await ask(client, question(provider=provider.node_id, max_tokens=tokens)))[-1])  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_and_keep, 60)
            await settle(provider, lambda: provider.status()["jobs_running"] == 1)
            nursery.start_soon(ask_and_keep, 2)
            await settle(provider, lambda: provider.status()["jobs_waiting"] == 1)
        waited, ran = ends
        assert isinstance(waited, JobFailed)
        assert isinstance(ran, JobDone)
        assert sum(part.output_tokens for part in ran.served) == 60


async def test_its_own_questions_are_asked_at_any_hour() -> None:
    async with world() as w:
        other = await w.start(PacedEngine())
        provider = await w.start(PacedEngine(), other, **FROM_MIDNIGHT)
        events = await ask(provider, question(provider=other.node_id, max_tokens=3))
        assert isinstance(events[-1], JobDone)
        assert any(isinstance(event, JobText) for event in events)


async def test_relaying_goes_on_outside_the_hours() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), relay="yes", **FROM_MIDNIGHT)
        client = await w.start(None, provider)
        await settle(client, lambda: client.driver.peer.directory.get(provider.node_id) is not None)
        await settle(provider, lambda: provider.status()["reached"]["relays_for_others"])
        entry = client.driver.peer.directory.get(provider.node_id)
        assert entry is not None
        assert entry.heartbeat.availability is Availability.DRAINING
        assert FEATURE_RELAYS in entry.heartbeat.features
        assert provider.status()["reached"]["relays_for_others"]


class SetClock:
    """A clock on the wall that a test sets; it goes with trio's."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return virtual_wall_ms() + self.ahead_ms


@pytest.mark.parametrize(
    "jump_s", [SECONDS_TO_MIDNIGHT, SECONDS_TO_MIDNIGHT + 86_400 * 3, -86_400 + SECONDS_TO_MIDNIGHT]
)
async def test_a_clock_that_was_set_is_noticed_within_a_minute(jump_s: int) -> None:
    clock = SetClock()
    changes: list[float] = []
    config = config_of_nobody(role=Role.PROVIDER, **FROM_MIDNIGHT)
    hours = OpeningHours(config, clock, changed=lambda: changes.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hours.run)
        await trio.sleep(7)
        assert changes == []
        clock.ahead_ms = jump_s * 1000
        await trio.sleep(60)
        assert len(changes) == 1
        assert changes[0] - 7 <= LOOK_S
        assert hours.is_open
        nursery.cancel_scope.cancel()


async def test_hours_begin_on_time() -> None:
    changes: list[float] = []
    config = config_of_nobody(role=Role.PROVIDER, **FROM_MIDNIGHT)
    hours = OpeningHours(config, virtual_wall_ms, changed=lambda: changes.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hours.run)
        await trio.sleep(SECONDS_TO_MIDNIGHT + 7 * 3600 + 1)
        nursery.cancel_scope.cancel()
    assert changes == pytest.approx([SECONDS_TO_MIDNIGHT, SECONDS_TO_MIDNIGHT + 7 * 3600], abs=0.2)


@pytest.mark.parametrize("role", [Role.CLIENT, Role.AGGREGATOR])
async def test_who_serves_nobody_has_no_hours(role: Role) -> None:
    hours = OpeningHours(config_of_nobody(role=role, **FROM_MIDNIGHT), virtual_wall_ms, changed=list)
    assert (hours.is_open, hours.status(), hours.words()) == (True, None, "")
    await hours.run()


async def test_hours_that_cover_everything_never_end() -> None:
    assert described(Week.read(["00:00-24:00"]), EPOCH_MS // 1000, offset_of("UTC"), "UTC") == {
        "serve_hours": ["00:00-24:00"],
        "zone": "UTC",
        "open": True,
        "until": None,
        "words": "within its hours",
    }
