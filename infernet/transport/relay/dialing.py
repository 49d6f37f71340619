"""The side of those who ask a relay: for a place to be reached at, and for a circuit to somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import trio

from infernet.transport.addresses import CircuitAddress
from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import DialFailed, NotConnected, RelayRefused, Stream, StreamBroken
from infernet.transport.dialer import AttemptFailed
from infernet.transport.libp2p_library import HandshakeFailed, Identity
from infernet.transport.noise_channel import NoiseChannel, secure_outbound
from infernet.transport.relay import wire
from infernet.transport.relay.circuit import CircuitStream
from infernet.transport.relay.wire import Answer, Limit, MalformedMessage, Status
from protocol.ids import NodeId, peer_id

# A relay answers a reservation at once, and a circuit after it has asked the reached node.
ANSWER_TIMEOUT_S: Final = 8.0

_WORDS: Final = {
    Status.RESERVATION_REFUSED: "it gives no place",
    Status.RESOURCE_LIMIT_EXCEEDED: "it has no room left",
    Status.PERMISSION_DENIED: "it does not allow that",
    Status.CONNECTION_FAILED: "it cannot connect to the peer",
    Status.NO_RESERVATION: "the peer has no place there",
    Status.MALFORMED_MESSAGE: "it does not understand us",
    Status.UNEXPECTED_MESSAGE: "it does not understand us",
}


class DialHost(Protocol):
    """What asking a relay needs of the transport below it."""

    node_id: NodeId

    async def dial(self, peer: NodeId, addresses: Sequence[str]) -> None:
        """As `Transport.dial`. Raises DialFailed."""

    def open_direct_stream(self, peer: NodeId, protocol: str) -> Stream:
        """Open a stream over a connection that is no circuit. Raises NotConnected."""


async def ask_for_place(host: DialHost, relay: NodeId) -> Answer:
    """Reserve a place at a connected relay. Raises RelayRefused."""
    stream, answer, _ = await _ask(host, relay, wire.encode_reserve())
    await stream.finish()
    return answer


async def dial_circuit(
    host: DialHost, identity: Identity, peer: NodeId, address: CircuitAddress
) -> tuple[NoiseChannel, Limit]:
    """Connect to a peer through a relay, which is dialled first where it must be. Raises AttemptFailed.

    Gives what the relay carries, too. The caller owns the deadline.
    """
    if address.relay in (peer, host.node_id):
        raise AttemptFailed("neither end of a circuit is its relay")
    try:
        await host.dial(address.relay, [address.relay_address])
        stream, answer, received = await _ask(host, address.relay, wire.encode_hop_connect(peer))
    except DialFailed as error:
        raise AttemptFailed(f"its relay cannot be reached: {'; '.join(error.reasons.values())}") from error
    except RelayRefused as error:
        raise AttemptFailed(str(error)) from error
    try:
        return await secure_outbound(CircuitStream(stream, received, answer.limit), identity, peer), answer.limit
    except (HandshakeFailed, ChannelBroken) as error:
        stream.reset()
        raise AttemptFailed(f"through its relay: {error}") from error
    except BaseException:
        stream.reset()
        raise


async def _ask(host: DialHost, relay: NodeId, request: bytes) -> tuple[Stream, Answer, bytes]:
    """Ask a connected relay; gives the stream, the answer and what came after it. Raises RelayRefused."""
    try:
        stream = host.open_direct_stream(relay, wire.HOP_PROTOCOL)
    except NotConnected:
        raise RelayRefused(f"there is no direct connection to the relay {peer_id(relay)}") from None
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await stream.send(request)
            reader = ByteReader(stream.receive)
            answer = wire.decode_hop_answer(await wire.read_message(reader))
        if answer.status != Status.OK:
            words = next((words for status, words in _WORDS.items() if status == answer.status), "it refuses")
            raise RelayRefused(f"the relay answers {answer.status}: {words}")
    except trio.TooSlowError:
        stream.reset()
        raise RelayRefused("the relay does not answer") from None
    except (StreamBroken, ChannelBroken, MalformedMessage) as error:
        stream.reset()
        raise RelayRefused(f"the relay does not relay: {error}") from error
    except BaseException:
        stream.reset()
        raise
    return stream, answer, reader.rest()
