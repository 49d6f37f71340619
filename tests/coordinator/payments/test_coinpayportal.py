"""The client against the fake gateway, over real HTTP: what every call and every failure comes back as."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from coordinator.payments.coinpayportal import LISTED_MAX, PAGE_ROWS, CoinPayPortal, CoinPayPortalConfig
from coordinator.payments.gateway import (
    Gateway,
    GatewayRefused,
    GatewayUnclear,
    GatewayUnreachable,
    InvoiceRequest,
    Payout,
    PayoutRequest,
    PayoutStatus,
)
from coordinator.payments.status import PaymentStatus
from tests.fake_gateway import API_KEY, BUSINESS
from tests.helpers_coordinator import until
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_processes import free_port

pytestmark = pytest.mark.anyio

ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
ORDER = InvoiceRequest("dep-1", 12_340_000, "USDC", "base")
INTENT = PayoutRequest("intent-1", 5_000_000, "USDT", "polygon", ADDRESS)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeGatewayProcess]:
    """One process for the file; every test makes payments and intents of its own."""
    with fake_gateway() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeGatewayProcess) -> AsyncIterator[CoinPayPortal]:
    async with fake.client() as client:
        yield client


def intent(number: int = 0, name: str = "intent") -> PayoutRequest:
    return PayoutRequest(f"{name}-{number}", 5_000_000, "USDT", "polygon", ADDRESS)


def test_it_is_a_gateway(fake: FakeGatewayProcess) -> None:
    gateway: Gateway = fake.client()
    assert gateway


# ---------------------------------------------------------------- invoices


async def test_an_invoice_is_what_was_asked_for(client: CoinPayPortal) -> None:
    invoice = await client.create_invoice(ORDER)
    assert (invoice.code, invoice.network, invoice.amount_uusd) == ("USDC", "base", 12_340_000)
    assert (invoice.amount, invoice.amount_raw) == (12_340_000, "12.34")
    assert (invoice.status, invoice.received, invoice.order_id) == (PaymentStatus.PENDING, None, "dep-1")
    assert invoice.business_id == BUSINESS
    assert invoice.expires_at_ms is not None
    assert invoice.address.startswith("0x")


@pytest.mark.parametrize(
    ("amount", "received"), [("exact", 12_340_000), ("over", 24_680_000), ("12.3", 12_300_000), ("12.24", 12_240_000)]
)
async def test_what_arrived_is_told_to_the_unit(
    fake: FakeGatewayProcess, client: CoinPayPortal, amount: str, received: int
) -> None:
    invoice = await client.create_invoice(ORDER)
    fake.pay(invoice.gateway_id, amount)
    seen = []
    for _ in range(4):
        fake.advance(invoice.gateway_id)
        now = await client.get_invoice(invoice.gateway_id)
        seen.append((now.status, now.status_text))
        assert now.received == received
        assert now.received_raw is not None
    assert seen == [
        (PaymentStatus.DETECTED, "detected"),
        (PaymentStatus.CONFIRMED, "confirmed"),
        (PaymentStatus.CONFIRMED, "forwarding"),
        (PaymentStatus.FORWARDED, "forwarded"),
    ]


@pytest.mark.parametrize(("amount", "coin"), [("under", None), ("exact", "BTC")])
async def test_too_little_or_another_coin_is_no_payment(
    fake: FakeGatewayProcess, client: CoinPayPortal, amount: str, coin: str | None
) -> None:
    invoice = await client.create_invoice(ORDER)
    fake.pay(invoice.gateway_id, amount, coin)
    fake.advance(invoice.gateway_id)
    assert (await client.get_invoice(invoice.gateway_id)).status is PaymentStatus.PENDING


async def test_wei_are_rounded_down_and_kept_as_they_came(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    invoice = await client.create_invoice(InvoiceRequest("dep-wei", 10_000_000, "ETH", "ethereum"))
    assert invoice.amount_raw == "0.003333333333333334"
    assert invoice.amount == 3_333_333
    fake.pay(invoice.gateway_id, "0.003333333999999999")
    now = await client.get_invoice(invoice.gateway_id)
    assert (now.received, now.received_raw) == (3_333_333, "0.003333333999999999")


async def test_a_status_that_is_not_listed_is_told_as_none(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    invoice = await client.create_invoice(ORDER)
    fake.advance(invoice.gateway_id, "unpaid")
    now = await client.get_invoice(invoice.gateway_id)
    assert (now.status, now.status_text) == (None, "unpaid")


async def test_the_shape_of_the_public_code_tells_less() -> None:
    with fake_gateway("--shape", "code") as fake:
        async with fake.client() as client:
            invoice = await client.create_invoice(ORDER)
            fake.pay(invoice.gateway_id)
            fake.advance(invoice.gateway_id, "confirmed")
            now = await client.get_invoice(invoice.gateway_id)
    assert (now.status, now.amount) == (PaymentStatus.CONFIRMED, 12_340_000)
    assert (now.received, now.business_id, now.order_id) == (None, None, None)


# ---------------------------------------------------------------- payouts


async def test_a_payout_goes_out_once_and_names_our_intent(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    request = intent(name="once")
    payout = await client.create_payout(request)
    assert (payout.intent_id, payout.status) == ("once-0", PayoutStatus.COMPLETED)
    assert (payout.code, payout.network, payout.address) == ("USDT", "polygon", ADDRESS)
    assert (payout.amount_uusd, payout.amount_raw) == (5_000_000, "5")
    assert payout.tx_hash is not None
    assert fake.book()["sends_of_intent"]["once-0"] == 1
    listed = await client.list_payouts()
    assert [each for each in listed.payouts if each.intent_id == "once-0"] == [payout]


@pytest.mark.parametrize(
    ("word", "status", "sent"),
    [
        ("processing", PayoutStatus.PROCESSING, 1),
        ("failed", PayoutStatus.FAILED, 0),
        ("indeterminate", PayoutStatus.INDETERMINATE, 1),
        ("unfailed", None, 0),
    ],
)
async def test_a_payout_comes_back_with_how_it_stands(
    fake: FakeGatewayProcess, client: CoinPayPortal, word: str, status: PayoutStatus | None, sent: int
) -> None:
    fake.fault("create_payout", "outcome", status=word)
    payout = await client.create_payout(intent(name=word))
    assert (payout.status, payout.status_text) == (status, word)
    assert fake.book()["sends_of_intent"].get(f"{word}-0", 0) == sent


async def test_the_list_is_read_to_its_end_and_no_further_than_asked() -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            assert await client.list_payouts() == await client.list_payouts(at_most=1)
            for number in range(PAGE_ROWS + 30):
                await client.create_payout(intent(number))
            everything = await client.list_payouts()
            some = await client.list_payouts(at_most=PAGE_ROWS + 5)
        pages = [event for event in fake.history("call") if event["call"] == "list_payouts"]
    newest_first = [f"intent-{number}" for number in reversed(range(PAGE_ROWS + 30))]
    assert [payout.intent_id for payout in everything.payouts] == newest_first
    assert everything.complete
    assert [payout.intent_id for payout in some.payouts] == newest_first[: PAGE_ROWS + 5]
    assert not some.complete
    assert len(pages) == 2 + 2 + 2


async def test_the_list_ends_where_the_time_that_was_asked_for_begins() -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            for number in range(2 * PAGE_ROWS):
                await client.create_payout(intent(number))
            fake.tell("set", clock_s=7200)
            recent = await client.create_payout(intent(0, "recent"))
            assert recent.created_at_ms is not None
            before = len(fake.history("call"))
            listed = await client.list_payouts(since_ms=recent.created_at_ms - 3_600_000)
            assert len(fake.history("call")) - before == 1
            fake.fault("list_payouts", "say", fields={"created_at": None})
            unknown = await client.list_payouts(since_ms=recent.created_at_ms)
    assert listed.complete
    assert listed.payouts[0] == recent
    # A page without times cannot say that what comes after it is older.
    assert len(unknown.payouts) == 2 * PAGE_ROWS - 1


async def test_a_list_that_is_not_the_newest_first_is_unclear() -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            await client.create_payout(intent(0))
            fake.tell("set", clock_s=-7200)
            await client.create_payout(intent(1))
            with pytest.raises(GatewayUnclear, match="contradiction"):
                await client.list_payouts()


async def test_payouts_that_come_while_a_list_is_read_hide_none() -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            for number in range(PAGE_ROWS + 30):
                await client.create_payout(intent(number))
            fake.fault("list_payouts", "grow", times=7)
            listed = await client.list_payouts()
    assert listed.complete
    intents = [payout.intent_id for payout in listed.payouts]
    assert intents == [f"intent-{number}" for number in reversed(range(PAGE_ROWS + 30))]


async def test_a_list_from_which_payouts_vanish_is_unclear() -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            for number in range(PAGE_ROWS + 30):
                await client.create_payout(intent(number))
            fake.fault("list_payouts", "forget")
            with pytest.raises(GatewayUnclear, match="listing_moved"):
                await client.list_payouts()


@pytest.mark.parametrize("rows", [PAGE_ROWS, PAGE_ROWS + 30])
async def test_a_gateway_that_knows_no_pages_does_not_list_for_ever(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gateway() as fake:
        async with fake.client() as client:
            for number in range(rows):
                await client.create_payout(intent(number))
            real, asked = client._page, []

            async def first_page(offset: int) -> list[Payout]:
                asked.append(offset)
                assert len(asked) < 10
                return await real(0)

            monkeypatch.setattr(client, "_page", first_page)
            with pytest.raises(GatewayUnclear, match="listing_stuck"):
                await client.list_payouts()


async def test_a_page_that_was_cut_short_is_not_the_last_one() -> None:
    """A gateway that gives no more than 50 at once would let everything older pass for never sent."""
    with fake_gateway() as fake:
        async with fake.client() as client:
            for number in range(3):
                await client.create_payout(intent(number))
            for total in (4, "5"):
                fake.fault("list_payouts", "say", fields={"total": total})
                with pytest.raises(GatewayUnclear, match="fewer payouts"):
                    await client.list_payouts()
            for total in (-1, 1.5, "many", [3]):
                fake.fault("list_payouts", "say", fields={"total": total})
                with pytest.raises(GatewayUnclear, match="malformed"):
                    await client.list_payouts()
            fake.fault("list_payouts", "say", fields={"total": None})
            assert (await client.list_payouts()).complete
            assert (await client.list_payouts()).complete


async def test_a_list_that_crawls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page has one row that is new: a gateway that moves by one row where it is to move by a page."""
    with fake_gateway() as fake:
        async with fake.client() as client:
            row = await client.create_payout(intent(0))
    pages = 0

    async def next_page(_offset: int) -> list[Payout]:
        nonlocal pages
        pages += 1
        return [dataclasses.replace(row, gateway_id=f"p{number}") for number in range(pages, pages + PAGE_ROWS)]

    monkeypatch.setattr(client, "_page", next_page)
    listed = await client.list_payouts()
    assert not listed.complete
    assert pages <= LISTED_MAX / (PAGE_ROWS - 1) + 2


async def test_a_row_that_cannot_be_read_makes_the_list_unclear(
    fake: FakeGatewayProcess, client: CoinPayPortal
) -> None:
    await client.create_payout(intent(name="row"))
    fake.fault("list_payouts", "say", fields={"amount_usd": "1e3"})
    with pytest.raises(GatewayUnclear, match="malformed_answer"):
        await client.list_payouts()


# ---------------------------------------------------------------- failures

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("refuse", {"status": 400}, "bad_request"),
    ("refuse", {"status": 401}, "unauthorized"),
    ("refuse", {"status": 403}, "forbidden"),
    ("refuse", {"status": 404}, "not_found"),
    ("refuse", {"status": 429, "retry_after_s": 17}, "rate_limited"),
]
UNCLEAR: list[tuple[str, dict[str, Any], str]] = [
    ("error_before", {"status": 500}, "server_error"),
    ("error_before", {"status": 503}, "server_error"),
    ("error_after", {"status": 502}, "server_error"),
    ("error_after", {"status": 409}, "unexpected_status"),
    ("error_after", {"status": 422}, "unexpected_status"),
    ("error_after", {"status": 408}, "unexpected_status"),
    ("error_after", {"status": 200}, "contradiction"),
    ("timeout", {}, "timeout"),
    ("silence", {}, "timeout"),
    ("slow", {}, "timeout"),
    ("close", {}, "connection_lost"),
    ("cut", {}, "connection_lost"),
    ("malformed", {}, "malformed_answer"),
    ("huge", {}, "malformed_answer"),
    ("redirect", {}, "unexpected_status"),
]
HAPPENS = {"error_after", "timeout", "slow", "close", "cut", "malformed", "huge", "redirect"}


async def call(client: CoinPayPortal, name: str, number: int = 0) -> object:
    """Any of the four calls."""
    match name:
        case "create_payment":
            return await client.create_invoice(ORDER)
        case "get_payment":
            return await client.get_invoice("pay_that_is_not_there")
        case "create_payout":
            return await client.create_payout(intent(number, "failing"))
    return await client.list_payouts()


@pytest.mark.parametrize("name", ["create_payment", "get_payment", "create_payout", "list_payouts"])
@pytest.mark.parametrize(("kind", "about", "reason"), REFUSED)
async def test_a_refusal_is_certain(
    fake: FakeGatewayProcess, client: CoinPayPortal, name: str, kind: str, about: dict[str, Any], reason: str
) -> None:
    before = fake.book()
    fake.fault(name, kind, **about)
    with pytest.raises(GatewayRefused) as caught:
        await call(client, name)
    error = caught.value
    assert type(error) is GatewayRefused
    assert (error.reason, error.status, error.detail) == (reason, about["status"], "refused by the test")
    assert error.retry_after_s == about.get("retry_after_s")
    assert fake.book() == before


@pytest.mark.parametrize("name", ["create_payment", "create_payout"])
@pytest.mark.parametrize(("kind", "about", "reason"), UNCLEAR, ids=str)
async def test_whatever_may_have_happened_is_unclear(
    fake: FakeGatewayProcess, name: str, kind: str, about: dict[str, Any], reason: str
) -> None:
    made = {"create_payment": "payment_created", "create_payout": "payout"}[name]
    before, calls = len(fake.history(made)), len(fake.history("call"))
    fake.fault(name, kind, **about)
    async with fake.client(timeout_s=0.5) as client:
        with pytest.raises(GatewayUnclear) as caught:
            await call(client, name)
    assert caught.value.reason == reason
    assert len(fake.history(made)) - before == (kind in HAPPENS)
    # One request and no other, whatever came of it.
    assert [event["fault"] for event in fake.history("call")[calls:]] == [kind]


@pytest.mark.parametrize(
    "fields",
    [{"recipient_wallet": "0x" + "1" * 40}, {"amount_usd": 5.01}, {"cryptocurrency": "USDT"}, {"metadata": {}}],
)
async def test_another_payout_than_the_one_asked_for_is_unclear(
    fake: FakeGatewayProcess, client: CoinPayPortal, fields: dict[str, Any]
) -> None:
    fake.fault("create_payout", "say", fields=fields)
    with pytest.raises(GatewayUnclear, match="mismatch"):
        await client.create_payout(INTENT)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"blockchain": "USDC_SOL"}, "mismatch"),
        ({"amount": 12.35}, "mismatch"),
        ({"business_id": "biz_other"}, "mismatch"),
        ({"metadata": {"order_id": "dep-2"}}, "mismatch"),
        ({"crypto_amount": "1e3"}, "malformed_answer"),
        ({"crypto_amount": "-1"}, "malformed_answer"),
        ({"crypto_amount": "123456789012345678901"}, "malformed_answer"),
        ({"payment_address": "javascript:alert(1)<"}, "malformed_answer"),
        ({"id": "../../etc"}, "malformed_answer"),
        ({"expires_at": "tomorrow"}, "malformed_answer"),
        ({"blockchain": "USDX"}, "malformed_answer"),
        ({"status": None}, "malformed_answer"),
        ({"status": 1}, "malformed_answer"),
    ],
    ids=str,
)
async def test_another_invoice_than_the_one_asked_for_is_unclear(
    fake: FakeGatewayProcess, client: CoinPayPortal, fields: dict[str, Any], reason: str
) -> None:
    fake.fault("create_payment", "say", fields=fields)
    with pytest.raises(GatewayUnclear, match=reason):
        await client.create_invoice(ORDER)


async def test_another_payment_than_the_one_asked_for_is_unclear(
    fake: FakeGatewayProcess, client: CoinPayPortal
) -> None:
    invoice = await client.create_invoice(ORDER)
    fake.fault("get_payment", "say", fields={"id": "pay_other"})
    with pytest.raises(GatewayUnclear, match="mismatch"):
        await client.get_invoice(invoice.gateway_id)


async def test_nobody_there_is_a_refusal() -> None:
    config = CoinPayPortalConfig(API_KEY, BUSINESS, f"http://127.0.0.1:{free_port()}", payout_email="a@example.org")
    async with CoinPayPortal(config) as client:
        with pytest.raises(GatewayUnreachable, match="unreachable") as caught:
            await client.create_payout(INTENT)
    assert caught.value.__cause__ is None


async def test_the_limits_of_the_gateway_are_a_refusal() -> None:
    with fake_gateway("--per-minute", "3") as fake:
        async with fake.client() as client:
            for _ in range(3):
                await client.create_invoice(ORDER)
            with pytest.raises(GatewayRefused, match="rate_limited"):
                await client.create_payout(INTENT)
        assert fake.book()["sends_of_intent"] == {}


async def test_a_call_that_is_cancelled_leaves_the_client_usable(
    fake: FakeGatewayProcess, client: CoinPayPortal
) -> None:
    fake.fault("create_payout", "timeout")
    before = len(fake.history("payout"))
    task = asyncio.create_task(client.create_payout(intent(name="cancelled")))
    await until(lambda: len(fake.history("payout")) > before)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.create_invoice(ORDER)
