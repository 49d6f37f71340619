"""Whatever is sent over HTTP ends in a 4xx or a closed connection: never a 5xx, never a traceback, never a hang."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from protocol.envelope import AUTH_HEADER
from tests.helpers_coordinator import NodeClient, Served, ask, linked, serving

pytestmark = pytest.mark.anyio

ROUTES = [
    ("POST", "/api/v1/node/register"),
    ("POST", "/api/v1/node/heartbeat"),
    ("POST", "/api/v1/node/me"),
    ("POST", "/api/v1/node/remove"),
    ("POST", "/api/v1/node/leases/open"),
    ("POST", "/api/v1/node/leases/list"),
    ("POST", "/api/v1/node/leases/close"),
    ("POST", "/api/v1/node/claims"),
    ("POST", "/api/v1/node/complaints"),
    ("POST", "/api/v1/node/wallet"),
    ("POST", "/api/v1/node/wallet/history"),
    ("GET", "/api/v1/ledger/head"),
    ("POST", "/api/v1/node/deposits"),
    ("POST", "/api/v1/node/payouts/set"),
    ("POST", "/api/v1/admin/payouts/decide"),
    ("POST", "/api/payments/invoice"),
    ("POST", "/api/payments/webhook"),
    ("POST", "/api/chat"),
    ("POST", "/api/chat/00000000000000000000000000000000/cancel"),
    ("GET", "/api/chat/stream/00000000000000000000000000000000"),
    ("GET", "/api/v1/link"),
    ("GET", "/api/nodes"),
    ("GET", "/api/peers"),
    ("GET", "/chat"),
]
BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "bad UTF-8": b'{"role":"\xff\xfe"}',
    "lone surrogate": b'{"role":"provider","node_id":"a","name":"\\ud800"}',
    "null bytes": b"\x00" * 100,
    "deep arrays": b"[" * 30_000,
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "deep in specs": b'{"role":"provider","node_id":"a","specs":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "huge number": b'{"role":"provider","node_id":"a","port":' + b"9" * 5000 + b"}",
    "float exponent": b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "NaN": b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "duplicate keys": b'{"role":"provider","role":"king","node_id":"a"}',
    "array": b"[1,2,3]",
    "string": b'"role"',
    "msgpack": b"\xdd\xff\xff\xff\xff",
}
CHAT = b"POST /api/chat HTTP/1.1\r\nHost: x\r\n"
UPGRADE = b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
WEBSOCKET = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
TYPES = ["application/json", "multipart/form-data; boundary=x", "\xff"]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One coordinator for all of this, so that it also shows that none of it wears it down."""
    async with serving(tmp_path_factory.mktemp("home")) as served:
        yield served


def is_refused(status: int) -> bool:
    return status < 500 or status == 503  # 503: no provider is online


@pytest.mark.parametrize("kind", BODIES)
async def test_no_body_is_a_server_error(served: Served, kind: str) -> None:
    body = BODIES[kind]
    for method, path in ROUTES:
        for content_type in TYPES:
            headers = [(b"content-type", content_type.encode("latin-1"))]
            answer = await served.http.request(method, path, content=body, headers=headers)
            assert is_refused(answer.status_code), (method, path, content_type, answer.text)


@pytest.mark.parametrize("kind", BODIES)
async def test_no_signed_body_is_a_server_error(served: Served, kind: str) -> None:
    client = NodeClient(served)
    for route in ("register", "heartbeat", "me", "remove"):
        for content_type in ("application/json", "application/msgpack"):
            answer = await client.post(route, BODIES[kind], content_type)
            assert answer.status_code < 500, answer.text


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: Served) -> None:
    async with linked(served):
        assert (await ask(served, "x" * 200_000)).status_code == 413
        refused = await exchange(served, CHAT + b"Content-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 413")


async def test_an_endless_chunked_body_is_cut_off(served: Served) -> None:
    head = CHAT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    answer = await exchange(served, head + chunk * 40)
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""


async def exchange(served: Served, data: bytes) -> bytes:
    """Send raw bytes and read until the server closes or has answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    answer = b""
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            await writer.drain()
            while b"\r\n\r\n" not in answer and (piece := await reader.read(65_536)):
                answer += piece
    except ConnectionError:
        pass  # the server had enough
    finally:
        writer.transport.abort()
    return answer


RAW: dict[str, bytes] = {
    "garbage": bytes(range(256)) * 4,
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"\x00" * 160,
    "no method": b"/ HTTP/1.1\r\n\r\n",
    "no host": b"GET /api/nodes HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /api/nodes HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bad host": b"GET /api/nodes HTTP/1.1\r\nHost: a b<>\r\n\r\n",
    "absolute target": b"GET http://[/api/nodes HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target that parses": b"GET http://x/api/nodes HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET ?a=b HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "strange method": b"BREW /chat HTTP/1.1\r\nHost: x\r\n\r\n",
    "escapes": b"GET /%00%ff%2e%2e/%zz?%ff=%zz&limit=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    "traversal": b"GET /static/../../coordinator.key HTTP/1.1\r\nHost: x\r\n\r\n",
    "escaped traversal": b"GET /static/%2e%2e/%2e%2e/pages.py HTTP/1.1\r\nHost: x\r\n\r\n",
    "long target": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    "smuggling": CHAT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad length": CHAT + b"Content-Length: -5\r\n\r\n",
    "bad chunk": CHAT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "cookie": b"GET / HTTP/1.1\r\nHost: x\r\nCookie: session=\xff\xfe; =; a\r\n\r\n",
    "range": b"GET /static/chat.js HTTP/1.1\r\nHost: x\r\nRange: bytes=9999999-1\r\n\r\n",
    "conditional": b"GET /static/chat.js HTTP/1.1\r\nHost: x\r\nIf-Modified-Since: no\r\nIf-None-Match: \xff\r\n\r\n",
    "websocket elsewhere": b"GET /chat" + UPGRADE + WEBSOCKET,
    "websocket to no path": b"GET http://[" + UPGRADE + WEBSOCKET,
    "websocket without key": b"GET /api/v1/link" + UPGRADE + b"\r\n",
    "websocket version": b"GET /api/v1/link" + UPGRADE + b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 99\r\n\r\n",
    "h2c upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: !!!\r\n\r\n",
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
}


@pytest.mark.parametrize("kind", RAW)
async def test_no_request_line_or_header_is_a_server_error(served: Served, kind: str) -> None:
    answer = await exchange(served, RAW[kind])
    assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]
    assert b"Traceback" not in answer
    assert (await served.http.get("/api/health")).status_code == 200


async def test_secrets_beside_the_pages_are_not_served(served: Served) -> None:
    for path in ("coordinator.key", "../coordinator.key", "..%2fpages.py", "%2e%2e/__init__.py", "/etc/passwd"):
        answer = await served.http.get(f"/static/{path}")
        assert answer.status_code == 404, path


def headers_of(rng: random.Random) -> Iterator[str]:
    alphabet = "eyJ2IjoxLCJwdWJrZXkiOiIi-_=+/AZaz09 %\\"
    for _ in range(150):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randrange(0, 400)))


async def test_no_authentication_header_is_a_server_error(served: Served) -> None:
    client, rng = NodeClient(served), random.Random(11)
    good = client.header("/api/v1/node/me", b"{}")
    mutated = (good[:at] + rng.choice("AZaz09-_") + good[at + 1 :] for at in rng.sample(range(len(good)), 60))
    for header in {*headers_of(rng), *mutated} - {good}:
        answer = await served.http.post(
            "/api/v1/node/me", content=b"{}", headers={AUTH_HEADER: header.strip(), "content-type": "application/json"}
        )
        assert answer.status_code == 401, header


async def test_no_json_value_in_any_field_is_a_server_error(served: Served) -> None:
    client, rng = NodeClient(served), random.Random(12)
    pieces: list[Any] = [
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        "",
        "x" * 300,
        "\x00\u202e",
        [],
        {},
        [[]],
        {"a": 1},
        ["x"] * 300,
    ]
    fields = ["role", "node_id", "name", "address", "port", "status", "specs", "gpu_model", "price"]
    fields += ["messages", "modelName", "maxTokens", "temperature"]
    async with linked(served):
        for _ in range(150):
            body = {field: rng.choice(pieces) for field in rng.sample(fields, rng.randrange(1, len(fields)))}
            if rng.random() < 0.7:
                body |= {"role": "provider", "node_id": "n1", "messages": [{"role": "user", "content": "x"}]}
            for route in ("register", "heartbeat"):
                assert (await client.post(route, body)).status_code < 500, body
            answer = await served.http.post(
                "/api/chat", content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert is_refused(answer.status_code), body
