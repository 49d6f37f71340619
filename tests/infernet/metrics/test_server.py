"""infernet/metrics/server.py: it answers Prometheus, and strangers cost it nothing but a moment."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import h11
import httpx
import pytest
import trio

from infernet.config import ConfigError
from infernet.metrics import server
from infernet.metrics.server import CONNECTIONS_MAX, HEAD_BYTES_MAX, MetricsDoor, open_door
from infernet.metrics.token import Token

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class SourceDouble:
    """Shows a text that the test chose, or breaks."""

    def __init__(self) -> None:
        self.shown = "infernet_uptime_seconds 1.0\n"
        self.breaks = False

    async def text(self) -> str:
        if self.breaks:
            raise ZeroDivisionError
        return self.shown

    def health(self, wall_ms: int) -> dict[str, object]:
        return {"ok": True, "at": wall_ms}


@asynccontextmanager
async def serving(
    source: SourceDouble | None = None, host: str = "127.0.0.1", token: Token | None = None
) -> AsyncIterator[MetricsDoor]:
    async with open_door(host, 0, token) as door, trio.open_nursery() as nursery:
        nursery.start_soon(door.serve, source or SourceDouble(), lambda: 4711)
        yield door
        nursery.cancel_scope.cancel()


async def get(door: MetricsDoor, path: str, method: str = "GET", **options: object) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.request(method, f"http://127.0.0.1:{door.port}{path}", **options)  # type: ignore[arg-type]


async def say(door: MetricsDoor, data: bytes) -> bytes:
    """Send bytes as they are; gives all that comes back."""
    stream = await trio.open_tcp_stream("127.0.0.1", door.port)
    async with stream:
        answer = b""
        try:
            await stream.send_all(data)
            with trio.fail_after(10):
                while piece := await stream.receive_some():
                    answer += piece
        except trio.BrokenResourceError:
            pass
        return answer


async def test_it_serves_metrics_and_health() -> None:
    async with serving() as door:
        answer = await get(door, "/metrics")
        assert (answer.status_code, answer.text) == (200, "infernet_uptime_seconds 1.0\n")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["connection"] == "close"
        assert json.loads((await get(door, "/healthz?verbose=1")).text) == {"ok": True, "at": 4711}
        head = await get(door, "/metrics", "HEAD")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "28")


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics/", "/metrics/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%6detrics", "//metrics", "/METRICS"],
)
async def test_any_other_path_is_not_found(path: str) -> None:
    async with serving() as door:
        answer = await say(door, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"there are /metrics and /healthz" in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
async def test_any_other_method_is_refused(method: str) -> None:
    async with serving() as door:
        answer = await say(door, f"{method} /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET, HEAD\r\n" in answer


async def test_a_request_with_content_is_refused_and_its_content_not_awaited() -> None:
    async with serving() as door:
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
        for length in (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            assert (await say(door, head + length)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(data: bytes) -> None:
    async with serving() as door:
        assert (await say(door, data)).startswith(b"HTTP/1.1 400 ")
        assert (await get(door, "/healthz")).status_code == 200


async def test_a_head_that_never_ends_is_cut() -> None:
    async with serving() as door:
        answer = await say(door, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * (4 * HEAD_BYTES_MAX))
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_who_sends_byte_by_byte_is_cut_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.2)
    async with serving() as door:
        stream = await trio.open_tcp_stream("127.0.0.1", door.port)
        async with stream, trio.open_nursery() as nursery:

            async def trickle() -> None:
                try:
                    for byte in b"GET /metrics HTTP/1.1\r\nX-Slow: " + b"a" * 10_000:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.01)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            nursery.start_soon(trickle)
            with trio.fail_after(5):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")
            nursery.cancel_scope.cancel()


async def test_who_does_not_read_the_answer_loses_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    source = SourceDouble()
    source.shown = "#" * 30_000_000  # more than the kernel takes
    async with serving(source) as door, await trio.open_tcp_stream("127.0.0.1", door.port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(10):
            while not await say(door, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                await trio.lowlevel.checkpoint()
        assert await rest_of(stream) < 30_000_000


async def rest_of(stream: trio.SocketStream) -> int:
    """How much more comes before the connection ends in one way or another."""
    size = 0
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            size += len(data)
    return size


async def test_connections_are_bounded_and_given_back() -> None:
    async with serving() as door, AsyncExitStack() as open_ones:
        streams = [await trio.open_tcp_stream("127.0.0.1", door.port) for _ in range(CONNECTIONS_MAX)]
        for stream in streams:
            await open_ones.enter_async_context(stream)
        assert await say(door, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        await streams[0].aclose()
        with trio.fail_after(5):
            while not await say(door, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9464", 200),
        ("127.0.0.1:9464", 200),
        ("127.9.9.9", 200),
        ("[::1]:9464", 200),
        ("rebound.example", 403),
        ("192.168.1.5:9464", 403),
        ("127.0.0.1.example", 403),
        ("localhost.example", 403),
        ("", 403),
    ],
)
async def test_over_loopback_the_request_has_to_mean_it(host: str, status: int) -> None:
    async with serving() as door:
        answer = await say(door, f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


async def test_on_another_address_any_name_does() -> None:
    async with serving(host="0.0.0.0") as door:
        answer = await say(door, b"GET /metrics HTTP/1.1\r\nHost: node.example\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
async def test_where_a_token_is_set_nothing_is_said_without_it(path: str) -> None:
    async with serving(token=Token(b"0123456789abcdef")) as door:
        for headers in ({}, {"Authorization": "Bearer 0123456789abcdee"}, {"Authorization": "Basic 0123456789abcdef"}):
            answer = await get(door, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.text == "show the token of this node: Authorization: Bearer TOKEN\n"
        shown = await get(door, path, headers={"Authorization": "Bearer 0123456789abcdef"})
        assert shown.status_code == (404 if path == "/nothing" else 200)


async def test_a_fault_of_ours_ends_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    source = SourceDouble()
    source.breaks = True
    async with serving(source) as door:
        assert await say(door, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        assert (await get(door, "/healthz")).status_code == 200


async def test_a_taken_port_is_told_in_one_line() -> None:
    async with serving() as door:
        with pytest.raises(ConfigError) as caught:
            async with open_door("127.0.0.1", door.port):
                pass
        assert "another program has it: choose another one with --metrics-port" in str(caught.value)
    with pytest.raises(ConfigError, match="must be an address of this machine"):
        async with open_door("203.0.113.9", 0):
            pass


def test_the_head_is_bounded_as_the_library_counts() -> None:
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    http.receive_data(b"GET / HTTP/1.1\r\nX: " + b"a" * (HEAD_BYTES_MAX + 1))
    with pytest.raises(h11.RemoteProtocolError):
        http.next_event()
