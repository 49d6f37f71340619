"""The public chat pays priced providers from its budget for the day, and not a micro-dollar more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.store.ledger import write_value
from protocol.ledger import FEE, TREASURY, available
from tests.helpers_coordinator import Script, Served, WallClock, ask, linked, serving, stream, text_of
from tests.helpers_money import balance
from tests.helpers_paid_chat import paid_linked

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


async def until_paid(served: Served, account: str, amount: int) -> None:
    for _ in range(500):
        if await balance(served, account) >= amount:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{account} has {await balance(served, account)}, not {amount}")


async def money_in_chat(served: Served) -> int:
    """What the treasury has given for the chat, and not got back."""
    return -await balance(served, TREASURY)


async def test_a_priced_provider_answers_and_is_paid_from_the_budget(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, sponsor_budget_uusd=1_000_000, chat_spend_uusd_max=100_000) as served,
        paid_linked(served, Script.at_once("a", "b", "c")) as node,
    ):
        answer = await ask(served, maxTokens=8)
        assert answer.status_code == 200, answer.text
        events = await stream(served, answer.json()["jobId"])
        assert text_of(events) == "abc"
        assert events[-1].kind == "done"
        await until_paid(served, available(node.node), 3000)
        assert await balance(served, available(node.node)) == 3000
        assert await money_in_chat(served) == 1_000_000


async def test_without_a_budget_nobody_is_paid_and_free_providers_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, paid_linked(served):
        refused = await ask(served)
        assert refused.status_code == 503
        assert "free" in refused.json()["error"]
        async with linked(served):
            answer = await ask(served)
            assert text_of(await stream(served, answer.json()["jobId"])) == "Hello world"


@pytest.mark.slow
async def test_many_chats_spend_no_more_than_the_budget_and_the_chat_says_so(tmp_path: Path) -> None:
    budget = 30_000
    settings = {"sponsor_budget_uusd": budget, "chat_spend_uusd_max": 8_000, "chats_at_once_per_client": 0}
    async with serving(tmp_path, **settings) as served:
        async with paid_linked(served, Script.at_once("a", "b", "c", "d")) as node:
            answers = await asyncio.gather(*(ask(served, maxTokens=8) for _ in range(60)))
            spoken = [answer for answer in answers if answer.status_code == 200]
            for answer in spoken:
                await stream(served, answer.json()["jobId"])
            for _ in range(20):
                answer = await ask(served, maxTokens=8)
                if answer.status_code == 200:
                    await stream(served, answer.json()["jobId"])
            spent = [answer for answer in answers if answer.status_code == 503]
            assert spoken
            assert spent
            for answer in spent:
                assert answer.json()["code"] == "budget_spent", answer.text
                assert "spent for today" in answer.json()["error"]
                assert "midnight" in answer.json()["hint"]
            assert await balance(served, available(node.node)) + await balance(served, FEE) <= budget
            assert await money_in_chat(served) == budget
        async with linked(served):
            answer = await ask(served)
            assert text_of(await stream(served, answer.json()["jobId"])) == "Hello world"


async def test_leases_are_taken_up_after_a_restart_and_the_rest_is_swept(tmp_path: Path) -> None:
    clock = WallClock()
    settings = {"sponsor_budget_uusd": 1_000_000, "chat_spend_uusd_max": 100_000}
    async with serving(tmp_path, clock, **settings) as served, paid_linked(served, Script.at_once("a", "b")) as node:
        answer = await ask(served, maxTokens=8)
        await stream(served, answer.json()["jobId"])
        await until_paid(served, available(node.node), 2000)
        assert len(served.app.core.driver.peer.purse) == 1
    async with serving(tmp_path, clock, **settings) as served:
        assert len(served.app.core.driver.peer.purse) == 1
        for _ in range(3):
            clock.offset_ms += DAY_MS
            # Nobody was away: claims could be made all the time.
            await served.app.core.database.write(lambda tx: write_value(tx, "last_alive_ms", clock()))
            await served.app.core.settlement_upkeep.tick()
        day = served.clock() // DAY_MS
        await served.app.core.settlement_upkeep.tick()
        assert await balance(served, f"sponsor:{day}") == 1_000_000
        async with served.app.core.database.reader() as reader:
            rows = await reader.execute_fetchall(
                "SELECT sum(balance) FROM accounts WHERE name LIKE 'sponsor:%' OR name LIKE 'lease:%'"
            )
        assert next(iter(rows))[0] == 1_000_000
