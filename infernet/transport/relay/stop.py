"""The reached node's side: circuits that a relay brings us are served like connections that came in over TCP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from infernet.transport.addresses import circuit_multiaddr
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import Stream, StreamBroken
from infernet.transport.libp2p_library import HandshakeFailed, Identity
from infernet.transport.noise_channel import NoiseChannel, secure_inbound
from infernet.transport.relay import wire
from infernet.transport.relay.circuit import CircuitStream
from infernet.transport.relay.wire import ConnectRequest, MalformedMessage, Status
from protocol.ids import NodeId, short
from protocol.locality import is_circuit

log = structlog.get_logger(__name__)

# A relay that opens a stream says at once who is there.
REQUEST_TIMEOUT_S: Final = 5.0
# As over TCP, and through one more machine.
HANDSHAKE_TIMEOUT_S: Final = 8.0
# Circuits of one relay whose other end has not proven itself. There are three relays at most: none of them, nor anybody
# behind it who says nothing, takes the places of those who come through the others.
HANDSHAKES_PER_RELAY_MAX: Final = 12


class StopService:
    """Serves STOP_PROTOCOL. `serve_channel` runs a proven connection to its end; `is_full` when it would refuse it."""

    def __init__(
        self,
        identity: Identity,
        relays: Container[NodeId],
        *,
        is_full: Callable[[], bool],
        serve_channel: Callable[[NoiseChannel, str], Awaitable[None]],
    ) -> None:
        """`relays` are those that we asked for a place."""
        self._identity = identity
        self._relays = relays
        self._is_full = is_full
        self._serve_channel = serve_channel
        self._handshakes: Counter[NodeId] = Counter()

    async def serve(self, stream: Stream, remote: str | None) -> None:
        """Serve one stream that a relay opened; returns when the circuit in it has ended. Raises StreamBroken."""
        reader = ByteReader(stream.receive)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                request = wire.decode_stop_request(await wire.read_message(reader))
        except MalformedMessage as error:
            log.debug("relay.bad_circuit", peer=short(stream.peer), error=str(error))
            await stream.send(wire.encode_stop_answer(Status.MALFORMED_MESSAGE))
            return
        except ChannelBroken as error:
            raise StreamBroken(str(error)) from error
        except trio.TooSlowError:
            raise StreamBroken("the relay did not say who is there") from None
        refusal = self._refusal(stream.peer, remote)
        if refusal is not None:
            await stream.send(wire.encode_stop_answer(refusal))
            return
        with self._counted(stream.peer):
            await stream.send(wire.encode_stop_answer(Status.OK))
            channel = await self._prove(stream, reader.rest(), request)
        if channel is not None:
            await self._serve_channel(channel, circuit_multiaddr(remote, stream.peer))

    def _refusal(self, relay: NodeId, remote: str | None) -> Status | None:
        # SPEC 08: A node MUST take circuits only from relays that it has asked for a place, and only over a connection
        #   that is no circuit itself.
        if relay not in self._relays or is_circuit(remote):
            return Status.PERMISSION_DENIED
        if self._handshakes[relay] >= HANDSHAKES_PER_RELAY_MAX or self._is_full():
            return Status.RESOURCE_LIMIT_EXCEEDED
        return None

    @contextmanager
    def _counted(self, relay: NodeId) -> Iterator[None]:
        self._handshakes[relay] += 1
        try:
            yield
        finally:
            self._handshakes[relay] -= 1
            if not self._handshakes[relay]:
                del self._handshakes[relay]

    async def _prove(self, stream: Stream, received: bytes, request: ConnectRequest) -> NoiseChannel | None:
        """Make the handshake; None when the other end is not who the relay said, or nobody."""
        circuit = CircuitStream(stream, received, request.limit)
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                channel = await secure_inbound(circuit, self._identity)
            # SPEC 08: A node MUST close a circuit whose other end proves another key than the relay named.
            if channel.peer == request.peer:
                return channel
            log.debug("relay.wrong_peer", peer=short(stream.peer))
        except (HandshakeFailed, ChannelBroken, trio.TooSlowError) as error:
            log.debug("relay.no_handshake", peer=short(stream.peer), error=str(error) or "too slow")
        stream.reset()
        return None
