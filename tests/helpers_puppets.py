"""The other side of a job, played by hand: an asker that orders from a bench, a provider that a bench orders from.

Both speak the real messages with real signatures, and can be told to lie.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from protocol import constants as c
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.ids import NodeId, StreamId
from protocol.jobs import cost_uusd, order_hash, parts, running_hash
from protocol.messages import Chunk, JobAccept, JobOpen, JobReject, Part, Receipt
from protocol.records import (
    ChatMessage,
    ChunkBody,
    JobAcceptRecord,
    JobOpenRecord,
    JobRequest,
    Outcome,
    ReceiptRecord,
    SealedPrompt,
)
from protocol.sealing import ChunkCipher, open_prompt, seal_context, seal_prompt
from tests.helpers_machines import LOOPBACK, Bench, sealer_of
from tests.helpers_records import NOW_MS, OFFER, order, signing_key

RESPONSE_KEY = b"\x5a" * 32
HELLO = JobRequest(messages=(ChatMessage("user", "hello"),))


@dataclass
class Order:
    """An order as an asker sends it, and what it takes to read the answer."""

    record: JobOpenRecord
    opening: JobOpen
    rest: list[Part]
    cipher: ChunkCipher
    order_hash: bytes

    @property
    def messages(self) -> list[JobOpen | Part]:
        return [self.opening, *self.rest]

    def open(self, chunks: list[Chunk]) -> list[ChunkBody]:
        return [self.cipher.open(k.number, k.output_tokens, k.owed_uusd, k.sealed) for k in chunks]

    def hash_of(self, chunks: list[Chunk]) -> bytes:
        value = self.order_hash
        for chunk in chunks:
            value = running_hash(value, chunk.number, chunk.output_tokens, chunk.owed_uusd, chunk.sealed)
        return value


def order_for(
    bench: Bench,
    key: SigningKey | None = None,
    *,
    request: JobRequest = HELLO,
    sealed: bytes | None = None,
    **changes: Any,
) -> Order:
    """An order for the bench's peer; `sealed` replaces what is sent, not what was hashed."""
    key = key or signing_key("asker")
    wall_ms = bench.now().wall_ms
    record = order(
        asker=key.node, provider=bench.peer.node, created_at_ms=wall_ms, expires_at_ms=wall_ms + 60_000, **changes
    )
    context = seal_context(record.job, record.attempt, record.asker, record.provider, record.lease)
    recipient = sealer_of("bench").public_key(NOW_MS)
    genuine = seal_prompt(SealedPrompt(RESPONSE_KEY, request), sealer_of("asker"), recipient, context)
    record = replace(
        record,
        sealed_hash=changes.get("sealed_hash", hashlib.sha256(genuine).digest()),
        sealed_bytes=changes.get("sealed_bytes", len(genuine)),
    )
    signed = sign_record(record, key)
    first, rest = parts(genuine if sealed is None else sealed)
    hash_ = order_hash(signed.body)
    return Order(
        record,
        JobOpen(signed, first),
        [Part(record.job, record.attempt, index, data) for index, data in enumerate(rest)],
        ChunkCipher(RESPONSE_KEY, hash_),
        hash_,
    )


def job_stream(bench: Bench, key: SigningKey | None = None, address: str = LOOPBACK) -> StreamId:
    """A job stream that an asker has opened to the bench."""
    node = (key or signing_key("asker")).node
    bench.connect(node, inbound=True, address=address)
    return bench.accept_stream(node, c.JOB_PROTOCOL)


@dataclass
class Provider:
    """A provider of the test model, played by hand."""

    name: str
    stream: StreamId = field(init=False)
    order: JobOpenRecord | None = None
    request: JobRequest | None = None
    order_hash: bytes = b""
    cipher: ChunkCipher | None = None
    prompt_tokens: int = 3
    chunks: int = 0
    output_tokens: int = 0
    running_hash: bytes = b""
    key: SigningKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = signing_key(self.name)

    @property
    def node(self) -> NodeId:
        return self.key.node

    def take(self, bench: Bench, stream: StreamId | None = None) -> StreamId:
        """Read the last order that the bench sent us, or the one on this stream."""
        self.stream = bench.stream_to(self.node, c.JOB_PROTOCOL) if stream is None else stream
        opening = bench.heard(self.stream, JobOpen)
        rest = [part for part in bench.said[self.stream] if isinstance(part, Part)]
        self.order = open_record(opening.order, JobOpenRecord)
        sealed = b"".join([opening.sealed, *(part.sealed for part in rest)])
        assert hashlib.sha256(sealed).digest() == self.order.sealed_hash
        assert len(sealed) == self.order.sealed_bytes
        named = self.order
        context = seal_context(named.job, named.attempt, named.asker, named.provider, named.lease)
        prompt = open_prompt(sealed, sealer_of(self.name), context)
        self.request = prompt.request
        self.order_hash = self.running_hash = order_hash(opening.order.body)
        self.cipher = ChunkCipher(prompt.response_key, self.order_hash)
        self.chunks = self.output_tokens = 0
        return self.stream

    def accept(self, **lies: Any) -> JobAccept:
        assert self.order is not None
        record = JobAcceptRecord(
            version=1,
            job=self.order.job,
            attempt=self.order.attempt,
            provider=self.node,
            lease=None,
            open_hash=self.order_hash,
            fingerprint=self.order.fingerprint or OFFER.fingerprint,
            prompt_tokens=self.prompt_tokens,
            paid_before_uusd=0,
            prefill_uusd=0,
            window_tokens=0,
            window_uusd=0,
            accepted_at_ms=NOW_MS,
            extensions=(),
        )
        return JobAccept(sign_record(replace(record, **lies), self.key))

    def reject(self, code: int, **changes: Any) -> JobReject:
        assert self.order is not None
        reject = JobReject(self.order.job, self.order.attempt, code, 0, "because", (), None)
        return replace(reject, **changes)

    def chunk(self, body: ChunkBody | str, tokens: int = 1, **lies: Any) -> Chunk:
        """The next chunk, with so many more tokens."""
        assert self.order is not None
        assert self.cipher is not None
        if isinstance(body, str):
            body = ChunkBody(body)
        self.chunks += 1
        self.output_tokens += tokens
        owed = cost_uusd(self.order, self.prompt_tokens, self.output_tokens)
        sealed = self.cipher.seal(self.chunks, self.output_tokens, owed, body)
        self.running_hash = running_hash(self.running_hash, self.chunks, self.output_tokens, owed, sealed)
        chunk = Chunk(self.order.job, self.order.attempt, self.chunks, self.output_tokens, owed, sealed)
        return replace(chunk, **lies)

    def receipt(self, outcome: Outcome = Outcome.STOP, code: int = 0, **lies: Any) -> Receipt:
        assert self.order is not None
        record = ReceiptRecord(
            version=1,
            job=self.order.job,
            attempt=self.order.attempt,
            provider=self.node,
            asker=self.order.asker,
            lease=None,
            open_hash=self.order_hash,
            fingerprint=self.order.fingerprint or OFFER.fingerprint,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            chunks=self.chunks,
            running_hash=self.running_hash,
            paid_before_uusd=0,
            owed_uusd=0,
            accepted_at_ms=NOW_MS,
            first_token_ms=1,
            last_token_ms=2,
            outcome=outcome,
            code=code,
            extensions=(),
        )
        return Receipt(sign_record(replace(record, **lies), self.key))
