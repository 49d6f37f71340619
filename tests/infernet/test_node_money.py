"""The node's part in money: whom it takes leases of, whom it pays through, and when it does neither."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.engines.contract import Engine
from infernet.money.store import MoneyStore
from infernet.node import Node
from infernet.store import StoreError
from infernet.transport.memory import MemoryNetwork
from protocol.constants import PROTOCOLS
from protocol.effects import Equivocation
from protocol.envelope import open_record
from protocol.errors import LocalProtocolError
from protocol.events import RestoreProvider
from protocol.money_records import ClaimRecord
from protocol.records import Role
from tests.helpers_engine import PacedEngine
from tests.helpers_money_server import BANK, Asked, Refusal, money_server
from tests.helpers_money_store import lease, mark, voucher
from tests.helpers_node import ask, config_of_nobody, key_of, question

pytestmark = pytest.mark.anyio
PRICES = (1, 2, 0)


@asynccontextmanager
async def node_with_money(
    tmp_path: Path, engine: Engine | None, asked: list[Asked] | None = None, **config: Any
) -> AsyncIterator[tuple[Node, MoneyStore]]:
    """A node that has a coordinator which refuses everything; what that was asked is added to `asked`."""
    asked = [] if asked is None else asked
    async with money_server(answers={"": Refusal(503)}, asked=asked) as server, trio.open_nursery() as nursery:
        store = MoneyStore(tmp_path / "money.sqlite3")
        settings = config_of_nobody(
            role=Role.CLIENT if engine is None else Role.AGGREGATOR,
            coordinator_url=server.url,
            coordinator_key=BANK.node,
            **config,
        )
        network = MemoryNetwork()
        key = key_of(1)
        node = Node(
            settings,
            key,
            transport=network.transport(key.node, protocols=PROTOCOLS),
            engine=engine,
            money_store=store,
            rng=random.Random(1),
        )
        await nursery.start(node.run)
        yield node, store
        nursery.cancel_scope.cancel()
    store.close()


def offered(node: Node) -> tuple[bytes, ...]:
    """Whose leases its heartbeat says that it takes."""
    entry = node.driver.peer.directory.get(node.node_id)
    assert entry is not None
    return entry.heartbeat.coordinators


async def until(condition: Any) -> None:
    for _ in range(4000):
        if condition():
            return
        await trio.sleep(0.005)
    raise AssertionError("waited in vain")


async def test_leases_are_taken_where_something_has_a_price(tmp_path: Path) -> None:
    async with node_with_money(tmp_path, PacedEngine(prices=PRICES)) as (node, _):
        assert offered(node) == (BANK.node,)
        assert node.status()["money"]["coordinator_key"] == BANK.node.hex()


async def test_a_node_that_gives_everything_away_takes_none(tmp_path: Path) -> None:
    async with node_with_money(tmp_path, PacedEngine()) as (node, _):
        assert offered(node) == ()


async def test_while_the_disk_is_full_it_takes_no_paid_jobs_and_pays_nobody(tmp_path: Path) -> None:
    async with node_with_money(tmp_path, PacedEngine(prices=PRICES)) as (node, store):
        apply = store.apply

        def full(_writes: object) -> None:
            raise StoreError("the disk is full")

        store.apply = full  # type: ignore[method-assign]
        assert node.can_pay
        node.money.perform(mark(300))
        await until(lambda: offered(node) == ())
        assert node.status()["money"]["trouble"] == "the disk is full"
        assert not node.can_pay
        assert node.driver.peer.purse.coordinator is None
        with pytest.raises(LocalProtocolError, match="the disk is full"):
            await ask(node, question(spend_uusd_max=1000))
        store.apply = apply  # type: ignore[method-assign]
        await until(lambda: offered(node) == (BANK.node,))
        assert node.can_pay
        assert node.driver.peer.purse.coordinator == BANK.node


async def test_without_a_coordinator_nothing_can_be_paid() -> None:
    network, key = MemoryNetwork(), key_of(1)
    transport = network.transport(key.node, protocols=PROTOCOLS)
    async with trio.open_nursery() as nursery:
        node = Node(config_of_nobody(role=Role.CLIENT), key, transport=transport, engine=None)
        await nursery.start(node.run)
        assert node.status()["money"] is None
        with pytest.raises(LocalProtocolError, match="no coordinator holds money"):
            await ask(node, question(spend_uusd_max=1000))
        nursery.cancel_scope.cancel()


async def test_a_node_that_stops_redeems_first_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    asked: list[Asked] = []
    async with node_with_money(tmp_path, None, asked) as (node, store):
        given = lease(provider=node.node_id, serve_until_ms=2**52, claim_by_ms=2**53)
        node.driver.command(RestoreProvider(given, voucher(90), None, 0))
        node.money.perform(mark(300))
        node.stop()
        await until(lambda: any(each.target.endswith("/claims") for each in asked))
        await until(lambda: len(store.payer_leases()) == 1)
    (claimed,) = [each.signed for each in asked if each.target.endswith("/claims")]
    assert open_record(claimed, ClaimRecord).voucher == voucher(90)


async def test_a_coordinator_with_two_ledgers_is_paid_through_by_nobody_after_a_restart(tmp_path: Path) -> None:
    async with node_with_money(tmp_path, PacedEngine(prices=PRICES)) as (node, store):
        assert node.can_pay
        store.keep_proof(Equivocation(BANK.node, 7, lease(1), lease(2)))
    async with node_with_money(tmp_path, PacedEngine(prices=PRICES)) as (node, _):
        assert not node.can_pay
        assert node.driver.peer.purse.coordinator is None
        assert offered(node) == ()
        assert "two different ledgers" in node.status()["money"]["trouble"]
        with pytest.raises(LocalProtocolError, match="two different ledgers"):
            await ask(node, question(spend_uusd_max=1000))
