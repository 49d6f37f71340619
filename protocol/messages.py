"""Every message of the wire, one frozen struct each.

On the wire a message is a MessagePack array `[type, ...fields]` in the order of the fields below. Even types are
mandatory: a receiver that does not know one closes the stream. Odd types are optional and ignored when unknown.
Unknown trailing fields of a message are ignored.

A record is an array without a type that is signed: it travels as `Signed`, the exact bytes and their BIP-340
signature under the tag that its class names. A record has an exact arity per version, in canonical form.

The registry of types, tags and enumerations is specs/01.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from protocol import constants as c
from protocol.ids import JobId, LeaseId, NodeId

UnsignedInteger = Annotated[int, Meta(ge=0, le=c.INTEGER_MAX)]
Version1 = Annotated[int, Meta(ge=1, le=1)]
NodeKey = Annotated[NodeId, Meta(min_length=32, max_length=32)]
JobKey = Annotated[JobId, Meta(min_length=16, max_length=16)]
LeaseKey = Annotated[LeaseId, Meta(min_length=32, max_length=32)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
RecordBody = Annotated[bytes, Meta(min_length=1, max_length=c.RECORD_BYTES_MAX)]
Name = Annotated[str, Meta(max_length=c.NAME_CHARACTERS_MAX)]
ModelName = Annotated[str, Meta(min_length=1, max_length=c.MODEL_NAME_CHARACTERS_MAX)]
Text = Annotated[str, Meta(max_length=c.TEXT_CHARACTERS_MAX)]
Address = Annotated[str, Meta(min_length=1, max_length=c.ADDRESS_CHARACTERS_MAX)]
Attempt = Annotated[int, Meta(ge=1, le=2**32 - 1)]
Code = Annotated[int, Meta(ge=0, le=255)]
TokenCount = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# A dollar per token is enough; with the bounds on counts no cost exceeds 63 bits.
Price = Annotated[int, Meta(ge=0, le=10**12)]
Features = Annotated[tuple[UnsignedInteger, ...], Meta(max_length=32)]
#: (type, value), types strictly ascending. Odd types are ignored when unknown; with an unknown even type the record
#: must not be acted on.
Extensions = Annotated[tuple[tuple[UnsignedInteger, Annotated[bytes, Meta(max_length=1024)]], ...], Meta(max_length=8)]
Milli = Annotated[int, Meta(ge=0, le=1000)]


class WireEnum(IntEnum):
    """An enumeration that later versions may extend: a value that this version does not know reads as UNKNOWN (0).

    So a newer node's record stays readable to an older one, which must otherwise blame whoever passed it on.
    """

    @classmethod
    def _missing_(cls, value: object) -> WireEnum | None:
        # SPEC 01: The receiver MUST read an unknown value of an enumeration, from 1 to 255, as `UNKNOWN`,
        return cls(0) if isinstance(value, int) and 0 < value <= 255 else None


class Role(WireEnum):
    """What a node does for others."""

    UNKNOWN = 0
    PROVIDER = 1
    AGGREGATOR = 2
    CLIENT = 3


class Availability(WireEnum):
    """Whether a provider takes new jobs."""

    UNKNOWN = 0
    AVAILABLE = 1
    DRAINING = 2
    OFFLINE = 3


class Kind(WireEnum):
    """What kind of answer a job asks for."""

    UNKNOWN = 0
    CHAT = 1
    COMPLETION = 2
    EMBEDDING = 3


class FreePolicy(WireEnum):
    """For whom a provider runs jobs without a lease."""

    UNKNOWN = 0
    NOBODY = 1
    KNOWN = 2  # the pinned coordinator, loopback, and an allow-list that stays private
    ALL = 3


class GpuVendor(WireEnum):
    """Who made a GPU; nothing finer than this and the model name leaves a host."""

    UNKNOWN = 0
    NVIDIA = 1
    AMD = 2
    APPLE = 3
    INTEL = 4


class VramTier(WireEnum):
    """Memory of a GPU in coarse steps of its nominal size in gigabytes."""

    UNKNOWN = 0
    BELOW_8 = 1
    FROM_8 = 2
    FROM_16 = 3
    FROM_24 = 4
    FROM_48 = 5


class Outcome(WireEnum):
    """How a job that was accepted ended; `Receipt.outcome`."""

    UNKNOWN = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    FAILED = 4
    UNPAID = 5


class Signed(Struct, frozen=True, array_like=True, gc=False):
    """A record as it travels: the bytes that were signed, and the signature over exactly those bytes."""

    body: RecordBody
    signature: Signature


# ---------------------------------------------------------------- records


class Record(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all signed records. `TAG` is the domain of the signature, `SIGNER` the field with the signer's key."""

    TAG: ClassVar[str]
    SIGNER: ClassVar[str]


class Gpu(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One GPU, as coarsely as routing needs it."""

    vendor: GpuVendor
    vram_tier: VramTier
    model: Name


class ModelOffer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One model that a provider serves, and its price.

    Prices are integer micro-USD per 1,000,000 tokens (`price_job_uusd`: per job). The fingerprint is the SHA-256
    of the weights file, or 32 zero bytes where it is not known; jobs resume only between equal, known fingerprints.
    """

    name: ModelName
    fingerprint: Hash
    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1, max_length=16)]
    context_tokens: TokenCount
    concurrency: Annotated[int, Meta(ge=1, le=65535)]
    price_in_uusd: Price
    price_out_uusd: Price
    price_job_uusd: Price

    @property
    def is_free(self) -> bool:
        return self.price_in_uusd == self.price_out_uusd == self.price_job_uusd == 0


class Heartbeat(Record, frozen=True):
    """What a node can do, signed by itself: to the coordinator every 30 s, to peers on change and every 10 min.

    The receiver keeps the one with the highest sequence per node until it expires. Nothing in it tells about the
    host beyond vendor, memory tier and model of its GPUs; `load` is 0 (idle) to 8 (full). `coordinators` are those
    whose leases it takes.
    """

    TAG: ClassVar[str] = "infernet/heartbeat/1"
    SIGNER: ClassVar[str] = "node"

    version: Version1
    node: NodeKey
    sequence: UnsignedInteger
    issued_at_ms: UnsignedInteger
    expires_at_ms: UnsignedInteger
    role: Role
    availability: Availability
    name: Name
    agent: Name
    addresses: Annotated[tuple[Address, ...], Meta(max_length=c.HEARTBEAT_ADDRESSES_MAX)]
    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=c.HEARTBEAT_GPUS_MAX)]
    models: Annotated[tuple[ModelOffer, ...], Meta(max_length=c.HEARTBEAT_MODELS_MAX)]
    load: Annotated[int, Meta(ge=0, le=c.LOAD_STEPS)]
    free_policy: FreePolicy
    sealing_key: Hash | None
    sealed_bytes_max: Annotated[int, Meta(ge=0, le=c.SEALED_BYTES_MAX)]
    features: Features
    coordinators: Annotated[tuple[NodeKey, ...], Meta(max_length=4)]
    extensions: Extensions


class Sampling(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How tokens are drawn, in thousandths. Part of `JobOpen`, so that it is signed and can be audited."""

    temperature_milli: Annotated[int, Meta(ge=0, le=2000)]
    top_p_milli: Milli
    min_p_milli: Milli
    top_k: Annotated[int, Meta(ge=0, le=1000)]
    presence_penalty_milli: Annotated[int, Meta(ge=-2000, le=2000)]
    frequency_penalty_milli: Annotated[int, Meta(ge=-2000, le=2000)]
    repetition_penalty_milli: Annotated[int, Meta(ge=500, le=2000)]
    seed: UnsignedInteger


class JobOpenRecord(Record, frozen=True):
    """What the asker orders, and at most pays. Signed by the asker's (for paid jobs: the payer's) key.

    `sealed_hash` and `sealed_bytes` pin the sealed prompt that follows; prices repeat the provider's offer, so
    that both sides compute the same cost; `lease` is absent for a free job. In every version of this record, job and
    attempt are the fields after the version, so that an order of a newer version can be refused by name.
    """

    TAG: ClassVar[str] = "infernet/job-open/1"
    SIGNER: ClassVar[str] = "asker"

    version: Version1
    job: JobKey
    attempt: Attempt
    asker: NodeKey
    provider: NodeKey
    lease: LeaseKey | None
    reservation: JobKey | None
    kind: Kind
    model: ModelName
    fingerprint: Hash | None
    sampling: Sampling
    prompt_tokens_max: TokenCount
    output_tokens_max: Annotated[int, Meta(ge=0, le=c.OUTPUT_TOKENS_MAX)]
    price_in_uusd: Price
    price_out_uusd: Price
    price_job_uusd: Price
    prepay_max_uusd: UnsignedInteger
    sealed_hash: Hash
    sealed_bytes: Annotated[int, Meta(ge=1, le=c.SEALED_BYTES_MAX)]
    created_at_ms: UnsignedInteger
    expires_at_ms: UnsignedInteger
    extensions: Extensions


class JobAcceptRecord(Record, frozen=True):
    """The provider takes the job: how many prompt tokens it counted and what it will send unpaid at most."""

    TAG: ClassVar[str] = "infernet/job-accept/1"
    SIGNER: ClassVar[str] = "provider"

    version: Version1
    job: JobKey
    attempt: Attempt
    provider: NodeKey
    lease: LeaseKey | None
    open_hash: Hash
    fingerprint: Hash
    prompt_tokens: TokenCount
    paid_before_uusd: UnsignedInteger
    prefill_uusd: UnsignedInteger
    window_tokens: TokenCount
    window_uusd: UnsignedInteger
    accepted_at_ms: UnsignedInteger
    extensions: Extensions


class ReceiptRecord(Record, frozen=True):
    """The provider's account of a job, and the only clean end of one that was accepted.

    `first_token_ms` and `last_token_ms` are durations since acceptance. `running_hash` chains all chunks;
    the payer's last voucher carries the same hash and counts, and the two together are a co-signed receipt.
    """

    TAG: ClassVar[str] = "infernet/receipt/1"
    SIGNER: ClassVar[str] = "provider"

    version: Version1
    job: JobKey
    attempt: Attempt
    provider: NodeKey
    asker: NodeKey
    lease: LeaseKey | None
    open_hash: Hash
    fingerprint: Hash
    prompt_tokens: TokenCount
    output_tokens: TokenCount
    chunks: UnsignedInteger
    running_hash: Hash
    paid_before_uusd: UnsignedInteger
    owed_uusd: UnsignedInteger
    accepted_at_ms: UnsignedInteger
    first_token_ms: UnsignedInteger
    last_token_ms: UnsignedInteger
    outcome: Outcome
    code: Code
    extensions: Extensions


# ---------------------------------------------------------------- inside the seal


class ChatMessage(Struct, frozen=True, array_like=True):
    """One turn of a conversation; role is `system`, `user` or `assistant`."""

    role: Annotated[str, Meta(max_length=16)]
    content: str

    def __repr__(self) -> str:
        return "ChatMessage(...)"


class JobRequest(Struct, frozen=True, array_like=True):
    """What is asked; it exists in the clear only inside the asker and the engine's node.

    Chat uses `messages`, completion `prompt`, embedding `inputs`. `continuation` is the answer so far, which
    the engine continues (a resumed chat or completion). Unknown trailing fields are ignored.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    inputs: Annotated[tuple[str, ...], Meta(max_length=c.EMBEDDING_INPUTS_MAX)] = ()
    continuation: str = ""
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=c.STOP_CHARACTERS_MAX)], ...],
        Meta(max_length=c.STOP_STRINGS_MAX),
    ] = ()

    def __repr__(self) -> str:  # a prompt must never reach a log by way of a repr
        return f"JobRequest(messages={len(self.messages)}, inputs={len(self.inputs)})"


class SealedPrompt(Struct, frozen=True, array_like=True):
    """The plaintext of a sealed prompt, before padding: the key for the answer, and the request."""

    response_key: Hash
    request: JobRequest

    def __repr__(self) -> str:
        return "SealedPrompt(...)"


class ChunkBody(Struct, frozen=True, array_like=True):
    """The plaintext of a chunk: text (chat, completion), or one embedding as little-endian float32 and its index."""

    text: str = ""
    index: UnsignedInteger = 0
    vector: bytes = b""

    def __repr__(self) -> str:
        return "ChunkBody(...)"


# ---------------------------------------------------------------- messages


class Message(Struct, frozen=True, array_like=True):
    """Base of all messages; the tag of each class is its type on the wire."""


class Fault(Message, frozen=True, tag=1):
    """Why the sender is about to close this stream. The receiver logs it and expects the close."""

    code: Code
    text: Text


class Hello(Message, frozen=True, tag=2):
    """First and only message of each side on a hello stream, asker of the connection first.

    The receiver learns the peer's features, its clock, when it started, the address it sees us at, and what it offers.
    """

    version: Annotated[int, Meta(ge=1, le=65535)]
    features: Features
    agent: Name
    clock_ms: UnsignedInteger
    started_at_ms: UnsignedInteger
    observed_address: Address | None
    records_held: UnsignedInteger
    heartbeat: Signed | None


class Digest(Message, frozen=True, tag=16):
    """Which records the sender holds with node ids from `first` to `last`, both included, as (id, sequence).

    The receiver answers with newer records of that range, and with `Want` for those that it lacks.
    """

    first: NodeKey
    last: NodeKey
    entries: Annotated[tuple[tuple[NodeKey, UnsignedInteger], ...], Meta(max_length=c.ARRAY_ITEMS_MAX)]


class Records(Message, frozen=True, tag=18):
    """Signed heartbeats. The receiver checks signature and freshness of each before it keeps or forwards it."""

    records: Annotated[tuple[Signed, ...], Meta(max_length=c.ARRAY_ITEMS_MAX)]


class Want(Message, frozen=True, tag=20):
    """Ask for the records of these nodes. The receiver answers with `Records`."""

    nodes: Annotated[tuple[NodeKey, ...], Meta(max_length=c.ARRAY_ITEMS_MAX)]


class Find(Message, frozen=True, tag=32):
    """Who serves this model under these limits (`None`: any)? The receiver answers with `Found`."""

    query: UnsignedInteger
    model: ModelName | None
    kind: Kind
    context_tokens_min: TokenCount
    price_in_uusd_max: UnsignedInteger | None
    price_out_uusd_max: UnsignedInteger | None
    limit: Annotated[int, Meta(ge=1, le=c.FIND_RESULTS_MAX)]


class Found(Message, frozen=True, tag=34):
    """The answer to `Find`: signed heartbeats, best first as the sender sees it. A hint, never an authority."""

    query: UnsignedInteger
    records: Annotated[tuple[Signed, ...], Meta(max_length=c.FIND_RESULTS_MAX)]


class JobOpen(Message, frozen=True, tag=64):
    """First message of a job stream: the signed order, the first bytes of the sealed prompt, and the lease if any.

    The provider answers with `JobAccept` or `JobReject` once the prompt is complete.
    """

    order: Signed
    sealed: Annotated[bytes, Meta(max_length=c.SEALED_INLINE_BYTES_MAX)]
    lease: Signed | None = None


class Progress(Message, frozen=True, tag=65):
    """The provider is alive and at work on the prompt: tokens done, of how many. The asker re-arms its deadline."""

    job: JobKey
    attempt: Attempt
    done_tokens: TokenCount
    total_tokens: TokenCount


class Part(Message, frozen=True, tag=66):
    """The next bytes of a sealed prompt that is larger than `JobOpen` holds; `index` counts from 0."""

    job: JobKey
    attempt: Attempt
    index: UnsignedInteger
    sealed: Annotated[bytes, Meta(min_length=1, max_length=c.SEALED_PART_BYTES_MAX)]


class JobAccept(Message, frozen=True, tag=68):
    """The provider takes the job. The asker checks the record against its order and waits for chunks.

    `voucher` is the payer's own last one on this lease, which proves `paid_before_uusd` to a payer that lost it.
    """

    acceptance: Signed
    voucher: Signed | None = None


class JobReject(Message, frozen=True, tag=70):
    """The provider does not take the job: why, when to try again (0: do not), and who may be better.

    `reservation` is a slot that one of the better peers holds for this asker, signed by that peer.
    """

    job: JobKey
    attempt: Attempt
    code: Code
    retry_after_ms: UnsignedInteger
    text: Text
    better: Annotated[tuple[Signed, ...], Meta(max_length=c.BETTER_PEERS_MAX)]
    reservation: Signed | None


class Chunk(Message, frozen=True, tag=72, gc=False):
    """A piece of the answer: its number from 1, cumulative output tokens, cumulative debt, and the sealed piece.

    Both sides fold it into the running hash. The asker drops and counts chunks after it cancelled. Type 74 is kept
    for the payer's vouchers.
    """

    job: JobKey
    attempt: Attempt
    number: UnsignedInteger
    output_tokens: TokenCount
    owed_uusd: UnsignedInteger
    sealed: Annotated[bytes, Meta(min_length=16, max_length=c.BYTES_MAX)]


class Cancel(Message, frozen=True, tag=76):
    """The asker wants no more. The provider stops the engine within a second and ends with a `Receipt`."""

    job: JobKey
    attempt: Attempt
    code: Code


class Receipt(Message, frozen=True, tag=78):
    """Last message of a job that was accepted. The asker checks it against what arrived and closes the stream."""

    receipt: Signed


AnyMessage = (
    Fault
    | Hello
    | Digest
    | Records
    | Want
    | Find
    | Found
    | JobOpen
    | Progress
    | Part
    | JobAccept
    | JobReject
    | Chunk
    | Cancel
    | Receipt
)

#: Which messages may arrive on a stream of each protocol.
MESSAGES_OF_PROTOCOL: dict[str, tuple[type[Message], ...]] = {
    c.HELLO_PROTOCOL: (Fault, Hello),
    c.GOSSIP_PROTOCOL: (Fault, Digest, Records, Want),
    c.FIND_PROTOCOL: (Fault, Find, Found),
    c.JOB_PROTOCOL: (Fault, JobOpen, Progress, Part, JobAccept, JobReject, Chunk, Cancel, Receipt),
}
