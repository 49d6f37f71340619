"""A coordinator as its clients meet it: really served by Hypercorn, asked by httpx, with a clock that tests turn.

`ScriptedNode` is the other end of a link: a WebSocket client (wsproto over asyncio) around a real `protocol.peer.Peer`
as provider. Only its engine is a double: it says what the test scripted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import socket as socket_module
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import wsproto
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, RejectData, Request

from coordinator.app import CoordinatorApp, create_app
from coordinator.config import Config
from coordinator.core.core import wall_clock_ms
from coordinator.identity import load_or_create_key
from coordinator.server import bind, serve, url_of
from coordinator.store.db import open_database
from protocol import codec
from protocol import events as e
from protocol import link as wire
from protocol.effects import (
    CancelEngine,
    Effect,
    FinishStream,
    HeartbeatSigned,
    OpenStream,
    ResetStream,
    RunEngine,
    Send,
)
from protocol.envelope import AUTH_HEADER, SigningKey, sign_record, sign_request, sign_request_v1
from protocol.errors import Refusal
from protocol.ids import NodeId, RunId, StreamId
from protocol.peer import Peer, PeerConfig
from protocol.records import FreePolicy, Heartbeat, Kind, ModelOffer, Outcome, Role, Signed
from protocol.sealing import HpkeSealer

MODEL = "test-model:1b"
DEADLINE_S = 10.0
# A real engine is slower than the link; a scripted one waits for it.
OUTBOX_HIGH_BYTES = 64 * 1024


class WallClock:
    """The system's clock, plus what the test adds."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def __call__(self) -> int:
        return wall_clock_ms() + self.offset_ms


@dataclass
class Served:
    """A running coordinator."""

    app: CoordinatorApp
    url: str
    http: httpx.AsyncClient
    clock: WallClock
    key: SigningKey
    stop: asyncio.Event

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


@asynccontextmanager
async def serving(home: Path, clock: WallClock | None = None, **settings: Any) -> AsyncIterator[Served]:
    """Serve a coordinator from this home until the block ends."""
    clock = clock or WallClock()
    config = Config(home=str(home), **settings)
    database = open_database(home)
    key = load_or_create_key(home)
    app = create_app(config, key, database, wall_ms=clock)
    listener = bind("127.0.0.1", 0)
    url, stop = url_of(listener), asyncio.Event()
    server = asyncio.create_task(serve(app, listener, stop))
    try:
        # Plain HTTP needs no certificates, and loading them takes longer than most tests.
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, verify=False) as http:
            await http.get("/api/health")
            yield Served(app, url, http, clock, key, stop)
    finally:
        stop.set()
        await server
        listener.close()
        await database.close()


def meet_a_failed_fsync(_tx: sqlite3.Connection) -> None:
    """A write under which the disk fails, as sqlite3 reports it."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    raise error


async def until(condition: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, giving every other task its turn; fails after the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    step_s = 0.0
    while not condition():
        assert loop.time() < deadline, f"{what} did not come true within {deadline_s} s"
        await asyncio.sleep(step_s)
        step_s = min(0.02, step_s + 0.001)


# ---------------------------------------------------------------- signed requests


def make_key(number: int = 0) -> SigningKey:
    """A key; the same for the same number, a new one for 0."""
    return SigningKey(number.to_bytes(32, "big") if number else secrets.token_bytes(32), secrets.token_bytes)


class NodeClient:
    """Signs requests as one node."""

    def __init__(self, served: Served, key: SigningKey | None = None, *, version: int = 2) -> None:
        self.served = served
        self.key = key or make_key()
        self.version = version
        self.counter = itertools.count(wall_clock_ms())

    def header(self, target: str, body: bytes, method: str = "POST") -> str:
        now_ms = self.served.clock()
        if self.version == 1:
            return sign_request_v1(self.key, method, target, body, now_ms // 1000, secrets.token_hex(16))
        coordinator = self.served.key.node
        return sign_request(self.key, coordinator, method, target, body, now_ms, next(self.counter), 1)

    async def post(self, route: str, body: Any, content_type: str = "application/json") -> httpx.Response:
        target = f"/api/v1/node/{route}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {AUTH_HEADER: self.header(target, data), "content-type": content_type}
        return await self.served.http.post(target, content=data, headers=headers)

    async def register(self, **fields: Any) -> httpx.Response:
        body = {"role": "provider", "node_id": f"node-{self.key.node.hex()[:8]}", "name": "a node", **fields}
        return await self.post("register", body)


def heartbeat_record(
    key: SigningKey, now_ms: int, *, sealing_key: bytes | None = None, role: Role = Role.PROVIDER, **changes: Any
) -> Signed:
    """A node's signed heartbeat by way of a real peer; `changes` go into the offer."""
    return provider_peer(key, now_ms, role=role, **changes)[1]


def model_offer(name: str = MODEL, **changes: Any) -> ModelOffer:
    """A free chat model."""
    fields = {
        "name": name,
        "fingerprint": b"\x07" * 32,
        "kinds": (Kind.CHAT,),
        "context_tokens": 4096,
        "concurrency": 4,
        "price_in_uusd": 0,
        "price_out_uusd": 0,
        "price_job_uusd": 0,
        **changes,
    }
    return ModelOffer(**fields)


def provider_peer(key: SigningKey, now_ms: int, **offer: Any) -> tuple[Peer, Signed]:
    """A peer that offers something, and the heartbeat that says so."""
    now = e.Now(asyncio.get_running_loop().time(), now_ms)
    config = PeerConfig(agent="test", neighbours_min=0)
    peer = Peer(config, key, HpkeSealer(), random.Random(7), now)
    fields = {
        "role": Role.PROVIDER,
        "name": "scripted",
        "agent": "test",
        "models": (model_offer(),),
        "free_policy": FreePolicy.ALL,
        **offer,
    }
    effects = peer.handle(e.SetOffer(e.Offer(**fields)), now)
    record = next(effect.record for effect in effects if isinstance(effect, HeartbeatSigned))
    return peer, record


# ---------------------------------------------------------------- a WebSocket client


class Refused(Exception):
    """The server answered the upgrade with a status."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status = status
        self.body = body


class Closed(Exception):
    """The server closed the WebSocket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class WebSocket:
    """A small WebSocket client for binary messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._events: list[Any] = []
        self._partial = b""

    @classmethod
    async def open(
        cls, served: Served, target: str, headers: Sequence[tuple[str, str]], receive_buffer_bytes: int | None = None
    ) -> WebSocket:
        """Raises Refused. A small receive buffer makes a reader that stands still felt soon."""
        plain = socket_module.create_connection(("127.0.0.1", served.port))
        if receive_buffer_bytes is not None:
            plain.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, receive_buffer_bytes)
        plain.setblocking(False)
        # The reader takes no more than it is asked for, so that this end's own buffer stays small too.
        socket = cls(*await asyncio.open_connection(sock=plain, limit=receive_buffer_bytes or 2**16))
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        request = Request(host="127.0.0.1", target=target, extra_headers=encoded)
        await socket._write(socket._connection.send(request))
        event = await socket._next()
        if isinstance(event, AcceptConnection):
            return socket
        assert isinstance(event, RejectConnection)
        body = b""
        while event.has_body:
            data = await socket._next()
            assert isinstance(data, RejectData)
            body += data.data
            if data.body_finished:
                break
        await socket.abort()
        raise Refused(event.status_code, body)

    async def _next(self) -> Any:
        while not self._events:
            data = await self._reader.read(65536)
            self._connection.receive_data(data or None)
            self._events.extend(self._connection.events())
        return self._events.pop(0)

    async def receive(self) -> bytes:
        """The next binary message. Raises Closed."""
        while True:
            event = await self._next()
            if isinstance(event, BytesMessage):
                self._partial += event.data
                if event.message_finished:
                    message, self._partial = self._partial, b""
                    return message
            elif isinstance(event, CloseConnection):
                raise Closed(event.code, event.reason or "")

    async def send(self, data: bytes) -> None:
        await self._write(self._connection.send(BytesMessage(data=data)))

    async def send_text(self, text: str) -> None:
        await self._write(self._connection.send(wsproto.events.TextMessage(data=text)))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def abort(self) -> None:
        """Cut the connection, as a crash does."""
        self._writer.close()
        # It may have been cut from the other side first.
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


# ---------------------------------------------------------------- a scripted node


@dataclass
class Script:
    """What the engine double does with a run: wait for `begin`, say pieces, wait for `finish`, end."""

    pieces: Sequence[str] = ("Hello", " ", "world")
    begin: asyncio.Event = field(default_factory=asyncio.Event)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome = Outcome.STOP
    failure: Refusal | None = None
    one_at_a_time: asyncio.Queue[str] | None = None

    @classmethod
    def at_once(cls, *pieces: str, **changes: Any) -> Script:
        script = cls(pieces or cls.pieces, **changes)
        script.begin.set()
        script.finish.set()
        return script


class ScriptedNode:
    """A provider linked to a coordinator. `runs` collects what it was asked to run."""

    def __init__(
        self,
        served: Served,
        script: Script | None = None,
        key: SigningKey | None = None,
        *,
        knows_coordinator: bool = True,
        **offer: Any,
    ):
        # As a real node does, which pins its coordinator's key.
        self.allowed = frozenset({served.key.node} if knows_coordinator else ())
        self.client = NodeClient(served, key)
        self.script = script or Script.at_once()
        self.runs: list[RunEngine] = []
        self.cancelled: list[RunId] = []
        self.closed: Closed | None = None
        self._served = served
        self._offer = offer
        self._numbers = itertools.count(2, 2)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._run_tasks: dict[RunId, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def node(self) -> NodeId:
        return self.client.key.node

    async def connect(self, *, register: bool = True) -> ScriptedNode:
        """Register, open the link, check the hello, announce, and serve from then on. Raises Refused."""
        if register:
            record = heartbeat_record(self.client.key, self._served.clock(), **self._offer)
            body = codec.encode_value(record)
            answer = await self.client.post("register", body, "application/vnd.infernet.heartbeat")
            assert answer.status_code == 200, answer.text
        self.peer, record = provider_peer(self.client.key, self._served.clock(), **self._offer)
        self.socket, hello_header = await open_link(self.client)
        wire.decode_hello(await self.socket.receive(), self._served.key.node, self.node, hello_header)
        self.link = wire.Link(self._served.key.node, opens_odd=False, next_stream=lambda: StreamId(next(self._numbers)))
        self.wake = asyncio.Event()
        self.handle(e.Allow(self.allowed))
        self.handle(e.PeerConnected(self._served.key.node, None, inbound=False))
        self.link.announce(record)
        self.wake.set()
        for work in (self._read(), self._write()):
            self._spawn(work)
        links, directory = self._served.app.core.links, self._served.app.core.driver.peer.directory
        await until(lambda: self.node in links and directory.get(self.node), "the coordinator knows the node")
        return self

    async def close(self) -> None:
        """Cut the link, as a killed process does."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *self._run_tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.socket.abort()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def now(self) -> e.Now:
        return e.Now(asyncio.get_running_loop().time(), self._served.clock())

    def handle(self, event: e.Event) -> None:
        for effect in self.peer.handle(event, self.now()):
            self._perform(effect)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.peer.next_deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, lambda: self.handle(e.DEADLINE))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send() | OpenStream() | FinishStream() | ResetStream():
                answer = self.link.perform(effect)
                self.wake.set()
                assert answer is None, f"the script is faster than the link: {answer}"
            case RunEngine():
                self.runs.append(effect)
                self._run_tasks[effect.run] = asyncio.ensure_future(self._run(effect))
            case CancelEngine():
                self.cancelled.append(effect.run)
                self._run_tasks[effect.run].cancel()
            case HeartbeatSigned():
                self.link.announce(effect.record)
                self.wake.set()
            case _:
                pass

    async def _run(self, run: RunEngine) -> None:
        script = self.script
        self.handle(e.EngineStarted(run.run, 5))
        tokens = 0
        try:
            await script.begin.wait()
            if script.failure is not None:
                self.handle(e.EngineFailed(run.run, script.failure, "scripted"))
                return
            for piece in script.pieces:
                tokens += 1
                if self.link.queued_bytes > OUTBOX_HIGH_BYTES:
                    await until(lambda: self.link.queued_bytes == 0, "the link took what was sent")
                self.handle(e.EngineText(run.run, piece, tokens))
            while script.one_at_a_time is not None and (piece := await script.one_at_a_time.get()):
                tokens += 1
                self.handle(e.EngineText(run.run, piece, tokens))
            await script.finish.wait()
        except asyncio.CancelledError:
            if not self._tasks:
                raise  # the node is closed, not the run cancelled
            self.handle(e.EngineFinished(run.run, Outcome.CANCELLED, tokens))
            return
        self.handle(e.EngineFinished(run.run, script.outcome, tokens))

    async def _read(self) -> None:
        while True:
            try:
                message = await self.socket.receive()
            except Closed as closed:
                self.closed = closed
                return
            for event in self.link.receive(message):
                assert not isinstance(event, wire.Announce | wire.ClaimFrame | wire.ClaimAnswer | wire.Closing)
                self.handle(event)
            self.wake.set()

    async def _write(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            while (message := self.link.take()) is not None:
                await self.socket.send(message)


async def open_link(
    client: NodeClient, header: str | None = None, receive_buffer_bytes: int | None = None
) -> tuple[WebSocket, str]:
    """The upgrade alone; returns the socket and the header that the hello must answer. Raises Refused."""
    header = header if header is not None else client.header(wire.LINK_PATH, b"", "GET")
    headers = [(AUTH_HEADER, header)]
    return await WebSocket.open(client.served, wire.LINK_PATH, headers, receive_buffer_bytes), header


@asynccontextmanager
async def linked(served: Served, script: Script | None = None, **offer: Any) -> AsyncIterator[ScriptedNode]:
    """A scripted provider for the length of a block."""
    node = await ScriptedNode(served, script, **offer).connect()
    try:
        yield node
    finally:
        await node.close()


# ---------------------------------------------------------------- the chat's client


@dataclass
class SseEvent:
    """One event of a stream."""

    id: int | None
    kind: str
    data: dict[str, Any]


async def read_events(lines: AsyncIterator[str]) -> AsyncIterator[SseEvent]:
    """Parse `text/event-stream`."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith((":", "retry:")):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            number = fields.get("id")
            yield SseEvent(int(number) if number else None, fields["event"], json.loads(fields["data"]))
            fields = {}


async def ask(served: Served, text: str = "hi", **fields: Any) -> httpx.Response:
    """POST a question."""
    return await served.http.post("/api/chat", json={"messages": [{"role": "user", "content": text}], **fields})


async def stream(served: Served, job: str, last_event_id: int | None = None) -> list[SseEvent]:
    """Read a stream to its end."""
    headers = {"Last-Event-ID": str(last_event_id)} if last_event_id is not None else {}
    async with served.http.stream("GET", f"/api/chat/stream/{job}", headers=headers) as response:
        assert response.status_code == 200
        return [event async for event in read_events(response.aiter_lines())]


def text_of(events: Sequence[SseEvent]) -> str:
    """The answer as its token events told it."""
    return "".join(event.data["text"] for event in events if event.kind == "token")


def sign_heartbeat(key: SigningKey, heartbeat: Heartbeat) -> Signed:
    """Sign a heartbeat that a test has altered."""
    return sign_record(heartbeat, key)
