"""Whatever is sent to a route about payments that is not right is refused with a code, and changes nothing on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from protocol.envelope import AUTH_HEADER
from tests.fake_gateway import SECRET
from tests.helpers_coordinator import NodeClient
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_fake_gateway_webhooks import sign
from tests.helpers_money import refused
from tests.helpers_payments_served import OTHER_ADDRESS, Paid, paid_serving

pytestmark = pytest.mark.anyio

# That a request was made may be remembered, though nothing came of it.
NOT_COMPARED: Final = {"nonces", "replay_windows"}
NODE: Final = "/api/v1/node/"
ADMIN: Final = "/api/v1/admin/"
NO_ID: Final = "0" * 32

# Written into a body as they are: some are no JSON, and some are none that every program reads the same way.
NO_TEXT: Final = {
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "float": "1.5",
    "huge integer": str(2**70),
    "5,000 digits": "9" * 5000,
    "infinite": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "array": '["5.00"]',
    "object": '{"a":"5.00"}',
    "deep": "[" * 200 + "]" * 200,
    "very deep": "[" * 20_000 + "]" * 20_000,
    "long": json.dumps("x" * 300),
    "lone surrogate": '"\\ud800"',
}
BAD_TEXT: Final = {
    "empty": '""',
    "space": '" "',
    "null byte": '"\\u0000"',
    "line break": '"5.00\\n"',
    "other digits": '"\uff15"',
    "apostrophe": '"\' OR 1=1 --"',
}
NO_AMOUNT: Final = BAD_TEXT | {
    text: json.dumps(text)
    for text in (
        "NaN",
        "Infinity",
        "-5.00",
        "+5.00",
        "5e0",
        "5,00",
        "0",
        "0.00",
        "5.001",
        "0x5",
        "9" * 19,
        "9" * 60,
        ".5",
    )
}
NO_NUMBER: Final = {
    "zero": "0",
    "101": "101",
    "negative": "-1",
    "float": "1.5",
    "huge integer": str(2**70),
    "5,000 digits": "9" * 5000,
    "true": "true",
    "text": '"5"',
    "null": "null",
    "NaN": "NaN",
    "array": "[1]",
}
# Existing clients name what they like here, and it decides nothing.
LENIENT_NUMBER: Final = {name: NO_NUMBER[name] for name in ("float", "true", "text", "null", "NaN", "array")}
TEXT: Final = NO_TEXT | BAD_TEXT
AMOUNT: Final = NO_TEXT | NO_AMOUNT
COINS: Final = {name: text for name, text in AMOUNT.items() if name != "5.001"}  # a coin is finer than a cent
FLAG: Final = {name: NO_TEXT[name] for name in ("zero", "float", "NaN", "array", "object", "deep")} | {"text": '"true"'}


@dataclass(frozen=True)
class Route:
    """A body that is right, what it gets, and what else each of its fields is not to be."""

    path: str
    good: dict[str, Any]
    bad: dict[str, dict[str, str]]
    answer: tuple[int, str] | None = None
    takes_unknown: bool = False


ROUTES: Final = [
    Route(
        f"{NODE}deposits",
        {"amount_usd": "5.00", "coin": "USDC", "network": "base", "request_id": "one"},
        {"amount_usd": AMOUNT, "coin": TEXT, "network": TEXT, "request_id": TEXT},
    ),
    Route(f"{NODE}deposits/list", {"limit": 5, "invoice_id": NO_ID}, {"limit": NO_NUMBER, "invoice_id": TEXT}),
    Route(
        f"{NODE}payments/list",
        {"limit": 5, "role": "client"},
        {"limit": LENIENT_NUMBER, "role": NO_TEXT},
        takes_unknown=True,
    ),
    Route(f"{NODE}payouts/list", {}, {}, takes_unknown=True),
    Route(
        f"{NODE}payouts/set",
        {"coin": "USDC", "network": "base", "address": OTHER_ADDRESS},
        {"coin": TEXT, "network": TEXT, "address": TEXT, "key": TEXT},
    ),
    Route(
        f"{NODE}payouts/remove",
        {"coin": "USDC", "network": "base", "address": OTHER_ADDRESS},
        {"coin": TEXT, "network": TEXT, "address": TEXT, "key": TEXT},
    ),
    Route(f"{NODE}payouts/key", {"payout_key": "ab" * 32}, {"payout_key": TEXT}, (409, "conflict")),
    Route(
        f"{NODE}payouts/request",
        {"amount_usd": "5.00", "coin": "USDC", "network": "base", "request_id": "one"},
        {"amount_usd": AMOUNT, "coin": TEXT, "network": TEXT, "request_id": TEXT},
    ),
    Route(
        "/api/payments/invoice",
        {"jobId": NO_ID, "coin": "USDC", "network": "base"},
        {"jobId": NO_TEXT, "coin": TEXT, "network": TEXT},
        (404, "not_found"),
        takes_unknown=True,
    ),
    Route(f"{ADMIN}payouts/list", {"all": True}, {"all": FLAG}),
    Route(
        f"{ADMIN}payouts/decide",
        {"intent": NO_ID, "decision": "return"},
        {"intent": TEXT, "decision": TEXT},
        (404, "unknown_payout"),
    ),
    Route(f"{ADMIN}payouts/unfreeze", {}, {}),
    Route(f"{ADMIN}deposits/list", {}, {}),
    Route(f"{ADMIN}deposits/release", {"deposit": NO_ID}, {"deposit": TEXT}, (404, "unknown_hold")),
    Route(f"{ADMIN}deposits/credit", {"deposit": "", "received": "5"}, {"deposit": TEXT, "received": COINS}),
]


def bodies(route: Route, good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Everything wrong with a body, and what it is called."""
    text = json.dumps(good)
    yield from {
        "empty": b"",
        "no JSON": b"{",
        "array": b"[]",
        "text": b'"5.00"',
        "null": b"null",
        "number": b"5",
        "NaN": b"NaN",
        "two objects": f"{text}{text}".encode(),
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "bad UTF-8": b'{"\xff\xfe":1}',
        "null bytes": bytes(100),
        "MessagePack": b"\xdd\xff\xff\xff\xff",
        "deep arrays": b"[" * 30_000,
        "deep objects": b'{"a":' * 8_000 + b"1" + b"}" * 8_000,
        "a key twice": b'{"a":1,"a":2}',
    }.items()
    if not route.takes_unknown:
        yield "an unknown key", json.dumps({**good, "amount": "5.00"}).encode()
    for name in good:
        pair = f"{json.dumps(name)}:{json.dumps(good[name])}"
        yield f"{name} twice", text.replace(pair, pair).replace("{", "{" + pair + ",", 1).encode()
    for name, values in route.bad.items():
        rest = {other: value for other, value in good.items() if other != name}
        for what, value in values.items():
            fields = [f"{json.dumps(other)}:{json.dumps(given)}" for other, given in rest.items()]
            yield f"{name}: {what}", ("{" + ",".join([*fields, f'"{name}":{value}']) + "}").encode()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as running:
        yield running


@pytest.fixture(scope="module")
async def paid(tmp_path_factory: pytest.TempPathFactory, fake: FakeGatewayProcess) -> AsyncIterator[Paid]:
    """One coordinator for all of it, in which nothing happens by the clock; and its client has money and an address."""
    home: Path = tmp_path_factory.mktemp("home")
    async with paid_serving(home, fake, node_requests_per_hour=0) as running:
        await running.with_address()
        core = running.served.app.core
        await running.deposits.stop()
        await running.payouts.stop()
        await running.payouts.work()
        await core.settlement_upkeep.stop()
        yield running


async def fingerprint(paid: Paid, *left_out: str) -> dict[str, str]:
    """Every table, hashed."""
    async with paid.served.app.core.database.reader() as reader:
        names = [
            str(row[0]) for row in await reader.execute_fetchall("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        found = {}
        for name in sorted(set(names) - NOT_COMPARED - set(left_out)):
            rows = await reader.execute_fetchall(f"SELECT * FROM {name}")
            found[name] = hashlib.sha256(repr(sorted(map(repr, map(tuple, rows)))).encode()).hexdigest()
    assert len(found) > 15
    return found


async def send(paid: Paid, route: Route, body: bytes, content_type: str = "application/json") -> httpx.Response:
    """As the client would, or the operator for his own routes."""
    key = paid.served.key if route.path.startswith(ADMIN) else paid.client.key
    headers = {"content-type": content_type}
    if route.path.startswith((NODE, ADMIN)):
        client = paid.client if key is paid.client.key else NodeClient(paid.served, key)
        headers[AUTH_HEADER] = client.header(route.path, body)
    return await paid.served.http.post(route.path, content=body, headers=headers)


async def send_too_much(paid: Paid, path: str) -> tuple[int, str]:
    """The answer to a body of 10 MB, of which the server need not read more than the announcement."""
    reader, writer = await asyncio.open_connection("127.0.0.1", paid.served.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n"
    try:
        async with asyncio.timeout(10):
            writer.write(head.encode() + b'{"a":"' + b"x" * 50_000)
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            return status, str(json.loads(await reader.readline() or await reader.read(1000))["code"])
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path.removeprefix("/api/"))
async def test_what_is_not_right_is_refused_and_changes_nothing(paid: Paid, route: Route) -> None:
    good = dict(route.good)
    if good.get("deposit") == "":
        good["deposit"] = (await paid.invoice())["invoiceId"]
    before = await fingerprint(paid)
    for what, body in bodies(route, good):
        answer = await send(paid, route, body)
        status, code = refused(answer)
        assert status == 400, (what, answer.text)
        assert code in ("bad_request", "bad_amount", "bad_address", "unsupported_coin"), (what, answer.text)
        assert len(answer.json()["error"]) < 400
        assert await fingerprint(paid) == before, what
    text = json.dumps(good).encode()
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert refused(await send(paid, route, text, content_type)) == (415, "bad_type")
    assert await send_too_much(paid, route.path) == (413, "too_large")
    if route.path.startswith((NODE, ADMIN)):
        # The right body for another route, and for another body.
        headers = {"content-type": "application/json", AUTH_HEADER: paid.client.header(f"{route.path}/", text)}
        answer = await paid.served.http.post(route.path, content=text, headers=headers)
        assert refused(answer) == (401, "unauthenticated")
    assert await fingerprint(paid) == before
    # And what is right is taken, so all of this was refused for what was wrong with it.
    answer = await send(paid, route, text)
    assert answer.status_code == 200 if route.answer is None else refused(answer) == route.answer, answer.text


async def test_a_webhook_that_says_nothing_useful_changes_nothing_but_the_inbox(paid: Paid) -> None:
    payment = await paid.payment_of(await paid.invoice())
    route = Route(
        "/api/payments/webhook", {"type": "payment.confirmed", "data": {"payment_id": payment}}, {}, takes_unknown=True
    )
    inbox, before = await fingerprint(paid), await fingerprint(paid, "webhooks")
    told = [body for _, body in bodies(route, route.good)]
    told += [
        json.dumps({**route.good, "data": {"payment_id": value, "status": "confirmed"}}).encode()
        for value in (
            "",
            "../x",
            "pay 1",
            "x" * 129,
            5,
            None,
            ["a"],
            {"a": 1},
            "' OR 1=1 --",
            "\x00",
            secrets.token_hex(8),
        )
    ]
    told += [b'{"type":"payment.confirmed","data":{"payment_id":"a","payment_id":"b"}}', b"x" * (64 * 1024)]
    now_s = paid.served.clock() // 1000
    for body in told:
        for header in ("", "t=,v1=", sign("another", now_s, body), sign(SECRET, now_s - 301, body), "\xff", "x" * 600):
            headers = {"X-CoinPay-Signature": header.encode("latin-1")}
            answer = await paid.served.http.post(route.path, content=body, headers=headers)
            assert refused(answer) == (401, "unauthenticated")
    assert await fingerprint(paid) == inbox
    for body in told:
        answer = await paid.served.http.post(
            route.path, content=body, headers={"X-CoinPay-Signature": sign(SECRET, now_s, body)}
        )
        assert answer.json() == {"ok": True}
    assert await fingerprint(paid, "webhooks") == before
    assert await send_too_much(paid, route.path) == (413, "too_large")
    assert await fingerprint(paid, "webhooks") == before
