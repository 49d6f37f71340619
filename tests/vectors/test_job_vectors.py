"""specs/vectors of page 05: seals, chunks, the chain, cost; and whole conversations with both machines."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol import codec
from protocol.attempt import Attempt
from protocol.codec import JOB_LIMITS, FrameReader, encode_value
from protocol.effects import CancelEngine, Effect, FinishStream, RunEngine, Send
from protocol.envelope import SigningKey, open_record, tagged_hash
from protocol.errors import Refusal, RemoteProtocolError, SealError
from protocol.events import (
    DEADLINE,
    BytesReceived,
    EngineFailed,
    EngineFinished,
    EngineProgress,
    EngineStarted,
    EngineText,
    Now,
    Offer,
    PeerConnected,
    SetOffer,
    StreamOpened,
)
from protocol.ids import JobId, LeaseId, NodeId, RunId, StreamId
from protocol.jobs import cost_uusd, order_hash, running_hash
from protocol.messages import Chunk, JobAccept, JobOpen, Part, Receipt
from protocol.peer import Peer, PeerConfig
from protocol.records import ChunkBody, FreePolicy, JobOpenRecord, Kind, ModelOffer, Outcome, Role, SealedPrompt
from protocol.sealing import ANSWER_KEY_TAG, ChunkCipher, HpkeSealer, open_prompt, seal_context, seal_prompt
from tests.helpers_records import order
from tests.helpers_vectors import Vector, each, plain

STREAM = StreamId(2)
OTHER_STREAM = StreamId(4)


class KnownKey(HpkeSealer):
    """The real sealer with a key that a vector states."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._keys = [X25519PrivateKey.from_private_bytes(bytes.fromhex(secret))]
        self._rotate_at_ms = 2**62


class Recorder:
    """A sealer that shows what it was given to seal."""

    plaintext = b""

    def public_key(self, wall_ms: int) -> bytes:
        raise NotImplementedError

    def seal(self, plaintext: bytes, recipient: bytes, context: bytes) -> bytes:
        self.plaintext = plaintext
        return plaintext

    def open(self, sealed: bytes, context: bytes) -> bytes:
        raise NotImplementedError


def info_of(context: Vector) -> bytes:
    lease = context["lease"]
    return seal_context(
        JobId(bytes.fromhex(context["job"])),
        context["attempt"],
        NodeId(bytes.fromhex(context["asker"])),
        NodeId(bytes.fromhex(context["provider"])),
        LeaseId(bytes.fromhex(lease)) if lease else None,
    )


@each("sealing")
def test_seal(vector: Vector) -> None:
    sealer = KnownKey(vector["sealing_secret"])
    info, sealed = info_of(vector["context"]), bytes.fromhex(vector["sealed"])
    assert info.hex() == vector["info"]
    if not vector["valid"]:
        with pytest.raises((SealError, RemoteProtocolError)):
            open_prompt(sealed, sealer, info)
        return
    assert sealer.public_key(0).hex() == vector["sealing_key"]
    prompt = open_prompt(sealed, sealer, info)
    assert plain(prompt) == vector["prompt"]
    recorder = Recorder()
    seal_prompt(prompt, recorder, b"", info)
    assert recorder.plaintext.hex() == vector["plaintext"]
    assert sealer.open(sealed, info).hex() == vector["plaintext"]


@each("chunks")
def test_chunk(vector: Vector) -> None:
    response_key, hash_, sealed = (bytes.fromhex(vector[name]) for name in ("response_key", "order_hash", "sealed"))
    cipher = ChunkCipher(response_key, hash_)
    counts = (vector["number"], vector["output_tokens"], vector["owed_uusd"])
    if not vector["valid"]:
        with pytest.raises((SealError, RemoteProtocolError)):
            cipher.open(*counts, sealed)
        return
    body = cipher.open(*counts, sealed)
    assert plain(body) == vector["body"]
    assert cipher.seal(*counts, body) == sealed
    assert tagged_hash(ANSWER_KEY_TAG, response_key + hash_).hex() == vector["key"]
    assert codec.decode_struct(encode_value(body), ChunkBody, JOB_LIMITS) == body


@each("running-hash")
def test_running_hash(vector: Vector) -> None:
    hashes = [bytes.fromhex(vector["order_hash"])]
    for chunk in vector["chunks"]:
        sealed = bytes.fromhex(chunk["sealed"])
        hashes.append(running_hash(hashes[-1], chunk["number"], chunk["output_tokens"], chunk["owed_uusd"], sealed))
    assert ([each_.hex() for each_ in hashes] == vector["hashes"]) == vector["valid"]


@each("cost")
def test_cost(vector: Vector) -> None:
    prices = {name: vector[name] for name in ("price_in_uusd", "price_out_uusd", "price_job_uusd")}
    cost = cost_uusd(order(**prices), vector["prompt_tokens"], vector["output_tokens"])
    assert (cost == vector["cost_uusd"]) == vector["valid"]
    assert cost < 2**63


# ---------------------------------------------------------------- conversations


class ProvidingPeer:
    """A whole peer with the provider's keys, driven through a conversation; it knows no more than a vector says."""

    def __init__(self, vector: Vector, ordered: JobOpenRecord) -> None:
        self.start_ms = vector["started_at_ms"]
        self.order = ordered
        self.sent = b""
        self.runs: list[RunId] = []
        self.finished = False
        self.at_ms = 0
        key = SigningKey(bytes.fromhex(vector["provider_secret"]), bytes)
        self.peer = Peer(PeerConfig("test"), key, KnownKey(vector["sealing_secret"]), random.Random(1), self.now())
        assert ordered.fingerprint is not None
        other = vector.get("other_order")
        model = ModelOffer(ordered.model, ordered.fingerprint, (Kind.CHAT,), 8192, 4 if other is None else 1, 0, 0, 0)
        self.take(
            self.peer.handle(
                SetOffer(Offer(Role.PROVIDER, "p", "a", models=(model,), free_policy=FreePolicy.ALL)), self.now()
            )
        )
        if other is not None:
            self.open(OTHER_STREAM, asker_of(bytes.fromhex(other)))
            self.feed(BytesReceived(OTHER_STREAM, bytes.fromhex(other)))
        self.open(STREAM, ordered.asker)

    def open(self, stream: StreamId, asker: NodeId) -> None:
        self.feed(PeerConnected(asker, None, True))
        self.feed(StreamOpened(stream, asker, "/infernet/job/1"))

    def now(self) -> Now:
        return Now(self.at_ms / 1000, self.start_ms + self.at_ms)

    def wait_until(self, at_ms: int) -> None:
        """Let the deadlines up to this moment come, each at its own."""
        while (deadline_s := self.peer.next_deadline()) is not None and deadline_s * 1000 <= at_ms + 1e-6:
            self.at_ms = max(self.at_ms, round(deadline_s * 1000))
            self.take(self.peer.handle(DEADLINE, Now(max(deadline_s, self.at_ms / 1000), self.start_ms + self.at_ms)))
        self.at_ms = at_ms

    def feed(self, event: Any) -> None:
        self.take(self.peer.handle(event, self.now()))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(stream=stream, data=data) if stream == STREAM:
                    self.sent += data
                case RunEngine(run=run):
                    self.runs.append(run)
                case FinishStream(stream=stream) if stream == STREAM:
                    self.finished = True
                case CancelEngine(run=run):
                    assert run in self.runs
                case _:
                    pass

    def engine(self, step: Vector) -> None:
        run = self.runs[0 if step.get("other") else -1]
        match step["event"]:
            case "started":
                self.feed(EngineStarted(run, step["prompt_tokens"]))
            case "progress":
                self.feed(EngineProgress(run, step["done_tokens"], step["total_tokens"]))
            case "text":
                token_ids = bytes.fromhex(step.get("token_ids", ""))
                self.feed(EngineText(run, step["text"], step["output_tokens"], token_ids))
            case "finished":
                self.feed(EngineFinished(run, Outcome(step["outcome"]), step["output_tokens"]))
            case "failed":
                self.feed(EngineFailed(run, Refusal(step["code"]), step["text"]))


def asker_of(opening: bytes) -> NodeId:
    (message,) = FrameReader(JOB_LIMITS).feed(opening)
    assert isinstance(message, JobOpen)
    return open_record(message.order, JobOpenRecord).asker


def order_of(vector: Vector) -> JobOpenRecord:
    (message,) = FrameReader(JOB_LIMITS).feed(bytes.fromhex(vector["steps"][0]["frame"]))
    assert isinstance(message, JobOpen)
    return open_record(message.order, JobOpenRecord)


@each("job-conversation")
def test_the_provider_says_every_byte_of_a_conversation(vector: Vector) -> None:
    if not vector["valid"]:
        return  # an honest provider never says these
    ordered = order_of(vector)
    provider = ProvidingPeer(vector, ordered)
    expected = b""
    for step in vector["steps"]:
        provider.wait_until(step["at_ms"])
        if step["from"] == "provider":
            expected += bytes.fromhex(step["frame"])
            assert provider.sent.startswith(expected), f"{step['message']} at {step['at_ms']} ms"
            continue
        assert provider.sent == expected, f"it says more than the conversation before {step['at_ms']} ms"
        if step["from"] == "asker":
            provider.feed(BytesReceived(STREAM, bytes.fromhex(step["frame"])))
        else:
            provider.engine(step)
    assert provider.sent == expected
    assert provider.finished, "the provider closes its half of the stream after its last message"


def listen(vector: Vector) -> str:
    """Take the provider's side of a conversation as an asker does; returns the text. Raises RemoteProtocolError."""
    ordered = order_of(vector)
    reader = FrameReader(JOB_LIMITS)
    hash_ = bytes.fromhex(vector["order_hash"])
    cipher = ChunkCipher(bytes.fromhex(vector["response_key"]), hash_)
    attempt = Attempt(StreamId(1), ordered, hash_, cipher, 0, hash_)
    text, accepted = "", False
    for step in vector["steps"]:
        if step["from"] != "provider":
            continue
        for message in reader.feed(bytes.fromhex(step["frame"])):
            assert plain(message) == step["fields"]
            if isinstance(message, JobAccept):
                attempt.accept(message.acceptance)
                accepted = True
            elif isinstance(message, Chunk):
                if not accepted:
                    raise RemoteProtocolError("a chunk before the acceptance")
                text += attempt.take(message).text
            elif isinstance(message, Receipt):
                attempt.check_receipt(message.receipt)
    assert attempt.running_hash.hex() == vector["running_hash"]
    return text


@each("job-conversation")
def test_the_asker_takes_a_conversation_or_refuses_its_last_step(vector: Vector) -> None:
    if vector["valid"]:
        assert listen(vector) == vector["text"]
        return
    with pytest.raises(RemoteProtocolError):
        listen(vector)
    honest = {**vector, "steps": vector["steps"][:-1]}
    hash_ = bytes.fromhex(vector["order_hash"])
    for step in honest["steps"]:
        if step.get("message") == "Chunk":
            fields = step["fields"]
            sealed = bytes.fromhex(fields["sealed"])
            hash_ = running_hash(hash_, fields["number"], fields["output_tokens"], fields["owed_uusd"], sealed)
    listen({**honest, "running_hash": hash_.hex()})


@each("job-conversation")
def test_what_a_conversation_says_of_itself_holds(vector: Vector) -> None:
    ordered = order_of(vector)
    assert plain(ordered) == vector["order"]
    first, *rest = [step for step in vector["steps"] if step["from"] == "asker"]
    (opened,) = FrameReader(JOB_LIMITS).feed(bytes.fromhex(first["frame"]))
    assert isinstance(opened, JobOpen)
    assert order_hash(opened.order.body).hex() == vector["order_hash"]
    sealed = opened.sealed
    for step in rest:
        (message,) = FrameReader(JOB_LIMITS).feed(bytes.fromhex(step["frame"]))
        if isinstance(message, Part):
            sealed += message.sealed
    assert sealed.hex() == vector["sealed"]
    context = seal_context(ordered.job, ordered.attempt, ordered.asker, ordered.provider, ordered.lease)
    prompt = open_prompt(sealed, KnownKey(vector["sealing_secret"]), context)
    assert plain(prompt.request) == vector["request"]
    assert prompt == SealedPrompt(bytes.fromhex(vector["response_key"]), prompt.request)
    assert msgspec.structs.asdict(ordered)["lease"] is None
