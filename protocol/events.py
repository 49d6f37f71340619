"""What goes into a peer: `Event`, one half of the seam; what comes out is in `effects`.

A driver feeds events one at a time to `Peer.handle` and performs the effects in order, without waiting. Network
events carry raw bytes, so that codec and limits are in the loop of every driver, the simulator's included.

Stream ids: the peer numbers the streams that it opens with odd ids; the driver numbers inbound ones with even ids.
Run ids number the engine's work and are the peer's.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from protocol import constants as c
from protocol.details import Said
from protocol.errors import Refusal
from protocol.ids import JobId, LeaseId, NodeId, RunId, StreamId
from protocol.records import (
    Availability,
    FreePolicy,
    Gpu,
    JobRequest,
    Kind,
    ModelOffer,
    Outcome,
    Reachability,
    Role,
    Sampling,
    Signed,
    TokenCount,
    TokenIds,
    UnsignedInteger,
)


class Now(NamedTuple):
    """The two clocks: the driver's monotonic one in seconds, and the wall clock in integer milliseconds.

    Deadlines use the first; only the second is ever signed or sent.
    """

    monotonic_s: float
    wall_ms: int


# ---------------------------------------------------------------- network


class PeerConnected(Struct, frozen=True):
    """A first connection to this peer is up and its key is proven."""

    peer: NodeId
    address: str | None
    inbound: bool


class PeerDisconnected(Struct, frozen=True):
    """The last connection to this peer is gone. Its streams have been reported broken before."""

    peer: NodeId


class DialFailed(Struct, frozen=True):
    """No address of this peer could be connected; one sentence why.

    `left_out`: some address was not tried at all, because it had failed not long ago; `Dial.at_once` would try it.
    """

    peer: NodeId
    reason: str
    left_out: bool = False


class StreamOpened(Struct, frozen=True):
    """The peer opened a stream to us."""

    stream: StreamId
    peer: NodeId
    protocol: str


class BytesReceived(Struct, frozen=True, gc=False):
    """The next bytes of a stream, in order."""

    stream: StreamId
    data: bytes


class StreamFinished(Struct, frozen=True):
    """The peer sends no more on this stream; what it sent has arrived."""

    stream: StreamId


class StreamBroken(Struct, frozen=True):
    """The stream was reset, could not be opened, or its connection is lost."""

    stream: StreamId
    reason: str


class DialedBack(Struct, frozen=True):
    """What a `DialBack` found."""

    probe: int
    reachability: Reachability
    reason: str


class RelayReserved(Struct, frozen=True):
    """A relay holds a place for us, and these are the addresses under which others reach us through it."""

    relay: NodeId
    addresses: tuple[str, ...]


class RelayLost(Struct, frozen=True):
    """A relay gave us no place, or holds it no longer; one sentence why."""

    relay: NodeId
    reason: str


class OutboxFull(Struct, frozen=True):
    """The reader at the other end is too slow: data for this stream no longer fits its outbox and was dropped.

    The driver drops whatever follows on this stream, an end included, until it is told to reset it: nothing may arrive
    after a gap.
    """

    stream: StreamId


class DeadlineReached(Struct, frozen=True):
    """The instant of `next_deadline()` has come."""


DEADLINE = DeadlineReached()

# ---------------------------------------------------------------- engine
#
# The bounds hold where these are decoded: an engine in a process of its own is trusted no more than a peer.

# A vector travels in one chunk, with its seal and padding.
VECTOR_BYTES_MAX: Final = c.BYTES_MAX - 1024


class EngineStarted(Struct, frozen=True):
    """The engine took the run; this many prompt tokens after the chat template."""

    run: RunId
    prompt_tokens: TokenCount


class EngineProgress(Struct, frozen=True):
    """The engine works on the prompt."""

    run: RunId
    done_tokens: TokenCount
    total_tokens: TokenCount


class EngineText(Struct, frozen=True, gc=False):
    """More text, and the cumulative number of tokens sampled so far (end-of-sequence excluded).

    `token_ids` are the tokens that end within the text given so far and were not told before, those first with which
    the engine has read what the order left unspelt of its continuation. An engine may leave them out.
    """

    run: RunId
    text: str
    output_tokens: TokenCount
    token_ids: TokenIds = b""

    def __repr__(self) -> str:  # an answer must never reach a log by way of a repr
        return f"EngineText(run={self.run}, output_tokens={self.output_tokens})"


class EngineVector(Struct, frozen=True):
    """One embedding as little-endian float32."""

    run: RunId
    index: UnsignedInteger
    vector: Annotated[bytes, Meta(max_length=VECTOR_BYTES_MAX)]

    def __repr__(self) -> str:  # an embedding tells as much as its text
        return f"EngineVector(run={self.run}, index={self.index})"


class EngineFinished(Struct, frozen=True):
    """The run is over and its slot is free: STOP, LENGTH or CANCELLED."""

    run: RunId
    outcome: Outcome
    output_tokens: TokenCount


class EngineFailed(Struct, frozen=True):
    """The run is over and its slot is free; it was refused or broke. `text` is safe to show to the asker."""

    run: RunId
    code: Refusal
    text: str


# ---------------------------------------------------------------- commands of the application


class Offer(Struct, frozen=True):
    """What this node says about itself in its heartbeat; the peer adds identity, sequence, times and load."""

    role: Role
    name: str
    agent: str
    availability: Availability = Availability.AVAILABLE
    addresses: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    models: tuple[ModelOffer, ...] = ()
    free_policy: FreePolicy = FreePolicy.KNOWN
    sealed_bytes_max: int = 256 * 1024 + c.SEAL_OVERHEAD_BYTES
    #: Whether others are reached through this node (specs/08): it is said, the transport does it.
    relays: bool = False
    #: Whose leases are taken for priced models.
    coordinators: tuple[NodeId, ...] = ()
    #: A full multiaddr of this node's place in the DHT (specs/03), from which others may begin.
    dht_address: str | None = None
    #: What the owner has set to be served and no engine has ready now, because it is being loaded; never sent.
    models_loading: tuple[str, ...] = ()
    #: What is said of models beside what they cost, by their names.
    said: dict[str, Said] = {}


class SetOffer(Struct, frozen=True):
    """Capabilities changed (or are known for the first time): sign and spread a new heartbeat."""

    offer: Offer


class Listening(Struct, frozen=True):
    """Where this node listens now, as multiaddrs of its interfaces, and whether its owner wants it to be found."""

    addresses: tuple[str, ...]
    is_advertised: bool


class Allow(Struct, frozen=True):
    """Whose free jobs are run under `FreePolicy.KNOWN`, replacing the earlier list; private, never sent."""

    nodes: frozenset[NodeId]


class LearnAddresses(Struct, frozen=True):
    """A peer may be reached at these addresses: from the user, the saved list or an invite.

    `connect`: keep a connection to it from now on. `at_once`: somebody waits for that (see `Dial`).
    """

    peer: NodeId
    addresses: tuple[str, ...]
    connect: bool = False
    at_once: bool = False


class LearnRecord(Struct, frozen=True):
    """A signed heartbeat from a source other than gossip: the coordinator's list, the saved directory."""

    record: Signed


class Ask(Struct, frozen=True):
    """Have a job done: by `provider` if given, else by whom routing chooses. Answers come as Job* effects."""

    job: JobId
    kind: Kind
    request: JobRequest
    sampling: Sampling
    output_tokens_max: int
    model: str | None = None
    provider: NodeId | None = None
    timeout_s: float = 600.0
    #: An aggregator that passes the order on; None: directly.
    via: NodeId | None = None
    #: Whether a provider that cannot take the job may tell another one about it, and hold a slot there.
    may_hand_off: bool = True
    #: Micro-USD per 1,000,000 tokens; None: any price.
    price_in_uusd_max: int | None = None
    price_out_uusd_max: int | None = None
    #: What the whole job may cost at most; 0: only providers that do it for nothing are asked.
    spend_uusd_max: int = 0


class StopAsking(Struct, frozen=True):
    """The user wants no more of this job."""

    job: JobId
    code: Refusal = Refusal.CANCELLED


# ---------------------------------------------------------------- money


class UseCoordinator(Struct, frozen=True):
    """Who holds our money, and is asked for leases; None: nobody, so nothing can be paid."""

    coordinator: NodeId | None


class LeaseGranted(Struct, frozen=True):
    """The coordinator's answer to a RequestLease: a signed lease."""

    request: bytes
    signed: Signed


class LeaseDenied(Struct, frozen=True):
    """We got no lease. `is_final`: asking again gives the same answer, as with too little money."""

    request: bytes
    text: str
    is_final: bool


class MarkStored(Struct, frozen=True):
    """What StoreMark wanted is on disk."""

    lease: LeaseId
    mark_uusd: int


class ClosingStored(Struct, frozen=True):
    """What StoreClosing wanted is on disk."""

    lease: LeaseId
    paid_uusd: int


class ClaimAnswered(Struct, frozen=True):
    """The coordinator's signed answer to a SendClaim."""

    lease: LeaseId
    acknowledgement: Signed


class ClaimFailed(Struct, frozen=True):
    """No answer, or a refusal; `is_final`: this claim will never be taken."""

    lease: LeaseId
    text: str
    is_final: bool


class RestorePayer(Struct, frozen=True):
    """A lease of ours from before a restart, as StoreMark kept it."""

    request: bytes
    signed: Signed
    mark_uusd: int
    voucher: Signed | None


class RestoreProvider(Struct, frozen=True):
    """A lease that was given to us before a restart, as StoreVoucher, StoreClaimed and StoreClosing kept it."""

    signed: Signed
    voucher: Signed | None
    receipt: Signed | None
    claimed_uusd: int
    is_closing: bool = False
    is_closed: bool = False


class ClaimNow(Struct, frozen=True):
    """Redeem everything that can be redeemed, without waiting for more."""


class LearnHead(Struct, frozen=True):
    """Our coordinator has told us the head of its ledger."""

    signed: Signed


class CloseLease(Struct, frozen=True):
    """The payer of this lease wants its rest back: a provider redeems what it has and gives up the remainder, the payer
    itself orders no more under it.
    """

    lease: LeaseId


class Drain(Struct, frozen=True):
    """Take no new jobs, finish those that run, tell everyone. `Drained` says when the last one has ended."""


class Pressure(Struct, frozen=True):
    """Whether the driver falls behind its events: as long as it does, new orders are refused at once."""

    is_high: bool


class Shutdown(Struct, frozen=True):
    """Stop taking jobs, end those that run, tell everyone. The driver then closes what is left."""


Event = (
    PeerConnected
    | PeerDisconnected
    | DialFailed
    | StreamOpened
    | BytesReceived
    | StreamFinished
    | StreamBroken
    | DialedBack
    | RelayReserved
    | RelayLost
    | OutboxFull
    | DeadlineReached
    | EngineStarted
    | EngineProgress
    | EngineText
    | EngineVector
    | EngineFinished
    | EngineFailed
    | SetOffer
    | Listening
    | Allow
    | LearnAddresses
    | LearnRecord
    | Ask
    | StopAsking
    | UseCoordinator
    | LeaseGranted
    | LeaseDenied
    | MarkStored
    | ClosingStored
    | ClaimAnswered
    | ClaimFailed
    | RestorePayer
    | RestoreProvider
    | ClaimNow
    | CloseLease
    | LearnHead
    | Drain
    | Pressure
    | Shutdown
)
