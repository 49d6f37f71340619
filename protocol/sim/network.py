"""What lies between the peers: connections with latency, loss, silence and partitions, and streams inside them.

A connection is TCP with a multiplexer on top, so all its streams share one first-in-first-out line per direction: a
segment that is lost holds up everything behind it and arrives late. Ends notice a broken connection when the other
process dies (its kernel says so), or when nothing was heard for `silence_s` (a partition, a dead machine).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import Final

from protocol import constants as c
from protocol.effects import (
    Dial,
    DialBack,
    FinishStream,
    HangUp,
    OpenStream,
    ReleaseRelay,
    ReserveRelay,
    ResetStream,
    Send,
)
from protocol.events import (
    BytesReceived,
    DialFailed,
    Event,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import NodeId, StreamId
from protocol.sim.circuits import Circuits, circuit_address
from protocol.sim.scenario import Faults
from protocol.sim.schedule import Schedule
from protocol.sim.wiring import Connection, Kind, Machine, Port, Segment, Stream

NetworkEffect = Dial | HangUp | OpenStream | Send | FinishStream | ResetStream | DialBack | ReserveRelay | ReleaseRelay

# A replayed job stream comes this long after the original, and is left this long later.
REPLAY_S_MAX: Final = 5.0
REPLAY_STAYS_S: Final = 1.0


class Network:
    """All links. `perform` takes the network effects of one machine; events come to machines by `receive`."""

    def __init__(self, faults: Faults, schedule: Schedule, rng: random.Random) -> None:
        self.faults = faults
        self._schedule = schedule
        self._rng = rng
        self._ports: list[Port] = []
        self._by_node: dict[NodeId, Port] = {}
        self._latency_s: dict[tuple[int, int], float] = {}
        self._connections: list[Connection] = []
        self._partitions: list[frozenset[int]] = []
        self._circuits = Circuits(
            schedule, latency_s=self._latency, is_separated=self._is_separated, end=self._break, tell=self._tell
        )
        self.bytes_sent = self.messages_sent = 0

    def attach(self, machine: Machine) -> int:
        """Plug a machine in that is down; returns its index."""
        port = Port(len(self._ports), machine)
        self._ports.append(port)
        self._by_node[machine.node] = port
        return port.index

    @property
    def open_streams(self) -> int:
        """Ends of streams that some machine still has open."""
        return sum(len(port.streams) for port in self._ports)

    # ------------------------------------------------------------ effects

    def perform(self, index: int, effect: NetworkEffect) -> None:
        port = self._ports[index]
        if isinstance(effect, Send):
            self._send(port, effect)
        elif isinstance(effect, OpenStream):
            self._open(port, effect)
        elif isinstance(effect, FinishStream):
            self._finish(port, effect.stream)
        elif isinstance(effect, ResetStream):
            self._reset(port, effect.stream)
        elif isinstance(effect, Dial):
            self._dial(port, effect)
        elif isinstance(effect, HangUp):
            self._hang_up(port, effect.peer)
        elif isinstance(effect, DialBack):
            self._circuits.dial_back(port, effect, self._by_node.get(effect.peer))
        elif isinstance(effect, ReserveRelay):
            self._circuits.reserve(port, self._by_node[effect.relay])
        else:
            self._circuits.release(port, self._by_node[effect.relay])

    def _open(self, port: Port, effect: OpenStream) -> None:
        connections = port.connections.get(effect.peer)
        if not connections:
            self._tell(port, StreamBroken(effect.stream, "not connected"))
            return
        connection = connections[-1]
        side = 1 - connection.other(port)
        stream = Stream(effect.protocol, side)
        stream.numbers[side] = effect.stream
        if effect.protocol == c.JOB_PROTOCOL and self._rng.random() < self.faults.replay:
            stream.recording = bytearray()
            delay_s = self._rng.uniform(0.0, REPLAY_S_MAX)
            self._schedule.at(self._schedule.now_s + delay_s, partial(self._replay, connection, stream))
        port.streams[effect.stream] = (connection, stream)
        self._put(connection, 1 - side, Kind.OPEN, stream)

    def _send(self, port: Port, effect: Send) -> None:
        held = port.streams.get(effect.stream)
        if held is None:
            return  # it broke; the event that says so is on its way
        connection, stream = held
        side = 1 - connection.other(port)
        assert not stream.finished[side], "a peer sends on a stream that it had finished"
        assert effect.data, "a peer sends nothing"
        if stream.has_overflown[side]:
            return  # whatever follows a gap would be nonsense
        if stream.queued_bytes[side] + len(effect.data) > self.faults.outbox_bytes_max:
            stream.has_overflown[side] = True
            self._tell(port, OutboxFull(effect.stream))
            return
        if stream.recording is not None and side == stream.opener_side:
            stream.recording += effect.data
        self.bytes_sent += len(effect.data)
        self.messages_sent += 1
        stream.queued_bytes[side] += len(effect.data)
        for piece in self._cut(effect.data):
            self._put(connection, 1 - side, Kind.DATA, stream, piece)

    def _cut(self, data: bytes) -> Iterable[bytes]:
        while len(data) > 1 and self._rng.random() < self.faults.split:
            at = self._rng.randrange(1, len(data))
            yield data[:at]
            data = data[at:]
        yield data

    def _finish(self, port: Port, number: StreamId) -> None:
        held = port.streams.get(number)
        if held is None:
            return
        connection, stream = held
        side = 1 - connection.other(port)
        if stream.has_overflown[side]:
            return
        assert not stream.finished[side], "a peer finishes a stream twice"
        stream.finished[side] = True
        self._put(connection, 1 - side, Kind.FINISH, stream)
        if stream.heard_finish[side]:
            del port.streams[number]

    def _reset(self, port: Port, number: StreamId) -> None:
        held = port.streams.pop(number, None)
        if held is not None:
            connection, stream = held
            self._put(connection, connection.other(port), Kind.RESET, stream)

    # ------------------------------------------------------------ connections

    def _dial(self, port: Port, effect: Dial) -> None:
        if effect.peer in port.dialling or effect.peer in port.connections:
            return
        port.dialling.add(effect.peer)
        target = self._by_node.get(effect.peer)
        now_s = self._schedule.now_s
        is_direct = target is not None and target.machine.address in effect.addresses
        relay = None
        if target is not None and not is_direct:
            relay = self._circuits.relay_to(port, target, effect.addresses)
        if target is None or target is port or not (is_direct or relay):
            reason, at_s = "no address of it answers as this peer", now_s + self.faults.dial_timeout_s
        elif self._is_separated(port, target, relay) or target.is_silent:
            reason, at_s = "no address answered in time", now_s + self.faults.dial_timeout_s
        elif not target.is_up:
            reason, at_s = "connection refused", now_s + 2 * self._latency(port, target)
        else:
            # TCP's and Noise's handshakes, and the question to the relay.
            round_trips = 2 if relay is None else 3
            at_s = now_s + 2 * round_trips * self._latency(port, target, relay) + self._delay_by_loss_s()
            lives = [each.life if each is not None else 0 for each in (port, target, relay)]
            self._schedule.at(at_s, partial(self._connect, port, target, relay, lives))
            return
        self._schedule.at(at_s, partial(self._dial_failed, port, effect.peer, reason, port.life))

    def _dial_failed(self, port: Port, peer: NodeId, reason: str, life: int) -> None:
        if port.life == life:
            port.dialling.discard(peer)
            port.machine.receive(DialFailed(peer, reason))

    def _connect(self, port: Port, target: Port, relay: Port | None, lives: list[int]) -> None:
        if port.life != lives[0] or not port.is_up:
            return
        is_gone = not target.is_up or target.life != lives[1] or (relay is not None and relay.life != lives[2])
        if is_gone or self._is_separated(port, target, relay):
            self._dial_failed(port, target.machine.node, "the handshake was cut short", lives[0])
            return
        port.dialling.discard(target.machine.node)
        connection = Connection((port, target), self._latency(port, target, relay), relay)
        # Which end is done first depends on the handshake's last message, and both orders happen.
        first = self._rng.randrange(2)
        self._connections.append(connection)
        connection.waiting_side = 1 - first
        # Before anything that the first end now sends.
        self._put(connection, 1 - first, Kind.CONNECTED, None)
        self._side_is_up(connection, first)

    def _side_is_up(self, connection: Connection, side: int) -> None:
        port, other = connection.machines[side], connection.machines[1 - side]
        connection.is_up[side] = True
        held = port.connections.setdefault(other.machine.node, [])
        held.append(connection)
        if len(held) == 1:
            inbound = side == 1
            address = other.machine.observed_address if inbound else other.machine.address
            if (relay := connection.relay) is not None and relay.machine.address is not None:
                address = circuit_address(relay.machine.address, relay.machine.node, other.machine.node)
            port.machine.receive(PeerConnected(other.machine.node, address, inbound))

    def _cut_handshake(self, connection: Connection) -> None:
        """The last message of a handshake will not arrive: a dialler that waits for it must hear so."""
        if connection.waiting_side == 0:
            other = connection.machines[1].machine.node
            connection.machines[0].machine.receive(DialFailed(other, "the handshake was cut short"))
        connection.waiting_side = None

    def _hang_up(self, port: Port, peer: NodeId) -> None:
        for connection in list(port.connections.get(peer, ())):
            self._put(connection, connection.other(port), Kind.CLOSE, None)
            self._schedule.soon(partial(self._side_is_down, connection, 1 - connection.other(port), "hung up"))

    def _side_is_down(self, connection: Connection, side: int, reason: str) -> None:
        """One end learns that its connection is gone: streams first, then the peer, as the contract of events says."""
        if not connection.is_up[side]:
            return
        connection.is_up[side] = False
        port, other = connection.machines[side], connection.machines[1 - side]
        node = other.machine.node
        port.connections[node].remove(connection)
        broken = [number for number, (carrier, _) in port.streams.items() if carrier is connection]
        for number in broken:
            del port.streams[number]
        was_last = not port.connections[node]
        if was_last:
            del port.connections[node]
        for number in broken:
            port.machine.receive(StreamBroken(number, reason))
        if was_last:
            port.machine.receive(PeerDisconnected(node))
        if connection.relay is None:
            self._circuits.on_disconnected(port, other, self._connections)
            self._circuits.on_disconnected(other, port, self._connections)

    # ------------------------------------------------------------ lines

    def _put(self, connection: Connection, side: int, kind: Kind, stream: Stream | None, data: bytes = b"") -> None:
        """Put a segment on the line towards this side."""
        faults = self.faults
        departs_s = self._schedule.now_s
        if faults.bandwidth_bytes_per_s is not None:
            departs_s = max(departs_s, connection.line_free_s[side]) + len(data) / faults.bandwidth_bytes_per_s
            connection.line_free_s[side] = departs_s
        delay_s = connection.latency_s + faults.jitter_s * self._rng.random() + self._delay_by_loss_s()
        arrives_s = max(departs_s + delay_s, connection.last_arrival_s[side])
        connection.last_arrival_s[side] = arrives_s
        line = connection.lines[side]
        line.append(Segment(arrives_s, kind, stream, data))
        self._plan(connection, side)

    def _plan(self, connection: Connection, side: int) -> None:
        """See to it that the first segment on this line is delivered when it arrives, and no later."""
        line = connection.lines[side]
        if line and not connection.is_planned[side]:
            connection.is_planned[side] = True
            self._schedule.at(line[0].arrives_s, partial(self._deliver, connection, side))

    def _delay_by_loss_s(self) -> float:
        delay_s, timeout_s = 0.0, self.faults.retransmission_s
        while self._rng.random() < self.faults.loss:
            delay_s += timeout_s
            timeout_s *= 2
        return delay_s

    def _deliver(self, connection: Connection, side: int) -> None:
        """Hand over what has arrived at this side, data of one stream merged, and come again for the rest."""
        port = connection.machines[side]
        line = connection.lines[side]
        connection.is_planned[side] = False
        if connection.is_stalled or port.is_clogged:
            return
        now_s = self._schedule.now_s
        while line and line[0].arrives_s <= now_s:
            segment = line.popleft()
            if segment.kind is Kind.DATA:
                data = [segment.data]
                while line and line[0].arrives_s <= now_s and line[0].stream is segment.stream:
                    if line[0].kind is not Kind.DATA:
                        break
                    data.append(line.popleft().data)
                segment.data = b"".join(data)
            self._arrive(connection, side, segment)
        self._plan(connection, side)

    def _arrive(self, connection: Connection, side: int, segment: Segment) -> None:
        port = connection.machines[side]
        if segment.kind is Kind.CONNECTED:
            if connection.waiting_side == side:
                connection.waiting_side = None
                self._side_is_up(connection, side)
            return
        if not connection.is_up[side]:
            return  # it was on its way when this end went down
        if segment.kind is Kind.CLOSE:
            self._side_is_down(connection, side, "the other side closed the connection")
            return
        stream = segment.stream
        assert stream is not None
        if segment.kind is Kind.OPEN:
            number = port.machine.next_inbound_stream()
            stream.numbers[side] = number
            port.streams[number] = (connection, stream)
            port.machine.receive(StreamOpened(number, connection.machines[1 - side].machine.node, stream.protocol))
            return
        stream.queued_bytes[1 - side] -= len(segment.data)
        found = stream.numbers[side]
        if found is None or found not in port.streams:
            return
        if segment.kind is Kind.DATA:
            port.machine.receive(BytesReceived(found, segment.data))
        elif segment.kind is Kind.FINISH:
            stream.heard_finish[side] = True
            if stream.finished[side]:
                del port.streams[found]
            port.machine.receive(StreamFinished(found))
        else:
            del port.streams[found]
            port.machine.receive(StreamBroken(found, "the other side reset the stream"))

    # ------------------------------------------------------------ faults

    def crash(self, index: int, *, silent: bool) -> None:
        """The machine is gone; what it had sent is still on its way."""
        port = self._ports[index]
        held = [connection for connection in self._all_connections() if port in connection.machines]
        port.is_up = False
        port.is_silent = silent
        port.life += 1
        port.dialling.clear()
        port.streams.clear()
        port.connections.clear()
        self._circuits.on_crash(port, self._connections, self.faults.silence_s if silent else 0.0)
        for connection in held:
            side = connection.other(port)
            connection.is_up[1 - side] = False
            if connection.waiting_side == 1 - side:
                connection.waiting_side = None
            if silent:
                give_up = partial(self._side_is_down, connection, side, "nothing was heard for too long")
                self._schedule.at(self._schedule.now_s + self.faults.silence_s, give_up)
            else:
                self._put(connection, side, Kind.CLOSE, None)

    def start(self, index: int) -> None:
        """The machine is up, for the first time or again; who still believes in an old connection is told."""
        port = self._ports[index]
        port.is_up = True
        port.is_silent = False
        for other in self._ports:
            for connection in list(other.connections.get(port.machine.node, ())):
                side = connection.other(port)
                if not connection.is_up[1 - side] and connection.waiting_side != 1 - side:
                    self._put(connection, side, Kind.CLOSE, None)

    def clog(self, index: int) -> None:
        self._ports[index].is_clogged = True

    def unclog(self, index: int) -> None:
        port = self._ports[index]
        port.is_clogged = False
        for connection in self._all_connections():
            if port in connection.machines:
                self._plan(connection, 1 - connection.other(port))

    def partition(self, peers: Iterable[int]) -> frozenset[int]:
        """Separate these machines from all others; returns what `heal` takes."""
        inside = frozenset(peers)
        self._partitions.append(inside)
        for connection in self._all_connections():
            if not connection.is_stalled and self._is_separated(*connection.machines, connection.relay):
                connection.is_stalled = True
                connection.stalls += 1
                give_up = partial(self._give_up, connection, connection.stalls)
                self._schedule.at(self._schedule.now_s + self.faults.silence_s, give_up)
        return inside

    def heal(self, inside: frozenset[int]) -> None:
        """End a partition; what was on its way is sent again after a retransmission timeout."""
        self._partitions.remove(inside)
        for connection in self._all_connections():
            if connection.is_stalled and not self._is_separated(*connection.machines, connection.relay):
                connection.is_stalled = False
                for side in (0, 1):
                    at_s = self._schedule.now_s + self._rng.uniform(0.0, self.faults.retransmission_s)
                    for segment in connection.lines[side]:
                        segment.arrives_s = max(segment.arrives_s, at_s)
                    connection.last_arrival_s[side] = max(connection.last_arrival_s[side], at_s)
                    self._plan(connection, side)

    def _give_up(self, connection: Connection, stall: int) -> None:
        if connection.is_stalled and connection.stalls == stall:
            self._break(connection, "nothing was heard for too long")

    def _break(self, connection: Connection, reason: str) -> None:
        self._cut_handshake(connection)
        for side in (0, 1):
            self._side_is_down(connection, side, reason)

    def _replay(self, connection: Connection, stream: Stream) -> None:
        """Somebody sends a job stream to the provider once more, and listens to nothing."""
        side = 1 - stream.opener_side
        port = connection.machines[side]
        assert stream.recording is not None
        if not connection.is_up[side] or not stream.recording:
            return
        number = port.machine.next_inbound_stream()
        ghost = Stream(stream.protocol, stream.opener_side)
        ghost.numbers[side] = number
        port.streams[number] = (connection, ghost)
        asker = connection.machines[stream.opener_side].machine.node
        port.machine.receive(StreamOpened(number, asker, stream.protocol))
        if number in port.streams:
            port.machine.receive(BytesReceived(number, bytes(stream.recording)))
        self._schedule.at(self._schedule.now_s + REPLAY_STAYS_S, partial(self._leave_ghost, port, number))

    @staticmethod
    def _leave_ghost(port: Port, number: StreamId) -> None:
        if port.streams.pop(number, None) is not None:
            port.machine.receive(StreamBroken(number, "the replayed stream was left"))

    # ------------------------------------------------------------ helpers

    def _tell(self, port: Port, event: Event) -> None:
        """Report to a machine about its own effect: after it has performed the others of that moment."""
        life = port.life

        def tell() -> None:
            if port.is_up and port.life == life:
                port.machine.receive(event)

        self._schedule.soon(tell)

    def _latency(self, a: Port, b: Port, relay: Port | None = None) -> float:
        if relay is not None:
            return self._latency(a, relay) + self._latency(relay, b)
        pair = (min(a.index, b.index), max(a.index, b.index))
        if pair not in self._latency_s:
            low, mean = self.faults.latency_s_min, self.faults.latency_s_mean
            more = self._rng.expovariate(1 / (mean - low)) if mean > low else 0.0
            self._latency_s[pair] = low + more
        return self._latency_s[pair]

    def _is_separated(self, a: Port, b: Port, relay: Port | None = None) -> bool:
        if relay is not None:
            return self._is_separated(a, relay) or self._is_separated(relay, b)
        return any((a.index in inside) != (b.index in inside) for inside in self._partitions)

    def _all_connections(self) -> list[Connection]:
        """Those that somebody holds, or on whose lines something is still on its way."""
        self._connections = [each for each in self._connections if any(each.is_up) or any(each.lines)]
        return self._connections
