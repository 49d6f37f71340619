"""The asyncio driver of the protocol's peer: the twin of the node's trio driver.

Events are handled where they arrive, one at a time; effects are performed at once and never wait (they put bytes
into bounded outboxes and start timers), so nothing a peer does can hold up another. A reader of a link that brings
events faster than they are handled is slowed by its own TCP connection, because it hands them over itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, assert_never

import structlog

from protocol import events as e
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
    JobEvent,
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
from protocol.ids import short
from protocol.noting import Noting
from protocol.peer import Peer

log = structlog.get_logger(__name__)


class Network(Protocol):
    """Performs the effects that concern peers and streams; answers with events, never waits."""

    def perform(self, effect: OpenStream | Send | FinishStream | ResetStream) -> e.Event | None: ...

    def hang_up(self, effect: HangUp) -> None: ...


class PeerDriver:
    """Feeds one peer and performs what it asks for. `on_job` hears what becomes of the jobs asked, `on_money` what
    paying for them needs.
    """

    def __init__(
        self,
        peer: Peer,
        network: Network,
        on_job: Callable[[JobEvent], None],
        wall_ms: Callable[[], int],
        on_money: Callable[[RequestLease | StoreMark], None],
    ) -> None:
        self.peer = peer
        self._network = network
        self._on_job = on_job
        self._wall_ms = wall_ms
        self._on_money = on_money
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[e.Event] = deque()
        self._noting = Noting()
        self._is_handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event | None = None

    def now(self) -> e.Now:
        """Both clocks: the loop's own, and the wall's."""
        return e.Now(self._loop.time(), self._wall_ms())

    def handle(self, *events: e.Event) -> None:
        """Take events, and those that performing their effects causes.

        Raises LocalProtocolError for a command that cannot be carried out; nothing has then changed.
        """
        self._inbox.extend(events)
        if self._is_handling:
            return  # called while performing: the loop below comes to it
        self._is_handling = True
        try:
            while self._inbox:
                for effect in self.peer.handle(self._inbox.popleft(), self.now()):
                    self._perform(effect)
        finally:
            self._is_handling = False
            self._arm()
            if self._idle is not None and self._is_idle():
                self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until every job has ended, those being cancelled included; False when the time ran out first."""
        if self._is_idle():
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _is_idle(self) -> bool:
        return self.peer.statistics().jobs_asked == 0

    def stop(self) -> None:
        """Arm no timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        deadline = self.peer.next_deadline()
        if deadline is None:
            self.stop()
        # A timer that rings too early costs one empty event; re-arming at every chunk of every job costs more.
        elif self._timer is None or deadline < self._timer.when():
            self.stop()
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle(e.DEADLINE)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send() | OpenStream() | FinishStream() | ResetStream():
                answer = self._network.perform(effect)
                if answer is not None:
                    self._inbox.append(answer)
            case JobText() | JobAccepted() | JobVector() | JobDone() | JobFailed():
                self._on_job(effect)
            case JobQueued() | JobResumed():
                self._on_job(effect)
            case HangUp():
                self._network.hang_up(effect)
            case Dial():
                # Nodes connect to the coordinator, never the other way round.
                self._inbox.append(e.DialFailed(effect.peer, "this node has no link open"))
            case Note():
                if (dropped := self._noting.admit(effect, self._loop.time())) is not None:
                    peer = short(effect.peer) if effect.peer is not None else None
                    log.info(effect.event, peer=peer, detail=effect.detail, dropped=dropped)
            case RecordLearnt() | SearchWanted() | HeartbeatSigned():
                pass  # the store has records from their nodes only, and the coordinator offers nothing itself
            case Misbehaved() | Drained():
                pass
            case DialBack() | ReserveRelay() | ReleaseRelay() | ReachabilityLearnt() | OwnAddresses():
                raise AssertionError("the coordinator dials nobody and needs no relay")
            case RequestLease() | StoreMark():
                self._on_money(effect)
            case Equivocation():
                # Only this coordinator's key can have signed both: its ledger was restored without its journal, or
                # somebody else has the key.
                log.critical("two_ledgers_of_this_key")
            case StoreVoucher() | SendClaim() | StoreClaimed() | StoreClosing():
                raise AssertionError("the coordinator is nobody's provider")
            case RunEngine() | CancelEngine() | ContinueEngine():
                raise AssertionError("the coordinator offers no model, so no job can have been accepted")
            case _:
                assert_never(effect)
