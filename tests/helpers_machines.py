"""A bench for one real peer: the test plays the network, the engine and everybody else."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any, TypeVar

from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameReader, encode_message
from protocol.directory import Entry
from protocol.effects import Effect, OpenStream, Send
from protocol.envelope import SigningKey, sign_record
from protocol.events import (
    DEADLINE,
    Ask,
    BytesReceived,
    Event,
    Now,
    Offer,
    PeerConnected,
    SetOffer,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import default_sampling
from protocol.messages import Hello, Interest, Message, Neighbour
from protocol.peer import FEATURE_GOSSIP, Peer, PeerConfig
from protocol.records import ChatMessage, FreePolicy, JobRequest, Kind, Role, Signed
from protocol.sim.sealer import SimulatedSealer
from tests.helpers_records import NOW_MS, OFFER, heartbeat, signing_key

EffectType = TypeVar("EffectType")
MessageType = TypeVar("MessageType", bound=Message)

ADDRESS = "/ip4/192.0.2.9/tcp/46337"
LOOPBACK = "/ip4/127.0.0.1/tcp/50000"
# Nobody is looked for: what the peer does is what the test makes it do.
ALONE = PeerConfig(agent="test/1", neighbours_min=0)


def now(at_s: float = 0.0) -> Now:
    """Both clocks, so many seconds after the start of the test."""
    return Now(at_s, NOW_MS + round(at_s * 1000))


def record_of(name: str, **changes: Any) -> Signed:
    """A signed heartbeat of somebody."""
    key = signing_key(name)
    return sign_record(heartbeat(node=key.node, **changes), key)


def entry_of(name: str, **changes: Any) -> Entry:
    """A directory's entry of somebody."""
    key = signing_key(name)
    beat = heartbeat(node=key.node, **changes)
    return Entry(beat, sign_record(beat, key))


def sealer_of(name: str) -> SimulatedSealer:
    return SimulatedSealer(name.encode())


def provider_record(name: str, **changes: Any) -> Signed:
    """A heartbeat with the sealing key of this name's sealer."""
    return record_of(name, sealing_key=sealer_of(name).public_key(NOW_MS), **changes)


def offer(**changes: Any) -> Offer:
    """What a provider of the test model says."""
    return replace(
        Offer(role=Role.PROVIDER, name="bench", agent="test/1", models=(OFFER,), free_policy=FreePolicy.ALL), **changes
    )


def chat(number: int = 1, **changes: Any) -> Ask:
    """A job for the test model."""
    ask = Ask(
        JobId(number.to_bytes(16, "big")),
        Kind.CHAT,
        JobRequest(messages=(ChatMessage("user", "hello"),)),
        default_sampling(number),
        output_tokens_max=100,
        model=OFFER.name,
    )
    return replace(ask, **changes)


def hello_of(record: Signed | None = None, *, gossips: bool = False, clock_ms: int = NOW_MS) -> Hello:
    """A greeting; the clock is ours unless told otherwise."""
    return Hello(1, (FEATURE_GOSSIP,) if gossips else (), "test/1", clock_ms, NOW_MS, None, 0, record)


class Bench:
    """One peer, its clocks, and what it said on every stream. Checks at every step what must hold at every step."""

    def __init__(self, name: str = "bench", config: PeerConfig = ALONE) -> None:
        self.key: SigningKey = signing_key(name)
        self.at_s = 100.0
        self.peer = Peer(config, self.key, sealer_of(name), random.Random(name), self.now())
        #: Effects of the last step.
        self.effects: list[Effect] = []
        self.said: defaultdict[StreamId, list[Message]] = defaultdict(list)
        self.opened: dict[StreamId, OpenStream] = {}
        self._readers: defaultdict[StreamId, FrameReader] = defaultdict(lambda: FrameReader(JOB_LIMITS))
        self._next_inbound = 2

    def now(self) -> Now:
        return now(self.at_s)

    # ------------------------------------------------------------ events in

    def feed(self, *events: Event) -> list[Effect]:
        """Events at this moment; returns their effects."""
        self.effects = []
        for event in events:
            self._take(self.peer.handle(event, self.now()))
        return self.effects

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, with DEADLINE whenever the peer asked for it; returns the effects."""
        self.effects = []
        end_s = self.at_s + seconds
        while (deadline := self.peer.next_deadline()) is not None and deadline <= end_s:
            self.at_s = max(self.at_s, deadline)
            self._take(self.peer.handle(DEADLINE, self.now()))
            following = self.peer.next_deadline()
            assert following is None or following > self.at_s, "after DEADLINE the next one must lie ahead"
        self.at_s = end_s
        return self.effects

    def connect(
        self, node: NodeId, *, inbound: bool = False, address: str = ADDRESS, greets: bool = True, gossips: bool = False
    ) -> list[Effect]:
        """A connection comes up; one that we dialled answers our hello."""
        effects = self.feed(PeerConnected(node, address, inbound))
        if greets and not inbound:
            stream = self.stream_to(node, c.HELLO_PROTOCOL)
            effects = effects + self.hear(stream, hello_of(gossips=gossips)) + self.hear_end(stream)
            self.effects = effects
        return effects + self.befriend(node) if gossips else effects

    def befriend(self, node: NodeId) -> list[Effect]:
        """The other side wants to hear of everything, and becomes our neighbour."""
        effects = self.hear(self.accept_stream(node, c.GOSSIP_PROTOCOL), Interest(1, ()), Neighbour(0))
        assert self.peer.statistics().neighbours
        return effects

    def accept_stream(self, node: NodeId, protocol: str) -> StreamId:
        """The other side opens a stream."""
        number = StreamId(self._next_inbound)
        self._next_inbound += 2
        self.feed(StreamOpened(number, node, protocol))
        return number

    def hear(self, stream: StreamId, *messages: Message) -> list[Effect]:
        """The other side says this, in one piece."""
        return self.feed(BytesReceived(stream, b"".join(encode_message(message) for message in messages)))

    def hear_end(self, stream: StreamId) -> list[Effect]:
        return self.feed(StreamFinished(stream))

    def provide(self, **changes: Any) -> list[Effect]:
        """Offer the test model."""
        return self.feed(SetOffer(offer(**changes)))

    # ------------------------------------------------------------ effects out

    def _take(self, effects: list[Effect]) -> None:
        router = self.peer.experience.router
        assert router.active <= self.peer.statistics().jobs_asked, "what is remembered of a job ends with it"
        for effect in effects:
            self.effects.append(effect)
            if isinstance(effect, OpenStream):
                self.opened[effect.stream] = effect
            elif isinstance(effect, Send):
                self.said[effect.stream] += self._readers[effect.stream].feed(effect.data)

    def all(self, cls: type[EffectType]) -> list[EffectType]:
        """The effects of this type in the last step."""
        return [effect for effect in self.effects if isinstance(effect, cls)]

    def one(self, cls: type[EffectType]) -> EffectType:
        """The only effect of this type in the last step."""
        (effect,) = self.all(cls)
        return effect

    def none_of(self, *classes: type[Any]) -> bool:
        return not any(isinstance(effect, classes) for effect in self.effects)

    def heard(self, stream: StreamId, cls: type[MessageType]) -> MessageType:
        """The only message of this type that the peer said on a stream."""
        (message,) = [message for message in self.said[stream] if isinstance(message, cls)]
        return message

    def stream_to(self, node: NodeId, protocol: str) -> StreamId:
        """The last stream that the peer opened to somebody."""
        return [s for s, effect in self.opened.items() if (effect.peer, effect.protocol) == (node, protocol)][-1]
