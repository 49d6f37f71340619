"""Questions of a node's user: they do not mix, they end when nobody reads, and each stands still for itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from protocol.effects import JobDone, JobText
from protocol.errors import LocalProtocolError
from tests.helpers_engine import PacedEngine
from tests.helpers_node import ask, assert_idle, key_of, pair, question, settle, world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_many_questions_at_once_do_not_mix() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(slots=8, tokens_per_s=20, answer_tokens=100), allow=(key_of(2).node,))
        client = await w.start(None, provider)
        answers: dict[int, list[object]] = {}

        async def one(number: int) -> None:
            answers[number] = await ask(client, question(max_tokens=10 + number))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        for number, events in answers.items():
            assert isinstance(events[-1], JobDone)
            assert events[-1].receipt.output_tokens == 10 + number
        await assert_idle(provider, client)


async def test_leaving_early_frees_the_slot_within_a_second() -> None:
    async with world() as w:
        provider, paced, client = await pair(w, tokens_per_s=10)
        async with client.ask(question()) as events:
            async for event in events:
                if isinstance(event, JobText):
                    break
        left_s = trio.current_time()
        await settle(provider, lambda: paced.statistics().runs_active == 0)
        assert trio.current_time() - left_s < 1
        await assert_idle(provider, client)


async def test_an_impossible_request_is_refused_on_the_spot() -> None:
    async with world() as w:
        client = await w.start(None)
        with pytest.raises(LocalProtocolError, match="temperature"):
            await ask(client, question(temperature=3.0))


async def test_a_reader_that_stands_still_loses_its_own_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infernet.answers.ANSWER_EVENTS_MAX", 4)
    async with world() as w:
        provider, paced, client = await pair(w, tokens_per_s=100)
        async with client.ask(question()) as stalled:
            await settle(provider, lambda: paced.statistics().runs_active == 1)
            await settle(provider, lambda: paced.statistics().runs_active == 0)
            assert [event async for event in stalled][-1:] != [], "what was queued can still be read"
        monkeypatch.undo()
        events = await ask(client, question(max_tokens=5))
        assert isinstance(events[-1], JobDone)
