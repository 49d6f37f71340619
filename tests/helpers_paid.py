"""Two real peers and a coordinator's ledger, in one process and without a network: for tests of paid jobs.

The test decides when bytes and answers arrive. Test doubles: the engine, which writes one word a token when told, the
disk, which has stored everything at once unless told otherwise, and `protocol.sim.bank` for the coordinator.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from protocol.codec import JOB_LIMITS, FrameReader, decode_record, encode_message
from protocol.effects import (
    CancelEngine,
    ContinueEngine,
    Effect,
    FinishStream,
    JobDone,
    JobText,
    Note,
    OpenStream,
    RequestLease,
    ResetStream,
    RunEngine,
    Send,
    SendClaim,
    StoreClosing,
    StoreMark,
)
from protocol.envelope import sign_record
from protocol.events import (
    DEADLINE,
    Ask,
    BytesReceived,
    ClosingStored,
    EngineFinished,
    EngineStarted,
    EngineText,
    Event,
    LearnRecord,
    MarkStored,
    PeerConnected,
    PeerDisconnected,
    SetOffer,
    StreamBroken,
    StreamFinished,
    StreamOpened,
    UseCoordinator,
)
from protocol.ids import NodeId, RunId, StreamId
from protocol.messages import JobAccept, Message
from protocol.peer import Peer
from protocol.records import JobAcceptRecord, Outcome
from protocol.sim.bank import Bank
from tests.helpers_machines import ADDRESS, ALONE, chat, now, offer, sealer_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

PRICED = replace(OFFER, price_in_uusd=1_000_000, price_out_uusd=2_000_000, price_job_uusd=0)
PROMPT_TOKENS = 10


@dataclass
class Side:
    """One peer of the two, and what it did."""

    name: str
    peer: Peer
    effects: list[Effect] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    reader: FrameReader = field(default_factory=lambda: FrameReader(JOB_LIMITS))

    @property
    def node(self) -> NodeId:
        return self.peer.node

    def all(self, kind: type[Any]) -> list[Any]:
        """Its effects of this kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def messages(self, kind: type[Any]) -> list[Any]:
        """Messages of this kind that it sent."""
        return [message for message in self.said if isinstance(message, kind)]


class Market:
    """An asker and a provider, connected; `step` delivers what is on its way until nothing is."""

    def __init__(self, *, deposit_uusd: int = 1_000_000, priced: Any = PRICED) -> None:
        self.at_s = 100.0
        self._restarts = 0
        self.bank = Bank(signing_key("bank"))
        self.asker = self._side("asker")
        self.provider = self._side("provider")
        self.stores_at_once = True
        #: What answers are long and how they end.
        self.words = 40
        self.tokens_per_word = 1
        self.word: Callable[[int], str] = " word{}".format
        self.runs: dict[RunId, RunEngine] = {}
        self.waiting: deque[tuple[Side, Event]] = deque()
        self.held_marks: list[MarkStored] = []
        #: Messages of this kind are lost, the first so many excepted; or wait until they are released.
        self.loses: type[Message] | None = None
        self.loses_after = 0
        self.delays: type[Message] | None = None
        self.delayed: deque[tuple[Side, Event]] = deque()
        #: The engine stops after so many words, until it is told what becomes of it.
        self.pauses_after: int | None = None
        #: What the provider accepts, it accepts altered.
        self.alters: Callable[[JobAcceptRecord], JobAcceptRecord] = lambda record: record
        if deposit_uusd:
            self.bank.deposit(self.asker.node, deposit_uusd, self.wall_ms)
        self.feed(self.asker, UseCoordinator(self.bank.node))
        self.offer = offer(models=(priced,), coordinators=(self.bank.node,))
        self.feed(self.provider, SetOffer(self.offer))
        self.meet()

    def meet(self) -> None:
        """They connect, and the asker hears what the provider offers now."""
        entry = self.provider.peer.directory.get(self.provider.node)
        assert entry is not None
        self.feed(self.asker, PeerConnected(self.provider.node, ADDRESS, inbound=False))
        self.feed(self.provider, PeerConnected(self.asker.node, ADDRESS, inbound=True))
        self.feed(self.asker, LearnRecord(entry.record))
        self.step()

    def _side(self, name: str, life: int = 0) -> Side:
        # Nobody draws the same numbers twice, over a restart neither: payers' keys follow from them.
        rng = random.Random(f"{name} {life}" if life else name)
        return Side(name, Peer(ALONE, signing_key(name), sealer_of(name), rng, now(self.at_s)))

    @property
    def wall_ms(self) -> int:
        return NOW_MS + round(self.at_s * 1000)

    # ------------------------------------------------------------ driving

    def feed(self, side: Side, event: Event) -> None:
        """One event, and its effects."""
        for effect in side.peer.handle(event, now(self.at_s)):
            side.effects.append(effect)
            self._perform(side, effect)

    def step(self) -> None:
        """Deliver everything."""
        while self.waiting:
            self.feed(*self.waiting.popleft())

    def wait(self, seconds: float) -> None:
        """Let time pass, with every deadline on the way."""
        end_s = self.at_s + seconds
        while True:
            deadlines = [d for side in (self.asker, self.provider) if (d := side.peer.next_deadline()) is not None]
            due_s = min(deadlines, default=end_s)
            if due_s > end_s:
                break
            self.at_s = max(self.at_s, due_s)
            for side in (self.asker, self.provider):
                deadline = side.peer.next_deadline()
                if deadline is not None and deadline <= self.at_s:
                    self.feed(side, DEADLINE)
            self.step()
        self.at_s = end_s

    def ask(self, number: int = 1, *, spend_uusd: int = 100_000, **changes: Any) -> Ask:
        """Have a job done, for money."""
        ask = chat(number, spend_uusd_max=spend_uusd, **changes)
        self.feed(self.asker, ask)
        self.step()
        return ask

    def other(self, side: Side) -> Side:
        return self.provider if side is self.asker else self.asker

    # ------------------------------------------------------------ the doubles

    def _perform(self, side: Side, effect: Effect) -> None:
        other = self.other(side)
        match effect:
            case OpenStream():
                self.waiting.append((other, StreamOpened(_far(effect.stream), side.node, effect.protocol)))
            case Send():
                self._send(side, other, effect)
            case FinishStream():
                self.waiting.append((other, StreamFinished(_far(effect.stream))))
            case ResetStream():
                self.waiting.append((other, StreamBroken(_far(effect.stream), effect.reason)))
            case RequestLease():
                self.waiting.append((side, self.bank.open_lease(effect, self.wall_ms)))
            case SendClaim():
                self.waiting.append((side, self.bank.claim(effect, self.wall_ms)))
            case StoreMark():
                stored = MarkStored(effect.lease, effect.mark_uusd)
                self.waiting.append((side, stored)) if self.stores_at_once else self.held_marks.append(stored)
            case StoreClosing():
                self.waiting.append((side, ClosingStored(effect.lease, effect.paid_uusd)))
            case RunEngine():
                self.runs[effect.run] = effect
                self.waiting.append((side, EngineStarted(effect.run, PROMPT_TOKENS)))
                if not effect.holds:
                    self._write(side, effect.run)
            case ContinueEngine():
                self._write(side, effect.run)
            case CancelEngine():
                self.waiting.append((side, EngineFinished(effect.run, Outcome.CANCELLED, 0)))
            case _:
                pass

    def _send(self, side: Side, other: Side, effect: Send) -> None:
        """Everything but what is lost, delayed or altered. Vouchers and acceptances are sent alone."""
        messages = list(side.reader.feed(effect.data))
        side.said += messages
        data = effect.data
        (first,) = messages[:1]
        if self.loses is not None and isinstance(first, self.loses):
            self.loses_after -= 1
            if self.loses_after < 0:
                return
        if isinstance(first, JobAccept) and side is self.provider:
            record = self.alters(decode_record(first.acceptance.body, JobAcceptRecord))
            data = encode_message(replace(first, acceptance=sign_record(record, signing_key("provider"))))
        event = BytesReceived(_far(effect.stream), data)
        if self.delays is not None and isinstance(first, self.delays):
            self.delayed.append((other, event))
        else:
            self.waiting.append((other, event))

    def release(self) -> None:
        """Let the next delayed message through."""
        self.waiting.append(self.delayed.popleft())
        self.step()

    def restart_asker(self) -> None:
        """It crashes and starts again, with nothing but its key."""
        self._restart(self.asker, self.provider)
        self.feed(self.asker, UseCoordinator(self.bank.node))
        self.meet()

    def restart_provider(self) -> None:
        """It crashes and starts again, with nothing but its key and its offer."""
        self._restart(self.provider, self.asker)
        self.feed(self.provider, SetOffer(self.offer))
        self.meet()

    def _restart(self, side: Side, other: Side) -> None:
        self.waiting.clear()
        self.feed(other, PeerDisconnected(side.node))
        self.waiting.clear()
        self._restarts += 1
        fresh = self._side(side.name, self._restarts)
        side.peer, side.reader = fresh.peer, fresh.reader

    def _write(self, side: Side, run: RunId) -> None:
        limit = self.runs[run].output_tokens_max
        tokens = 0
        for number in range(1, self.words + 1):
            if self.pauses_after is not None and number > self.pauses_after:
                return
            tokens += self.tokens_per_word
            if tokens > limit:
                tokens -= self.tokens_per_word
                break
            self.waiting.append((side, EngineText(run, self.word(number), tokens)))
        outcome = Outcome.LENGTH if tokens == limit else Outcome.STOP
        self.waiting.append((side, EngineFinished(run, outcome, tokens)))

    # ------------------------------------------------------------ what to look at

    @property
    def done(self) -> JobDone:
        (done,) = self.asker.all(JobDone)
        assert isinstance(done, JobDone)
        return done

    @property
    def text(self) -> str:
        return "".join(effect.text for effect in self.asker.all(JobText))

    def notes(self) -> list[str]:
        return [note.event for side in (self.asker, self.provider) for note in side.all(Note)]


def _far(stream: StreamId) -> StreamId:
    """The number of a stream at its other end: what one side opens with odd ids is even there, and back."""
    return StreamId(stream + 1 if stream % 2 else stream - 1)
