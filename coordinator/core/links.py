"""The links that nodes keep open: streams between them and the one peer of this process.

A link is one connection to its node. A node's newer link replaces its older one. Everything that waits has a
deadline: a link on which nothing was heard for `LINK_SILENCE_S_MAX` is closed, whatever it was doing.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from coordinator.core.driver import PeerDriver
from coordinator.core.http import ApiError
from coordinator.core.money import BUSY, INTERNAL, INTERNAL_TEXT
from coordinator.store.db import StoreBusy, StoreClosed, StoreFailed
from protocol import constants as c
from protocol import events as e
from protocol.effects import FinishStream, HangUp, OpenStream, ResetStream, Send
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId, StreamId, short
from protocol.link import (
    LINK_CLAIMS_MAX,
    LINK_PING_INTERVAL_S,
    LINK_SILENCE_S_MAX,
    Announce,
    ClaimAnswer,
    ClaimFrame,
    ClaimRefusal,
    Closing,
    Link,
    LinkEvent,
)
from protocol.records import Signed

# As over HTTP.
UNAVAILABLE: Final = "store_unavailable"
UNAVAILABLE_TEXT: Final = "the store is not available; try again soon"
CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_POLICY: Final = 1008
CLOSE_REASON_BYTES_MAX: Final = 120  # RFC 6455, 5.5: a control frame holds 125 bytes, two of them the code

log = structlog.get_logger(__name__)


class MessageChannel(Protocol):
    """A WebSocket, as far as a link needs one."""

    async def receive(self) -> bytes | str: ...

    async def send(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...


class OnAnnounce(Protocol):
    """Takes a node's signed heartbeat. Raises RemoteProtocolError when it does not hold."""

    async def __call__(self, node: NodeId, record: Signed) -> None: ...


class ClaimMany(Protocol):
    """Settles claims that came together: for each why not, or the acknowledgement of all that are.

    Raises ApiError for all of them.
    """

    async def __call__(self, sender: NodeId, claims: Sequence[Signed]) -> list[Signed | ApiError]: ...


class LinkClosed(Exception):
    """Why a link ends; carried out of its tasks to the one place that closes it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Connection:
    def __init__(self, link: Link, label: str) -> None:
        self.link = link
        self.label = label
        self.wake_writer = asyncio.Event()
        self.heard_at_s = asyncio.get_running_loop().time()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.announcing = False
        self.claims_unanswered = 0

    def close(self, code: int, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_exception(LinkClosed(code, reason))


def _close_reason(reason: str) -> str:
    return reason.encode(errors="replace")[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")


def _answer(number: int, outcomes: Sequence[Signed | ApiError]) -> ClaimAnswer:
    # SPEC 07: The coordinator MUST answer each frame of claims with one answer of its number, which acknowledges or
    #   refuses each of them.
    refusals = [(at, outcome) for at, outcome in enumerate(outcomes) if isinstance(outcome, ApiError)]
    return ClaimAnswer(
        number,
        # One for all of them, or none.
        next((outcome for outcome in outcomes if isinstance(outcome, Signed)), None),
        tuple(
            ClaimRefusal(at, str(error.fields.get("code", INTERNAL)), error.message[: c.TEXT_CHARACTERS_MAX])
            for at, error in refusals
        ),
    )


class Links:
    """Every open link. `serve` runs one; the rest is the network of the peer's driver."""

    def __init__(self, on_announce: OnAnnounce, claim_many: ClaimMany) -> None:
        self._on_announce = on_announce
        self._claim_many = claim_many
        self._connections: dict[NodeId, _Connection] = {}
        self._by_stream: dict[StreamId, _Connection] = {}
        self._inbound_numbers = itertools.count(2, 2)
        self._driver: PeerDriver | None = None

    def attach(self, driver: PeerDriver) -> None:
        """Say who handles the events. Once, before the first link."""
        self._driver = driver

    def __contains__(self, node: NodeId) -> bool:
        return node in self._connections

    def __len__(self) -> int:
        return len(self._connections)

    def nodes(self) -> frozenset[NodeId]:
        """Which nodes have a link open."""
        return frozenset(self._connections)

    def label(self, node: NodeId) -> str | None:
        """The textual id of a linked node."""
        connection = self._connections.get(node)
        return connection.label if connection is not None else None

    # ------------------------------------------------------------ one link

    async def serve(self, node: NodeId, label: str, record: Signed | None, channel: MessageChannel) -> None:
        """Run a link until it ends; close the channel with the reason. Its hello has been sent.

        `label` is the node's textual id, `record` its heartbeat as far as one is known that has not expired.
        """
        link = Link(
            node,
            opens_odd=True,
            next_stream=lambda: StreamId(next(self._inbound_numbers)),
            on_closed=lambda stream: self._by_stream.pop(stream, None),
        )
        connection = _Connection(link, label)
        self._add(node, connection, record)
        ended = LinkClosed(CLOSE_NORMAL, "the link is closed")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(connection, channel, group))
                group.create_task(self._write(connection, channel))
                group.create_task(self._keep_alive(connection))
                await connection.closed
        except* LinkClosed as errors:
            ended = next(error for error in errors.exceptions if isinstance(error, LinkClosed))
        finally:
            self._remove(node, connection, ended.reason)
            log.info("link_closed", node=short(node), reason=ended.reason)
        await channel.close(ended.code, _close_reason(ended.reason))

    async def _read(self, connection: _Connection, channel: MessageChannel, group: asyncio.TaskGroup) -> None:
        while True:
            message = await channel.receive()
            connection.heard_at_s = asyncio.get_running_loop().time()
            if isinstance(message, str):
                raise LinkClosed(CLOSE_PROTOCOL_ERROR, "a link carries binary messages")
            try:
                events = connection.link.receive(message)
            except RemoteProtocolError as error:
                raise LinkClosed(CLOSE_PROTOCOL_ERROR, str(error)) from None
            for event in events:
                self._take(connection, event, group)
            connection.wake_writer.set()

    def _take(self, connection: _Connection, event: LinkEvent, group: asyncio.TaskGroup) -> None:
        assert self._driver is not None
        if isinstance(event, Announce):
            # One at a time per link: a node that announces faster than it is recorded is not queued for.
            if not connection.announcing:
                connection.announcing = True
                group.create_task(self._announce(connection, event.record))
            return
        if isinstance(event, ClaimFrame):
            self._take_claim(connection, event, group)
            return
        if isinstance(event, ClaimAnswer | Closing):
            raise LinkClosed(CLOSE_PROTOCOL_ERROR, "only a coordinator answers claims")
        if isinstance(event, e.StreamOpened):
            self._by_stream[event.stream] = connection
        self._driver.handle(event)

    async def _announce(self, connection: _Connection, record: Signed) -> None:
        try:
            await self._on_announce(connection.link.peer, record)
        except RemoteProtocolError as error:
            log.info("heartbeat_refused", node=short(connection.link.peer), reason=str(error))
        except (StoreBusy, StoreClosed, StoreFailed, sqlite3.Error):
            # The next one comes in half a minute. What runs over the link needs no disk.
            log.exception("heartbeat_not_recorded", node=short(connection.link.peer))
        finally:
            connection.announcing = False

    # ------------------------------------------------------------ claims

    def _take_claim(self, connection: _Connection, frame: ClaimFrame, group: asyncio.TaskGroup) -> None:
        # SPEC 07: The coordinator MUST take 64 claims of a node before it has answered the first.
        if connection.claims_unanswered + len(frame.claims) > LINK_CLAIMS_MAX:
            busy = ApiError(503, "too many claims of this node wait for answers", code=BUSY)
            connection.link.tell(_answer(frame.number, [busy] * len(frame.claims)))
            return
        connection.claims_unanswered += len(frame.claims)
        group.create_task(self._settle(connection, frame))

    async def _settle(self, connection: _Connection, frame: ClaimFrame) -> None:
        outcomes: Sequence[Signed | ApiError]
        try:
            outcomes = await self._claim_many(connection.link.peer, frame.claims)
        except ApiError as error:
            outcomes = [error] * len(frame.claims)
        except (StoreBusy, StoreClosed, StoreFailed, sqlite3.Error):
            log.exception("claims_not_settled", claims=len(frame.claims))
            outcomes = [ApiError(503, UNAVAILABLE_TEXT, code=UNAVAILABLE)] * len(frame.claims)
        # A fault of ours may meet the claims of many nodes together: none of them loses its link, and its jobs, for it.
        except Exception:
            log.exception("claims_not_settled", claims=len(frame.claims))
            outcomes = [ApiError(500, INTERNAL_TEXT, code=INTERNAL)] * len(frame.claims)
        connection.claims_unanswered -= len(frame.claims)
        connection.link.tell(_answer(frame.number, outcomes))
        connection.wake_writer.set()

    def tell(self, node: NodeId, frame: Closing) -> None:
        """Say something to a node if it has a link; else it will ask."""
        connection = self._connections.get(node)
        if connection is not None:
            connection.link.tell(frame)
            connection.wake_writer.set()

    async def _write(self, connection: _Connection, channel: MessageChannel) -> None:
        while True:
            await connection.wake_writer.wait()
            connection.wake_writer.clear()
            while (message := connection.link.take()) is not None:
                await channel.send(message)

    async def _keep_alive(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            await asyncio.sleep(LINK_PING_INTERVAL_S)
            silence_s = loop.time() - connection.heard_at_s
            if silence_s > LINK_SILENCE_S_MAX:
                raise LinkClosed(CLOSE_POLICY, f"nothing was heard for {silence_s:.0f} s")
            if connection.link.is_clogged:
                raise LinkClosed(CLOSE_POLICY, "answers are asked for and not read")
            connection.link.ping(number)
            connection.wake_writer.set()

    # ------------------------------------------------------------ all links

    def _add(self, node: NodeId, connection: _Connection, record: Signed | None) -> None:
        assert self._driver is not None
        older = self._connections.get(node)
        if older is not None:
            reason = "a newer link of this node replaces this one"
            self._remove(node, older, reason)
            older.close(CLOSE_POLICY, reason)
        self._connections[node] = connection
        log.info("link_opened", node=short(node), links=len(self._connections))
        self._driver.handle(e.PeerConnected(node, None, inbound=True))
        if record is not None:
            self._driver.handle(e.LearnRecord(record))

    def _remove(self, node: NodeId, connection: _Connection, reason: str) -> None:
        assert self._driver is not None
        if self._connections.get(node) is not connection:
            return  # it was replaced, and the peer has heard
        del self._connections[node]
        self._driver.handle(*connection.link.close(reason), e.PeerDisconnected(node))

    def close_all(self, reason: str) -> None:
        """Close every link: the server is going down, and the nodes should look for it again soon."""
        for connection in list(self._connections.values()):
            connection.close(CLOSE_GOING_AWAY, reason)

    # ------------------------------------------------------------ the network of the driver

    def perform(self, effect: OpenStream | Send | FinishStream | ResetStream) -> e.Event | None:
        """Put what the effect means into the outbox of its link."""
        if isinstance(effect, OpenStream):
            connection = self._connections.get(effect.peer)
            if connection is None:
                return e.StreamBroken(effect.stream, "this node has no link open")
            self._by_stream[effect.stream] = connection
        else:
            connection = self._by_stream.get(effect.stream)
            if connection is None:
                return None  # the stream is over; the event that says so was delivered or is in the inbox
        connection.wake_writer.set()
        answer = connection.link.perform(effect)
        if isinstance(answer, e.StreamBroken):
            self._by_stream.pop(answer.stream, None)
        return answer

    def hang_up(self, effect: HangUp) -> None:
        """Close the link of this node."""
        self.drop(effect.peer, effect.reason)

    def drop(self, node: NodeId, reason: str) -> None:
        """Close the link of this node if it has one."""
        connection = self._connections.get(node)
        if connection is not None:
            connection.close(CLOSE_POLICY, reason)
