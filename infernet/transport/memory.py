"""A transport inside one process, for tests of what stands on the contract: no sockets, no cryptography.

Nodes of one `MemoryNetwork` reach each other by node id. Pipes are bounded, links can be cut, and a node can be
killed in the middle of anything; time is whatever clock trio runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, NoReturn

import structlog
import trio

from infernet.transport.contract import (
    RECEIVE_BYTES_MAX,
    ConnectionInfo,
    DialFailed,
    Handler,
    NotConnected,
    PortTaken,
    RelayRefused,
    Stream,
    StreamBroken,
    TransportError,
    TransportStatistics,
)
from infernet.transport.serving import serve_stream
from protocol.ids import NodeId, peer_id
from protocol.locality import is_circuit
from protocol.records import Reachability

log = structlog.get_logger(__name__)

PIPE_BYTES: Final = 64 * 1024
_PREFIX: Final = "/memory/1/p2p/"
_CIRCUIT: Final = "/p2p-circuit/p2p/"


class MemoryNetwork:
    """The nodes that can reach each other, and the faults between them."""

    def __init__(self, *, pipe_bytes: int = PIPE_BYTES) -> None:
        self.pipe_bytes = pipe_bytes
        self._running: dict[NodeId, MemoryTransport] = {}
        self._cut: set[frozenset[NodeId]] = set()
        self._hidden: set[NodeId] = set()

    def transport(self, node_id: NodeId, *, protocols: Sequence[str]) -> MemoryTransport:
        """A node's transport; it is reachable while it runs."""
        return MemoryTransport(self, node_id, protocols)

    def cut(self, left: NodeId, right: NodeId) -> None:
        """Break what connects two nodes, and let them not connect again until `heal`."""
        self._cut.add(frozenset((left, right)))
        if node := self._running.get(left):
            node.drop(right, "the link was cut")

    def heal(self, left: NodeId, right: NodeId) -> None:
        """Undo `cut`; the nodes still have to dial."""
        self._cut.discard(frozenset((left, right)))

    def hide(self, node_id: NodeId) -> None:
        """Let nobody dial a node directly, as if a router were before it."""
        self._hidden.add(node_id)

    def kill(self, node_id: NodeId) -> None:
        """End a node at once, as when its process dies: its `run` is cancelled, its peers lose it."""
        self._running[node_id].abort()

    def start(self, transport: MemoryTransport) -> None:
        """A node begins to run. Raises PortTaken when one of that id already does."""
        if transport.node_id in self._running:
            raise PortTaken(0)
        self._running[transport.node_id] = transport

    def stop(self, transport: MemoryTransport) -> None:
        """A node has ended."""
        if self._running.get(transport.node_id) is transport:
            del self._running[transport.node_id]

    def reach(self, dialer: NodeId, address: str) -> MemoryTransport:
        """The node at an address. Raises ValueError with the reason why there is none."""
        relay_address, circuit, target = address.partition(_CIRCUIT)
        if circuit:
            return self.reach(dialer, relay_address).circuit_to(target)
        for node in self._running.values():
            if address == _PREFIX + peer_id(node.node_id) and node.node_id not in self._hidden:
                if frozenset((dialer, node.node_id)) in self._cut:
                    raise ValueError("the link is cut")
                return node
        raise ValueError("nobody runs there")


class MemoryTransport:
    """See `contract.Transport`. Make one with `MemoryNetwork.transport`."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId, protocols: Sequence[str]) -> None:
        self.node_id = node_id
        self.protocols = frozenset(protocols)
        self._network = network
        self._handler: Handler | None = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[NodeId, _Link] = {}
        self._streams_in = self._streams_out = 0
        self._handshakes_in = self._handshakes_out = 0
        self._dials_failed = 0
        self.relays_connections = False
        self._places: dict[NodeId, trio.Event] = {}
        self.bytes_in = self.bytes_out = 0

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Transport.run`."""
        self._network.start(self)
        try:
            async with trio.open_nursery() as nursery:
                self._handler, self._nursery = handler, nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.abort()
            self._handler = self._nursery = None

    async def dial(
        self,
        peer: NodeId,
        addresses: Sequence[str],
        *,
        at_once: bool = False,  # noqa: ARG002 - the contract's name; nothing is ever left out here
    ) -> None:
        """As `Transport.dial`."""
        await trio.lowlevel.checkpoint()
        self._require_running()
        if peer in self._links:
            return
        reasons: dict[str, str] = {}
        # The direct ones first.
        for address in sorted(addresses, key=is_circuit):
            try:
                node = self._network.reach(self.node_id, address)
            except ValueError as error:
                reasons[address] = str(error)
                continue
            if node.node_id == peer and node is not self:
                self._connect(node, address)
                return
            reasons[address] = "another identity answers there"
        self._dials_failed += 1
        raise DialFailed(peer, reasons)

    def _connect(self, node: MemoryTransport, address: str) -> None:
        remote = address.partition("/p2p/")[0] + "/p2p-circuit" if is_circuit(address) else None
        link = _Link(self, node, pipe_bytes=self._network.pipe_bytes)
        self._handshakes_out += 1
        node._handshakes_in += 1
        node.adopt(link, ConnectionInfo(self.node_id, remote, inbound=True))
        self.adopt(link, ConnectionInfo(node.node_id, remote, inbound=False))

    def adopt(self, link: _Link, info: ConnectionInfo) -> None:
        """A link to a peer stands."""
        self._links[info.peer] = link
        handler, _ = self._require_running()
        try:
            handler.connected(info)
        except Exception:
            log.exception("transport.handler_failed")

    async def open_stream(self, peer: NodeId, protocol: str) -> Stream:
        """As `Transport.open_stream`."""
        link = self._links.get(peer)
        if link is None:
            raise NotConnected(peer)
        self._streams_out += 1
        return link.open(self, protocol)

    def serve(self, stream: MemoryStream) -> None:
        """A peer has opened a stream."""
        self._streams_in += 1
        handler, nursery = self._require_running()
        nursery.start_soon(serve_stream, stream, handler.stream_opened)

    async def disconnect(self, peer: NodeId) -> None:
        """As `Transport.disconnect`."""
        await trio.lowlevel.checkpoint()
        self.drop(peer, "the connection was closed")

    def drop(self, peer: NodeId, reason: str) -> None:
        """Break the link to a peer, if there is one."""
        if link := self._links.get(peer):
            link.lose(reason)

    def abort(self) -> None:
        """Stop at once."""
        self._network.stop(self)
        for peer in self.peers():
            self.drop(peer, "the node has ended")
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def forget(self, peer: NodeId) -> None:
        """A link has gone."""
        del self._links[peer]
        if (lost := self._places.pop(peer, None)) is not None:
            lost.set()
        handler, _ = self._require_running()
        try:
            handler.disconnected(peer)
        except Exception:
            log.exception("transport.handler_failed")

    async def reserve_relay(self, relay: NodeId, reserved: Callable[[tuple[str, ...]], None]) -> NoReturn:
        """As `Transport.reserve_relay`. A circuit outlives its relay here: nothing is spliced."""
        await trio.lowlevel.checkpoint()
        other = self._links[relay].other(self) if relay in self._links else None
        place = other.take_place(self.node_id) if other is not None else None
        if other is None or place is None:
            raise RelayRefused("there is no connection to it, or it does not relay")
        try:
            reserved((f"{_PREFIX}{peer_id(relay)}{_CIRCUIT}{peer_id(self.node_id)}",))
            await place.wait()
            raise RelayRefused("the connection to the relay is lost")
        finally:
            other.free_place(self.node_id)

    def circuit_to(self, target: str) -> MemoryTransport:
        """Whoever holds a place here under this PeerId. Raises ValueError."""
        for node in self._places:
            if peer_id(node) == target and node in self._links:
                return self._links[node].other(self)
        raise ValueError("the peer has no place there")

    def take_place(self, node: NodeId) -> trio.Event | None:
        """A connected node asks for a place; gives what is set when the place is lost."""
        return self._places.setdefault(node, trio.Event()) if self.relays_connections else None

    def free_place(self, node: NodeId) -> None:
        """The place of a node is free."""
        self._places.pop(node, None)

    async def dial_back(self, peer: NodeId, address: str) -> tuple[Reachability, str]:
        """As `Transport.dial_back`."""
        await trio.lowlevel.checkpoint()
        try:
            node = self._network.reach(self.node_id, address)
        except ValueError as error:
            return Reachability.NOT_REACHED, str(error)
        found = Reachability.REACHED if node.node_id == peer else Reachability.WRONG_NODE
        return found, "somebody answers there"

    def trust(self, peers: Collection[NodeId]) -> None:
        """As `Transport.trust`; nobody is refused here."""

    def permit(self, address: str) -> None:
        """As `Transport.permit`; every address is dialled here."""

    def misbehaved(self, peer: NodeId, reason: str, weight: float) -> None:
        """As `Transport.misbehaved`; nobody is banned here."""

    def peers(self) -> list[NodeId]:
        """As `Transport.peers`."""
        return list(self._links)

    def round_trip_s(self, peer: NodeId) -> float | None:  # noqa: ARG002 - as the contract has it
        """As `Transport.round_trip_s`; nobody is asked for a sign of life here."""
        return None

    def addresses(self) -> list[str]:
        """As `Transport.addresses`."""
        return [_PREFIX + peer_id(self.node_id)] if self._nursery else []

    def statistics(self) -> TransportStatistics:
        """As `Transport.statistics`; bytes are those of the streams."""
        return TransportStatistics(
            connections=len(self._links),
            streams=sum(len(link.wires) for link in self._links.values()),
            streams_in=self._streams_in,
            streams_out=self._streams_out,
            handshakes_in=self._handshakes_in,
            handshakes_out=self._handshakes_out,
            handshakes_failed=0,
            connections_refused=0,
            streams_refused=0,
            dials_failed=self._dials_failed,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )

    def _require_running(self) -> tuple[Handler, trio.Nursery]:
        if self._handler is None or self._nursery is None:
            raise TransportError("the transport does not run")
        return self._handler, self._nursery


class _Link:
    """What connects two nodes, and the streams over it."""

    def __init__(self, left: MemoryTransport, right: MemoryTransport, *, pipe_bytes: int) -> None:
        self._ends = (left, right)
        self._pipe_bytes = pipe_bytes
        self.wires: dict[_Wire, None] = {}

    def other(self, end: MemoryTransport) -> MemoryTransport:
        left, right = self._ends
        return right if end is left else left

    def open(self, opener: MemoryTransport, protocol: str) -> MemoryStream:
        other = self.other(opener)
        wire = _Wire(self, self._pipe_bytes)
        self.wires[wire] = None
        if protocol in other.protocols:
            other.serve(MemoryStream(wire, 1, other, opener.node_id, protocol))
        else:
            wire.lose(f"the peer does not speak {protocol}")
        return MemoryStream(wire, 0, opener, other.node_id, protocol)

    def lose(self, reason: str) -> None:
        for wire in list(self.wires):
            wire.lose(f"the connection is lost: {reason}")
        left, right = self._ends
        left.forget(right.node_id)
        right.forget(left.node_id)


class _Wire:
    """Both directions of one stream: what the two ends share. Side 0 opened it."""

    def __init__(self, link: _Link, pipe_bytes: int) -> None:
        self.pipe_bytes = pipe_bytes
        self.sent_by = (bytearray(), bytearray())
        self.broken: str | None = None
        self._finished = [False, False]
        self._link = link
        self._changed = trio.Event()

    def finished(self, side: int) -> bool:
        return self._finished[side]

    def finish(self, side: int) -> None:
        self._finished[side] = True
        if all(self._finished):
            self._link.wires.pop(self, None)
        self.notify()

    def lose(self, reason: str) -> None:
        self.broken = self.broken or reason
        self._link.wires.pop(self, None)
        self.notify()

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class MemoryStream:
    """See `contract.Stream`."""

    def __init__(self, wire: _Wire, side: int, owner: MemoryTransport, peer: NodeId, protocol: str) -> None:
        self.peer = peer
        self.protocol = protocol
        self._wire = wire
        self._side = side
        self._owner = owner
        self._sending = False

    async def send(self, data: bytes) -> None:
        """As `Stream.send`."""
        await trio.lowlevel.checkpoint()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        sent = 0
        try:
            while True:
                sent += self._push(data[sent:])
                if sent == len(data):
                    return
                await self._wire.wait()
        except trio.Cancelled:
            if sent:
                self._wire.lose("a send was cancelled half way")
            raise
        finally:
            self._sending = False

    def _push(self, data: bytes) -> int:
        wire = self._wire
        if wire.broken:
            raise StreamBroken(wire.broken)
        if wire.finished(self._side):
            raise StreamBroken("we have finished this stream")
        pipe = wire.sent_by[self._side]
        piece = data[: wire.pipe_bytes - len(pipe)]
        pipe += piece
        self._owner.bytes_out += len(piece)
        wire.notify()
        return len(piece)

    async def receive(self) -> bytes:
        """As `Stream.receive`."""
        await trio.lowlevel.checkpoint()
        wire, pipe = self._wire, self._wire.sent_by[1 - self._side]
        while not pipe:
            if wire.broken:
                raise StreamBroken(wire.broken)
            if wire.finished(1 - self._side):
                return b""
            await wire.wait()
        data = bytes(pipe[:RECEIVE_BYTES_MAX])
        del pipe[: len(data)]
        self._owner.bytes_in += len(data)
        wire.notify()
        return data

    async def finish(self) -> None:
        """As `Stream.finish`."""
        await trio.lowlevel.checkpoint()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if not self._wire.broken:
            self._wire.finish(self._side)

    def reset(self) -> None:
        """As `Stream.reset`."""
        self._wire.sent_by[1 - self._side].clear()
        self._wire.lose("the stream was reset")
