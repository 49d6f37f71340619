"""Deposits over real HTTP, beside a fake gateway over real HTTP: what is credited, when, and what never is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fake_gateway import SECRET
from tests.helpers_coordinator import DEADLINE_S, NodeClient, Served, WallClock, ask, linked, make_key, until
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_fake_gateway_webhooks import sign
from tests.helpers_money import refused
from tests.helpers_payments_served import DAY_MS, EVM_ADDRESS, HOUR_MS, Paid, paid_serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as running:
        yield running


@pytest.fixture
async def paid(tmp_path: Path, fake: FakeGatewayProcess, clock: WallClock) -> AsyncIterator[Paid]:
    async with paid_serving(tmp_path, fake, clock) as running:
        yield running


ROUTES: Final[dict[str, dict[str, str]]] = {
    "node/deposits": {"amount_usd": "5.00", "coin": "USDC", "network": "base"},
    "node/deposits/list": {},
    "node/payments/list": {},
    "node/payouts/list": {},
    "node/payouts/set": {"coin": "USDC", "network": "base", "address": EVM_ADDRESS},
    "node/payouts/remove": {"coin": "USDC", "network": "base", "address": EVM_ADDRESS},
    "node/payouts/key": {"payout_key": make_key(77).node.hex()},
    "node/payouts/request": {},
    "admin/payouts/list": {},
    "admin/payouts/unfreeze": {},
    "admin/deposits/list": {},
}


async def test_no_route_of_payments_answers_while_the_ledger_is_stopped(paid: Paid) -> None:
    invoice = await paid.invoice()
    await paid.data("payouts/set", **ROUTES["node/payouts/set"])
    served = paid.served
    operator, old = NodeClient(served, served.key), NodeClient(served, paid.client.key, version=1)
    unsigned = {"jobId": invoice["invoiceId"], "coin": "USDC", "network": "base"}
    assert (await served.http.post("/api/payments/invoice", json=unsigned)).status_code == 200
    before = paid.fake.history("payment")
    served.app.core.settlement.stop_because("a test says so")
    for route, body in ROUTES.items():
        sender = operator if route.startswith("admin/") else paid.client
        target, data = f"/api/v1/{route}", json.dumps(body).encode()
        headers = {"X-Infernet-Auth": sender.header(target, data), "content-type": "application/json"}
        answer = await served.http.post(target, content=data, headers=headers)
        assert refused(answer) == (503, "ledger_stopped"), route
    for route in ("payments/list", "payouts/list"):
        assert refused(await old.post(route, {})) == (503, "ledger_stopped")
    assert refused(await served.http.post("/api/payments/invoice", json=unsigned)) == (503, "ledger_stopped")
    assert paid.fake.history("payment") == before


# ---------------------------------------------------------------- invoices


async def test_an_invoice_says_what_to_pay_where_and_what_it_is_worth(paid: Paid) -> None:
    invoice = await paid.invoice("12.34", "eth", "ethereum")
    assert set(invoice) >= {"invoiceId", "payAddress", "amount", "coin", "network", "expiresAt", "hostedUrl"}
    assert (invoice["coin"], invoice["network"], invoice["amountUsd"]) == ("ETH", "ethereum", "12.34")
    assert invoice["status"] == "pending"
    book = paid.fake.book()["payments"][await paid.payment_of(invoice)]
    assert book["order_id"] == invoice["invoiceId"]


async def test_the_same_request_id_gets_the_same_invoice_and_another_request_a_conflict(paid: Paid) -> None:
    first = await paid.invoice(request_id="one")
    again = await paid.invoice(request_id="one")
    assert again["invoiceId"] == first["invoiceId"]
    assert again["payAddress"] == first["payAddress"]
    other = await paid.post("deposits", amount_usd="6.00", coin="USDC", network="base", request_id="one")
    assert refused(other) == (409, "conflict")


async def test_an_invoice_whose_answer_was_lost_is_made_by_asking_again(paid: Paid) -> None:
    paid.fake.fault("create_payment", "close")
    lost = await paid.post("deposits", amount_usd="5.00", coin="USDC", network="base", request_id="lost")
    assert refused(lost) == (502, "gateway_failed")
    assert "made no invoice: ask again in a moment (" in lost.json()["error"]
    invoice = await paid.invoice(request_id="lost")
    assert invoice["payAddress"]


async def test_invoices_that_the_gateway_did_not_make_hide_no_payment(paid: Paid) -> None:
    invoice = await paid.invoice()
    for number in range(3):
        paid.fake.fault("create_payment", "close")
        lost = await paid.post("deposits", amount_usd="5.00", coin="USDC", network="base", request_id=f"lost{number}")
        assert refused(lost) == (502, "gateway_failed")
    for route in ("payments/list", "deposits/list"):
        (row,) = (await paid.data(route, limit=2))["rows"]
        assert invoice["invoiceId"] in (row.get("id"), row.get("invoiceId"))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"amount_usd": "5.001", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": "0.00", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": "0.99", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": "1000.01", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": "-5", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": "5e1", "coin": "USDC"}, "bad_amount"),
        ({"amount_usd": 5.0, "coin": "USDC"}, "bad_request"),
        ({"amount_usd": "5", "coin": "LTC"}, "unsupported_coin"),
        ({"amount_usd": "5", "coin": "BTC", "network": "base"}, "unsupported_coin"),
        ({"amount_usd": "5", "coin": "BTC", "request_id": "a b"}, "bad_request"),
        ({"amount_usd": "5", "coin": "BTC", "key": "x"}, "bad_request"),
    ],
)
async def test_what_is_no_deposit_is_refused_and_makes_no_invoice(
    paid: Paid, body: dict[str, object], code: str
) -> None:
    before = len(paid.fake.history("payment_created"))
    assert refused(await paid.client.post("deposits", body)) == (400, code)
    assert len(paid.fake.history("payment_created")) == before


async def test_a_key_has_a_bounded_number_of_unpaid_invoices(paid: Paid) -> None:
    for _ in range(20):
        await paid.invoice()
    answer = await paid.post("deposits", amount_usd="5.00", coin="USDC", network="base")
    assert refused(answer) == (429, "too_many_deposits")
    paid.served.clock.offset_ms += DAY_MS + HOUR_MS
    await paid.invoice()


async def test_a_network_has_a_bounded_number_of_invoices_whatever_keys_it_makes(
    tmp_path: Path, fake: FakeGatewayProcess
) -> None:
    async with paid_serving(tmp_path, fake, limit_loopback=True, deposits_per_hour=2) as paid:
        before = len(paid.fake.history("payment_created"))
        for stranger in (NodeClient(paid.served) for _ in range(3)):
            await stranger.register(role="client")
            answer = await stranger.post("deposits", {"amount_usd": "5.00", "coin": "BTC"})
        assert refused(answer) == (429, "too_many_requests")
        assert int(answer.headers["Retry-After"]) > 60
        assert len(paid.fake.history("payment_created")) - before == 2
        # What is no deposit costs the gateway nothing, and is told what is wrong with it.
        assert refused(await paid.post("deposits", amount_usd="5.00", coin="LTC")) == (400, "unsupported_coin")


async def test_r8_version_1_makes_no_deposit_and_may_list(paid: Paid) -> None:
    """R8: what was signed named no coordinator, and was good at every one."""
    old = NodeClient(paid.served, paid.client.key, version=1)
    assert refused(await old.post("deposits", {"amount_usd": "5", "coin": "BTC"})) == (401, "auth_version")
    answer = await old.post("payments/list", {"role": "client", "limit": 20})
    assert answer.json() == {"data": {"rows": []}}


async def test_a_key_sees_its_own_deposits_only(paid: Paid) -> None:
    invoice = await paid.invoice()
    stranger = NodeClient(paid.served)
    await stranger.register()
    answer = await stranger.post("deposits/list", {"invoice_id": invoice["invoiceId"]})
    assert answer.json()["data"]["rows"] == []
    assert (await paid.row_of(invoice))["payAddress"] == invoice["payAddress"]


# ---------------------------------------------------------------- credit


async def test_what_was_received_is_credited_by_the_quote_without_any_webhook(paid: Paid) -> None:
    paid.fake.tell("set", callback=None)
    for how, credited in (({"amount": "exact"}, 5_000_000), ({"amount": "over"}, 10_000_000)):
        before = await paid.available()
        await paid.paid_in(**how)
        await paid.poll()
        assert await paid.available() - before == credited


async def until_available(paid: Paid, uusd: int) -> None:
    """Wait until something has been credited, which must be this much."""
    async with asyncio.timeout(DEADLINE_S):
        while not await paid.available():  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
    assert await paid.available() == uusd


async def test_a_webhook_makes_the_question_come_at_once(paid: Paid) -> None:
    invoice = await paid.paid_in()
    await until(lambda: paid.fake.history("delivery"))
    await until_available(paid, 5_000_000)
    row = await paid.row_of(invoice)
    assert (row["status"], row["creditedUsd"], row["receivedAmount"]) == ("confirmed", "5.00", "5")
    history = await paid.data("payments/list")
    assert [(each["direction"], each["status"], each["amount_usd"]) for each in history["rows"]] == [
        ("inbound", "confirmed", "5.00")
    ]


async def test_less_than_was_asked_for_is_not_credited_and_ends_with_a_person(paid: Paid) -> None:
    invoice = await paid.paid_in(amount="under")
    await paid.poll()
    paid.fake.advance(await paid.payment_of(invoice), "expired")
    await paid.poll()
    await paid.poll(DAY_MS + HOUR_MS)
    assert await paid.available() == 0
    assert (await paid.row_of(invoice))["status"] == "review"


async def test_a_payment_that_was_called_expired_is_credited_when_it_is_confirmed_after_all(paid: Paid) -> None:
    invoice = await paid.invoice()
    payment = await paid.payment_of(invoice)
    paid.fake.advance(payment, "expired")
    await paid.poll()
    assert (await paid.row_of(invoice))["status"] == "expired"
    paid.fake.pay(payment)
    paid.fake.advance(payment)
    await paid.poll()
    assert await paid.available() == 5_000_000
    paid.fake.advance(payment, "expired")
    await paid.poll()
    assert await paid.available() == 5_000_000
    assert (await paid.row_of(invoice))["status"] == "confirmed"


async def test_a_webhook_revives_a_deposit_that_was_closed(paid: Paid) -> None:
    invoice = await paid.invoice()
    payment = await paid.payment_of(invoice)
    paid.fake.advance(payment, "expired")
    await paid.poll()
    await paid.poll(DAY_MS + HOUR_MS)
    assert await paid.deposits.poll_due() == 0
    paid.served.clock.offset_ms = 0
    paid.fake.pay(payment)
    paid.fake.advance(payment, "confirmed")
    await until_available(paid, 5_000_000)


async def test_without_an_amount_nothing_is_credited_and_a_person_decides(tmp_path: Path) -> None:
    with fake_gateway("--shape", "code") as silent:
        async with paid_serving(tmp_path, silent) as paid:
            invoice = await paid.paid_in()
            await paid.poll()
            assert await paid.available() == 0
            assert (await paid.row_of(invoice))["status"] == "review"
            await paid.deposits.credit(bytes.fromhex(invoice["invoiceId"]), 4_000_000)
            assert await paid.available() == 4_000_000


@pytest.mark.parametrize(
    "fields",
    [
        {"payment_address": "0x" + "9" * 40},
        {"crypto_amount": "4.000000"},
        {"amount": 4},
        {"blockchain": "USDC_POL"},
        {"metadata": {"order_id": "another"}},
    ],
)
async def test_an_answer_about_another_payment_credits_nothing(paid: Paid, fields: dict[str, object]) -> None:
    paid.fake.tell("set", callback=None)
    invoice = await paid.paid_in()
    paid.fake.fault("get_payment", "say", fields=fields)
    await paid.poll()
    assert (await paid.row_of(invoice))["status"] == "review"
    assert await paid.available() == 0


async def test_a_large_deposit_is_held_until_somebody_has_looked(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, deposit_review_uusd=4_999_999) as paid:
        invoice = await paid.paid_in()
        await paid.poll()
        assert await paid.available() == 0
        assert (await paid.row_of(invoice))["status"] == "review"
        await paid.deposits.release(bytes.fromhex(invoice["invoiceId"]))
        assert await paid.available() == 5_000_000


async def test_much_within_an_hour_is_held(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    async with paid_serving(tmp_path, fake, deposits_review_per_hour_uusd=9_999_999) as paid:
        fake.tell("set", callback=None)
        first, second = await paid.paid_in(), await paid.paid_in()
        await paid.poll()
        assert await paid.available() == 5_000_000
        states = {(await paid.row_of(each))["status"] for each in (first, second)}
        assert states == {"confirmed", "review"}


async def test_a_deposit_survives_a_restart_between_every_two_steps(tmp_path: Path, fake: FakeGatewayProcess) -> None:
    clock, key = WallClock(), make_key()
    async with paid_serving(tmp_path, fake, clock, key) as paid:
        invoice = await paid.invoice(request_id="r")
        payment = await paid.payment_of(invoice)
    fake.tell("set", callback=None)
    fake.pay(payment)
    for _ in range(4):
        fake.advance(payment)
        clock.offset_ms += HOUR_MS
        async with paid_serving(tmp_path, fake, clock, key) as paid:
            assert (await paid.invoice(request_id="r"))["invoiceId"] == invoice["invoiceId"]
            await paid.deposits.poll_due()
    async with paid_serving(tmp_path, fake, clock, key) as paid:
        assert await paid.available() == 5_000_000


# ---------------------------------------------------------------- webhooks


async def test_a_webhook_that_is_not_signed_gets_one_answer_for_every_reason(paid: Paid) -> None:
    body = json.dumps({"type": "payment.confirmed", "data": {"payment_id": "x", "status": "confirmed"}}).encode()
    now_s = paid.served.clock() // 1000
    answers = set()
    for headers in (
        {},
        {"X-CoinPay-Signature": "t=1,v1=00"},
        {"X-CoinPay-Signature": sign("wrong", now_s, body)},
        {"X-CoinPay-Signature": sign(SECRET, now_s - 301, body)},
        {"X-CoinPay-Signature": sign(SECRET, now_s, body + b" ")},
        {"x-cpp-signature": "00" * 32},
    ):
        answer = await paid.served.http.post("/api/payments/webhook", content=body, headers=headers)
        answers.add((answer.status_code, answer.text))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 401


async def test_webhooks_are_kept_once_and_counted(paid: Paid) -> None:
    body = json.dumps({"type": "payment.confirmed", "data": {"payment_id": "x", "status": "confirmed"}}).encode()
    headers = {"X-CoinPay-Signature": sign(SECRET, paid.served.clock() // 1000, body)}
    for _ in range(5):
        answer = await paid.served.http.post("/api/payments/webhook", content=body, headers=headers)
        assert answer.json() == {"ok": True}
    async with paid.served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT copies, outcome, payment FROM webhooks")
    assert [tuple(row) for row in rows] == [(5, "unknown", "x")]


# ---------------------------------------------------------------- the invoice route of existing clients


async def test_an_existing_clients_invoice_is_that_of_a_deposit(paid: Paid) -> None:
    invoice = await paid.invoice("5.00", "USDC", "base")
    body = {"jobId": invoice["invoiceId"], "coin": "USDC", "network": "base"}
    answer = await paid.served.http.post("/api/payments/invoice", json=body)
    assert answer.json()["payAddress"] == invoice["payAddress"]
    other = await paid.served.http.post("/api/payments/invoice", json={**body, "coin": "BTC", "network": None})
    assert refused(other) == (400, "unsupported_coin")


async def test_there_is_nothing_to_pay_for_a_chat_or_for_what_does_not_exist(paid: Paid) -> None:
    disk = threading.Event()
    async with linked(paid.served):
        # The disk may be slow, and nobody's chat waits for it.
        busy = asyncio.ensure_future(paid.served.app.core.database.write(lambda _tx: disk.wait(10)))
        try:
            job = (await ask(paid.served)).json()["jobId"]
            answer = await paid.served.http.post("/api/payments/invoice", json={"jobId": job, "coin": "BTC"})
        finally:
            disk.set()
            await busy
        assert refused(answer) == (400, "nothing_to_pay")
    for body, expected in (
        ({"jobId": "0" * 32, "coin": "BTC"}, (404, "not_found")),
        ({"jobId": "x", "coin": "BTC"}, (404, "not_found")),
        ({"coin": "BTC"}, (400, "bad_request")),
        ({"jobId": "x"}, (400, "bad_request")),
        ({"jobId": "x", "coin": "nonsense"}, (400, "unsupported_coin")),
    ):
        assert refused(await paid.served.http.post("/api/payments/invoice", json=body)) == expected


HOSTILE = (
    *(b"", b"{", b"[]", b'"x"', b"null", b"[" * 30_000, b'{"a":' * 20_000, b"\xff\xfe", b"\x00" * 100),
    b'{"amount_usd":"' + b"9" * 60 + b'","coin":"BTC","request_id":"x"}',
    b'{"amount_usd":"5.00","coin":"\\ud800","network":"\\u0000"}',
    b'{"coin":"BTC","address":"' + b"1" * 256 + b'"}',
    b'{"coin":"XRP","network":"ripple","address":"\\ud800"}',
    b'{"payout_key":"' + b"z" * 64 + b'"}',
    b'{"jobId":"\\ud800","coin":"BTC"}',
    b'{"limit":1e400}',
    b'{"limit":-9223372036854775808}',
)


async def test_nothing_that_is_sent_is_a_fault_of_ours(paid: Paid) -> None:
    for body in HOSTILE:
        for route in (
            *("deposits", "deposits/list", "payments/list", "payouts/list"),
            *("payouts/set", "payouts/remove", "payouts/key", "payouts/request"),
        ):
            answer = await paid.client.post(route, body)
            assert answer.status_code < 500, (route, body[:40], answer.text)
        for path in ("/api/payments/invoice", "/api/payments/webhook", "/api/v1/admin/payouts/list"):
            signature = sign(SECRET, paid.served.clock() // 1000, body)
            headers = {"content-type": "application/json", "X-CoinPay-Signature": signature}
            answer = await paid.served.http.post(path, content=body, headers=headers)
            assert answer.status_code < 500, (path, body[:40], answer.text)


async def test_without_an_address_for_the_gateways_mail_nothing_is_paid_out(
    tmp_path: Path, fake: FakeGatewayProcess
) -> None:
    async with paid_serving(tmp_path, fake, gateway_payout_email="") as paid:
        await paid.invoice()
        answer = await paid.post("payouts/list")
        assert refused(answer) == (503, "payments_not_configured")
        assert "gateway_payout_email" in answer.json()["error"]


async def test_without_a_gateway_every_route_says_so(served: Served) -> None:
    client = NodeClient(served)
    await client.register()
    for route in (
        *("deposits", "deposits/list", "payments/list"),
        *("payouts/list", "payouts/set", "payouts/remove", "payouts/key", "payouts/request"),
    ):
        assert refused(await client.post(route, {})) == (503, "payments_not_configured")
    for path in ("/api/payments/invoice", "/api/payments/webhook"):
        assert refused(await served.http.post(path, json={})) == (503, "payments_not_configured")
    health = (await served.http.get("/api/health")).json()
    assert health["payments"] == {"deposits": False, "payouts": False, "payouts_frozen": None}
