"""HTTP to a server that may send anything: events in any pieces, and bounds on everything."""

from __future__ import annotations

import gzip
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines import openai_http
from infernet.engines.openai_http import (
    LINE_BYTES_MAX,
    ApiKey,
    EventReader,
    Server,
    ServerBroken,
    ServerError,
    ServerGone,
    ServerRefused,
    kind_of,
)
from tests.helpers_openai_servers import Asked, OddServer, Reply

pytestmark = pytest.mark.anyio

STREAM = b': comment\r\n\r\nevent: x\ndata: {"a": 1}\r\n\r\ndata:{"b":2}\n\nid: 7\ndata: [DONE]\n\ndata: unfinished'


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    reader = EventReader()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    events = [event for piece in pieces for event in reader.feed(piece)]
    assert events == [b'{"a": 1}', b'{"b":2}', b"[DONE]"]


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_none(data: bytes) -> None:
    assert all(b"\n" not in event for event in EventReader().feed(data))


def test_a_line_has_an_end_or_is_refused() -> None:
    reader = EventReader()
    reader.feed(b"x" * LINE_BYTES_MAX)
    with pytest.raises(ServerBroken, match="a line of more than"):
        reader.feed(b"y")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"error":{"code":400,"message":"Too long","type":"exceed_context"}}', "400 exceed_context too long"),
        (b'{"error":"model not found"}', "model not found"),
        (b'{"object":"error","message":"Bad","type":"BadRequestError","code":400}', "400 badrequesterror bad"),
        (b'{"error":[1]}', ""),
        (b"<html>", ""),
        (b"[" * 50_000, ""),
        (b"", ""),
    ],
)
def test_a_servers_word_for_an_error_is_found_or_empty(content: bytes, kind: str) -> None:
    assert kind_of(content) == kind


async def get(page: Any, timeout_s: float = 5.0) -> object:
    """What one page is, as any object. Raises ServerError."""
    async with OddServer({"/page": page}).running() as odd, Server(odd.url, ApiKey("k")) as server:
        try:
            return await server.get("/page", dict, timeout_s)
        except ServerError as error:
            # Out of the group of whatever the double was doing.
            failure = error
    raise failure


async def test_a_page_is_read_with_its_key() -> None:
    async def page(asked: Asked, reply: Reply) -> None:
        await reply.json({"shown": asked.headers["authorization"], "packed": asked.headers["accept-encoding"]})

    assert await get(page) == {"shown": "Bearer k", "packed": "identity"}


async def test_a_page_that_is_too_large_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin()
        while True:
            await reply.send(b" " * 1000)

    monkeypatch.setattr(openai_http, "ANSWER_BYTES_MAX", 50_000)
    with pytest.raises(ServerBroken, match="more than 50000 bytes"):
        await get(page)


async def test_a_page_that_comes_too_slowly_is_left() -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.send(b"{")
        await reply.until_hung_up()

    with pytest.raises(ServerBroken, match="did not answer /page within 0 s"):
        await get(page, 0.2)


async def test_what_is_packed_is_not_unpacked() -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(content_encoding="gzip")
        await reply.send(gzip.compress(b" " * 10**7))
        await reply.end()

    with pytest.raises(ServerBroken, match="packed"):
        await get(page)


async def test_an_error_that_does_not_end_is_an_error_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(500)
        while True:
            await reply.send(b"e" * 5000)

    with pytest.raises(ServerRefused) as refused:
        await get(page)
    assert (refused.value.status, refused.value.kind) == (500, "")


async def test_nobody_there_and_no_http_are_told_apart() -> None:
    async with Server("http://127.0.0.1:9") as server:
        with pytest.raises(ServerGone):
            await server.get("/page", dict, 5)

    async def page(_asked: Asked, reply: Reply) -> None:
        await reply._stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")

    with pytest.raises(ServerBroken, match="broke off"):
        await get(page)


@pytest.mark.parametrize("host", ["a" * 70, "xn--\u0131", "..", "a..b", "[::1%25x]"])
async def test_a_name_that_no_resolver_takes_is_an_error_of_the_server(host: str) -> None:
    async with Server(f"http://{host}:9") as server:
        with pytest.raises(ServerError):
            await server.get("/page", dict, 5)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_no_proxy_sees_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.json({})

    assert await get(page) == {}
