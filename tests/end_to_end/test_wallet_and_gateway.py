"""From the command line of a node to the gateway and back: a deposit that is paid, a payout that arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infernet.config import save
from tests.helpers_cli import Home
from tests.helpers_coordinator import WallClock
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_payments_served import DAY_MS, EVM_ADDRESS, Paid, paid_serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    """The coordinator is in this process, and runs on asyncio."""
    return "asyncio"


@pytest.fixture
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as running:
        yield running


class Node:
    """A node's home, set up for a coordinator."""

    def __init__(self, path: Path, paid: Paid) -> None:
        self.home = Home(path)
        config, key = self.home.config, paid.served.key.node
        save(config.config_file, {"coordinator_url": paid.served.url, "coordinator_key": key}, keep=False)

    async def run(self, *words: str) -> Any:
        """What a command prints as JSON."""
        outcome = await asyncio.to_thread(self.home.run, *words, "--json")
        assert outcome.code == 0, outcome.err
        return outcome.json


async def test_money_goes_in_and_out_by_the_commands_of_a_node(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    clock = WallClock()
    async with paid_serving(tmp_path / "coordinator", fake, clock) as paid:
        node = Node(tmp_path / "node", paid)
        await asyncio.to_thread(node.home.run, "init", "--yes", "--url", paid.served.url)
        invoice = (await node.run("wallet", "deposit", "5", "USDC", "--network", "base"))["invoice"]
        assert invoice["payAddress"]
        payment = await paid.payment_of(invoice)
        fake.pay(payment)
        fake.advance(payment, "confirmed")
        await paid.poll(35_000)
        assert (await node.run("wallet"))["available_uusd"] == 5_000_000
        row = (await node.run("payout", "set", "USDC", EVM_ADDRESS, "--network", "base"))["row"]
        assert (row["address"], row["is_default"]) == (EVM_ADDRESS, False)
        # The coordinator's clock is a day ahead of the node's now, and the node signs by it.
        paid.pass_time(DAY_MS)
        rows = (await node.run("payout", "list"))["rows"]
        assert [each["is_default"] for each in rows] == [True]
        payout = (await node.run("payout", "request", "4.5"))["payout"]
        await paid.work()
        rows = (await node.run("payments"))["rows"]
        assert [(each["direction"], each["status"], each["amount_usd"]) for each in rows] == [
            ("outbound", "confirmed", "4.50"),
            ("inbound", "confirmed", "5.00"),
        ]
        assert rows[0]["id"] == payout["id"]
        assert (await node.run("wallet"))["available_uusd"] == 500_000
        assert paid.sends_of(payout) == 1
        text = await asyncio.to_thread(node.home.run, "payments")
        assert "confirmed" in text.out
