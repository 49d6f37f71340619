"""The room's contract: what the node may ask of a transport, and what a transport tells the node.

Two transports fulfil it and run the same tests: `libp2p_host` over TCP, and `memory` inside one process.
A peer is named by its node id alone; addresses, encryption and multiplexing stay behind this page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import trio

from protocol.ids import NodeId, peer_id
from protocol.records import Reachability

# One `Stream.receive` gives at most this much, so that a reader's memory is bounded by its own loop.
RECEIVE_BYTES_MAX: Final = 64 * 1024


class TransportError(Exception):
    """Base of everything a transport raises; the message is one plain sentence for people."""


class ListenFailed(TransportError):
    """We cannot listen on an address that was asked for."""


class PortTaken(ListenFailed):
    """Another program, or another node of the same user, already listens on our port."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"TCP port {port} is taken by another program, perhaps a node that already runs here: "
            "stop it, or choose another port with --p2p-port"
        )
        self.port = port


class DialFailed(TransportError):
    """No address of the peer led to it. `reasons` has one line for each address.

    `left_out`: some were not tried, because they had failed not long ago.
    """

    def __init__(self, peer: NodeId, reasons: Mapping[str, str], *, left_out: bool = False) -> None:
        listed = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
        super().__init__(f"cannot reach {peer_id(peer)}: {listed or 'no address is known'}")
        self.peer = peer
        self.reasons = dict(reasons)
        self.left_out = left_out


class NotConnected(TransportError):
    """There is no connection to that peer. Dial it first."""

    def __init__(self, peer: NodeId) -> None:
        super().__init__(f"not connected to {peer_id(peer)}")
        self.peer = peer


class RelayRefused(TransportError):
    """A relay gives no place, holds one no longer, or makes no circuit."""


class StreamBroken(TransportError):
    """The stream did not end cleanly: it was reset, refused, or its connection is lost."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A new connection. `remote_address` is a multiaddr without the peer part, None where there is no network.

    Through a relay it is the relay's, and ends in /p2p-circuit.
    """

    peer: NodeId
    remote_address: str | None
    inbound: bool


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """Counts since the transport was made, but for `connections`, `streams` and where it says so: those are of now.

    Bytes are those on the wire, with the cost of encryption, after the handshake.
    """

    connections: int
    streams: int
    streams_in: int
    streams_out: int
    handshakes_in: int
    handshakes_out: int
    handshakes_failed: int
    connections_refused: int
    streams_refused: int
    dials_failed: int
    bytes_in: int
    bytes_out: int
    #: Those that have not proven a key, at this moment; and those that had to make room for others.
    handshakes_open: int = 0
    handshakes_evicted: int = 0
    #: What all connections make us hold at this moment; and the connections that were cut for it.
    held_bytes: int = 0
    connections_cut: int = 0
    #: Bans that hold at this moment.
    bans: int = 0


class Stream(Protocol):
    """A byte stream to one peer under one protocol.

    One task may send while another receives; two that send at once are a bug, and the second one gets
    trio.BusyResourceError. Whoever opened it ends it: `finish` and then `receive` to b"",
    or `reset`.
    """

    @property
    def peer(self) -> NodeId: ...

    @property
    def protocol(self) -> str: ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`; waits while the peer does not read.

        A send that is cancelled has either sent nothing, or has reset the stream: the peer never sees half of it
        followed by something else. Other streams are not touched. Raises StreamBroken.
        """

    async def receive(self) -> bytes:
        """The next bytes, at most RECEIVE_BYTES_MAX of them; b"" once the peer has finished.

        Raises StreamBroken when the stream was reset or the connection is lost: a killed peer is no clean end.
        """

    async def finish(self) -> None:
        """We send no more; the peer reads b"" after the last byte. We can go on receiving. Idempotent."""

    def reset(self) -> None:
        """Drop the stream at once in both directions; never waits. Idempotent."""


class Handler(Protocol):
    """What the node gives the transport to call."""

    def connected(self, info: ConnectionInfo) -> None:
        """The first connection to this peer stands."""

    def disconnected(self, peer: NodeId) -> None:
        """The last connection to this peer has gone; every stream of it is broken already."""

    async def stream_opened(self, stream: Stream) -> None:
        """Serve a stream that the peer opened, in a task of its own.

        When it returns, the stream is finished. When it raises, that is logged and the stream is reset: nothing
        raised here reaches the transport.
        """


class Transport(Protocol):
    """Connections to peers and streams over them."""

    @property
    def node_id(self) -> NodeId: ...

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, then run until cancelled. `started()` comes once it listens.

        Raises PortTaken or ListenFailed before that.
        """

    async def dial(self, peer: NodeId, addresses: Sequence[str], *, at_once: bool = False) -> None:
        """Connect to the peer at the first of these multiaddrs that leads to it; nothing when already connected.

        An address that failed not long ago is left out, unless somebody waits for the connection: `at_once`. Whoever
        answers with another identity is not the peer. Raises DialFailed.
        """

    async def open_stream(self, peer: NodeId, protocol: str) -> Stream:
        """Open a stream without waiting for the peer. Raises NotConnected.

        That the peer refuses the protocol shows later, as StreamBroken.
        """

    async def disconnect(self, peer: NodeId) -> None:
        """Drop every connection to the peer; nothing when there is none."""

    #: Whether other nodes may be reached through this one; can be changed at any time. What stands then, stays.
    relays_connections: bool

    async def reserve_relay(self, relay: NodeId, reserved: Callable[[tuple[str, ...]], None]) -> NoReturn:
        """Hold a place at a relay that is connected, until cancelled.

        `reserved` hears, now and whenever the place is prolonged, under which multiaddrs we are reached through it.
        Raises RelayRefused when there is no place, or no longer.
        """

    async def dial_back(self, peer: NodeId, address: str) -> tuple[Reachability, str]:
        """Try whether a peer is reached at this multiaddr, with a connection of its own that is closed at once.

        Connections that stand do not count. Gives a sentence with it, and raises nothing.
        """

    def trust(self, peers: Collection[NodeId]) -> None:
        """The owner knows these peers, and no others: they are never refused for what they did."""

    def permit(self, address: str) -> None:
        """The owner gave this multiaddr: it is dialled, wherever it leads. Nothing when it is none."""

    def misbehaved(self, peer: NodeId, reason: str, weight: float) -> None:
        """A peer broke a rule of what is spoken on its streams; one bad frame weighs 1. It may be banned for it."""

    def peers(self) -> list[NodeId]:
        """Those we are connected to."""

    def round_trip_s(self, peer: NodeId) -> float | None:
        """How long a peer took to answer when it was last asked for a sign of life; None where that is not known."""

    def addresses(self) -> list[str]:
        """The multiaddrs we listen on, each ending in our /p2p/ PeerId."""

    def statistics(self) -> TransportStatistics: ...
