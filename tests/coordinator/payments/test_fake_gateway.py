"""The fake gateway is what the other tests stand on: its webhooks, its faults, its seed, and its use by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.payments.coinpayportal_replies import ASSETS
from coordinator.payments.gateway import GatewayUnclear, InvoiceRequest, PayoutRequest
from coordinator.payments.status import PaymentState, join
from coordinator.payments.webhook import SIGNATURE_HEADER, WebhookRefused, WebhookSecrets, verify
from coordinator.payments.webhook_events import BadWebhook, WebhookEvent, parse_event
from tests.fake_gateway import API_KEY, SECRET, parse
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_fake_gateway_book import COINS

pytestmark = pytest.mark.anyio

ORDER = InvoiceRequest("dep-1", 20_000_000, "USDC", "base")
ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
SECRETS = WebhookSecrets((SECRET.encode(),))


class Callback:
    """A receiver of webhooks that judges each with the product's code."""

    def __init__(self) -> None:
        self.events: list[WebhookEvent] = []
        self.refused: Counter[str] = Counter()
        self.answers: list[int] = []
        self.url = ""

    def take(self, signatures: list[str], body: bytes) -> int:
        if self.answers:
            return self.answers.pop(0)
        try:
            verify(signatures, [], body, int(time.time()), SECRETS)
            self.events.append(parse_event(body))
        except WebhookRefused:
            self.refused["signature"] += 1
            return 401
        except BadWebhook:
            self.refused["body"] += 1
        return 200

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:])]
        body = await reader.readexactly(int(dict(headers)["content-length"]))
        status = self.take([value for name, value in headers if name == SIGNATURE_HEADER.lower()], body)
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Callback]:
    callback = Callback()
    server = await asyncio.start_server(callback.serve, "127.0.0.1", 0)
    callback.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhook"
    try:
        yield callback
    finally:
        server.close()


async def tell(fake: FakeGatewayProcess, control: str, **fields: Any) -> None:
    """In a thread: what the test receives meanwhile has to be answered."""
    await asyncio.to_thread(fake.tell, control, **fields)


async def invoice(fake: FakeGatewayProcess) -> str:
    async with fake.client() as client:
        return (await client.create_invoice(ORDER)).gateway_id


async def test_webhooks_tell_of_a_payment_from_end_to_end() -> None:
    async with receiving() as callback:
        with fake_gateway("--callback", callback.url) as fake:
            payment = await invoice(fake)
            await tell(fake, "pay", payment_id=payment)
            for _ in range(5):
                await tell(fake, "advance", payment_id=payment)
                await asyncio.to_thread(fake.drain)
    assert [(event.payment_id, event.status) for event in callback.events] == [
        (payment, "detected"), (payment, "confirmed"), (payment, "confirmed"), (payment, "forwarded")
    ]  # fmt: skip
    assert not callback.refused


@pytest.mark.parametrize(
    ("kind", "events", "refused"),
    [
        ("drop", 0, {}),
        ("hold", 0, {}),
        ("reorder", 0, {}),
        ("duplicate", 5, {}),
        # Three attempts each, as the gateway makes them when it is not answered with success.
        ("tamper", 0, {"signature": 3}),
        ("forge", 0, {"signature": 3}),
        ("stale", 0, {"signature": 3}),
        ("malformed", 0, {"body": 1}),
    ],
)
async def test_webhooks_go_wrong_as_told(kind: str, events: int, refused: dict[str, int]) -> None:
    async with receiving() as callback:
        with fake_gateway("--callback", callback.url) as fake:
            payment = await invoice(fake)
            await tell(fake, "fault", on="webhook", kind=kind, times=4)
            await tell(fake, "advance", payment_id=payment, status="confirmed")
            await asyncio.to_thread(fake.drain)
            assert (len(callback.events), dict(callback.refused)) == (events, refused)
            await tell(fake, "advance", payment_id=payment, status="forwarded")
            await tell(fake, "release")
            await asyncio.to_thread(fake.drain)
    late = 1 if kind in ("hold", "reorder") else 0
    assert Counter(event.status for event in callback.events) == Counter(
        {"confirmed": events + late, "forwarded": 1} if events + late else {"forwarded": 1}
    )


async def test_a_callback_that_fails_is_tried_three_times() -> None:
    async with receiving() as callback:
        with fake_gateway("--callback", callback.url) as fake:
            payment = await invoice(fake)
            callback.answers = [500, 503]
            await tell(fake, "advance", payment_id=payment, status="confirmed")
            await asyncio.to_thread(fake.drain)
            outcomes = [event["outcome"] for event in fake.history("delivery")]
    assert outcomes == [500, 503, 200]
    assert len(callback.events) == 1


async def test_an_expiry_that_was_wrong_ends_as_paid() -> None:
    with fake_gateway() as fake:
        payment = await invoice(fake)
        state, checks = PaymentState(), 0
        async with fake.client() as client:
            fake.tell("set", clock_s=901)
            fake.advance(payment)
            state = join(state, (await client.get_invoice(payment)).status).state
            assert state.expired
            fake.pay(payment)
            for _ in range(3):
                fake.advance(payment)
                news = join(state, (await client.get_invoice(payment)).status)
                state, checks = news.state, checks + news.check_credit
    assert (state.is_paid, checks) == (True, 1)


# ---------------------------------------------------------------- chance


async def outcomes(seed: int) -> tuple[list[bool], dict[str, int]]:
    with fake_gateway("--seed", str(seed)) as fake:
        fake.tell("rates", rates={"create_payout": {"error_after": 0.3, "error_before": 0.2}}, seed=seed)
        clear = []
        async with fake.client() as client:
            for number in range(40):
                try:
                    await client.create_payout(PayoutRequest(f"i-{number}", 10_000, "USDC", "base", ADDRESS))
                    clear.append(True)
                except GatewayUnclear:
                    clear.append(False)
        return clear, fake.book()["sends_of_intent"]


@pytest.mark.slow
async def test_a_seed_means_the_same_every_time() -> None:
    first, again, other = await outcomes(3), await outcomes(3), await outcomes(4)
    assert first == again != other
    clear, sends = first
    # Some that were unclear went out, and some did not; nobody can tell which from the answers.
    unclear = [f"i-{number}" for number, each in enumerate(clear) if not each]
    assert 0 < sum(intent in sends for intent in unclear) < len(unclear)


# ---------------------------------------------------------------- by hand


def test_it_explains_itself() -> None:
    command = [sys.executable, "-m", "tests.fake_gateway", "--help"]
    shown = subprocess.run(command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True).stdout
    for option in ("--port", "--callback", "--verbose", "--seed", "/control/pay"):
        assert option in shown


def test_it_has_the_published_limits_unless_told_otherwise() -> None:
    assert (parse([]).per_minute, parse([]).per_hour) == (100, 1000)


def test_it_knows_every_coin_that_the_client_knows() -> None:
    assert {word for word, _ in ASSETS.values()} <= set(COINS)


def test_what_it_does_not_understand_it_says() -> None:
    with fake_gateway() as fake:
        for control, fields in (
            ("fault", {"on": "create_payout", "kind": "explode"}),
            ("rates", {"rates": {"nothing": {"drop": 1}}}),
            ("pay", {"payment_id": "pay_none"}),
            ("dance", {}),
        ):
            answer = httpx.post(f"{fake.url}/control/{control}", json=fields, trust_env=False, verify=False)
            assert answer.status_code == 400, control
        key = {"authorization": f"Bearer {API_KEY}"}
        for path in ("/api/nothing", "/api/payments/pay_none"):
            assert httpx.get(fake.url + path, headers=key, trust_env=False, verify=False).status_code == 404
        assert httpx.get(f"{fake.url}/api/payments/x", trust_env=False, verify=False).status_code == 401
