"""What comes out of a peer: `Effect`, the other half of the seam; what goes in is in `events`.

A driver performs effects in order and never waits for one: long work runs elsewhere and comes back as an event.
"""

from __future__ import annotations

from msgspec import Struct

from protocol.errors import Refusal
from protocol.ids import JobId, LeaseId, NodeId, RunId, StreamId
from protocol.records import (
    Heartbeat,
    JobRequest,
    Kind,
    Reachability,
    ReceiptRecord,
    Sampling,
    Signed,
)

# ---------------------------------------------------------------- network


class Dial(Struct, frozen=True):
    """Connect to this peer at one of these addresses; ends in PeerConnected or DialFailed.

    An address that failed not long ago is left out, for longer each time, unless somebody waits for it: `at_once`.
    """

    peer: NodeId
    addresses: tuple[str, ...]
    at_once: bool = False


class HangUp(Struct, frozen=True):
    """Close all connections to this peer."""

    peer: NodeId
    reason: str


class DialBack(Struct, frozen=True):
    """Dial this address of a peer on a fresh socket, whatever connections stand, and close it again; ends in
    `DialedBack`.
    """

    probe: int
    peer: NodeId
    address: str


class ReserveRelay(Struct, frozen=True):
    """Keep a place at this relay, which is connected, until told otherwise; `RelayReserved` and `RelayLost` say."""

    relay: NodeId


class ReleaseRelay(Struct, frozen=True):
    """The place at this relay is of no more use."""

    relay: NodeId


class OpenStream(Struct, frozen=True):
    """Open a stream to a connected peer; data may be sent at once, failure comes as StreamBroken."""

    stream: StreamId
    peer: NodeId
    protocol: str


class Send(Struct, frozen=True, gc=False):
    """Put these bytes in the outbox of the stream."""

    stream: StreamId
    data: bytes


class FinishStream(Struct, frozen=True):
    """Send what is in the outbox, then no more."""

    stream: StreamId


class ResetStream(Struct, frozen=True):
    """Drop the stream at once, both directions."""

    stream: StreamId
    reason: str


# ---------------------------------------------------------------- engine


class RunEngine(Struct, frozen=True):
    """Start a run; ends in exactly one EngineFinished or EngineFailed."""

    run: RunId
    kind: Kind
    model: str
    request: JobRequest
    sampling: Sampling
    prompt_tokens_max: int
    output_tokens_max: int
    #: Count the prompt, report EngineStarted, and read it only after ContinueEngine.
    holds: bool = False


class ContinueEngine(Struct, frozen=True):
    """Read the prompt of a run that holds, and go on."""

    run: RunId


class CancelEngine(Struct, frozen=True):
    """Stop a run within `CANCEL_DEADLINE_S`; still ends in EngineFinished or EngineFailed."""

    run: RunId


# ---------------------------------------------------------------- money


class RequestLease(Struct, frozen=True):
    """Bring this to our coordinator; ends in exactly one LeaseGranted or LeaseDenied."""

    request: bytes
    coordinator: NodeId
    signed: Signed


class StoreMark(Struct, frozen=True):
    """Put on disk that we may have signed up to this on our lease; MarkStored says that it is there.

    The lease, and the number of its request, from which its payer's key follows, are kept with it.
    """

    lease: LeaseId
    request: bytes
    signed: Signed
    mark_uusd: int
    voucher: Signed | None


class StoreVoucher(Struct, frozen=True):
    """Put the best voucher of a lease on disk, soon: together with others, within a quarter of a second."""

    lease: LeaseId
    signed: Signed
    voucher: Signed | None
    receipt: Signed | None
    paid_uusd: int


class SendClaim(Struct, frozen=True):
    """Bring this claim to the coordinator; ends in ClaimAnswered or ClaimFailed."""

    lease: LeaseId
    coordinator: NodeId
    claim: Signed


class StoreClaimed(Struct, frozen=True):
    """Put on disk what the coordinator has credited of a lease, and its word for that."""

    lease: LeaseId
    claimed_uusd: int
    is_closed: bool
    acknowledgement: Signed | None


class StoreClosing(Struct, frozen=True):
    """Put on disk, at once, that we give up the rest of a lease: it is served no more, whatever we hear of that.

    ClosingStored says that it is there, with what was paid: StoreVoucher has brought that before.
    """

    lease: LeaseId
    paid_uusd: int


class Equivocation(Struct, frozen=True):
    """A coordinator of ours has signed two different heads of its ledger with one number: here is the proof."""

    coordinator: NodeId
    entry: int
    first: Signed
    second: Signed


# ---------------------------------------------------------------- to the application


class JobAccepted(Struct, frozen=True):
    """A provider took our job."""

    job: JobId
    provider: NodeId
    attempt: int
    model: str
    prompt_tokens: int
    #: The aggregator that passes the answer on; None: it comes directly.
    via: NodeId | None = None


class JobQueued(Struct, frozen=True):
    """Our job waits for a slot at a provider: how many are before it, and how long that takes."""

    job: JobId
    provider: NodeId
    position: int
    wait_ms: int


class JobResumed(Struct, frozen=True):
    """Our job's provider, `lost`, is gone in the middle of the answer; another one has read it and goes on with it.

    What `provider` sends is appended to the text so far. It counts its own tokens and its own reading: the question and
    the answer so far are `prompt_tokens` to it.
    """

    job: JobId
    provider: NodeId
    attempt: int
    prompt_tokens: int
    output_tokens_before: int
    lost: NodeId


class JobText(Struct, frozen=True, gc=False):
    """More of the answer, and the cumulative number of output tokens."""

    job: JobId
    text: str
    output_tokens: int

    def __repr__(self) -> str:
        return f"JobText(job={self.job.hex()}, output_tokens={self.output_tokens})"


class JobVector(Struct, frozen=True):
    """One embedding of the answer, little-endian float32."""

    job: JobId
    index: int
    vector: bytes

    def __repr__(self) -> str:
        return f"JobVector(job={self.job.hex()[:8]}, index={self.index})"


class Served(Struct, frozen=True):
    """What one attempt of our job brought: every provider's own tokens apart."""

    provider: NodeId
    attempt: int
    prompt_tokens: int
    output_tokens: int
    #: What we have signed for it, in micro-USD.
    paid_uusd: int = 0


class JobDone(Struct, frozen=True):
    """Our job ended with a receipt that matches what arrived. STOP and LENGTH are success.

    `served` has every attempt that brought a piece of the answer, the one with the receipt last.
    """

    job: JobId
    receipt: ReceiptRecord
    served: tuple[Served, ...]


class JobFailed(Struct, frozen=True):
    """Our job ended without an answer, or in the middle of one. `text` is one sentence for people."""

    job: JobId
    code: Refusal
    text: str
    retry_after_ms: int = 0


class RecordLearnt(Struct, frozen=True):
    """The directory took a newer record of a node: worth saving."""

    heartbeat: Heartbeat
    record: Signed


class SearchWanted(Struct, frozen=True):
    """Nobody whom this node knows serves this model: for sources that are asked rather than heard, such as a DHT.

    Whatever they find comes back as `LearnRecord` and `LearnAddresses`.
    """

    model: str


class HeartbeatSigned(Struct, frozen=True):
    """Our own new heartbeat: for the coordinator."""

    record: Signed


class Drained(Struct, frozen=True):
    """After `Drain`: no job runs any more."""


class ReachabilityLearnt(Struct, frozen=True):
    """How others reach this node, as their dial-backs found; `advice` says what its owner can do about it."""

    reachability: Reachability
    address: str | None
    advice: str


class OwnAddresses(Struct, frozen=True):
    """The addresses through relays under which this node is reached now: for its offer."""

    addresses: tuple[str, ...]


class Misbehaved(Struct, frozen=True):
    """A peer broke a rule; the transport keeps the score, and hangs up or bans. `weight` 1 is a bad frame."""

    peer: NodeId
    reason: str
    weight: int = 1


class Note(Struct, frozen=True):
    """Something for the log. Never holds a prompt, an answer, a key or a token."""

    event: str
    peer: NodeId | None = None
    detail: str = ""


#: What happens to a job that we asked for, in order; the last one is JobDone or JobFailed.
JobEvent = JobAccepted | JobQueued | JobResumed | JobText | JobVector | JobDone | JobFailed

Effect = (
    Dial
    | HangUp
    | DialBack
    | ReserveRelay
    | ReleaseRelay
    | OpenStream
    | Send
    | FinishStream
    | ResetStream
    | RunEngine
    | ContinueEngine
    | CancelEngine
    | RequestLease
    | StoreMark
    | StoreVoucher
    | SendClaim
    | StoreClaimed
    | StoreClosing
    | Equivocation
    | JobAccepted
    | JobQueued
    | JobResumed
    | JobText
    | JobVector
    | JobDone
    | JobFailed
    | RecordLearnt
    | SearchWanted
    | HeartbeatSigned
    | Drained
    | ReachabilityLearnt
    | OwnAddresses
    | Misbehaved
    | Note
)
