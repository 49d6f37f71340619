"""One node's protocol, composed: directory, gossip, finding, asking, providing, over streams with ids.

`Peer.handle(event, now)` returns the effects to perform, in order; `next_deadline()` is the one timer to arm. A driver
feeds it: trio in the node, asyncio in the coordinator, a heap in the simulator. Nothing that foreign bytes can do
raises out of `handle`; `LocalProtocolError` does, for a command that cannot be carried out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from msgspec.structs import replace

from protocol import constants as c
from protocol import events as e
from protocol.announcing import Announcing
from protocol.asking import Asking
from protocol.contacts import Contacts
from protocol.counting import JobCounts, JobNow
from protocol.directory import Directory, HeartbeatReader
from protocol.effects import Drained, Effect, HeartbeatSigned, JobDone, Note, RecordLearnt, ResetStream
from protocol.envelope import Signer
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import Event, Now, Offer
from protocol.experience import Experience
from protocol.finding import Finding
from protocol.forwarding import Account, Forwarding, ForwardStatistics
from protocol.gossip import Gossip, GossipConfig
from protocol.greeting import Greeting
from protocol.heads import Heads as LedgerHeads
from protocol.ids import NodeId, StreamId
from protocol.jobs import FEATURE_ACKNOWLEDGES
from protocol.locality import network_of
from protocol.messages import Heads, Hello, Message, Reports
from protocol.providing import Providing
from protocol.purse import Purse
from protocol.reachable import Reachable
from protocol.reaching import FEATURE_DIALS_BACK
from protocol.records import Availability, Kind, Signed
from protocol.refusing import Refusing
from protocol.routing import RouteRequest, Verdict
from protocol.sealing import Sealer
from protocol.streams import Stream, Streams
from protocol.timers import Timers
from protocol.traffic import Connection, Traffic
from protocol.views import CHOSEN_MIN

FEATURE_GOSSIP: Final = 1
FEATURE_FORWARDS: Final = 3
# The network of peers whose address is not known.
NOWHERE: Final = "nowhere"
_BEAT = "beat"
_REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What differs between a node, the coordinator and a simulated peer."""

    agent: str
    gossip: GossipConfig = field(default_factory=GossipConfig)
    directory_records_max: int = c.DIRECTORY_RECORDS_MAX
    heartbeat_reader: HeartbeatReader = field(default_factory=HeartbeatReader)
    # False: jobs go to connected peers only, whatever addresses others publish.
    dials: bool = True
    # So many neighbours at least are looked for; 0: nobody is.
    neighbours_min: int = CHOSEN_MIN
    # Whether jobs are passed on to other providers for those who ask.
    forwards: bool = False
    # Whether others hear what this peer decided about providers and measured of them.
    reports: bool = False


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """A snapshot for status pages and leak tests."""

    connections: int
    streams: int
    records: int
    jobs_asked: int
    #: Those of others; those that wait for a slot included.
    jobs_running: int
    jobs_waiting: int
    zombie_chunks: int
    bad_frames: int
    queries: int
    neighbours: int
    forwards: ForwardStatistics
    jobs: JobCounts
    #: What runs here, or waits for a slot, for the node's own owner: of `jobs_asked`.
    jobs_own: int = 0


class Peer:
    """The composed machine. `rng` also keys the seals' answers: a real driver passes `random.SystemRandom()`."""

    def __init__(self, config: PeerConfig, signer: Signer, sealer: Sealer, rng: random.Random, now: Now) -> None:
        self.node = signer.node
        self.directory = Directory(config.directory_records_max, rng, config.heartbeat_reader)
        self._config = config
        self._streams = Streams(self._on_stream_dropped, lambda number: self._forwarding.owns(number))
        self._connections: dict[NodeId, Connection] = {}
        # When our own heartbeat is due.
        self._timers: Timers[str] = Timers()
        self._heartbeat: Signed | None = None
        self._load: tuple[int, int] = (0, 0)
        self._is_draining = False
        self._is_drained = False
        features = (
            *((FEATURE_GOSSIP,) if config.gossip.interval_s is not None else ()),
            *((FEATURE_FORWARDS,) if config.forwards else ()),
            *((FEATURE_DIALS_BACK,) if config.dials else ()),
            FEATURE_ACKNOWLEDGES,
        )
        self._announcing = Announcing(signer, sealer, features)
        self._greeting = Greeting(
            config.agent,
            now.wall_ms,
            features=lambda: self._announcing.features,
            heartbeat=lambda: self._heartbeat,
            records_held=self.directory.__len__,
            address_of=self._address_of,
            next_stream=self._streams.next_number,
        )
        self._contacts = Contacts(self.directory, rng)
        self._reachable = Reachable(self.node, self.directory, rng, self._streams.next_number, dials=config.dials)
        self._finding = Finding(
            self.node,
            self.directory,
            rng,
            connected=lambda: list(self._connections),
            next_stream=self._streams.next_number,
        )
        self._gossip = Gossip(
            config.gossip,
            self.node,
            self.directory,
            self._contacts,
            rng,
            now,
            chosen_min=config.neighbours_min if config.dials else 0,
            search=lambda model: self._finding.ask(RouteRequest(model, Kind.CHAT, free=False)),
            next_stream=self._streams.next_number,
        )
        #: What was learnt of providers: for explanations, and to be kept over restarts.
        self.experience = Experience(
            signer,
            self.directory,
            rng,
            connected=lambda: list(self._connections),
            is_connected=self._connections.__contains__,
            has_address=lambda node: bool(self._contacts.addresses(node)),
            spread=self._gossip.spread,
            reports=config.reports,
        )
        self.purse = Purse(signer, rng)
        self.heads = LedgerHeads()
        self._asking = Asking(
            signer,
            sealer,
            self.directory,
            rng,
            self.experience.router,
            self.purse,
            connected=lambda node: node == self.node or node in self._connections,
            addresses=self._contacts.addresses,
            aggregators=self._aggregators,
            search=self._finding.ask,
            next_stream=self._streams.next_number,
            connected_only=not config.dials,
        )
        self._refusing = Refusing(
            self.node,
            self.directory,
            rng,
            connected=self._connections.__contains__,
            addresses=self._contacts.addresses,
            next_stream=self._streams.next_number,
            own_record=lambda: self._heartbeat,
        )
        self._handing_off = self._refusing.handing_off
        self._providing = Providing(signer, sealer, rng, now.wall_ms, self._refusing, self._network_of)
        self.till = self._providing.till
        self._forwarding = Forwarding(
            self.node,
            self.directory,
            is_enabled=config.forwards,
            connected=self._connections.__contains__,
            addresses=self._contacts.addresses,
            next_stream=self._streams.next_number,
        )
        self._traffic = Traffic(
            self._streams,
            self._connections,
            gossips=config.gossip.interval_s is not None,
            on_hello=self._on_hello,
            on_gossip=self._on_gossip,
            greeting=self._greeting,
            finding=self._finding,
            reachable=self._reachable,
            forwarding=self._forwarding,
            handing_off=self._handing_off,
            providing=self._providing,
            asking=self._asking,
        )

    # ------------------------------------------------------------ the seam

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Take one event and return the effects to perform, in order. Raises LocalProtocolError for a bad command."""
        effects: list[Effect] = []
        self._absorb(self._dispatch(event, now), effects, now)
        self._absorb(self._gossip.on_streams_lost(now), effects, now)
        self._absorb(self.purse.take_effects(), effects, now)
        self._absorb(self._tell_load(now), effects, now)
        if self._is_draining and not self._is_drained and not self._has_jobs():
            self._is_drained = True
            effects.append(Drained())
        return effects

    def next_deadline(self) -> float | None:
        """The monotonic instant at which to feed DEADLINE, or None."""
        deadlines = (
            self._timers.next_deadline(),
            self._greeting.next_deadline(),
            self._streams.next_deadline(),
            self._contacts.next_deadline(),
            self._reachable.next_deadline(),
            self._gossip.next_deadline(),
            self.experience.next_deadline(),
            self._asking.next_deadline(),
            self._providing.next_deadline(),
            self._forwarding.next_deadline(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def explain(self, request: RouteRequest, now: Now) -> list[Verdict]:
        """Why each known node would or would not get this job from us."""
        return self.experience.router.explain(request, now)

    def statistics(self) -> PeerStatistics:
        return PeerStatistics(
            connections=len(self._connections),
            streams=len(self._streams),
            records=len(self.directory),
            jobs_asked=self._asking.active,
            jobs_running=self._providing.active - self._providing.own,
            jobs_waiting=self._providing.others_waiting,
            zombie_chunks=self._asking.zombie_chunks,
            bad_frames=self._traffic.bad_frames,
            queries=self._finding.active,
            neighbours=len(self._gossip.neighbours),
            forwards=self._forwarding.statistics(),
            jobs=self._providing.counts,
            jobs_own=self._providing.own,
        )

    def jobs_now(self, now: Now) -> list[JobNow]:
        """What this node runs for others, and who waits for that."""
        return self._providing.jobs_now(now)

    def connected_at(self, peer: NodeId) -> str | None:
        """The address of the connection to a peer; None for one without a network address, or without a connection."""
        return self._address_of(peer)

    def forward_accounts(self) -> list[tuple[NodeId, NodeId, Account]]:
        """What this node has carried lately: asker, provider, how much."""
        return self._forwarding.accounts()

    def _dispatch(self, event: Event, now: Now) -> Iterable[Effect]:  # one arm per event
        match event:
            case e.BytesReceived():
                return self._traffic.on_bytes(event, now)
            case e.EngineStarted() | e.EngineProgress() | e.EngineText() | e.EngineVector():
                return self._providing.on_engine(event, now)
            case e.EngineFinished() | e.EngineFailed():
                return self._providing.on_engine(event, now)
            case e.DeadlineReached():
                return self._on_deadline(now)
            case e.StreamOpened():
                return self._traffic.on_stream_opened(event, now)
            case e.StreamFinished():
                return self._traffic.on_stream_finished(event.stream, now)
            case e.StreamBroken():
                return self._traffic.lose_stream(event.stream, Refusal.PEER_LOST, event.reason, now)
            case e.OutboxFull():
                reset = ResetStream(event.stream, "the reader is too slow")
                return [*self._traffic.lose_stream(event.stream, Refusal.SLOW_READER, reset.reason, now), reset]
            case e.PeerConnected():
                return self._on_connected(event, now)
            case e.PeerDisconnected():
                return self._on_disconnected(event.peer, now)
            case e.DialFailed():
                if event.peer in self._connections:
                    return []  # it dialled us while we dialled it
                self._contacts.on_unreachable(event.peer, now)
                self._gossip.on_unreachable(event.peer, now)
                effects = self._asking.on_dial_failed(event, now)
                effects += self._handing_off.on_unreachable(event.peer, now)
                effects += self._reachable.on_unreachable(event.peer, now)
                return effects + self._forwarding.on_unreachable(event.peer)
            case e.Ask():
                if event.model is not None and event.provider != self.node:
                    self._gossip.ask(event.model, now)
                return self._asking.ask(event, now)
            case e.StopAsking():
                return self._asking.stop(event, now)
            case e.UseCoordinator():
                self.purse.coordinator = event.coordinator
                self._use_coordinators()
                return []
            case e.LeaseGranted():
                return self._asking.on_lease_granted(event, now)
            case e.LeaseDenied():
                return self._asking.on_lease_denied(event, now)
            case e.MarkStored():
                return self._asking.on_mark_stored(event)
            case e.ClosingStored():
                return self.till.on_closing_stored(event, now)
            case e.RestorePayer():
                return self.purse.restore(event)
            case e.RestoreProvider():
                return self.till.restore(event, now)
            case e.ClaimAnswered():
                return self.till.on_answered(event, now) + self.heads.acknowledged(event.acknowledgement)
            case e.ClaimFailed():
                return self.till.on_failed(event, now)
            case e.ClaimNow():
                return self.till.claim_now(now)
            case e.CloseLease():
                self.purse.close(event.lease)
                return self.till.on_close_wanted(event, now)
            case e.LearnHead():
                return self._learn_heads(None, (event.signed,), now)
            case e.SetOffer():
                return self._set_offer(event.offer, now)
            case e.Allow():
                self._providing.allow(event.nodes)
                return []
            case e.LearnAddresses():
                return self._learn_addresses(event, now)
            case e.LearnRecord():
                return self._learn(event.record, now, source=None)
            case e.Pressure():
                self._providing.is_overloaded = event.is_high
                return []
            case e.Drain():
                return self._drain(now)
            case e.Listening():
                return self._reachable.on_listening(event, now)
            case e.DialedBack() | e.RelayReserved() | e.RelayLost():
                return self._reachable.on_event(event, now)
            case e.Shutdown():
                return self._shut_down(now)
            case _:
                assert_never(event)

    def _absorb(self, produced: Iterable[Effect], effects: list[Effect], now: Now) -> None:
        """Keep the table of streams in step with the effects that go out, one by one as they are produced."""
        for effect in produced:
            effects.append(effect)
            if isinstance(effect, RecordLearnt):
                self._gossip.on_learnt(effect)
                self._absorb(self._asking.on_record(effect.heartbeat, now), effects, now)
            elif isinstance(effect, JobDone) and effect.receipt.provider != self.node:
                self.directory.mark_useful(effect.receipt.provider)
            else:
                self._streams.follow(effect, now)

    # ------------------------------------------------------------ connections

    def _on_connected(self, event: e.PeerConnected, now: Now) -> list[Effect]:
        if event.peer in self._connections:
            return []
        self._connections[event.peer] = Connection(event.address)
        self._contacts.on_connected(event.peer, now)
        self._gossip.on_connected(event.peer, event.address)
        effects = self._greeting.on_connected(event.peer, now, inbound=event.inbound)
        effects += self._reachable.on_connected(event, now)
        effects += self._asking.on_connected(event.peer, now) + self._handing_off.on_connected(event.peer, now)
        return effects + self._forwarding.on_connected(event.peer, now)

    def _on_disconnected(self, peer: NodeId, now: Now) -> list[Effect]:
        if self._connections.pop(peer, None) is None:
            return []
        self._greeting.on_disconnected(peer)
        effects: list[Effect] = []
        for stream in self._streams.of_peer(peer):
            effects += self._traffic.lose_stream(stream, Refusal.PEER_LOST, "the connection to the peer is lost", now)
        self._reachable.on_disconnected(peer)
        self._contacts.on_unreachable(peer, now)
        effects += self._gossip.on_disconnected(peer, now)
        return effects + self._asking.on_unreachable(peer, "the connection to the provider is lost", now)

    def _on_hello(self, peer: NodeId, hello: Hello, now: Now) -> list[Effect]:
        effects = self._greeting.on_hello(peer, hello, now) + self._reachable.on_hello(peer, hello, now)
        # SPEC 01: The receiver MUST check the heartbeat in a `Hello` like one from gossip
        if hello.heartbeat is not None:
            effects += self._learn(hello.heartbeat, now, source=peer)
        return effects + self._gossip.on_greeted(peer, FEATURE_GOSSIP in hello.features, now)

    def _on_gossip(self, peer: NodeId, message: Message, now: Now) -> list[Effect]:
        if isinstance(message, Reports):
            return self._gossip.deliver(self.experience.on_reports(peer, message, now), now)
        if isinstance(message, Heads):
            return self._learn_heads(peer, message.records, now)
        return self._gossip.on_message(peer, message, now)

    def _use_coordinators(self) -> None:
        ours = self.purse.coordinator
        theirs = self._announcing.offer.coordinators if self._announcing.offer is not None else ()
        self.heads.use((*theirs, *((ours,) if ours is not None else ())))

    def _learn_heads(self, source: NodeId | None, records: tuple[Signed, ...], now: Now) -> list[Effect]:
        try:
            news, effects = self.heads.take(source, records, now)
        except RemoteProtocolError as error:
            if source is not None:
                raise
            return [Note("head.bad", None, str(error))]
        return effects + self._gossip.deliver(self._gossip.spread(self.heads, news, now, source=source), now)

    def _on_stream_dropped(self, number: StreamId, stream: Stream) -> None:
        self._finding.on_stream_lost(number)
        self._providing.on_stream_dropped(number)
        self._asking.on_stream_dropped(number)
        if stream.protocol == c.GOSSIP_PROTOCOL:
            self._gossip.on_stream_lost(number, stream.peer, inbound=stream.inbound)

    def _address_of(self, peer: NodeId) -> str | None:
        connection = self._connections.get(peer)
        return connection.address if connection is not None else None

    def _aggregators(self) -> list[NodeId]:
        """Connected peers that forward jobs."""
        beats = [entry.heartbeat for peer in self._connections if (entry := self.directory.get(peer)) is not None]
        return [
            beat.node
            for beat in beats
            if FEATURE_FORWARDS in beat.features and beat.availability is Availability.AVAILABLE
        ]

    # ------------------------------------------------------------ records

    def _learn(self, record: Signed, now: Now, *, source: NodeId | None) -> list[Effect]:
        """Take a record from elsewhere than gossip, and pass news on. Blames nobody for an old one."""
        try:
            return self._gossip.learn(record, now, source)
        except RemoteProtocolError as error:
            if source is not None:
                raise
            return [Note("record.bad", None, str(error))]

    def _learn_addresses(self, event: e.LearnAddresses, now: Now) -> list[Effect]:
        if event.peer == self.node:
            return []  # whoever wants something of it has it here
        is_connected = event.peer in self._connections
        effects = self._contacts.learn(event, connected=is_connected)
        return effects + self._gossip.on_candidate(event.peer, now)

    def _tell_load(self, now: Now) -> list[Effect]:
        """Tell neighbours how full we are, when that is something else than before."""
        if self._announcing.offer is None or not self._announcing.offer.models:
            return []
        load = (self._providing.load(), self._providing.waiting)
        if load == self._load:
            return []
        self._load = load
        return self._gossip.set_load(load[0], self._providing.wait_ms(now), now)

    def _set_offer(self, offer: Offer, now: Now) -> list[Effect]:
        if self._is_draining and offer.availability is Availability.AVAILABLE:
            offer = replace(offer, availability=Availability.DRAINING)
        # Signing raises for an offer that others would refuse, before anything has changed.
        self._announcing.sign(offer, 0, now)
        self._announcing.offer = offer
        self._use_coordinators()
        self._gossip.serve(model.name for model in offer.models)
        begun = self._providing.set_offer(offer, now) + self._reachable.on_offer(offer, now)
        return begun + self._beat(now, spread=True)

    def _beat(self, now: Now, *, spread: bool) -> list[Effect]:
        """Sign a new heartbeat: for the coordinator always, for peers when `spread`."""
        if self._announcing.offer is None:
            return []
        entry = self._announcing.sign(self._announcing.offer, self._providing.load(), now)
        self._timers.set(_BEAT, now.monotonic_s + c.HEARTBEAT_INTERVAL_S)
        effects: list[Effect] = [HeartbeatSigned(entry.record)]
        if spread:
            self._heartbeat = entry.record
            self.directory.add(entry.record, now.wall_ms)
            self._timers.set(_REFRESH, now.monotonic_s + c.GOSSIP_REFRESH_S)
            is_last = entry.heartbeat.availability is Availability.OFFLINE
            effects += self._gossip.spread_own(now, at_once=is_last)
        return effects

    # ------------------------------------------------------------ time

    def _on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for key in self._timers.pop_due(now.monotonic_s):
            if key == _BEAT:
                effects += self._beat(now, spread=not self._timers.is_set(_REFRESH))
        effects += self._greeting.on_deadline(now)
        effects += self._traffic.on_deadline(now)
        self.directory.expire(now.wall_ms)
        effects += self._contacts.on_deadline(now)
        effects += self._reachable.on_deadline(now)
        effects += self._gossip.on_deadline(now)
        effects += self._gossip.deliver(self.experience.on_deadline(now), now)
        effects += self._asking.on_deadline(now)
        effects += self._forwarding.on_deadline(now)
        return effects + self._providing.on_deadline(now)

    def _drain(self, now: Now) -> list[Effect]:
        self._is_draining = True
        self._forwarding.drain()
        effects = self._providing.drain(now)
        if self._announcing.offer is not None:
            effects += self._set_offer(self._announcing.offer, now)
        return effects

    def _has_jobs(self) -> bool:
        return bool(self._providing.active or self._asking.active or self._forwarding.active)

    def _network_of(self, peer: NodeId) -> str:
        connection = self._connections.get(peer)
        return (network_of(connection.address) if connection is not None else "") or NOWHERE

    def _shut_down(self, now: Now) -> list[Effect]:
        effects = self._asking.shut_down(now) + self._providing.shut_down(now) + self._forwarding.shut_down()
        if self._announcing.offer is not None:
            effects += self._set_offer(replace(self._announcing.offer, availability=Availability.OFFLINE), now)
        return effects
