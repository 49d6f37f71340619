"""A coordinator beside the fake gateway, over real HTTP: keys, deposits and payouts as clients see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from coordinator.payments.deposits import Deposits
from coordinator.payments.payouts import Payouts
from protocol.ledger import available
from tests.fake_gateway import API_KEY, BUSINESS, PAYOUT_TOKEN, SECRET
from tests.helpers_coordinator import NodeClient, Served, WallClock, make_key, serving
from tests.helpers_fake_gateway import FakeGatewayProcess
from tests.helpers_money import balance, deposit

# Of the published vectors: an address of Ethereum's kind, with its checksum.
EVM_ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
OTHER_ADDRESS = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
BTC_ADDRESS = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def gateway_settings(fake: FakeGatewayProcess, home: Path, **changes: Any) -> dict[str, Any]:
    """How a coordinator is told of the fake; its secrets lie in files, as those of a real one would."""
    secrets = {"api_key": API_KEY, "payout_token": PAYOUT_TOKEN, "webhook_secret": SECRET}
    settings: dict[str, Any] = {
        "gateway_url": f"{fake.url}/api",
        "gateway_business_id": BUSINESS,
        "gateway_payout_email": "operator@example.org",
        "payout_uusd_min": 1_000_000,
    }
    home.mkdir(parents=True, exist_ok=True)
    for name, secret in secrets.items():
        path = home / f"{name}.secret"
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
        settings[f"gateway_{name}"] = f"file:{path}"
    return {**settings, **changes}


@dataclass
class Paid:
    """A served coordinator, the fake gateway, and a registered client."""

    served: Served
    fake: FakeGatewayProcess
    client: NodeClient

    @property
    def deposits(self) -> Deposits:
        return self.served.app.core.payments.deposits

    @property
    def payouts(self) -> Payouts:
        return self.served.app.core.payments.payouts

    async def post(self, route: str, **body: Any) -> httpx.Response:
        return await self.client.post(route, body)

    async def data(self, route: str, **body: Any) -> Any:
        """The data of an answer that says yes."""
        answer = await self.post(route, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def invoice(self, amount: str = "5.00", coin: str = "USDC", network: str = "base", **more: Any) -> Any:
        return await self.data("deposits", amount_usd=amount, coin=coin, network=network, **more)

    async def available(self) -> int:
        return await balance(self.served, available(self.client.key.node))

    async def payment_of(self, invoice: dict[str, Any]) -> str:
        """The gateway's number of an invoice, which clients are not told."""
        async with self.served.app.core.database.reader() as reader:
            rows = await reader.execute_fetchall(
                "SELECT gateway_id FROM deposits WHERE deposit = ?", (bytes.fromhex(invoice["invoiceId"]),)
            )
        return str(next(iter(rows))[0])

    async def row_of(self, invoice: dict[str, Any]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = (await self.data("deposits/list", invoice_id=invoice["invoiceId"]))["rows"]
        return rows[0]

    async def paid_in(self, dollars: str = "5.00", **how: Any) -> dict[str, Any]:
        """A deposit that was paid and confirmed, as the gateway sees it; no webhook need have come."""
        invoice: dict[str, Any] = await self.invoice(dollars)
        payment = await self.payment_of(invoice)
        self.fake.pay(payment, **how)
        for _ in range(2):
            self.fake.advance(payment)
        return invoice

    def pass_time(self, passed_ms: int) -> None:
        """On our clock and on the gateway's."""
        self.served.clock.offset_ms += passed_ms
        self.fake.tell("set", clock_s=self.served.clock.offset_ms // 1000)

    async def with_address(self, credit_uusd: int = 100_000_000) -> None:
        """Money, and an address that holds."""
        await deposit(self.served, self.client.key.node, credit_uusd)
        await self.data("payouts/set", coin="USDC", network="base", address=EVM_ADDRESS)
        self.pass_time(DAY_MS + 1000)

    async def payout(self, amount: str = "5.00", **more: Any) -> dict[str, Any]:
        """Order one; it is sent when somebody works."""
        payout: dict[str, Any] = (await self.data("payouts/request", amount_usd=amount, **more))["payout"]
        return payout

    async def state_of(self, payout: dict[str, Any]) -> str:
        rows = (await self.data("payments/list", limit=100))["rows"]
        return next(str(row["state"]) for row in rows if row["id"] == payout["id"])

    def sends_of(self, payout: dict[str, Any]) -> int:
        """How often coins left for it."""
        return int(self.fake.book()["sends_of_intent"].get(payout["id"], 0))

    async def work(self, after_ms: int = 0) -> None:
        """Let time pass, and do what is due."""
        if after_ms:
            self.pass_time(after_ms)
        await self.payouts.work()

    async def poll(self, after_ms: int = HOUR_MS) -> None:
        """Let time pass, and the gateway be asked."""
        self.served.clock.offset_ms += after_ms
        await self.deposits.poll_due()


@asynccontextmanager
async def paid_serving(
    home: Path, fake: FakeGatewayProcess, clock: WallClock | None = None, key: Any = None, **settings: Any
) -> AsyncIterator[Paid]:
    """A coordinator beside a fake gateway, for the length of a block."""
    async with serving(home, clock, **gateway_settings(fake, home, **settings)) as served:
        fake.tell("set", callback=f"{served.url}/api/payments/webhook", clock_s=served.clock.offset_ms // 1000)
        client = NodeClient(served, key or make_key())
        assert (await client.register(role="client")).status_code == 200
        yield Paid(served, fake, client)
