"""Test double of a coordinator's routes about money, for what the real one cannot be made to do: it answers as told.

Envelopes are really checked, by a clock of its own. Routes that the coordinator does not have yet are here by the
shapes that are agreed for them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from infernet.driver import wall_ms
from protocol import codec
from protocol.envelope import AUTH_HEADER, ReplayWindow, SigningKey, verify_request
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.link import SERVER_TIME_HEADER, encode_server_time
from protocol.records import Signed
from tests.helpers_records import signing_key

BANK = signing_key("bank")
REQUEST_BYTES_MAX = 1024 * 1024


@dataclass
class Asked:
    """One request whose envelope held."""

    target: str
    sender: NodeId
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.body)
        return fields

    @property
    def signed(self) -> Signed:
        return codec.decode_struct(self.body, Signed, codec.CONTROL_LIMITS)


@dataclass
class Refusal:
    """What is answered instead: a status, a sentence and a code."""

    status: int
    text: str = "no"
    code: str = ""


Answer = Refusal | Signed | dict[str, Any] | list[Any] | bytes
Script = Answer | Callable[[Asked], Answer]


@dataclass
class MoneyServer:
    """What it answers, by the end of the path; `hangs` never answers."""

    key: SigningKey = BANK
    url: str = ""
    ahead_ms: int = 0
    answers: dict[str, Script] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    refused_envelopes: int = 0
    hangs: bool = False
    is_registered: bool = True
    window: ReplayWindow = field(default_factory=ReplayWindow)

    def now_ms(self) -> int:
        return wall_ms() + self.ahead_ms

    def to(self, end: str) -> list[Asked]:
        """The requests to paths with this end."""
        return [asked for asked in self.asked if asked.target.endswith(end)]

    async def connection(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        try:
            while (request := await _read_request(stream)) is not None:
                if self.hangs:
                    await trio.sleep_forever()
                await stream.send_all(self._answer(*request))
        except trio.BrokenResourceError:
            pass  # whoever asked has gone

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        auth = headers.get(AUTH_HEADER.lower(), "")
        if method == "POST":
            try:
                who = verify_request(auth, self.key.node, method, target, body, self.now_ms())
                fresh = who.counter is not None and self.window.accept(who.counter)
            except RemoteProtocolError:
                fresh = False
            if not fresh:
                self.refused_envelopes += 1
                time = {SERVER_TIME_HEADER: encode_server_time(self.key, auth, self.now_ms())}
                return _response(401, {"error": "not authenticated", "code": "unauthenticated"}, time)
            self.asked.append(Asked(target, who.node, body))
            if target.endswith("/register"):
                self.is_registered = True
                return _response(200, {"data": {"id": "1"}})
            if not self.is_registered:
                return _response(404, {"error": "register first", "code": "not_registered"})
        script = next((script for end, script in self.answers.items() if target.endswith(end)), Refusal(404))
        answer = script(self.asked[-1]) if callable(script) else script
        if isinstance(answer, Refusal):
            return _response(answer.status, {"error": answer.text} | ({"code": answer.code} if answer.code else {}))
        if isinstance(answer, Signed):
            return _response(200, codec.encode_value(answer))
        return _response(200, answer if isinstance(answer, bytes) else {"data": answer})


async def _read_request(stream: trio.SocketStream) -> tuple[str, str, dict[str, str], bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece or len(data) > REQUEST_BYTES_MAX:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some()
    method, target, _ = first.split()
    return method, target, headers, body


def _response(status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


@asynccontextmanager
async def money_server(**changes: Any) -> AsyncIterator[MoneyServer]:
    """It listens on loopback as long as the block lasts."""
    server = MoneyServer(**changes)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.connection, listeners)
        yield server
        nursery.cancel_scope.cancel()
