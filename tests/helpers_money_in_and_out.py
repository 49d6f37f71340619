"""Deposits and payouts over a real database and a gateway in this process, with a clock in the test's hand.

`CrashingDatabase` is the real one, and now and then the process is gone before or after a commit.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from coordinator.payments.call_budget import CallBudget
from coordinator.payments.deposit_rules import Limits
from coordinator.payments.deposits import Deposits
from coordinator.payments.payouts import PayoutLimits, Payouts
from coordinator.payments.webhook import WebhookSecrets
from coordinator.store import payout_addresses
from coordinator.store.db import Database, open_database
from coordinator.store.ledger import Ledger
from protocol.formats.addresses import check_address
from protocol.formats.coins import find_pair
from protocol.ids import NodeId
from protocol.ledger import Deposit, available
from tests.fake_gateway import SECRET
from tests.helpers_gateway_double import Crash, DoubleGateway
from tests.helpers_payments_served import EVM_ADDRESS

T = TypeVar("T")
START_MS = 1_795_000_000_000
MANY = 10**9


class CrashingDatabase:
    """A database whose process may be gone at any commit; used as `Database`."""

    def __init__(self, database: Database, dice: random.Random, rate: float) -> None:
        self.database = database
        self.rate = rate
        self._dice = dice

    async def write(self, closure: Callable[[sqlite3.Connection], T]) -> T:
        if self._dice.random() < self.rate:
            raise Crash
        result = await self.database.write(closure)
        if self._dice.random() < self.rate:
            raise Crash
        return result


@dataclass
class MoneyHouse:
    """The two machines, as a coordinator has them; `restart` makes new ones over the same disk."""

    database: Database
    seed: int = 0
    now_ms: int = START_MS
    crash_rate: float = 0.0
    broken: list[str] = field(default_factory=list)
    crashes: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self.gateway = DoubleGateway(lambda: self.now_ms, self.seed)
        self._disk = CrashingDatabase(self.database, random.Random(self.seed + 1), self.crash_rate)
        self.restart()

    def restart(self) -> None:
        """What was in memory is gone."""
        disk: Any = self._disk
        ledger, clock = Ledger(), lambda: self.now_ms
        calls = CallBudget(lambda: self.now_ms / 1000, MANY, MANY)
        self.deposits = Deposits(
            *(self.gateway, WebhookSecrets((SECRET.encode(),)), calls, Limits(MANY * MANY, MANY * MANY)),
            *(disk, ledger, clock, self.broken.append, lambda: self.stopped),
        )
        self.payouts = Payouts(
            *(self.gateway, calls, PayoutLimits(10_000, MANY * MANY, MANY * MANY, MANY * MANY)),
            *(disk, ledger, clock, self.broken.append, lambda: self.stopped),
        )

    async def work(self) -> None:
        """What is due with payouts; a crash is followed by a start."""
        try:
            await self.payouts.work()
        except Crash:
            self.crashes += 1
            self.restart()

    async def fund(self, nodes: list[NodeId], amount_uusd: int) -> None:
        """Money for each, and an address that holds already."""
        pair = find_pair("USDC", "base")
        address, ledger = check_address(pair, EVM_ADDRESS), Ledger()

        def write(tx: sqlite3.Connection) -> None:
            for node in nodes:
                payment = f"fund-{node.hex()}"
                ledger.command(tx, Deposit(payment, node, "USDC-base", 1, amount_uusd, 0), self.now_ms)
                payout_addresses.put(tx, node, pair, address, node, self.now_ms - 1, 0)

        await self.database.write(write)
        self.restart()

    async def read(self, statement: str, *values: Any) -> list[Any]:
        """Rows, as they are on disk."""
        return await self.database.write(lambda tx: tx.execute(statement, values).fetchall())

    async def available_to(self, node: NodeId) -> int:
        rows = await self.read("SELECT balance FROM accounts WHERE name = ?", available(node))
        return int(rows[0][0]) if rows else 0


@contextmanager
def money_house(home: Path, **fields: Any) -> Iterator[MoneyHouse]:
    """A house over a new database; close the database yourself, in the loop."""
    yield MoneyHouse(open_database(home), **fields)


def free(_tx: sqlite3.Connection) -> None:
    """The mark of a request that nobody signed."""


def nodes(count: int) -> list[NodeId]:
    """So many keys that sign nothing."""
    return [NodeId((number + 1).to_bytes(32, "big")) for number in range(count)]
