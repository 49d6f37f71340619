"""A market where money moves: a real coordinator with its ledger, real nodes with the tests' paced engine.

Test doubles: the engine (see `helpers_paced_node`), and the deposit, which is written into the coordinator's ledger
as if the payment gateway had told of it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from coordinator.store.db import DATABASE_NAME, open_database
from coordinator.store.ledger import Ledger
from infernet import identity
from infernet.driver import wall_ms
from infernet.ipc import client as ipc
from protocol.ids import NodeId
from protocol.ledger import Deposit, Entry, available
from tests.helpers_cli import ROOT, Home, Outcome
from tests.helpers_market import Coordinator
from tests.helpers_processes import wait_until

# Micro-USD for a token of a prompt and of an answer.
PRICE_IN_UUSD, PRICE_OUT_UUSD = 1, 2
PRICES = ("--price-in", "1", "--price-out", "2")
DEPOSIT_UUSD = 1_000_000


class PayingNode:
    """A node in a process of its own, with a home that outlives it."""

    def __init__(self, home: Home, *words: str) -> None:
        self.home = home
        self.words = words
        self.node = identity.load(home.config.key_file).node
        self.start()

    def start(self) -> None:
        """Start it, in the same home each time."""
        path = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
        with (self.home.path / "test.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers_paced_node", *self.words],
                env=self.home.environment(PYTHONPATH=path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        socket = self.home.config.socket_path
        wait_until(lambda: self.process.poll() is not None or ipc.is_alive(socket), "the node is up")
        assert self.process.poll() is None, self.log()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = ipc.call(self.home.config.socket_path, "status", timeout_s=10)
        return status

    def money(self) -> dict[str, Any]:
        """What it says of its money."""
        money: dict[str, Any] = self.status()["money"]
        return money

    def log(self) -> str:
        return (self.home.path / "test.log").read_text()

    @property
    def address(self) -> str:
        address: str = self.status()["addresses"][0]
        return address

    def run(self, *words: str) -> Outcome:
        """A command in its home, as its owner gives it."""
        return self.home.run(*words)

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class PayingMarket:
    """The coordinator, a provider with prices, and an asker with money."""

    def __init__(self, path: Path, provider_words: tuple[str, ...] = ()) -> None:
        self._path = path
        self.coordinator = Coordinator(path / "c")
        self.nodes: list[PayingNode] = []
        loopback = ("--listen-hosts", "127.0.0.1", "--p2p-port", "0", "--allow-private", "--no-mdns")
        self.provider = self.add(
            "provider", *loopback, *PRICES, "--free-for", "nobody", "--paced", "paced", *provider_words
        )
        self.asker = self.add("client", *loopback, "--peers", self.provider.address)
        wait_until(lambda: self.provider.status()["coordinator"]["state"] == "connected", "the provider is linked")
        wait_until(lambda: self.asker.status()["peers_known"], "the asker has heard of the provider")

    def add(self, role: str, *words: str) -> PayingNode:
        home = Home(self._path / f"n{len(self.nodes)}")
        made = home.run("init", "--yes", "--role", role, "--name", role, "--url", self.coordinator.url)
        assert made.code == 0, made.err
        self.nodes.append(PayingNode(home, *words))
        return self.nodes[-1]

    def deposit(self, key: NodeId, amount_uusd: int = DEPOSIT_UUSD) -> None:
        """Credit somebody, between two lives of the coordinator."""
        self.coordinator.kill()
        credit(self.coordinator.home, key, amount_uusd)
        self.coordinator.start()

    def balance(self, key: NodeId) -> int:
        """What the coordinator's database has for a key, in micro-USD."""
        return self._one("SELECT coalesce((SELECT balance FROM accounts WHERE name = ?), 0)", available(key))

    def claimed_uusd(self, provider: NodeId) -> int:
        """What was redeemed of all leases of a provider."""
        return self._one("SELECT coalesce(sum(claimed_uusd), 0) FROM leases WHERE provider = ?", provider)

    def locked_uusd(self) -> int:
        """What lies in open leases."""
        return self._one("SELECT coalesce(sum((cap_uusd - claimed_uusd) * (1 - is_closed)), 0) FROM leases")

    def claims(self) -> int:
        """Entries of the ledger that credited a claim."""
        return self._one("SELECT count(*) FROM entries WHERE kind = 'claim'")

    def _one(self, statement: str, *values: object) -> int:
        uri = f"file:{self.coordinator.home / DATABASE_NAME}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            number: int = database.execute(statement, values).fetchone()[0]
            return number

    def close(self) -> None:
        for node in self.nodes:
            node.stop()
        self.coordinator.close()


def credit(home: Path, key: NodeId, amount_uusd: int) -> None:
    """Write a deposit into the ledger of a coordinator that does not run."""
    import asyncio

    async def write() -> None:
        database = open_database(home)
        ledger = Ledger()
        deposit = Deposit(f"test-{os.urandom(4).hex()}", key, "USDC-base", amount_uusd, amount_uusd, 0)
        verdict = await database.write(lambda tx: ledger.command(tx, deposit, wall_ms()))
        assert isinstance(verdict, Entry), verdict
        await database.close()

    asyncio.run(write())


@contextmanager
def paying_market(*provider_words: str) -> Iterator[PayingMarket]:
    """A market for as long as the block lasts. Its path is short, so that sockets can lie below it."""
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    market = PayingMarket(path, provider_words)
    try:
        market.deposit(market.asker.node)
        wait_until(lambda: market.provider.status()["coordinator"]["state"] == "connected", "it is linked again")
        yield market
    finally:
        market.close()
        shutil.rmtree(path, ignore_errors=True)
