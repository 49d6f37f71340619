"""A whole peer under damaged frames: nothing that foreign bytes can do raises, sticks or piles up."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from protocol import constants as c
from protocol.codec import encode_message
from protocol.effects import CancelEngine, Effect, HangUp, ResetStream, RunEngine
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import (
    DEADLINE,
    BytesReceived,
    EngineFailed,
    EngineStarted,
    EngineText,
    Event,
    Now,
    Offer,
    PeerConnected,
    PeerDisconnected,
    SetOffer,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import JobId, StreamId
from protocol.messages import Cancel, JobOpen, Part
from protocol.peer import Peer, PeerConfig
from protocol.records import ChatMessage, FreePolicy, JobRequest, Role, SealedPrompt
from protocol.sealing import HpkeSealer, seal_context, seal_prompt
from tests.helpers_fuzz import BODIES, garbage, mutated
from tests.helpers_records import ASKER, NOW_MS, OFFER, PROVIDER, order


class Besieged:
    """A provider's peer, one hostile neighbour, and an engine that takes everything and sometimes answers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.at_s = 0.0
        self.sealer = HpkeSealer()
        self.peer = Peer(PeerConfig("test"), PROVIDER, self.sealer, random.Random(seed), self.now())
        self.numbers = itertools.count(2, 2)
        self.open: list[StreamId] = []
        self.runs: list[RunEngine] = []
        self.connected = False
        self.refused = self.runs_started = 0
        self.feed(SetOffer(Offer(Role.PROVIDER, "p", "a", models=(OFFER,), free_policy=FreePolicy.ALL)))

    def now(self) -> Now:
        return Now(self.at_s, NOW_MS + round(self.at_s * 1000))

    def feed(self, event: Event) -> None:
        for effect in self.peer.handle(event, self.now()):
            self.perform(effect)
        deadline_s = self.peer.next_deadline()
        assert deadline_s is None or event is not DEADLINE or deadline_s > self.at_s, "a deadline that never passes"

    def perform(self, effect: Effect) -> None:
        match effect:
            case ResetStream(stream=stream):
                self.refused += 1
                if stream in self.open:
                    self.open.remove(stream)
            case RunEngine():
                self.runs.append(effect)
                self.runs_started += 1
            case CancelEngine(run=run):
                assert any(run == each.run for each in self.runs)
            case HangUp():
                self.connected = False
            case _:
                pass

    def step(self) -> None:
        """One thing that can happen next."""
        if not self.connected:
            self.feed(PeerDisconnected(ASKER.node))
            self.feed(PeerConnected(ASKER.node, "/ip4/198.51.100.9/tcp/1", inbound=self.rng.random() < 0.7))
            self.connected = True
            self.open.clear()
        choice = self.rng.random()
        if choice < 0.2 or not self.open:
            stream = StreamId(next(self.numbers))
            self.open.append(stream)
            protocol = self.rng.choice((*c.PROTOCOLS, c.JOB_PROTOCOL, "/else/1"))
            self.feed(StreamOpened(stream, ASKER.node, protocol))
            if protocol == c.JOB_PROTOCOL and self.rng.random() < 0.7:
                self.feed(BytesReceived(stream, self.good_order()))
        elif choice < 0.8:
            self.feed(BytesReceived(self.rng.choice(self.open), self.frame()))
        elif choice < 0.84:
            self.feed(self.rng.choice((StreamFinished, lambda s: StreamBroken(s, "gone")))(self.rng.choice(self.open)))
        elif choice < 0.9 and self.runs:
            self.engine(self.runs[-1])
        else:
            self.pass_time()

    def frame(self) -> bytes:
        body = self.rng.choice(BODIES)
        if self.rng.random() < 0.5:
            body = mutated(self.rng, body) if self.rng.random() < 0.8 else garbage(self.rng)
        data = len(body).to_bytes(4, "big") + body
        return data if self.rng.random() < 0.95 else data[: self.rng.randint(0, len(data))]

    def good_order(self) -> bytes:
        """An order that the peer takes if it has a slot, so that damage meets it at work."""
        now_ms = self.now().wall_ms
        job = JobId(self.rng.randbytes(16))
        context = seal_context(job, 1, ASKER.node, PROVIDER.node, None)
        prompt = SealedPrompt(bytes(32), JobRequest(messages=(ChatMessage("user", "hello"),)))
        sealed = seal_prompt(prompt, self.sealer, self.sealer.public_key(now_ms), context)
        record = order(
            job=job,
            sealed_hash=hashlib.sha256(sealed).digest(),
            sealed_bytes=len(sealed),
            created_at_ms=now_ms,
            expires_at_ms=now_ms + 60_000,
        )
        first = self.rng.choice((len(sealed), 500))
        frames = encode_message(JobOpen(sign_record(record, ASKER), sealed[:first]))
        if first < len(sealed):
            frames += encode_message(Part(job, 1, 0, sealed[first:]))
        if self.rng.random() < 0.2:
            frames += encode_message(Cancel(job, 1, 65))
        return frames

    def engine(self, run: RunEngine) -> None:
        if self.rng.random() < 0.5:
            self.feed(EngineStarted(run.run, 5))
            self.feed(EngineText(run.run, "text", 1))
        else:
            self.runs.remove(run)
            self.feed(EngineFailed(run.run, Refusal.ENGINE_FAILED, "it broke"))

    def pass_time(self) -> None:
        deadline_s = self.peer.next_deadline()
        if deadline_s is not None:
            self.at_s = max(self.at_s, deadline_s)
            self.feed(DEADLINE)


def siege(seed: int, steps: int) -> Besieged:
    besieged = Besieged(seed)
    for _ in range(steps):
        besieged.step()
        statistics = besieged.peer.statistics()
        assert statistics.streams <= c.CONTROL_STREAMS_PER_PEER_MAX + c.JOB_STREAMS_PER_PEER_MAX + 8
        assert statistics.connections <= 1
    return besieged


@pytest.mark.parametrize("seed", range(6))
def test_a_peer_under_siege_stays_whole(seed: int) -> None:
    besieged = siege(seed, 3_000)
    assert besieged.refused > 20, "some of it was refused"
    assert besieged.peer.statistics().bad_frames > 20
    assert besieged.runs_started > 20, "jobs ran meanwhile"
    for run in besieged.runs:
        besieged.feed(EngineFailed(run.run, Refusal.ENGINE_FAILED, "the end"))
    besieged.feed(PeerDisconnected(ASKER.node))
    statistics = besieged.peer.statistics()
    assert (statistics.streams, statistics.connections, statistics.jobs_running) == (0, 0, 0), "nothing leaks"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1_000, 1_008))
def test_a_long_siege(seed: int) -> None:
    siege(seed, 40_000)
