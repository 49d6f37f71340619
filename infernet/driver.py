"""The trio driver: feeds one `Peer` and performs its effects, never waiting between two events.

Network effects go to the carrier that holds the connection, engine effects to the engine, and what concerns the
application to `observe`. All of these only queue; the work is done in tasks that post events back. So one stalled
reader, one slow engine or one dead peer holds up nobody else.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from infernet.engines.contract import Engine, EngineEvent
from protocol.effects import (
    CancelEngine,
    ContinueEngine,
    Dial,
    DialBack,
    Drained,
    Effect,
    Equivocation,
    FinishStream,
    HangUp,
    HeartbeatSigned,
    JobAccepted,
    JobDone,
    JobFailed,
    JobQueued,
    JobResumed,
    JobText,
    JobVector,
    Misbehaved,
    Note,
    OpenStream,
    OwnAddresses,
    ReachabilityLearnt,
    RecordLearnt,
    ReleaseRelay,
    RequestLease,
    ReserveRelay,
    ResetStream,
    RunEngine,
    SearchWanted,
    Send,
    SendClaim,
    StoreClaimed,
    StoreClosing,
    StoreMark,
    StoreVoucher,
)
from protocol.errors import Refusal
from protocol.events import (
    DEADLINE,
    DialedBack,
    DialFailed,
    EngineFailed,
    Event,
    Now,
    PeerConnected,
    PeerDisconnected,
    Pressure,
    RelayLost,
    StreamBroken,
)
from protocol.ids import NodeId, StreamId, short
from protocol.noting import Noting
from protocol.peer import Peer
from protocol.records import Reachability

log = structlog.get_logger(__name__)

NetworkEffect = (
    Dial | HangUp | OpenStream | Send | FinishStream | ResetStream | DialBack | ReserveRelay | ReleaseRelay | Misbehaved
)
MoneyEffect = RequestLease | StoreMark | StoreVoucher | SendClaim | StoreClaimed | StoreClosing | Equivocation
AppEffect = (
    JobAccepted
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
    | MoneyEffect
)

Contact = PeerConnected | DialFailed

# Events of those who can wait, stream readers above all: a flood from the network cannot grow the queue beyond them.
EVENTS_WAITING_MAX: Final = 512
# After this many events other tasks get their turn.
EVENTS_PER_TURN: Final = 64
# A queue that was never empty for so long is not caught up with: new orders would only make it longer.
BEHIND_S: Final = 0.5


_NO_P2P: Final = "this node opens no peer-to-peer connections (p2p is off)"


class Carrier(Protocol):
    """Holds connections to some peers and performs network effects for them; `perform` never waits."""

    def perform(self, effect: NetworkEffect) -> None: ...


def _nobody_listens(_contact: Contact) -> None:
    """Until somebody does."""


def wall_ms() -> int:
    """The wall clock in integer milliseconds."""
    return time.time_ns() // 1_000_000


class Driver:
    """One peer, its event queue and its carriers. `post` from trio's thread only."""

    def __init__(
        self,
        peer: Peer,
        *,
        engine: Engine | None,
        observe: Callable[[AppEffect], None],
        clock_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self.peer = peer
        self._engine = engine
        self._observe = observe
        self._clock_ms = clock_ms
        # Events in order, and whether each holds a place.
        self._events: deque[tuple[Event, bool]] = deque()
        self._places = trio.Semaphore(EVENTS_WAITING_MAX)
        self._wake = trio.Event()
        self._waiters: list[tuple[Callable[[], bool], trio.Event]] = []
        # Since when the queue of events was never empty, and whether the peer has been told that this is too long.
        self._behind_since_s: float | None = None
        self._is_overloaded = False
        self._noting = Noting()
        self._inbound_numbers = itertools.count(2, 2)
        self._carrier_of_peer: dict[NodeId, Carrier] = {}
        self._carrier_of_stream: dict[StreamId, Carrier] = {}
        #: The carrier that can dial; None while there is none.
        self.dialer: Carrier | None = None
        #: The one of streams to this node itself; None while there is none.
        self.loopback: Carrier | None = None
        #: Told of connections as they come up and of dials that fail, before the peer is.
        self.on_contact: Callable[[Contact], None] = _nobody_listens

    def now(self) -> Now:
        return Now(trio.current_time(), self._clock_ms())

    # ------------------------------------------------------------ events in

    def post(self, event: Event) -> None:
        """Queue an event; never waits."""
        self._events.append((event, False))
        self._wake.set()

    async def post_with_backpressure(self, event: Event) -> None:
        """Queue an event as soon as there is a place for it, in the order of asking: for those who can wait."""
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            await self._places.acquire()
        self._events.append((event, True))
        self._wake.set()

    def report(self, event: EngineEvent) -> None:
        """What an engine calls with its events; their number is bounded by the runs that we admitted."""
        self.post(event)

    def inbound_stream(self, carrier: Carrier) -> StreamId:
        """A number for a stream that the other side opened."""
        stream = StreamId(next(self._inbound_numbers))
        self._carrier_of_stream[stream] = carrier
        return stream

    def stream_closed(self, stream: StreamId) -> None:
        """The carrier is done with this stream."""
        self._carrier_of_stream.pop(stream, None)

    def connected(self, carrier: Carrier, event: PeerConnected) -> None:
        """A carrier has a first connection to a peer. The first carrier keeps the peer; a second only waits."""
        if self._carrier_of_peer.setdefault(event.peer, carrier) is carrier:
            self.post(event)

    def disconnected(self, carrier: Carrier, peer: NodeId) -> None:
        if self._carrier_of_peer.get(peer) is carrier:
            del self._carrier_of_peer[peer]
            self.post(PeerDisconnected(peer))

    def connected_peers(self) -> frozenset[NodeId]:
        """Those that some carrier holds a connection to."""
        return frozenset(self._carrier_of_peer)

    def carrier_of(self, peer: NodeId) -> Carrier | None:
        """Who holds the connection to a peer."""
        return self._carrier_of_peer.get(peer)

    @property
    def open_streams(self) -> int:
        """Streams that some carrier still works on; for leak tests."""
        return len(self._carrier_of_stream)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the peer holds; it is looked at after every turn of the loop."""
        if not condition():
            waiter = (condition, trio.Event())
            self._waiters.append(waiter)
            try:
                await waiter[1].wait()
            finally:
                self._waiters.remove(waiter)

    def _wake_waiters(self) -> None:
        for condition, event in self._waiters:
            if condition():
                event.set()

    # ------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Feed the peer until cancelled."""
        events = self._events
        while True:
            if not events:
                deadline = self.peer.next_deadline()
                self._wake = trio.Event()
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._wake.wait()
            for _ in range(min(len(events), EVENTS_PER_TURN)):
                event, holds_place = events.popleft()
                if holds_place:
                    self._places.release()
                self._feed(event)
            deadline = self.peer.next_deadline()
            if deadline is not None and deadline <= trio.current_time():
                self._feed(DEADLINE)
            if self._waiters:
                self._wake_waiters()
            self._weigh(is_behind=bool(events))
            if events:
                await trio.lowlevel.checkpoint()

    def _weigh(self, *, is_behind: bool) -> None:
        """Tell the peer when the queue is not caught up with, and when it is again."""
        if not is_behind:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = trio.current_time()
        since_s = self._behind_since_s
        is_overloaded = since_s is not None and trio.current_time() - since_s > BEHIND_S
        if is_overloaded != self._is_overloaded:
            self._is_overloaded = is_overloaded
            log.warning("node.overloaded" if is_overloaded else "node.caught_up", count=len(self._events))
            self._feed(Pressure(is_overloaded))

    def command(self, event: Event) -> None:
        """Handle a command of the application now, not in its turn. Raises LocalProtocolError for a bad one."""
        self._feed(event)
        # The command may have set a deadline before the one that the loop sleeps for.
        self._wake.set()

    def _feed(self, event: Event) -> None:
        if isinstance(event, (PeerConnected, DialFailed)):
            self.on_contact(event)
        for effect in self.peer.handle(event, self.now()):
            self._perform(effect)

    # ------------------------------------------------------------ effects out

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, (Send, FinishStream, ResetStream)):
            carrier = self._carrier_of_stream.get(effect.stream)
            if carrier is not None:
                carrier.perform(effect)
        elif isinstance(effect, OpenStream):
            self._open_stream(effect)
        elif isinstance(effect, Dial):
            self._dial(effect)
        elif isinstance(effect, HangUp):
            log.info("peer.hang_up", peer=short(effect.peer), reason=effect.reason)
            carrier = self._carrier_of_peer.get(effect.peer)
            if carrier is not None:
                carrier.perform(effect)
        elif isinstance(effect, (DialBack, ReserveRelay, ReleaseRelay, Misbehaved)):
            self._ask_dialer(effect)
        elif isinstance(effect, RunEngine):
            self._start_run(effect)
        elif isinstance(effect, (CancelEngine, ContinueEngine)):
            if self._engine is not None:
                (self._engine.cancel if isinstance(effect, CancelEngine) else self._engine.proceed)(effect.run)
        elif isinstance(effect, Note):
            if (dropped := self._noting.admit(effect, trio.current_time())) is not None:
                peer = short(effect.peer) if effect.peer is not None else None
                log.info(effect.event, peer=peer, detail=effect.detail, dropped=dropped)
        else:
            self._observe(effect)

    def _open_stream(self, effect: OpenStream) -> None:
        is_to_itself = effect.peer == self.peer.node
        carrier = self.loopback if is_to_itself else self._carrier_of_peer.get(effect.peer)
        if carrier is None:
            self.post(StreamBroken(effect.stream, "not connected"))
            return
        self._carrier_of_stream[effect.stream] = carrier
        carrier.perform(effect)

    def _dial(self, effect: Dial) -> None:
        if self.dialer is None:
            self.post(DialFailed(effect.peer, _NO_P2P))
        else:
            self.dialer.perform(effect)

    def _ask_dialer(self, effect: DialBack | ReserveRelay | ReleaseRelay | Misbehaved) -> None:
        if self.dialer is not None:
            self.dialer.perform(effect)
        elif isinstance(effect, DialBack):
            self.post(DialedBack(effect.probe, Reachability.NOT_TRIED, _NO_P2P))
        elif isinstance(effect, ReserveRelay):
            self.post(RelayLost(effect.relay, _NO_P2P))

    def _start_run(self, effect: RunEngine) -> None:
        if self._engine is None:
            self.post(EngineFailed(effect.run, Refusal.ENGINE_UNAVAILABLE, "this node has no engine"))
        else:
            self._engine.start(effect)
