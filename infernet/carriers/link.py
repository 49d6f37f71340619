"""The node's end of the link: one WebSocket, outbound, signed, kept open to the pinned coordinator.

It is a carrier like any other: streams that the coordinator opens over it reach the driver, and the peer cannot tell
them from libp2p streams. A lost link is opened again with growing pauses, for ever.
"""

from __future__ import annotations

import itertools
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from urllib.parse import urlsplit

import structlog
import trio
import trio_websocket

from infernet.coordinator_client import PROXIED_TIMEOUT_S, CoordinatorClient, CoordinatorError, RequestSigner
from infernet.driver import Driver, NetworkEffect
from infernet.proxy import Proxy
from protocol import events as e
from protocol import link as wire
from protocol.effects import FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import AUTH_HEADER
from protocol.errors import BadFrame, RemoteProtocolError
from protocol.ids import StreamId
from protocol.records import Signed

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S: Final = 15.0
DISCONNECT_TIMEOUT_S: Final = 2.0
# After the first failure 1 s, then doubling; a minute at most, so that a restarted coordinator is soon found.
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 60.0
# A link that stood this long was good: the next pause is short again.
STABLE_S: Final = 30.0
# Whatever can go wrong on a link: its network, its handshake, its deadlines, the coordinator's bytes.
_LINK_ERRORS: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    RemoteProtocolError,
)


class LinkMoney(Protocol):
    """Who is told what the coordinator says about money over the link."""

    def on_claim_answer(self, answer: wire.ClaimAnswer) -> None: ...

    def on_closing(self, record: Signed) -> None: ...

    def on_link(self, *, is_up: bool) -> None: ...


class LinkCarrier:
    """Carries the connection to the coordinator. `registration` gives the fields of a registration when asked."""

    def __init__(
        self,
        url: str,
        signer: RequestSigner,
        driver: Driver,
        rng: random.Random,
        registration: Callable[[], dict[str, object]],
        proxy: Proxy | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self._host = f"{name}:{parts.port or (443 if self._tls else 80)}"
        self._target = parts.path.rstrip("/") + wire.LINK_PATH
        self._signer = signer
        self._driver = driver
        self._rng = rng
        self._registration = registration
        self._client = CoordinatorClient(url, signer, proxy)
        self._proxy = proxy
        self._link: wire.Link | None = None
        self._wake = trio.Event()
        self._heartbeat: Signed | None = None
        self._last_heard_s = 0.0
        self.state = "connecting"
        self.last_error = ""
        #: Set by whoever brings claims.
        self.money: LinkMoney | None = None

    @property
    def connected(self) -> bool:
        return self._link is not None

    def announce(self, record: Signed) -> None:
        """Send our heartbeat now, or as soon as the link stands."""
        self._heartbeat = record
        if self._link is not None:
            self._link.announce(record)
            self._wake.set()

    def claim(self, number: int, claims: tuple[Signed, ...]) -> bool:
        """Send claims that fit in a frame; their answer comes with the same number. False where no link stands."""
        if self._link is None:
            return False
        self._link.claim(number, claims)
        self._wake.set()
        return True

    # ------------------------------------------------------------ the driver's carrier

    def perform(self, effect: NetworkEffect) -> None:
        if self._link is None or not isinstance(effect, (OpenStream, Send, FinishStream, ResetStream)):
            return
        event = self._link.perform(effect)
        if event is not None:
            self._driver.post(event)
        self._wake.set()

    # ------------------------------------------------------------ the connection

    async def run(self) -> None:
        """Keep the link open until cancelled."""
        pause_s = RETRY_S_MIN
        while True:
            started_s = trio.current_time()
            self.state = "connecting"
            try:
                await self._client.register(self._registration())
                await self.connect_once()
            except (CoordinatorError, *_LINK_ERRORS) as error:
                self.last_error = _reason(error)
            if trio.current_time() - started_s > STABLE_S:
                pause_s = RETRY_S_MIN
            self.state = "waiting"
            log.warning("coordinator.link_lost", reason=self.last_error, retry_in_s=round(pause_s, 1))
            # Jitter keeps all nodes of a restarted coordinator from coming back in one wave.
            await trio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(RETRY_S_MAX, 2 * pause_s)

    async def connect_once(self) -> None:
        """Open the link, check the coordinator's hello, and carry until the link is lost."""
        auth = self._signer.sign("GET", wire.LINK_PATH)
        with trio.fail_after(CONNECT_TIMEOUT_S if self._proxy is None else PROXIED_TIMEOUT_S):
            stream = await self._open_stream()
        failure: BaseException | None = None
        # trio-websocket leaves the stream open when the other side vanishes; it is ours, and ends with this block.
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    socket = await trio_websocket.wrap_client_stream(
                        nursery,
                        stream,
                        self._host,
                        self._target,
                        extra_headers=[(AUTH_HEADER.encode(), auth.encode())],
                        message_queue_size=16,
                        max_message_size=wire.LINK_MESSAGE_BYTES_MAX,
                    )
                    hello = await socket.get_message()
                wire.decode_hello(_binary(hello), self._signer.coordinator, self._signer.node, auth)
                await self._carry(socket)
                with trio.move_on_after(DISCONNECT_TIMEOUT_S):
                    await socket.aclose()
                nursery.cancel_scope.cancel()
        except* _LINK_ERRORS as group:
            failure = _first(group)
        finally:
            await trio.aclose_forcefully(stream)
        if failure is not None:
            raise failure

    async def _open_stream(self) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        host, _, port = self._host.rpartition(":")
        if self._proxy is not None:
            stream = await self._proxy.connect(host.strip("[]"), int(port))
            if not self._tls:
                return stream
            context = ssl.create_default_context()
            return trio.SSLStream(stream, context, server_hostname=host.strip("[]"), https_compatible=True)
        if self._tls:
            return await trio.open_ssl_over_tcp_stream(host.strip("[]"), int(port), https_compatible=True)
        return await trio.open_tcp_stream(host.strip("[]"), int(port))

    async def _carry(self, socket: trio_websocket.WebSocketConnection) -> None:
        coordinator = self._signer.coordinator
        link = wire.Link(
            coordinator,
            opens_odd=False,
            next_stream=self._inbound_stream,
            on_closed=self._driver.stream_closed,
        )
        self._link = link
        self.state = "connected"
        self._last_heard_s = trio.current_time()
        log.info("coordinator.linked", host=self._host)
        if self._heartbeat is not None:
            link.announce(self._heartbeat)
        self._driver.connected(self, e.PeerConnected(coordinator, None, False))
        if self.money is not None:
            self.money.on_link(is_up=True)
        self.last_error = "the coordinator closed the link"
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._keep_alive):
                    nursery.start_soon(self._until_lost, task, socket, link, nursery.cancel_scope)
        finally:
            self._link = None
            for broken in link.close("the link to the coordinator is lost"):
                self._driver.post(broken)
            self._driver.disconnected(self, coordinator)
            if self.money is not None:
                self.money.on_link(is_up=False)

    async def _until_lost(
        self,
        task: Callable[[trio_websocket.WebSocketConnection, wire.Link], Awaitable[None]],
        socket: trio_websocket.WebSocketConnection,
        link: wire.Link,
        scope: trio.CancelScope,
    ) -> None:
        """Run one of the link's tasks; whichever ends first ends the others."""
        try:
            await task(socket, link)
        except trio_websocket.ConnectionClosed:
            pass  # `last_error` says so already
        except RemoteProtocolError as error:
            self.last_error = f"the coordinator broke the protocol: {error}"
        scope.cancel()

    async def _read(self, socket: trio_websocket.WebSocketConnection, link: wire.Link) -> None:
        while True:
            message = _binary(await socket.get_message())
            self._last_heard_s = trio.current_time()
            for event in link.receive(message):
                if isinstance(event, wire.Announce | wire.ClaimFrame):
                    raise RemoteProtocolError("only nodes announce heartbeats and claim")
                if isinstance(event, wire.ClaimAnswer | wire.Closing):
                    self._tell_money(event)
                    continue
                await self._driver.post_with_backpressure(event)
            if link.is_clogged:
                raise RemoteProtocolError("it asks for answers and does not read them")
            self._wake.set()

    def _tell_money(self, event: wire.ClaimAnswer | wire.Closing) -> None:
        if self.money is None:
            return
        if isinstance(event, wire.ClaimAnswer):
            self.money.on_claim_answer(event)
        else:
            self.money.on_closing(event.record)

    async def _write(self, socket: trio_websocket.WebSocketConnection, link: wire.Link) -> None:
        while True:
            while (message := link.take()) is not None:
                with trio.fail_after(wire.LINK_SILENCE_S_MAX):
                    await socket.send_message(message)
            self._wake = trio.Event()
            await self._wake.wait()

    async def _keep_alive(self, _socket: trio_websocket.WebSocketConnection, link: wire.Link) -> None:
        for number in itertools.count(1):
            await trio.sleep(wire.LINK_PING_INTERVAL_S)
            if trio.current_time() - self._last_heard_s > wire.LINK_SILENCE_S_MAX:
                self.last_error = f"the coordinator was silent for {wire.LINK_SILENCE_S_MAX:g} s"
                return
            link.ping(number)
            self._wake.set()

    def _inbound_stream(self) -> StreamId:
        return self._driver.inbound_stream(self)


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise BadFrame("a text message on the link")
    return message


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What failed first; the other tasks of its nursery only followed."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _reason(error: Exception) -> str:
    """One line for people about a failed link."""
    if isinstance(error, (CoordinatorError, RemoteProtocolError)):
        return str(error)
    if isinstance(error, trio_websocket.ConnectionRejected):
        return f"the coordinator refused the link with HTTP status {error.status_code}"
    return f"the link to the coordinator could not be opened: {str(error) or type(error).__name__}"
