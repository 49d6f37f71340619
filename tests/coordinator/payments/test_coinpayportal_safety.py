"""What the client keeps to itself, whom it does not talk to, and what it does not send."""

from __future__ import annotations

import asyncio
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.payments.coinpayportal import RETRY_AFTER_MAX_S, CoinPayPortal, CoinPayPortalConfig
from coordinator.payments.gateway import (
    GatewayError,
    GatewayRefused,
    GatewayUnclear,
    GatewayUnreachable,
    InvoiceRequest,
    PayoutRequest,
)
from tests.fake_gateway import API_KEY, BUSINESS, HUGE_BYTES, PAYOUT_TOKEN
from tests.helpers_coordinator import until
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
ORDER = InvoiceRequest("dep-1", 12_340_000, "USDC", "base")
INTENT = PayoutRequest("intent-1", 5_000_000, "USDT", "polygon", "0x52908400098527886E0F7030069857D2E4169EE7")
SECRETS = (API_KEY, PAYOUT_TOKEN)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeGatewayProcess) -> AsyncIterator[CoinPayPortal]:
    async with fake.client() as client:
        yield client


async def call(client: CoinPayPortal, name: str) -> object:
    """Any call that carries a credential."""
    match name:
        case "create_payment":
            return await client.create_invoice(ORDER)
        case "create_payout":
            return await client.create_payout(INTENT)
    return await client.list_payouts()


# ---------------------------------------------------------------- secrets


async def test_no_secret_shows_anywhere(
    fake: FakeGatewayProcess, caplog: pytest.LogCaptureFixture, client: CoinPayPortal
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = [repr(fake.config()), str(fake.config()), repr(client), repr(vars(client)), repr(client._http.headers)]
    for name in ("create_payment", "create_payout", "list_payouts"):
        for kind in ("echo", "close", "cut", "malformed", "redirect", "error_after"):
            fake.fault(name, kind)
            with pytest.raises(GatewayError) as caught:
                await call(client, name)
            shown += [repr(caught.value), str(caught.value), "".join(traceback.format_exception(caught.value))]
            assert caught.value.__cause__ is None
    shown += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert any("httpcore" in record.name for record in caplog.records), "the library's own log was not looked at"
    assert any("[redacted]" in text for text in shown)
    assert not [text for text in shown if any(secret in text for secret in SECRETS)]
    assert not [text for text in shown if "\x1b" in text]


async def test_each_credential_goes_where_it_belongs(fake: FakeGatewayProcess) -> None:
    async with fake.client(payout_token=None) as client:
        assert await client.create_invoice(ORDER)
        with pytest.raises(GatewayRefused, match="unauthorized"):
            await client.create_payout(INTENT)


# ---------------------------------------------------------------- the other side


async def test_an_answer_without_end_is_not_read_to_its_end(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    before = len(fake.history("flooded"))
    fake.fault("list_payouts", "huge")
    with pytest.raises(GatewayUnclear, match="malformed_answer"):
        await client.list_payouts()
    await until(lambda: len(fake.history("flooded")) > before)
    # What the buffers of two sockets hold comes on top of what the client took.
    assert fake.history("flooded")[-1]["bytes"] < HUGE_BYTES // 2


async def test_waiting_is_bounded_whatever_is_asked_for(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    fake.fault("list_payouts", "refuse", status=429, retry_after_s=999_999_999)
    with pytest.raises(GatewayRefused) as caught:
        await client.list_payouts()
    assert caught.value.retry_after_s == RETRY_AFTER_MAX_S


async def test_a_certificate_that_nobody_vouches_for_is_not_talked_to(tmp_path: Path) -> None:
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=self_signed(tmp_path))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, CoinPayPortal(CoinPayPortalConfig(API_KEY, BUSINESS, url)) as client:
        with pytest.raises(GatewayUnreachable):
            await client.list_payouts()
    assert not heard


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate for 127.0.0.1 that it made itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = folder / "server.pem"
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# ---------------------------------------------------------------- what must not be sent


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": ""},
        {"api_key": "a key"},
        {"api_key": "key\r\nX: y"},
        {"payout_token": ""},
        {"business_id": "../other"},
        {"payout_email": "nobody"},
        {"base_url": "http://gateway.example/api"},
        {"base_url": "https://user:pass@gateway.example/api"},
        {"base_url": "https://gateway.example/api?key=1"},
        {"base_url": "ftp://gateway.example"},
        {"base_url": "https://"},
        {"base_url": "https://[::1"},
    ],
    ids=str,
)
def test_settings_that_are_not_safe_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        CoinPayPortalConfig(**{"api_key": "a", "business_id": "b", **settings})
    assert "key\r\n" not in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        InvoiceRequest("dep-1", 0, "USDC", "base"),
        InvoiceRequest("dep-1", -10_000, "USDC", "base"),
        InvoiceRequest("dep-1", 10_001, "USDC", "base"),
        InvoiceRequest("dep-1", 10_000.0, "USDC", "base"),  # type: ignore[arg-type]  # what must not get through
        InvoiceRequest("dep-1", True, "USDC", "base"),
        InvoiceRequest("dep-1", 10_000, "USDC", "tron"),
        InvoiceRequest("dep 1", 10_000, "USDC", "base"),
        InvoiceRequest("", 10_000, "USDC", "base"),
    ],
    ids=str,
)
async def test_an_order_that_makes_no_sense_is_not_sent(
    fake: FakeGatewayProcess, client: CoinPayPortal, request_: InvoiceRequest
) -> None:
    before = len(fake.history())
    with pytest.raises(ValueError):
        await client.create_invoice(request_)
    assert len(fake.history()) == before


async def test_a_payout_that_makes_no_sense_is_not_sent(fake: FakeGatewayProcess, client: CoinPayPortal) -> None:
    before = len(fake.history())
    for changes in ({"address": ""}, {"address": 'x"y'}, {"intent_id": ""}, {"amount_uusd": 9_999}, {"code": "EUR"}):
        fields = {**{name: getattr(INTENT, name) for name in INTENT.__slots__}, **changes}
        with pytest.raises(ValueError):
            await client.create_payout(PayoutRequest(**fields))
    async with fake.client(payout_email="") as without:
        with pytest.raises(ValueError, match="payout_email"):
            await without.create_payout(INTENT)
    with pytest.raises(ValueError):
        await client.get_invoice("../businesses/x")
    with pytest.raises(ValueError):
        await client.list_payouts(at_most=0)
    assert len(fake.history()) == before
