"""An army of keys in one hand, on the simulated network: it joins the gossip of honest peers and means no good.

The attacks are those of the evaluation of gossipsub 1.1: Sybil, eclipse, cold boot, covert flash, censoring. A member
is a machine of its own with a good key and a good heartbeat, in one of the few networks that the army has; it speaks
the protocol well enough to become a neighbour.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader, encode_message, encode_record
from protocol.effects import Dial, FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import SigningKey, sign_record
from protocol.events import (
    BytesReceived,
    Event,
    PeerConnected,
    PeerDisconnected,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import NodeId, StreamId
from protocol.messages import (
    Graft,
    Have,
    Hello,
    Interest,
    Leave,
    Message,
    Neighbour,
    NeighbourAnswer,
    Records,
    Shuffle,
    Shuffled,
    Want,
)
from protocol.records import Signed
from protocol.sim import Simulation
from protocol.sim.host import WALL_MS_AT_START
from tests.helpers_records import heartbeat


@dataclass(frozen=True)
class Orders:
    """What the army does. Instants are virtual seconds.

    Members start within a second of `start_s`, come from `networks` networks, and each dials `victims` at random (or
    the `target`, when there is one) again and again. Until `flash_s` they pass on what they hear, faster than anybody;
    then they swallow everything. `forges` of them send forgeries when they become neighbours, and `floods` bring all
    keys of the army as news.
    """

    members: int
    networks: int = 32
    start_s: float = 0.0
    victims: int = 4
    target: NodeId | None = None
    flash_s: float = 0.0
    forges: float = 0.0
    floods: float = 0.0
    again_s: float = 10.0


class Army:
    """All members. `forgeries` are the bodies that were sent with bad signatures."""

    def __init__(self, simulation: Simulation, orders: Orders, seed: int = 1) -> None:
        self.simulation = simulation
        self.orders = orders
        self.rng = random.Random(f"army {seed}")
        self.forgeries: set[bytes] = set()
        self.honest = [host for host in simulation.hosts if host.address is not None]
        self.members = [Member(self, number) for number in range(orders.members)]
        self.nodes = {member.node for member in self.members}
        for member in self.members:
            self.at(orders.start_s + self.rng.random(), member.start)

    @property
    def now_s(self) -> float:
        return self.simulation.now_s

    @property
    def is_covert(self) -> bool:
        """Whether members still behave."""
        return self.now_s < self.orders.flash_s

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        self.simulation.plan(at_s, action)

    def records(self, count: int) -> tuple[Signed, ...]:
        """What members tell of others: of each other."""
        return tuple(member.record for member in self.rng.sample(self.members, min(count, len(self.members))))


class Member:
    """One key of the army; a `Machine` of the network."""

    def __init__(self, army: Army, number: int) -> None:
        network, host = number % army.orders.networks, number // army.orders.networks
        self._army = army
        self._key = SigningKey(hashlib.sha256(f"sybil {number}".encode()).digest(), bytes)
        self.node = self._key.node
        self.address: str | None = f"/ip4/200.{network}.{host >> 8}.{host & 255}/tcp/46337"
        self.observed_address = self.address
        self.relays = False
        self.record = self._sign(1)
        self._does_forge = army.rng.random() < army.orders.forges
        self._does_flood = army.rng.random() < army.orders.floods
        self._index = army.simulation.network.attach(self)
        self._next_inbound = 2
        self._next_outbound = 1
        self._readers: dict[StreamId, FrameReader] = {}
        self._protocols: dict[StreamId, tuple[NodeId, str]] = {}
        self._gossip: dict[NodeId, StreamId] = {}
        self._connected: set[NodeId] = set()
        self._neighbours: dict[NodeId, None] = {}
        self._held: dict[NodeId, Signed] = {}

    def _sign(self, sequence: int) -> Signed:
        assert self.address is not None
        wall_ms = WALL_MS_AT_START
        beat = heartbeat(
            node=self.node,
            sequence=sequence,
            issued_at_ms=wall_ms,
            expires_at_ms=wall_ms + c.HEARTBEAT_LIFETIME_MS_MAX,
            addresses=(self.address,),
            gpus=(),
        )
        return sign_record(beat, self._key)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        self._army.simulation.network.start(self._index)
        self._attack()

    def _attack(self) -> None:
        """Knock at honest doors, again and again."""
        army = self._army
        target = army.orders.target
        for host in army.rng.sample(army.honest, min(army.orders.victims, len(army.honest))):
            node = target or host.node
            if node in self._connected:
                if node not in self._neighbours:
                    self._say(node, Neighbour(1))
            else:
                addresses = next(each.address for each in army.honest if each.node == node)
                self._perform(Dial(node, (addresses or "",)))
        army.at(army.now_s + army.orders.again_s * (0.5 + army.rng.random()), self._attack)

    def next_inbound_stream(self) -> StreamId:
        number = StreamId(self._next_inbound)
        self._next_inbound += 2
        return number

    def _perform(self, effect: Dial | OpenStream | Send | FinishStream | ResetStream) -> None:
        self._army.simulation.network.perform(self._index, effect)

    # ------------------------------------------------------------ the wire

    def receive(self, event: Event) -> None:
        if isinstance(event, PeerConnected):
            self._connected.add(event.peer)
            if not event.inbound:
                stream = self._open(event.peer, c.HELLO_PROTOCOL)
                self._perform(Send(stream, encode_message(self._hello())))
                self._perform(FinishStream(stream))
        elif isinstance(event, PeerDisconnected):
            self._connected.discard(event.peer)
            self._neighbours.pop(event.peer, None)
            self._gossip.pop(event.peer, None)
        elif isinstance(event, StreamOpened):
            self._readers[event.stream] = FrameReader(CONTROL_LIMITS)
            self._protocols[event.stream] = (event.peer, event.protocol)
        elif isinstance(event, BytesReceived):
            peer, _ = self._protocols[event.stream]
            for message in self._readers[event.stream].feed(event.data):
                self._hear(event.stream, peer, message)
        elif isinstance(event, StreamFinished):
            peer, protocol = self._protocols[event.stream]
            if protocol == c.GOSSIP_PROTOCOL and event.stream % 2 == 0:
                self._perform(FinishStream(event.stream))
        elif isinstance(event, StreamBroken):
            peer, protocol = self._protocols.get(event.stream, (None, ""))
            if peer is not None and protocol == c.GOSSIP_PROTOCOL:
                self._neighbours.pop(peer, None)
                if self._gossip.get(peer) == event.stream:
                    del self._gossip[peer]

    def _hello(self) -> Hello:
        wall_ms = WALL_MS_AT_START + int(self._army.now_s * 1000)
        return Hello(1, (1,), "sybil", wall_ms, wall_ms, None, 0, self.record)

    def _open(self, peer: NodeId, protocol: str) -> StreamId:
        stream = StreamId(self._next_outbound)
        self._next_outbound += 2
        self._readers[stream] = FrameReader(CONTROL_LIMITS)
        self._protocols[stream] = (peer, protocol)
        self._perform(OpenStream(stream, peer, protocol))
        return stream

    def _say(self, peer: NodeId, message: Message) -> None:
        if peer not in self._connected:
            return
        if peer not in self._gossip:
            self._gossip[peer] = self._open(peer, c.GOSSIP_PROTOCOL)
            self._perform(Send(self._gossip[peer], encode_message(Interest(1, ()))))
        self._perform(Send(self._gossip[peer], encode_message(message)))

    # ------------------------------------------------------------ what it means

    def _hear(self, stream: StreamId, peer: NodeId, message: Message) -> None:
        if isinstance(message, Hello):
            if stream % 2 == 0:
                self._perform(Send(stream, encode_message(self._hello())))
                self._perform(FinishStream(stream))
            self._say(peer, Neighbour(1))
        elif isinstance(message, Neighbour):
            self._say(peer, NeighbourAnswer(1, ()))
            self._join(peer)
        elif isinstance(message, NeighbourAnswer):
            if message.is_accepted:
                self._join(peer)
        elif isinstance(message, Leave):
            self._neighbours.pop(peer, None)
        elif isinstance(message, Shuffle):
            self._say(peer, Shuffled(self._army.records(c.SHUFFLE_RECORDS_MAX)))
        elif isinstance(message, Records):
            self._pass_on(peer, message)
        elif isinstance(message, (Graft, Want)) and self._army.is_covert:
            held = tuple(self._held[node] for node in message.nodes if node in self._held)
            if held:
                self._say(peer, Records(held))

    def _join(self, peer: NodeId) -> None:
        if peer in self._neighbours:
            return
        self._neighbours[peer] = None
        self._say(peer, Shuffle(self._army.records(c.SHUFFLE_RECORDS_MAX)))
        if self._does_flood:
            members = self._army.members
            for at in range(0, len(members), c.ARRAY_ITEMS_MAX):
                self._say(peer, Records(tuple(each.record for each in members[at : at + c.ARRAY_ITEMS_MAX])))
        if self._does_forge:
            self._army.at(self._army.now_s + 5.0, partial(self._forge, peer))

    def _pass_on(self, source: NodeId, message: Records) -> None:
        if not self._army.is_covert:
            return
        for record in message.records:
            # A heartbeat begins with the header of its array, the version, and the header of the node id.
            self._held[NodeId(record.body[6:38])] = record
        for neighbour in self._neighbours:
            if neighbour != source:
                self._say(neighbour, message)

    def _forge(self, peer: NodeId) -> None:
        """News of an honest node that it never signed, and promises of more."""
        victim = self._army.rng.choice(self._army.honest)
        genuine = victim.peer.directory.get(victim.node) if victim.peer is not None else None
        if genuine is None or peer not in self._neighbours:
            return
        wall_ms = WALL_MS_AT_START + int(self._army.now_s * 1000)
        beat = heartbeat(
            node=victim.node,
            sequence=genuine.heartbeat.sequence + 1,
            issued_at_ms=wall_ms,
            expires_at_ms=wall_ms + 60_000,
        )
        body = encode_record(beat)
        self._army.forgeries.add(body)
        self._say(peer, Have(((victim.node, 2**62),)))
        self._say(peer, Records((Signed(body, self._key.sign("infernet/heartbeat/1", body)),)))
