"""Every message of the wire, one frozen struct each.

On the wire a message is a MessagePack array `[type, ...fields]` in the order of the fields below. Even types are
mandatory: a receiver that does not know one closes the stream. Odd types are optional and ignored when unknown.
Unknown trailing fields of a message are ignored. The signed records that some messages carry are in `records`.

The registry of types is specs/01.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from protocol import constants as c
from protocol.records import (
    Address,
    Attempt,
    Code,
    Features,
    Flag,
    Hash,
    JobKey,
    Kind,
    ModelName,
    Name,
    NodeKey,
    Reachability,
    Signed,
    Text,
    TokenCount,
    UnsignedInteger,
)
from protocol.structs import prepare

Fingerprint = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Message(Struct, frozen=True, array_like=True):
    """Base of all messages; the tag of each class is its type on the wire."""


class Fault(Message, frozen=True, tag=1):
    """Why the sender is about to close this stream. The receiver logs it and expects the close."""

    code: Code
    text: Text


class Hello(Message, frozen=True, tag=2):
    """First and only message of each side on a hello stream, as a rule the dialer of the connection first.

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


class Load(Message, frozen=True, tag=17):
    """How full the sender is now: 0 (idle) to 8 (full), and how long a new job would wait. Only to neighbours that are
    interested in one of its models; it outdates the load in the sender's heartbeat.
    """

    load: Annotated[int, Meta(ge=0, le=c.LOAD_STEPS)]
    wait_ms: UnsignedInteger


class Reports(Message, frozen=True, tag=19):
    """Signed reports of askers. The receiver checks signature and freshness of each before it keeps or forwards it."""

    records: Annotated[tuple[Signed, ...], Meta(max_length=c.REPORTS_MAX)]


class Heads(Message, frozen=True, tag=21):
    """Signed heads of ledgers. The receiver checks those of coordinators that it uses, and passes on what is new."""

    records: Annotated[tuple[Signed, ...], Meta(min_length=1, max_length=c.HEADS_MAX)]


class Have(Message, frozen=True, tag=22):
    """Lazy push: the sender holds news of these nodes, as (id, sequence). The receiver asks for what it still lacks
    after a moment with `Graft`.
    """

    entries: Annotated[tuple[tuple[NodeKey, UnsignedInteger], ...], Meta(max_length=c.ARRAY_ITEMS_MAX)]


class Graft(Message, frozen=True, tag=24):
    """The tree has a hole: send the records of these nodes now, and push news to the sender at once from now on."""

    nodes: Annotated[tuple[NodeKey, ...], Meta(max_length=c.ARRAY_ITEMS_MAX)]


class Prune(Message, frozen=True, tag=26):
    """What the receiver pushed was known already: from now on it only says what it has (`Have`)."""


class Interest(Message, frozen=True, tag=28):
    """Which records the sender wants to hear of: `everything`, or those that offer one of these models.

    First message on a gossip stream, and again when it changes.
    """

    everything: Flag
    models: Annotated[tuple[ModelName, ...], Meta(max_length=c.INTEREST_MODELS_MAX)]


class Neighbour(Message, frozen=True, tag=30):
    """Ask to be a neighbour. `is_urgent` when the sender has none that it chose: the receiver may then make room."""

    is_urgent: Flag


class Find(Message, frozen=True, tag=32):
    """Who serves this model under these limits (`None`: any)? With `provider`: does that node?

    The receiver answers with `Found`.
    """

    query: UnsignedInteger
    model: ModelName | None
    kind: Kind
    context_tokens_min: TokenCount
    price_in_uusd_max: UnsignedInteger | None
    price_out_uusd_max: UnsignedInteger | None
    limit: Annotated[int, Meta(ge=1, le=c.FIND_RESULTS_MAX)]
    fingerprint: Hash | None = None
    provider: NodeKey | None = None


class Found(Message, frozen=True, tag=34):
    """The answer to `Find`: signed heartbeats of some that fit, in no order. A hint, never an authority."""

    query: UnsignedInteger
    records: Annotated[tuple[Signed, ...], Meta(max_length=c.FIND_RESULTS_MAX)]


class NeighbourAnswer(Message, frozen=True, tag=36):
    """The answer to `Neighbour`. With a refusal come records of others who may have room."""

    is_accepted: Flag
    others: Annotated[tuple[Signed, ...], Meta(max_length=c.SHUFFLE_RECORDS_MAX)]


class Leave(Message, frozen=True, tag=38):
    """We are no longer neighbours: nothing more comes, and nothing more is wanted. The connection may stay."""


class Shuffle(Message, frozen=True, tag=40):
    """Records of some nodes that the sender knows addresses of. The receiver answers with `Shuffled`."""

    records: Annotated[tuple[Signed, ...], Meta(max_length=c.SHUFFLE_RECORDS_MAX)]


class Shuffled(Message, frozen=True, tag=42):
    """The answer to `Shuffle`: records of some nodes that the sender knows addresses of, in exchange."""

    records: Annotated[tuple[Signed, ...], Meta(max_length=c.SHUFFLE_RECORDS_MAX)]


class Summary(Message, frozen=True, tag=44):
    """What the sender holds of records issued up to `until_ms`, as one fingerprint for each range of node ids.

    The first range begins at zero, each next one after the last id of the one before, and the last one ends at the
    highest id. The receiver answers with a `Digest` for ranges in which it holds something else.
    """

    until_ms: UnsignedInteger
    parts: Annotated[tuple[tuple[NodeKey, Fingerprint], ...], Meta(min_length=1, max_length=c.ARRAY_ITEMS_MAX)]


class ReachMe(Message, frozen=True, tag=48):
    """Please dial me on a fresh socket at this port of the address you see me at. The receiver answers `Reached`."""

    port: Annotated[int, Meta(ge=1024, le=65535)]


class Reached(Message, frozen=True, tag=50):
    """What the dial-back found, and which address was dialled."""

    reachability: Reachability
    address: Address | None
    text: Text


class JobOpen(Message, frozen=True, tag=64):
    """First message of a job stream: the signed order, the first bytes of the sealed prompt, and the lease if any.

    The provider answers with `JobAccept` or `JobReject` once the prompt is complete.
    """

    order: Signed
    sealed: Annotated[bytes, Meta(max_length=c.SEALED_INLINE_BYTES_MAX)]
    lease: Signed | None = None


class Progress(Message, frozen=True, tag=65):
    """The provider is alive, and has read so many tokens of how many. It says so although nothing has moved.

    The asker knows from any that somebody is there, and waits longer for the first chunk only when the figures grew.
    """

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


class Queued(Message, frozen=True, tag=67):
    """The order waits for a slot: how many are before it, and how long that takes by the jobs of late.

    Only to an asker whose order allows it. Sent again when the place changes, and at least every few seconds.
    """

    job: JobKey
    attempt: Attempt
    position: Annotated[int, Meta(ge=0, le=65535)]
    wait_ms: UnsignedInteger


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

    Both sides fold it into the running hash. The asker drops and counts chunks after it cancelled.
    """

    job: JobKey
    attempt: Attempt
    number: UnsignedInteger
    output_tokens: TokenCount
    owed_uusd: UnsignedInteger
    sealed: Annotated[bytes, Meta(min_length=16, max_length=c.BYTES_MAX)]


class Voucher(Message, frozen=True, tag=74, gc=False):
    """The payer's new total on the lease of this job. The provider keeps it, and goes on sending."""

    voucher: Signed


class Cancel(Message, frozen=True, tag=76):
    """The asker wants no more. The provider stops the engine within a second and ends with a `Receipt`."""

    job: JobKey
    attempt: Attempt
    code: Code


class Receipt(Message, frozen=True, tag=78):
    """Last message of a job that was accepted. The asker checks it against what arrived and closes the stream."""

    receipt: Signed


class Reserve(Message, frozen=True, tag=80):
    """First and only message of a provider that cannot take an order itself: will you hold a slot for this asker?

    The order is the one that it refuses, without the prompt: that it is signed, and how, proves who agrees to this.
    The receiver answers with `Reserved`.
    """

    order: Signed


class Reserved(Message, frozen=True, tag=82):
    """The slot is held, or why not. The provider that asked passes the reservation on in its `JobReject`."""

    job: JobKey
    reservation: Signed | None
    code: Code


class Forward(Message, frozen=True, tag=86):
    """First message to an aggregator: what follows on this stream is for that provider, and its answers for me.

    The aggregator passes frames on both ways as they are. It cannot open what is sealed, nor change what is signed.
    """

    provider: NodeKey


AnyMessage = (
    Fault
    | Hello
    | Digest
    | Load
    | Records
    | Reports
    | Heads
    | Want
    | Have
    | Graft
    | Prune
    | Interest
    | Neighbour
    | NeighbourAnswer
    | Leave
    | Shuffle
    | Shuffled
    | Summary
    | Find
    | Found
    | ReachMe
    | Reached
    | JobOpen
    | Progress
    | Part
    | Queued
    | JobAccept
    | JobReject
    | Chunk
    | Voucher
    | Cancel
    | Receipt
    | Reserve
    | Reserved
    | Forward
)

#: Which messages may arrive on a stream of each protocol.
MESSAGES_OF_PROTOCOL: dict[str, tuple[type[Message], ...]] = {
    c.HELLO_PROTOCOL: (Fault, Hello),
    c.GOSSIP_PROTOCOL: (
        Fault,
        Digest,
        Load,
        Records,
        Reports,
        Heads,
        Want,
        Have,
        Graft,
        Prune,
        Interest,
        Neighbour,
        NeighbourAnswer,
        Leave,
        Shuffle,
        Shuffled,
        Summary,
    ),
    c.FIND_PROTOCOL: (Fault, Find, Found),
    c.REACH_PROTOCOL: (Fault, ReachMe, Reached),
    c.JOB_PROTOCOL: (
        Fault,
        JobOpen,
        Progress,
        Part,
        Queued,
        JobAccept,
        JobReject,
        Chunk,
        Voucher,
        Cancel,
        Receipt,
        Reserve,
        Reserved,
        Forward,
    ),
}


prepare(globals())
