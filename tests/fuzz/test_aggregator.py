"""An aggregator between hostile askers and hostile providers: nothing raises or piles up, and no end is made up."""

from __future__ import annotations

import itertools
import random

import pytest

from protocol import constants as c
from protocol import forwarding as f
from protocol.codec import encode_message
from protocol.effects import Dial, Effect, FinishStream, HangUp, OpenStream, ResetStream, Send
from protocol.envelope import sign_record
from protocol.events import (
    DEADLINE,
    BytesReceived,
    DialFailed,
    Event,
    LearnAddresses,
    Now,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import JobId, NodeId, StreamId
from protocol.messages import Forward, JobOpen
from protocol.peer import Peer, PeerConfig
from protocol.sim.sealer import SimulatedSealer
from tests.helpers_fuzz import BODIES, garbage, mutated
from tests.helpers_machines import ADDRESS
from tests.helpers_records import NOW_MS, order, signing_key

ASKERS = [signing_key(f"asker {number}") for number in range(3)]
PROVIDERS = [signing_key(f"provider {number}").node for number in range(3)]
CONFIG = PeerConfig(agent="test/1", neighbours_min=0, forwards=True)


class Besieged:
    """An aggregator, and everybody around it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.at_s = 0.0
        self.peer = Peer(CONFIG, signing_key("aggregator"), SimulatedSealer(b"s"), random.Random(seed), self.now())
        self.numbers = itertools.count(2, 2)
        self.streams: dict[StreamId, NodeId] = {}
        self.connected: set[NodeId] = set()
        self.dialling: list[NodeId] = []
        self.has_ended: set[StreamId] = set()
        self.has_heard_end: set[StreamId] = set()
        for node in PROVIDERS:
            self.feed(LearnAddresses(node, (ADDRESS,)))

    def now(self) -> Now:
        return Now(self.at_s, NOW_MS + round(self.at_s * 1000))

    def feed(self, event: Event) -> None:
        for effect in self.peer.handle(event, self.now()):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case OpenStream(stream=stream, peer=peer):
                self.streams[stream] = peer
            case ResetStream(stream=stream):
                self.streams.pop(stream, None)
            case FinishStream(stream=stream):
                assert stream not in self.has_ended, "an end comes once"
                self.has_ended.add(stream)
            case Send(stream=stream):
                assert stream not in self.has_ended, "nothing comes after an end"
            case Dial(peer=peer):
                self.dialling.append(peer)
            case HangUp(peer=peer):
                self.disconnect(peer)

    def disconnect(self, peer: NodeId) -> None:
        self.connected.discard(peer)
        for stream in [stream for stream, node in self.streams.items() if node == peer]:
            del self.streams[stream]
            self.feed(StreamBroken(stream, "the connection is lost"))
        self.feed(PeerDisconnected(peer))

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.25:
            self.order()
        elif choice < 0.35 and self.dialling:
            self.answer_dial(self.dialling.pop())
        elif choice < 0.92 and self.streams:
            stream = self.rng.choice(list(self.streams))
            if choice < 0.8 and stream not in self.has_heard_end:
                self.feed(BytesReceived(stream, self.frame()))
            else:
                self.end(stream)
        elif choice < 0.94 and self.connected:
            self.disconnect(self.rng.choice(sorted(self.connected)))
        else:
            self.pass_time()

    def connect(self, peer: NodeId, *, inbound: bool) -> None:
        if peer not in self.connected:
            self.connected.add(peer)
            self.feed(PeerConnected(peer, ADDRESS, inbound))

    def order(self) -> None:
        """An order, as a rule an honest one."""
        key, provider = self.rng.choice(ASKERS), self.rng.choice(PROVIDERS)
        self.connect(key.node, inbound=True)
        stream = StreamId(next(self.numbers))
        self.streams[stream] = key.node
        self.feed(StreamOpened(stream, key.node, c.JOB_PROTOCOL))
        record = order(asker=key.node, provider=provider, job=JobId(self.rng.randbytes(16)))
        data = encode_message(Forward(provider)) + encode_message(JobOpen(sign_record(record, key), b"sealed"))
        if self.rng.random() < 0.2:
            data = self.frame()
        cut = self.rng.randint(0, len(data))
        for piece in (data[:cut], data[cut:]):
            if piece and stream in self.streams:
                self.feed(BytesReceived(stream, piece))

    def answer_dial(self, peer: NodeId) -> None:
        if self.rng.random() < 0.7:
            self.connect(peer, inbound=False)
        elif peer not in self.connected:
            self.feed(DialFailed(peer, "refused"))

    def end(self, stream: StreamId) -> None:
        how = self.rng.random()
        if how < 0.6 and stream not in self.has_heard_end:
            self.has_heard_end.add(stream)
            if stream in self.has_ended:
                del self.streams[stream]
            self.feed(StreamFinished(stream))
        elif how < 0.8:
            del self.streams[stream]
            self.feed(StreamBroken(stream, "reset"))
        else:
            self.feed(OutboxFull(stream))

    def frame(self) -> bytes:
        body = self.rng.choice(BODIES)
        if self.rng.random() < 0.5:
            body = mutated(self.rng, body) if self.rng.random() < 0.8 else garbage(self.rng)
        data = len(body).to_bytes(4, "big") + body
        return data if self.rng.random() < 0.9 else data[: self.rng.randint(1, len(data))]

    def pass_time(self) -> None:
        deadline_s = self.peer.next_deadline()
        if deadline_s is not None:
            self.at_s = max(self.at_s, deadline_s)
            self.feed(DEADLINE)


@pytest.mark.parametrize("seed", range(6))
def test_an_aggregator_under_siege_stays_whole(seed: int) -> None:
    besieged = Besieged(seed)
    for _ in range(3_000):
        besieged.step()
        forwards = besieged.peer.statistics().forwards
        assert forwards.active <= f.FORWARDS_MAX
        assert besieged.peer.statistics().connections <= len(ASKERS) + len(PROVIDERS)
    forwards = besieged.peer.statistics().forwards
    assert forwards.carried > 5, "some jobs were carried"
    assert forwards.failed > 50
    assert besieged.peer.statistics().bad_frames > 20
    for peer in sorted(besieged.connected):
        besieged.disconnect(peer)
    for _ in range(500):
        besieged.pass_time()
        if not besieged.peer.statistics().forwards.active:
            break
    assert besieged.peer.statistics().forwards.active == 0
    assert besieged.peer.statistics().streams == 0
