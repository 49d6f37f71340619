"""Starting, steering and ending the fake gateway, and the client of the product that talks to it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from coordinator.payments.coinpayportal import CoinPayPortal, CoinPayPortalConfig
from tests.fake_gateway import API_KEY, BUSINESS, PAYOUT_TOKEN

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 30.0
DRAIN_DEADLINE_S = 300.0
MANY = "1000000"


class FakeGatewayProcess:
    """A fake gateway that runs; its methods are what a test tells it (see `tests/fake_gateway.py`)."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Plain HTTP needs no certificates, and loading them takes longer than most tests.
        self._http = httpx.Client(base_url=url, timeout=DEADLINE_S, verify=False, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def tell(self, control: str, **fields: Any) -> Any:
        """Any control; fails when the fake does not understand."""
        answer = self._http.post(f"/control/{control}", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fault(self, on: str, kind: str, **fields: Any) -> None:
        """Let the next call of this kind go wrong."""
        self.tell("fault", on=on, kind=kind, **fields)

    def pay(self, payment_id: str, amount: str = "exact", coin: str | None = None) -> None:
        """Coins arrive."""
        self.tell("pay", payment_id=payment_id, amount=amount, coin=coin)

    def advance(self, payment_id: str, status: str | None = None) -> None:
        """One step on, or this status."""
        self.tell("advance", payment_id=payment_id, **({} if status is None else {"status": status}))

    def drain(self) -> None:
        """Wait until every webhook is delivered or given up, but for held ones. Not from the loop that receives."""
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        while self.tell("drain")["waiting"]:
            assert time.monotonic() < deadline, "webhooks are still on their way"

    def history(self, what: str | None = None) -> list[dict[str, Any]]:
        """All that happened, or all of one kind."""
        events: list[dict[str, Any]] = self._http.get("/control/history").json()
        return [event for event in events if what in (None, event["what"])]

    def book(self) -> dict[str, Any]:
        """What was paid and what was sent."""
        book: dict[str, Any] = self._http.get("/control/book").json()
        return book

    def config(self, **changes: Any) -> CoinPayPortalConfig:
        """How the product's client reaches this fake."""
        settings: dict[str, Any] = {
            "api_key": API_KEY,
            "business_id": BUSINESS,
            "base_url": f"{self.url}/api",
            "payout_token": PAYOUT_TOKEN,
            "payout_email": "operator@example.org",
        }
        return CoinPayPortalConfig(**{**settings, **changes})

    def client(self, **changes: Any) -> CoinPayPortal:
        """The product's client of this fake."""
        return CoinPayPortal(self.config(**changes))


@contextmanager
def fake_gateway(*arguments: str) -> Iterator[FakeGatewayProcess]:
    """A fake gateway for as long as the block lasts; without its limits, unless the arguments set them."""
    limits = ("--per-minute", MANY, "--per-hour", MANY, "--webhook-backoff-s", "0.01")
    command = [sys.executable, "-m", "tests.fake_gateway", *limits, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), "the fake gateway did not start"
            fake = FakeGatewayProcess(url)
            try:
                yield fake
            finally:
                fake.close()
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
