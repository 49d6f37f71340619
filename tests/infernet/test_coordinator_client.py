"""What a coordinator, or whatever stands in front of it, may answer: read it or say what is wrong, and nothing else."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from infernet.coordinator_client import CoordinatorError, fetch_key, fetch_peers
from protocol.ids import NodeId

pytestmark = pytest.mark.anyio

KEY = NodeId(b"\x07" * 32)


async def _serve_once(status: str, headers: str, body: bytes, stream: trio.SocketStream) -> None:
    await stream.receive_some()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    await stream.send_all(head.encode() + body)


@asynccontextmanager
async def answering(body: bytes, *, status: str = "200 OK", headers: str = "") -> AsyncIterator[str]:
    """A server on loopback that answers every request with this; gives its URL."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(_serve_once, status, headers, body), listeners)
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def test_an_answer_that_a_proxy_compressed_is_read() -> None:
    body = gzip.compress(b'{"key": "%s"}' % KEY.hex().encode())
    async with answering(body, headers="Content-Encoding: gzip\r\n") as url:
        assert await fetch_key(url) == KEY


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error", "401 Unauthorized"])
@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"[]", b""])
async def test_an_answer_that_makes_no_sense_is_a_coordinator_error(status: str, body: bytes) -> None:
    async with answering(body, status=status) as url:
        with pytest.raises(CoordinatorError):
            await fetch_peers(url)
