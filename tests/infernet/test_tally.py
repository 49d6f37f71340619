"""infernet/tally.py: what a node has done since it started."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from infernet.tally import Tally
from protocol import constants as c
from protocol.effects import HeartbeatSigned, JobFailed, JobText
from protocol.errors import Refusal
from protocol.ids import JobId
from protocol.records import Signed
from tests.helpers_node import ask, assert_idle, pair, question, world

pytestmark = pytest.mark.anyio

SIGNED = HeartbeatSigned(Signed(b"", b""))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_both_sides_of_jobs_are_counted() -> None:
    async with world() as w:
        provider, _, client = await pair(w, slots=1, answer_tokens=50, tokens_per_s=10)
        await ask(client, question(max_tokens=40))
        async with client.ask(question()) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
        await ask(client, question(model="another"))
        await assert_idle(provider, client)
        served, asked = provider.status()["counts"]["jobs"], client.status()["counts"]["asked"]
        assert (served["taken"], served["completed"], served["cancelled"], served["failed"]) == (2, 1, 1, 0)
        assert (asked["answered"], asked["cancelled"], asked["failed"]) == (1, 1, 1)
        assert asked["output_tokens"] == 40
        assert served["output_tokens"] > 40
        assert 0 < asked["prompt_tokens"] < served["prompt_tokens"]
        assert provider.status()["counts"]["asked"]["answered"] == client.status()["counts"]["jobs"]["taken"] == 0


async def test_heartbeats_are_counted_without_a_coordinator_too() -> None:
    async with world() as w:
        provider, _, _ = await pair(w)
        await trio.sleep(10 * c.HEARTBEAT_INTERVAL_S)
        beats = provider.status()["counts"]["heartbeats"]
        assert beats["signed"] >= 10
        assert (beats["told"], beats["missed"]) == (0, 0)
        assert 0 <= beats["age_s"] <= c.HEARTBEAT_INTERVAL_S


async def test_whether_a_heartbeat_found_a_link() -> None:
    tally = Tally()
    assert tally.heartbeats(5.0) == {"signed": 0, "told": 0, "missed": 0, "age_s": None}
    for is_linked in (None, True, True, False):
        tally.observe(SIGNED, 7.0, is_linked=is_linked)
    assert tally.heartbeats(9.5) == {"signed": 4, "told": 2, "missed": 1, "age_s": 2.5}


async def test_what_was_given_up_is_no_failure() -> None:
    tally = Tally()
    for code in (Refusal.CANCELLED, Refusal.SHUTDOWN, Refusal.NO_PROVIDER):
        tally.observe(JobFailed(JobId(bytes(16)), code, "text"), 0.0, is_linked=None)
    assert (tally.asked()["cancelled"], tally.asked()["failed"]) == (1, 2)
