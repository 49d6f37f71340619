"""One simulated machine: a peer, perhaps an engine, clocks of its own, and the wiring between them.

It is the third driver of `Peer`, beside the node's and the coordinator's: it feeds events one at a time, performs the
effects in order, and arms one timer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from protocol.codec import decode_record
from protocol.effects import (
    CancelEngine,
    ContinueEngine,
    Dial,
    DialBack,
    Effect,
    FinishStream,
    HangUp,
    OpenStream,
    OwnAddresses,
    ReleaseRelay,
    ReserveRelay,
    ResetStream,
    RunEngine,
    Send,
)
from protocol.envelope import SigningKey
from protocol.events import DEADLINE, Event, Now, Offer, SetOffer
from protocol.ids import NodeId, StreamId
from protocol.messages import Voucher
from protocol.money_records import VoucherRecord
from protocol.peer import Peer, PeerConfig
from protocol.sim.bank import Bank
from protocol.sim.desk import MONEY_EFFECTS, Desk
from protocol.sim.engine import SimulatedEngine
from protocol.sim.network import Network
from protocol.sim.reading import sent
from protocol.sim.scenario import EngineProfile
from protocol.sim.schedule import Schedule
from protocol.sim.sealer import SimulatedSealer

# The wall clock when the simulation starts: any will do, and zero would hide mistakes.
WALL_MS_AT_START: Final = 1_700_000_000_000
# Monotonic clocks of different machines have nothing to do with each other.
MONOTONIC_S_MAX_AT_START: Final = 1_000_000.0

#: Called with (host, event) before each event and with (host, effect) for each effect.
Observe = Callable[["Host", object], None]

_NETWORK: Final = (
    Send,
    OpenStream,
    FinishStream,
    ResetStream,
    Dial,
    HangUp,
    DialBack,
    ReserveRelay,
    ReleaseRelay,
)


def _pays_for_output(data: bytes) -> bool:
    """Whether this is a voucher for more than the prompt."""
    message = sent(data, Voucher)
    return message is not None and decode_record(message.voucher.body, VoucherRecord).chunks > 0


class Trace:
    """SHA-256 over everything that was delivered to anyone, and when."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        # Sets are the only values whose order could depend on the process.
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")
        self.events = 0

    def add(self, at_s: float, index: int, event: object) -> None:
        self.events += 1
        self._hash.update(self._encoder.encode((at_s, index, type(event).__name__, event)))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class Host:
    """A machine. `peer` is None while it is down."""

    def __init__(
        self,
        schedule: Schedule,
        network: Network,
        trace: Trace,
        observe: Observe,
        rng: random.Random,
        *,
        name: str,
        listens_at: str,
        address: str | None,
        observed_address: str,
        engine: EngineProfile | None,
        skew_ms: int,
        config: PeerConfig,
        relays: bool = False,
        bank: Bank | None = None,
        hides_vouchers: bool = False,
    ) -> None:
        self._schedule = schedule
        self._network = network
        self._trace = trace
        self._observe = observe
        self._rng = rng
        self._profile = engine
        self._skew_ms = skew_ms
        self._config = config
        self._monotonic_s_at_start = rng.uniform(0.0, MONOTONIC_S_MAX_AT_START)
        self._monotonic_s = 0.0
        self._wake_at_s: float | None = None
        self._due_s: float | None = None
        self._next_inbound = 2
        self._key = SigningKey(rng.randbytes(32), rng.randbytes)
        self.name = name
        self.node = self._key.node
        #: Where it listens, and where others reach it: nowhere behind NAT.
        self.listens_at = listens_at
        self.address = address
        self.observed_address = observed_address
        self.relays = relays
        #: What it says of itself, but for the circuits that lead to it.
        self.offer: Offer | None = None
        self.index = network.attach(self)
        self.engine: SimulatedEngine | None = None
        self.peer: Peer | None = None
        self.desk: Desk | None = None
        if bank is not None:
            self.desk = Desk(bank, schedule, rng, self.receive, self._true_wall_ms)
        self.hides_vouchers = hides_vouchers

    def _true_wall_ms(self) -> int:
        return WALL_MS_AT_START + int(self._schedule.now_s * 1000)

    def now(self) -> Now:
        wall_ms = WALL_MS_AT_START + self._skew_ms + int(self._schedule.now_s * 1000)
        # A deadline converted to the schedule's time and back may come out a hair too early: never go back behind it.
        self._monotonic_s = max(self._monotonic_s, self._schedule.now_s + self._monotonic_s_at_start)
        return Now(self._monotonic_s, wall_ms)

    def start(self) -> None:
        """Start the peer with nothing but its key: sealing keys live in memory."""
        assert self.peer is None
        self._next_inbound = 2
        self.engine = SimulatedEngine(self._profile, self._rng) if self._profile is not None else None
        self.peer = Peer(self._config, self._key, SimulatedSealer(self._rng.randbytes(32)), self._rng, self.now())

    def stop(self) -> None:
        """Lose everything but the key, as in a crash."""
        self.peer = None
        self.engine = None
        self._wake_at_s = None
        if self.desk is not None:
            self.desk.crash()

    def sequence_of(self, node: NodeId) -> int:
        """The sequence of the newest record that it holds of somebody; -1 for none."""
        entry = self.peer.directory.get(node) if self.peer is not None else None
        return entry.heartbeat.sequence if entry is not None else -1

    def next_inbound_stream(self) -> StreamId:
        number = StreamId(self._next_inbound)
        self._next_inbound += 2
        return number

    # ------------------------------------------------------------ the driver

    def receive(self, event: Event) -> None:
        """Feed one event and perform its effects. Raises LocalProtocolError for a bad command."""
        peer = self.peer
        if peer is None:
            return
        self._trace.add(self._schedule.now_s, self.index, event)
        self._observe(self, event)
        for effect in peer.handle(event, self.now()):
            self._observe(self, effect)
            self._perform(effect)
        self._arm()

    def _perform(self, effect: Effect) -> None:
        if self.hides_vouchers and isinstance(effect, Send) and _pays_for_output(effect.data):
            return
        if isinstance(effect, _NETWORK):
            self._network.perform(self.index, effect)
        elif isinstance(effect, MONEY_EFFECTS):
            assert self.desk is not None, "money moves where there is no coordinator"
            self.desk.perform(effect)
        elif isinstance(effect, OwnAddresses) and self.offer is not None:
            offer = replace(self.offer, addresses=(*self.offer.addresses, *effect.addresses))
            self._schedule.soon(partial(self.receive, SetOffer(offer)))
        elif isinstance(effect, RunEngine):
            assert self.engine is not None, "a peer without an engine took a job"
            self.engine.start(effect, self.now().monotonic_s)
        elif isinstance(effect, CancelEngine):
            assert self.engine is not None
            self.engine.cancel(effect, self.now().monotonic_s)
        elif isinstance(effect, ContinueEngine):
            assert self.engine is not None
            self.engine.proceed(effect, self.now().monotonic_s)

    def _arm(self) -> None:
        """See to it that we wake up at the next deadline; a plan for an earlier one arms the next one when it comes."""
        assert self.peer is not None
        self._due_s = self.peer.next_deadline()
        engine_s = self.engine.next_deadline() if self.engine is not None else None
        deadline = min((each for each in (self._due_s, engine_s) if each is not None), default=None)
        if deadline is None:
            return
        at_s = deadline - self._monotonic_s_at_start
        if self._wake_at_s is None or at_s < self._wake_at_s:
            self._wake_at_s = at_s
            self._schedule.at(at_s, partial(self._wake, at_s, deadline))

    def _wake(self, planned_s: float, deadline: float) -> None:
        if self._wake_at_s != planned_s:
            return
        self._wake_at_s = None
        self._monotonic_s = max(self._monotonic_s, deadline)
        now_s = self.now().monotonic_s
        if self.engine is not None:
            for event in self.engine.on_deadline(now_s):
                self.receive(event)
        if self._due_s is not None and self._due_s <= now_s:
            self.receive(DEADLINE)
            assert self._due_s is None or self._due_s > now_s, "after DEADLINE the next one must lie ahead"
        else:
            self._arm()
