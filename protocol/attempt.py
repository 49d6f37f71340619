"""One order to one provider as the asker sees it: what has arrived, and whether it is what was ordered.

Nothing here decides what happens next; that is `asking`. Every check raises RemoteProtocolError: a provider that
fails one has broken the protocol, and its attempt has failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol import constants as c
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import cost_uusd, running_hash
from protocol.leases import PayerSide
from protocol.messages import Chunk, Progress
from protocol.records import ChunkBody, JobAcceptRecord, JobOpenRecord, Kind, ReceiptRecord, Signed
from protocol.sealing import ChunkCipher


@dataclass(slots=True)
class Attempt:
    """The state. `inputs` is how many embeddings were ordered, `sealing_key` what the prompt is sealed for, and
    `acknowledges` whether the provider says that it answers at once and gives signs of life.
    """

    stream: StreamId
    order: JobOpenRecord
    order_hash: bytes
    cipher: ChunkCipher
    inputs: int
    running_hash: bytes
    sealing_key: bytes = b""
    acknowledges: bool = False
    #: The aggregator that passes it on, and may have to reach the provider first.
    via: NodeId | None = None
    #: Whether anything of the provider's has come.
    is_heard: bool = False
    is_acknowledged: bool = False
    is_accepted: bool = False
    chunks: int = 0
    sealed_bytes: int = 0
    text_bytes: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    output_tokens: int = 0
    vectors: set[int] = field(default_factory=set)
    #: The lease that pays for it; None: nothing is paid.
    side: PayerSide | None = None
    signed_before_uusd: int = 0
    window_uusd: int = 0

    @property
    def paid_uusd(self) -> int:
        """What we have signed for this attempt."""
        return self.side.signed_uusd - self.signed_before_uusd if self.side is not None else 0

    @property
    def transfer_s(self) -> float:
        """How long the sealed prompt may take to cross a slow line."""
        return self.order.sealed_bytes / c.PROMPT_BYTES_PER_S_MIN

    @property
    def reach_s(self) -> float:
        """How long it may take until the provider is reached."""
        return c.FORWARD_REACH_DEADLINE_S if self.via is not None else 0.0

    @property
    def started(self) -> bool:
        """Whether a piece of the answer has arrived."""
        return self.chunks > 0

    def check_named(self, job: JobId, attempt: int) -> None:
        """A message on this stream must be about this order."""
        if (job, attempt) != (self.order.job, self.order.attempt):
            raise RemoteProtocolError("a message for another order on this stream")

    def progress(self, message: Progress) -> bool:
        """Take a report of progress; whether the prompt really got on."""
        self.check_named(message.job, message.attempt)
        # SPEC 05: The asker MUST refuse a `Progress` that says more was read than there is.
        if message.done_tokens > message.total_tokens:
            raise RemoteProtocolError("progress beyond its own end")
        moved = message.done_tokens > self.read_tokens
        self.read_tokens = max(self.read_tokens, message.done_tokens)
        return moved

    def accept(self, signed: Signed, proof: Signed | None = None) -> JobAcceptRecord:
        """Check an acceptance and take its prompt tokens; `proof` is our own last voucher on the lease."""
        record = open_record(signed, JobAcceptRecord)
        self.check_named(record.job, record.attempt)
        # SPEC 05: The asker MUST check that the acceptance names its order, its provider and no more prompt tokens
        #   than it allowed.
        if (record.open_hash, record.provider, record.lease) != (
            *(self.order_hash, self.order.provider),
            self.order.lease,
        ):
            raise RemoteProtocolError("an acceptance of another order")
        if record.prompt_tokens > self.order.prompt_tokens_max:
            raise RemoteProtocolError("an acceptance with more prompt tokens than allowed")
        if self.order.fingerprint is not None and record.fingerprint != self.order.fingerprint:
            raise RemoteProtocolError("an acceptance with other weights than those ordered")
        if self.side is not None:
            self.side.accept(self.order, record, proof)
            # What we had forgotten in a crash was signed for other jobs.
            self.signed_before_uusd = self.side.signed_uusd
            self.window_uusd = record.window_uusd
        self.is_accepted = True
        self.prompt_tokens = record.prompt_tokens
        return record

    def take(self, chunk: Chunk) -> ChunkBody:
        """Check the next chunk, count it and open it."""
        self._check(chunk)
        body = self.cipher.open(chunk.number, chunk.output_tokens, chunk.owed_uusd, chunk.sealed)
        if len(body.token_ids) % c.TOKEN_ID_BYTES:
            raise RemoteProtocolError("a chunk with a part of a token")
        text_bytes = self.text_bytes + len(body.text.encode())
        if self.order.kind is Kind.EMBEDDING:
            self._take_vector(body)
        # SPEC 06: The asker MUST refuse a chunk with which the output tokens are more than the bytes of the text so far
        #   and 256,
        elif chunk.output_tokens > text_bytes + c.TEXTLESS_TOKENS_MAX:
            raise RemoteProtocolError("more tokens than the text can have taken")
        self.text_bytes = text_bytes
        self._fold(chunk)
        return body

    def drop(self, chunk: Chunk) -> None:
        """Count a chunk without looking into it: all that is done with one that comes after a cancel."""
        if not self.is_accepted:
            raise RemoteProtocolError("a chunk before the acceptance")
        self._check(chunk)
        self._fold(chunk)

    def _check(self, chunk: Chunk) -> None:
        """Whether this is the next chunk, and asks for no more than its due."""
        order = self.order
        self.check_named(chunk.job, chunk.attempt)
        # SPEC 05: The asker MUST refuse a chunk that is not the next one, whose token count falls or exceeds
        #   `output_tokens_max`, or whose `owed_uusd` is not the cost below.
        if chunk.number != self.chunks + 1:
            raise RemoteProtocolError("a chunk that is not the next one")
        most_tokens = order.output_tokens_max if order.kind is not Kind.EMBEDDING else 0
        if not self.output_tokens <= chunk.output_tokens <= most_tokens:
            raise RemoteProtocolError("a chunk whose token count is not possible")
        if chunk.owed_uusd != cost_uusd(order, self.prompt_tokens, chunk.output_tokens):
            raise RemoteProtocolError("a chunk that asks for another price")
        # SPEC 06: The asker MUST refuse a chunk that costs more than one window beyond what it has signed for this job,
        if self.side is not None and chunk.owed_uusd > self.side.reach_uusd:
            raise RemoteProtocolError("a chunk further ahead of payment than one window")
        # SPEC 05: The asker MUST bound the bytes of an answer:
        if self.sealed_bytes + len(chunk.sealed) > c.ANSWER_BYTES_MAX:
            raise RemoteProtocolError("more text than any number of tokens spells")

    def _fold(self, chunk: Chunk) -> None:
        self.chunks = chunk.number
        self.sealed_bytes += len(chunk.sealed)
        self.output_tokens = chunk.output_tokens
        self.running_hash = running_hash(
            self.running_hash, chunk.number, chunk.output_tokens, chunk.owed_uusd, chunk.sealed
        )

    def _take_vector(self, body: ChunkBody) -> None:
        # SPEC 05: The asker MUST refuse a chunk that does not open, a vector of another index than those ordered, an
        #   index that comes twice, and a part of a token.
        # The application files vectors under their index: a foreign one must not reach it.
        if body.index >= self.inputs or body.index in self.vectors or not body.vector or len(body.vector) % 4:
            raise RemoteProtocolError("an embedding that was not asked for, or that is no vector")
        self.vectors.add(body.index)

    def check_receipt(self, signed: Signed) -> ReceiptRecord:
        """Check that a receipt is for this order, and compare what it says with what arrived."""
        record = open_record(signed, ReceiptRecord)
        self.check_named(record.job, record.attempt)
        order = self.order
        if (record.open_hash, record.provider, record.asker) != (self.order_hash, order.provider, order.asker):
            raise RemoteProtocolError("a receipt for another order")
        if not self.is_accepted:
            raise RemoteProtocolError("a receipt before the acceptance")
        if record.lease != order.lease or (self.side is not None and record.paid_before_uusd != self.side.base_uusd):
            raise RemoteProtocolError("a receipt on another lease, or from another total")
        # SPEC 05: The asker MUST refuse a receipt whose counts or running hash differ from what arrived.
        if (record.chunks, record.running_hash, record.output_tokens, record.prompt_tokens, record.owed_uusd) != (
            self.chunks,
            self.running_hash,
            self.output_tokens,
            self.prompt_tokens,
            cost_uusd(order, self.prompt_tokens, self.output_tokens),
        ):
            raise RemoteProtocolError("a receipt that does not match what arrived")
        return record

    def voucher(self, *, is_last: bool = False) -> Signed | None:
        """What we sign for what has arrived, where it is time: for the prompt, each half window, and at the end.

        None also where our mark is not on disk yet; it comes when that is.
        """
        side = self.side
        if side is None or not self.is_accepted:
            return None
        owed_uusd = cost_uusd(self.order, self.prompt_tokens, self.output_tokens)
        step_uusd = side.base_uusd + owed_uusd - side.signed_uusd
        is_first = side.voucher is None or side.voucher_job != (self.order.job, self.order.attempt)
        # SPEC 06: The asker SHOULD sign when half a window is owed, and MUST sign for the prompt before anything comes
        #   and for everything that came after the receipt.
        if not (is_last or is_first or step_uusd >= max(1, self.window_uusd // 2)):
            return None
        # SPEC 06: The asker MUST NOT sign for more than the price of the prompt and of the chunks that have arrived.
        before_uusd = side.signed_uusd
        voucher = side.pay(self.order, owed_uusd, self.chunks, self.output_tokens, self.running_hash)
        received_uusd = cost_uusd(self.order, self.prompt_tokens, self.output_tokens)
        assert side.signed_uusd <= max(before_uusd, side.base_uusd + received_uusd), "I6: more is signed than has come"
        return voucher

    def check_complete(self) -> None:
        """Success needs all that was ordered: every embedding; of a text nobody knows how long it must be."""
        if self.order.kind is Kind.EMBEDDING and len(self.vectors) != self.inputs:
            raise RemoteProtocolError("a receipt for embeddings that did not all arrive")
