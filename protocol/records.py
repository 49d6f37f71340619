"""Every signed record of the protocol, the types that its fields have, and what is sealed inside a job.

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
from protocol.structs import prepare

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
#: Tokens of a model's vocabulary, u32 big-endian each.
TokenIds = Annotated[bytes, Meta(max_length=c.TOKEN_ID_BYTES * c.OUTPUT_TOKENS_MAX)]
#: (type, value), types strictly ascending. Odd types are ignored when unknown; with an unknown even type the record
#: must not be acted on.
Extensions = Annotated[
    tuple[tuple[UnsignedInteger, Annotated[bytes, Meta(max_length=c.EXTENSION_BYTES_MAX)]], ...], Meta(max_length=8)
]
Milli = Annotated[int, Meta(ge=0, le=1000)]
#: 0 or 1: MessagePack's booleans are not used.
Flag = Annotated[int, Meta(ge=0, le=1)]


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


class EngineKind(WireEnum):
    """What runs a model, as its provider says."""

    UNKNOWN = 0
    LLAMA_CPP = 1  # embedded, or a llama-server
    EXLLAMA_V2 = 2
    EXLLAMA_V3 = 3
    OLLAMA = 4
    VLLM = 5
    SGLANG = 6
    LM_STUDIO = 7


class Outcome(WireEnum):
    """How a job that was accepted ended; `Receipt.outcome`."""

    UNKNOWN = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    FAILED = 4
    UNPAID = 5


class Reachability(WireEnum):
    """What a dial-back found; `Reached.reachability`."""

    UNKNOWN = 0
    REACHED = 1  # a fresh connection came through and proved the key
    NOT_REACHED = 2  # nothing answered at that address
    WRONG_NODE = 3  # another node answered there
    NOT_TRIED = 4  # the address is not one that the other side dials, or it has dialled too often lately
    NO_NODE = 5  # something answered there that is no node


class Signed(Struct, frozen=True, array_like=True, gc=False):
    """A record as it travels: the bytes that were signed, and the signature over exactly those bytes."""

    body: RecordBody
    signature: Signature


# ---------------------------------------------------------------- records


# SPEC 01: The receiver MUST ignore fields after those that it knows, in messages and in what is sealed. In a record it
#   MUST refuse them.
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


ModelIndex = Annotated[int, Meta(ge=0, le=c.HEARTBEAT_MODELS_MAX - 1)]
StatedSpeed = Annotated[int, Meta(ge=0, le=c.STATED_TOKENS_PER_S_MAX)]


class ModelDetails(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a provider says of the model at this place of its heartbeat: extension 3 holds an array of them.

    Nobody vouches for any of it. Speeds are tokens per second of one stream, in coarse steps; 0 is not said.
    """

    model: ModelIndex
    quantisation: Annotated[str, Meta(max_length=c.QUANTISATION_CHARACTERS_MAX)]
    engine: EngineKind
    prompt_tokens_per_s: StatedSpeed
    tokens_per_s: StatedSpeed


class ModelAliases(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """By which other names the model at this place of the heartbeat is found: extension 5 holds an array of them."""

    model: ModelIndex
    aliases: Annotated[tuple[ModelName, ...], Meta(min_length=1, max_length=c.MODEL_ALIASES_MAX)]


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


class ReservationRecord(Record, frozen=True):
    """A provider holds one slot for one job of one asker, for seconds. The order names its id."""

    TAG: ClassVar[str] = "infernet/reservation/1"
    SIGNER: ClassVar[str] = "provider"

    version: Version1
    reservation: JobKey
    provider: NodeKey
    asker: NodeKey
    job: JobKey
    model: ModelName
    issued_at_ms: UnsignedInteger
    expires_at_ms: UnsignedInteger
    extensions: Extensions


class ReportEntry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one asker saw of one provider's model in the time that a report covers.

    `considered` routing decisions looked at this provider, `chosen` took it; `reasons` says how often which reason
    (specs/01, reasons) kept it out. `jobs_done` and `jobs_failed` count attempts that were accepted. The medians are
    the asker's own measurements: milliseconds from order to first token, and thousandths of tokens per second after
    it; 0 where nothing was measured. `evidence` is a receipt of this provider for a job of this asker.
    """

    provider: NodeKey
    model: ModelName
    considered: TokenCount
    chosen: TokenCount
    reasons: Annotated[tuple[tuple[Code, TokenCount], ...], Meta(max_length=c.REPORT_REASONS_MAX)]
    jobs_done: TokenCount
    jobs_failed: TokenCount
    first_token_ms: TokenCount
    tokens_per_s_milli: TokenCount
    evidence: Signed | None


class ReportRecord(Record, frozen=True):
    """What an asker decided and measured lately, about providers: for their owners, and for other askers.

    The receiver keeps the one with the highest sequence per asker until it expires, and weighs it as a stranger's word.
    """

    TAG: ClassVar[str] = "infernet/report/1"
    SIGNER: ClassVar[str] = "asker"

    version: Version1
    asker: NodeKey
    sequence: UnsignedInteger
    issued_at_ms: UnsignedInteger
    expires_at_ms: UnsignedInteger
    covers_s: TokenCount
    entries: Annotated[tuple[ReportEntry, ...], Meta(min_length=1, max_length=c.REPORT_PROVIDERS_MAX)]
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
    the engine continues (a resumed chat or completion), and `continuation_ids` the tokens that spell it, or its
    beginning, as the providers before said: u32 big-endian each. Unknown trailing fields are ignored.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    inputs: Annotated[tuple[str, ...], Meta(max_length=c.EMBEDDING_INPUTS_MAX)] = ()
    continuation: str = ""
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=c.STOP_CHARACTERS_MAX)], ...],
        Meta(max_length=c.STOP_STRINGS_MAX),
    ] = ()
    continuation_ids: TokenIds = b""

    def __repr__(self) -> str:  # a prompt must never reach a log by way of a repr
        return f"JobRequest(messages={len(self.messages)}, inputs={len(self.inputs)})"


class SealedPrompt(Struct, frozen=True, array_like=True):
    """The plaintext of a sealed prompt, before padding: the key for the answer, and the request."""

    response_key: Hash
    request: JobRequest

    def __repr__(self) -> str:
        return "SealedPrompt(...)"


class ChunkBody(Struct, frozen=True, array_like=True):
    """The plaintext of a chunk: text (chat, completion), or one embedding as little-endian float32 and its index.

    `token_ids` are the tokens that spell the text, as far as they end within what was sent: those of all chunks, after
    the `continuation_ids` of the order, spell a beginning of the answer so far. A provider may leave them out.
    """

    text: str = ""
    index: UnsignedInteger = 0
    vector: bytes = b""
    token_ids: TokenIds = b""

    def __repr__(self) -> str:
        return "ChunkBody(...)"


prepare(globals())
