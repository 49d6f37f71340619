"""The aggregator's side of jobs: pass the stream of a job on to the provider that the asker names, and back.

The first message of such a stream is `Forward`, the second the order, which is checked like an address on an envelope:
it is signed by whoever sends it, for the provider it is to go to. Everything after it is passed on as it comes, and of
it only the lengths of frames are looked at. What is sealed stays sealed, and nobody else is ever chosen.

Each side's fate is told to the other as what it is: an end as an end, anything else as a reset, to the asker with a
`Fault` before it that says why.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from protocol import constants as c
from protocol.codec import JOB_LIMITS, FrameLengths, decode_message, encode_message
from protocol.directory import Directory
from protocol.effects import Dial, Effect, FinishStream, Note, OpenStream, ResetStream, Send
from protocol.envelope import open_record
from protocol.errors import BadFrame, Refusal, RemoteProtocolError
from protocol.events import Now
from protocol.ids import NodeId, StreamId, short
from protocol.messages import Fault, Forward, JobOpen
from protocol.money_records import LeaseRecord
from protocol.rates import Rates
from protocol.records import JobOpenRecord, Role
from protocol.timers import Timers

# What one aggregator carries at once. Every stream has a bounded outbox (1.3 MB) in the driver, so that even if all
# askers and all providers stand still this is about 330 MB.
FORWARDS_MAX: Final = 128
FORWARDS_PER_ASKER_MAX: Final = 16
# No provider lets one peer hold more job streams than this.
FORWARDS_PER_PROVIDER_MAX: Final = c.JOB_STREAMS_PER_PEER_MAX
# Orders of one asker: a busy page, but no flood of signatures to check and dials to make.
FORWARDS_PER_S: Final = 10.0
FORWARDS_BURST: Final = 40
# Providers that are dialled at once, whoever asked for it.
DIALS_MAX: Final = 32
# A provider says something every second or, without feature 5, sends a chunk every 20 s; an asker whose order waits in
# a queue hears every few seconds.
IDLE_DEADLINE_S: Final = 60.0
# The order, its prompt and what an asker says later.
BYTES_TO_PROVIDER_MAX: Final = c.SEALED_BYTES_MAX + 192 * 1024
BYTES_TO_ASKER_MAX: Final = c.ANSWER_BYTES_MAX
# Pairs of asker and provider that are accounted for.
ACCOUNTS_MAX: Final = 1024


@dataclass(slots=True)
class Account:
    """What was carried for one asker to one provider and back: jobs that ended well, and all frames and bytes."""

    jobs: int = 0
    frames: int = 0
    bytes: int = 0


class ForwardStatistics(Struct, frozen=True):
    """A snapshot. `carried` jobs reached their provider and ended on both sides, `failed` ones did not."""

    active: int
    carried: int
    failed: int
    bytes: int
    frames: int


@dataclass(slots=True)
class _Side:
    """One of the two ends of a job, and what has come from it."""

    peer: NodeId
    stream: StreamId
    lengths: FrameLengths = field(default_factory=lambda: FrameLengths(JOB_LIMITS))
    bytes: int = 0
    is_done: bool = False


@dataclass(slots=True)
class _Job:
    asker: _Side
    named: NodeId
    #: What came after `Forward`, until it is passed on.
    waiting: bytearray = field(default_factory=bytearray)
    is_ordered: bool = False
    provider: _Side | None = None
    heard_at_s: float = 0.0

    @property
    def sides(self) -> list[_Side]:
        """Those whose streams are open, or were."""
        return [self.asker] if self.provider is None else [self.asker, self.provider]


class Forwarding:
    """The state machine. `connected` and `addresses` are the peer's knowledge of the network."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        *,
        is_enabled: bool,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        next_stream: Callable[[], StreamId],
    ) -> None:
        self._node = node
        self._directory = directory
        self._is_enabled = is_enabled
        self._connected = connected
        self._addresses = addresses
        self._next_stream = next_stream
        #: By the asker's stream, which names the job; and by either side's.
        self._jobs: dict[StreamId, _Job] = {}
        self._by_stream: dict[StreamId, _Job] = {}
        self._rates: Rates[NodeId] = Rates(FORWARDS_PER_S, FORWARDS_BURST)
        self._timers: Timers[tuple[str, StreamId]] = Timers()
        self._accounts: OrderedDict[tuple[NodeId, NodeId], Account] = OrderedDict()
        self._carried = self._failed = self._bytes = self._frames = 0

    # ------------------------------------------------------------ what others ask of it

    def owns(self, stream: StreamId) -> bool:
        """Whether the bytes of this stream are ours, undecoded."""
        return stream in self._by_stream

    def next_deadline(self) -> float | None:
        return self._timers.next_deadline()

    @property
    def active(self) -> int:
        return len(self._jobs)

    def statistics(self) -> ForwardStatistics:
        return ForwardStatistics(len(self._jobs), self._carried, self._failed, self._bytes, self._frames)

    def accounts(self) -> list[tuple[NodeId, NodeId, Account]]:
        """What was carried in jobs that have ended: asker, provider and how much, the longest quiet first."""
        return [(asker, provider, account) for (asker, provider), account in self._accounts.items()]

    def drain(self) -> None:
        """Take no new jobs; those that are carried go on."""
        self._is_enabled = False

    def shut_down(self) -> list[Effect]:
        """Take no new jobs and end those that are carried, as what they are."""
        self.drain()
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            effects += self._fail(job, Refusal.SHUTDOWN, "the aggregator is shutting down")
        return effects

    # ------------------------------------------------------------ the beginning

    def on_forward(self, stream: StreamId, peer: NodeId, message: Forward, now: Now) -> list[Effect]:
        """Take the first message of a job stream that a peer opened."""
        job = _Job(_Side(peer, stream), message.provider, heard_at_s=now.monotonic_s)
        self._jobs[stream] = self._by_stream[stream] = job
        against = self._against(job, now)
        if against is not None:
            return self._fail(job, *against)
        made_room: list[Effect] = []
        if len(self._jobs) > FORWARDS_MAX:
            victim = next((other for other in self._jobs.values() if not other.is_ordered and other is not job), None)
            if victim is None:
                return self._fail(job, Refusal.BUSY, f"this node forwards {FORWARDS_MAX} jobs already")
            # SPEC 08: A full aggregator MUST let the oldest job without an order make room for a new one.
            # Keys are free, and so are streams on which nothing comes.
            made_room = self._fail(victim, Refusal.BUSY, "no order came, and others wait")
        self._timers.set(("order", stream), now.monotonic_s + c.CONTROL_DEADLINE_S)
        self._timers.set(("total", stream), now.monotonic_s + c.JOB_LIFETIME_MS_MAX / 1000)
        return made_room

    def _against(self, new: _Job, now: Now) -> tuple[Refusal, str] | None:
        """Why a job is not taken. It is in the table already, so that these counts include it."""
        asker, provider = new.asker.peer, new.named
        if not self._is_enabled:
            return Refusal.NOT_ALLOWED, "this node forwards no jobs, or no longer"
        if provider in (self._node, asker):
            return Refusal.BAD_REQUEST, "an order is forwarded from one node to another, by a third"
        entry = self._directory.get(provider)
        # SPEC 08: The aggregator MUST NOT forward to a node whose heartbeat says that it runs no jobs, nor what comes
        #   from another aggregator.
        if entry is not None and entry.heartbeat.role is not Role.PROVIDER:
            return Refusal.NOT_ALLOWED, "jobs are forwarded to providers only"
        if not self._rates.take(asker, now.monotonic_s):
            return Refusal.RATE_LIMITED, f"more than {FORWARDS_PER_S:g} orders a second: try again in a moment"
        # SPEC 08: The aggregator MUST bound how many jobs it forwards at once: in all, for one asker, to one provider.
        held = Counter(job.asker.peer for job in self._jobs.values())
        if held[asker] > FORWARDS_PER_ASKER_MAX:
            return Refusal.RATE_LIMITED, f"this node forwards {FORWARDS_PER_ASKER_MAX} jobs of one asker at once"
        if sum(job.named == provider for job in self._jobs.values()) > FORWARDS_PER_PROVIDER_MAX:
            return Refusal.BUSY, f"this node forwards {FORWARDS_PER_PROVIDER_MAX} jobs to one provider at once"
        return None

    def _take_order(self, job: _Job, now: Now) -> list[Effect]:
        """Look at the first frame, once it is whole: it must be an order by this asker for that provider."""
        if len(job.waiting) < c.FRAME_HEADER_BYTES:
            return []
        end = c.FRAME_HEADER_BYTES + int.from_bytes(job.waiting[: c.FRAME_HEADER_BYTES], "big")
        if len(job.waiting) < end:
            return []
        # SPEC 08: The aggregator MUST check that the second message of the stream is an order that the sender has
        #   signed, for the provider that `Forward` names. It refuses everything else.
        # Else the provider would blame us for it.
        message = decode_message(bytes(job.waiting[c.FRAME_HEADER_BYTES : end]), JOB_LIMITS)
        if not isinstance(message, JobOpen):
            raise RemoteProtocolError("what is to be forwarded does not begin with an order")
        order = open_record(message.order, JobOpenRecord)
        if order.provider != job.named or not _is_of(job.asker.peer, order, message):
            raise RemoteProtocolError("an order by another asker, or for another provider, than this stream is for")
        if len(message.sealed) > order.sealed_bytes:
            raise RemoteProtocolError("more sealed bytes than the order states")
        job.is_ordered = True
        self._timers.cancel(("order", job.asker.stream))
        return self._reach(job, now)

    # ------------------------------------------------------------ reaching the provider

    def _reach(self, job: _Job, now: Now) -> list[Effect]:
        if self._connected(job.named):
            return self._connect(job, now)
        addresses = self._addresses(job.named)
        if not addresses:
            return self._fail(job, Refusal.NO_ROUTE, "no address of that provider is known here")
        dialled = {each.named for each in self._jobs.values() if each.is_ordered and each.provider is None}
        if len(dialled) > DIALS_MAX:
            return self._fail(job, Refusal.BUSY, "this node looks for too many providers already")
        # SPEC 08: The aggregator MUST say `NO_ROUTE` within 3 seconds when it does not reach the provider.
        self._timers.set(("reach", job.asker.stream), now.monotonic_s + c.FORWARD_REACH_DEADLINE_S)
        return [Dial(job.named, addresses)]

    def on_connected(self, peer: NodeId, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.named == peer and job.is_ordered and job.provider is None:
                effects += self._connect(job, now)
        return effects

    def on_unreachable(self, peer: NodeId) -> list[Effect]:
        """Dialling a peer failed."""
        effects: list[Effect] = []
        for job in list(self._jobs.values()):
            if job.named == peer and job.is_ordered and job.provider is None:
                effects += self._fail(job, Refusal.NO_ROUTE, "the provider does not answer at any address known here")
        return effects

    def _connect(self, job: _Job, now: Now) -> list[Effect]:
        asker = job.asker
        self._timers.cancel(("reach", asker.stream))
        self._timers.set(("idle", asker.stream), now.monotonic_s + IDLE_DEADLINE_S)
        job.heard_at_s = now.monotonic_s
        job.provider = _Side(job.named, self._next_stream())
        self._by_stream[job.provider.stream] = job
        waiting, job.waiting = bytes(job.waiting), bytearray()
        effects: list[Effect] = [
            OpenStream(job.provider.stream, job.named, c.JOB_PROTOCOL),
            Send(job.provider.stream, waiting),
        ]
        if asker.is_done:
            effects.append(FinishStream(job.provider.stream))
        return effects

    # ------------------------------------------------------------ passing on

    def on_bytes(self, stream: StreamId, data: bytes, now: Now) -> list[Effect]:
        """Pass on what came from one side.

        Raises RemoteProtocolError when it is nothing that may be passed on; the stream is then lost.
        """
        job = self._by_stream[stream]
        sender = job.asker if stream == job.asker.stream else job.provider
        assert sender is not None
        job.heard_at_s = now.monotonic_s
        if not data:
            return []
        frames = sender.lengths.frames
        sender.lengths.feed(data)
        sender.bytes += len(data)
        if sender.bytes > (BYTES_TO_PROVIDER_MAX if sender is job.asker else BYTES_TO_ASKER_MAX):
            raise BadFrame("more bytes than any job needs")
        self._frames += sender.lengths.frames - frames
        self._bytes += len(data)
        # SPEC 08: The aggregator MUST NOT choose the provider, change what it passes on, or add to it,
        if sender is job.provider:
            return [Send(job.asker.stream, data)]
        if job.provider is not None:
            return [Send(job.provider.stream, data)]
        job.waiting += data
        return [] if job.is_ordered else self._take_order(job, now)

    # ------------------------------------------------------------ the end

    def on_finished(self, stream: StreamId, now: Now) -> list[Effect]:
        """One side has said everything. Raises RemoteProtocolError when it ends where no end can be."""
        job = self._by_stream[stream]
        sender = job.asker if stream == job.asker.stream else job.provider
        assert sender is not None
        # SPEC 08: The aggregator MUST pass on an end only as an end, and everything else that ends a stream as a reset.
        if not sender.lengths.is_between_frames or not job.is_ordered:
            raise RemoteProtocolError("the stream ends inside a frame, or before the order")
        sender.is_done = True
        if sender is job.provider:
            # Its last message is on its way; the asker closes its own side when it has read it.
            self._timers.set(("close", job.asker.stream), now.monotonic_s + c.CONTROL_DEADLINE_S)
            effects: list[Effect] = [FinishStream(job.asker.stream)]
            return effects + self._end(job) if job.asker.is_done else effects
        if job.provider is None:
            return []
        return [FinishStream(job.provider.stream), *(self._end(job) if job.provider.is_done else [])]

    def _end(self, job: _Job) -> list[Effect]:
        self._forget(job, has_failed=False)
        size = sum(side.bytes for side in job.sides)
        return [Note("job.forwarded", job.asker.peer, f"to {short(job.named)}, {size} bytes")]

    def on_stream_lost(self, stream: StreamId, code: Refusal, reason: str) -> list[Effect]:
        """The stream of one side is gone, and not by an end: nor does the other side's end well."""
        job = self._by_stream.get(stream)
        if job is None:
            return []
        if stream != job.asker.stream:
            if job.provider is not None and job.provider.is_done:
                return []  # it had said everything; the asker may still be reading it
            self._by_stream.pop(stream)
            return self._fail(job, code, f"the provider's stream is lost: {reason}", is_provider_gone=True)
        self._forget(job, has_failed=True)
        note = Note("job.forward_failed", job.asker.peer, f"to {short(job.named)}: {code.name.lower()}")
        return [note, *([ResetStream(job.provider.stream, "the asker is gone")] if job.provider else [])]

    def _fail(self, job: _Job, code: Refusal, text: str, *, is_provider_gone: bool = False) -> list[Effect]:
        """End both sides, and tell the asker why."""
        self._forget(job, has_failed=True)
        asker, provider = job.asker.stream, job.provider
        effects: list[Effect] = []
        # A frame of the provider that is cut short must not seem to go on with ours.
        if provider is None or (provider.lengths.is_between_frames and not provider.is_done):
            effects.append(Send(asker, encode_message(Fault(int(code), text[: c.TEXT_CHARACTERS_MAX]))))
        effects.append(ResetStream(asker, text))
        if provider is not None and not is_provider_gone:
            effects.append(ResetStream(provider.stream, text))
        return [*effects, Note("job.forward_failed", job.asker.peer, f"to {short(job.named)}: {code.name.lower()}")]

    def _forget(self, job: _Job, *, has_failed: bool) -> None:
        if has_failed:
            self._failed += 1
        else:
            self._carried += 1
        del self._jobs[job.asker.stream]
        for side in job.sides:
            self._by_stream.pop(side.stream, None)
        if job.is_ordered:
            self._add_to_account(job, has_failed=has_failed)
        for name in ("order", "reach", "idle", "close", "total"):
            self._timers.cancel((name, job.asker.stream))

    def _add_to_account(self, job: _Job, *, has_failed: bool) -> None:
        key = (job.asker.peer, job.named)
        account = self._accounts.setdefault(key, Account())
        account.jobs += not has_failed
        account.frames += sum(side.lengths.frames for side in job.sides)
        account.bytes += sum(side.bytes for side in job.sides)
        self._accounts.move_to_end(key)
        if len(self._accounts) > ACCOUNTS_MAX:
            self._accounts.popitem(last=False)

    # ------------------------------------------------------------ time

    def on_deadline(self, now: Now) -> list[Effect]:
        effects: list[Effect] = []
        for name, stream in self._timers.pop_due(now.monotonic_s):
            job = self._jobs.get(stream)
            if job is None:
                continue
            if name == "idle" and job.heard_at_s + IDLE_DEADLINE_S > now.monotonic_s:
                self._timers.set((name, stream), job.heard_at_s + IDLE_DEADLINE_S)
                continue
            code = Refusal.NO_ROUTE if name == "reach" else Refusal.DEADLINE
            effects += self._fail(job, code, _OVERDUE[name])
        return effects


_OVERDUE: Final = {
    "order": "no order came",
    "reach": f"the provider did not answer within {c.FORWARD_REACH_DEADLINE_S:g} s",
    "idle": f"nothing came from either side for {IDLE_DEADLINE_S:g} s",
    "close": "the asker did not close the stream after the end of the job",
    "total": "the job took longer than any job may",
}


def _is_of(sender: NodeId, order: JobOpenRecord, message: JobOpen) -> bool:
    """Whether an order is by whoever sends it, or by the payer of the lease that comes with it."""
    if order.lease is None or message.lease is None:
        return order.asker == sender
    # SPEC 08: A paid order is signed by the payer of its lease, whom nobody but the coordinator can tell from the
    #   sender; the lease must come with it.
    lease = open_record(message.lease, LeaseRecord)
    return (lease.lease, lease.payer, lease.provider) == (order.lease, order.asker, order.provider)
