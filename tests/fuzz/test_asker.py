"""An asker whose provider lies, stumbles or sends damaged frames: every job ends, and says why."""

from __future__ import annotations

import random
from collections import Counter
from typing import TypeVar

import pytest

from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameReader, encode_message
from protocol.effects import Effect, HangUp, JobDone, JobFailed, JobText, OpenStream, ResetStream, Send
from protocol.envelope import open_record, sign_record
from protocol.events import (
    DEADLINE,
    Ask,
    BytesReceived,
    Event,
    LearnRecord,
    Now,
    PeerConnected,
    PeerDisconnected,
    StopAsking,
    StreamFinished,
)
from protocol.ids import JobId, StreamId
from protocol.jobs import default_sampling, order_hash, running_hash
from protocol.messages import Chunk, JobAccept, JobOpen, JobReject, Message, Progress, Receipt
from protocol.peer import Peer, PeerConfig
from protocol.records import ChatMessage, ChunkBody, JobOpenRecord, JobRequest, Kind, Outcome
from protocol.sealing import ChunkCipher, HpkeSealer, open_prompt, seal_context
from tests.helpers_fuzz import garbage, mutated
from tests.helpers_records import ASKER, NOW_MS, PROVIDER, acceptance, heartbeat, receipt

T = TypeVar("T")


class Liar:
    """A provider that knows the protocol, and for each order writes an answer that it then damages, or not."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.sealer = HpkeSealer()

    def answer(self, opened: JobOpen) -> list[bytes]:
        """The frames of an answer."""
        order = open_record(opened.order, JobOpenRecord)
        hash_ = order_hash(opened.order.body)
        context = seal_context(order.job, order.attempt, order.asker, order.provider, order.lease)
        cipher = ChunkCipher(open_prompt(opened.sealed, self.sealer, context).response_key, hash_)
        names = {"job": order.job, "attempt": order.attempt, "open_hash": hash_}
        accepted = acceptance(**names, prompt_tokens=self.lie(9, 10**6))
        said: list[Message] = [JobAccept(sign_record(accepted, PROVIDER)), Progress(order.job, order.attempt, 1, 9)]
        chained, count = hash_, self.rng.randint(0, 4)
        for number in range(1, count + 1):
            claimed = self.lie(number, number + 1)
            sealed = cipher.seal(claimed, number, 0, ChunkBody("word "))
            chained = running_hash(chained, number, number, 0, sealed)
            said.append(Chunk(order.job, order.attempt, claimed, number, self.lie(0, 5), sealed))
        outcome = self.rng.choice((Outcome.STOP, Outcome.STOP, Outcome.FAILED))
        said.append(
            Receipt(
                sign_record(
                    receipt(
                        **names,
                        prompt_tokens=9,
                        output_tokens=self.lie(count, count + 1),
                        chunks=count,
                        running_hash=self.lie(chained, bytes(32)),
                        outcome=outcome,
                    ),
                    PROVIDER,
                )
            )
        )
        if self.rng.random() < 0.15:
            said = [JobReject(order.job, order.attempt, self.rng.randrange(256), 0, "no", (), None)]
        if self.rng.random() < 0.15:
            self.rng.shuffle(said)
        frames = [self.damaged(encode_message(message)[4:]) for message in said]
        return frames[: self.rng.randint(0, len(frames))] if self.rng.random() < 0.2 else frames

    def lie(self, truth: T, other: T) -> T:
        return other if self.rng.random() < 0.04 else truth

    def damaged(self, body: bytes) -> bytes:
        chance = self.rng.random()
        if chance < 0.04:
            body = mutated(self.rng, body) if chance < 0.03 else garbage(self.rng)
        return len(body).to_bytes(4, "big") + body


class Asker:
    """The asker's peer, connected to the liar; what it tells its user is written down."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.liar = Liar(self.rng)
        self.at_s = 0.0
        self.peer = Peer(PeerConfig("test"), ASKER, HpkeSealer(), random.Random(seed), self.now())
        self.waiting: list[tuple[StreamId, bytes]] = []
        self.texts: dict[JobId, str] = {}
        self.ends: dict[JobId, list[JobDone | JobFailed]] = {}
        self.readers: dict[StreamId, FrameReader] = {}
        self.connected = False

    def now(self) -> Now:
        return Now(self.at_s, NOW_MS + round(self.at_s * 1000))

    def feed(self, event: Event) -> None:
        for effect in self.peer.handle(event, self.now()):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case OpenStream(stream=stream, protocol=c.JOB_PROTOCOL):
                self.readers[stream] = FrameReader(JOB_LIMITS)
            case Send(stream=stream, data=data) if stream in self.readers:
                for message in self.readers[stream].feed(data):
                    if isinstance(message, JobOpen):
                        self.waiting += [(stream, frame) for frame in self.liar.answer(message)]
                        if self.rng.random() < 0.5:
                            self.waiting.append((stream, b""))
            case ResetStream(stream=stream):
                self.waiting = [(other, frame) for other, frame in self.waiting if other != stream]
            case JobText(job=job, text=text):
                assert not self.ends[job], "text after the end"
                self.texts[job] += text
            case JobDone(job=job) | JobFailed(job=job):
                self.ends[job].append(effect)
            case HangUp():
                self.connected = False
            case _:
                pass

    def ask(self) -> None:
        wall_ms = self.now().wall_ms
        record = heartbeat(
            sequence=wall_ms + self.rng.randrange(1000),
            issued_at_ms=wall_ms,
            expires_at_ms=wall_ms + 600_000,
            sealing_key=self.liar.sealer.public_key(0),
        )
        self.feed(LearnRecord(sign_record(record, PROVIDER)))
        if not self.connected:
            self.feed(PeerDisconnected(PROVIDER.node))
            self.waiting.clear()
            self.feed(PeerConnected(PROVIDER.node, "/ip4/198.51.100.9/tcp/1", inbound=False))
            self.connected = True
        job = JobId(self.rng.randbytes(16))
        self.texts[job], self.ends[job] = "", []
        request = JobRequest(messages=(ChatMessage("user", "hello"),))
        self.feed(Ask(job, Kind.CHAT, request, default_sampling(1), 8, provider=PROVIDER.node, timeout_s=60))

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.08:
            self.ask()
        elif choice < 0.12 and self.ends:
            self.feed(StopAsking(self.rng.choice(list(self.ends)[-3:])))
        elif choice < 0.14 and self.connected:
            self.connected = False
            self.waiting.clear()
            self.feed(PeerDisconnected(PROVIDER.node))
        elif choice < 0.16:
            self.pass_time()
        elif self.waiting:
            # In order on each stream, in any order between them.
            stream = self.rng.choice(self.waiting)[0]
            index = next(i for i, (other, _) in enumerate(self.waiting) if other == stream)
            frame = self.waiting.pop(index)[1]
            self.feed(BytesReceived(stream, frame) if frame else StreamFinished(stream))

    def pass_time(self) -> None:
        deadline_s = self.peer.next_deadline()
        if deadline_s is not None:
            self.at_s = max(self.at_s, deadline_s)
            self.feed(DEADLINE)


def interrogate(seed: int, steps: int) -> tuple[Counter[str], int]:
    asker = Asker(seed)
    for _ in range(steps):
        asker.step()
    asker.waiting.clear()
    while asker.peer.statistics().jobs_asked:
        asker.pass_time()
    for job, ends in asker.ends.items():
        (end,) = ends
        if isinstance(end, JobDone):
            assert asker.texts[job] == "word " * sum(part.output_tokens for part in end.served), "what was counted"
            assert end.served[-1].output_tokens == end.receipt.chunks, "what was signed"
    ended = Counter(type(ends[0]).__name__ for ends in asker.ends.values())
    return ended, asker.peer.statistics().zombie_chunks


@pytest.mark.parametrize("seed", range(4))
def test_every_job_ends_once_whatever_its_provider_says(seed: int) -> None:
    ended, zombies = interrogate(seed, 4_000)
    assert min(ended["JobDone"], ended["JobFailed"]) > 20
    assert zombies > 0, "some chunks came after a cancel"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2_000, 2_008))
def test_a_long_interrogation(seed: int) -> None:
    interrogate(seed, 60_000)
