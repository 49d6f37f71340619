"""Jobs between an asker and two providers under every order of events that Hypothesis can think of.

Bytes arrive in pieces, streams break, outboxes overflow, garbage comes in between, orders are replayed, engines fail,
users cancel, time passes, peers vanish, return and retire. Whatever happens: a job ends exactly once, a run is started
once per order and ends, text that is done is the text that one engine would have written however many wrote it, with
every token counted once, and in the end nothing is left.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import decode_record, encode_message
from protocol.effects import (
    CancelEngine,
    Dial,
    Effect,
    FinishStream,
    HangUp,
    JobAccepted,
    JobDone,
    JobFailed,
    JobQueued,
    JobResumed,
    JobText,
    OpenStream,
    ResetStream,
    RunEngine,
    Send,
)
from protocol.events import (
    DEADLINE,
    Allow,
    BytesReceived,
    DialFailed,
    Drain,
    EngineFailed,
    EngineFinished,
    EngineProgress,
    EngineStarted,
    EngineText,
    Event,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    Refusal,
    SetOffer,
    StopAsking,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import JobId, NodeId, RunId, StreamId
from protocol.messages import Fault, JobOpen
from protocol.peer import Peer
from protocol.records import JobOpenRecord, Outcome
from protocol.sim.reading import sent
from tests.helpers_machines import ADDRESS, ALONE, chat, now, offer, sealer_of
from tests.helpers_records import OFFER, signing_key


@dataclass(eq=False)
class Pipe:
    """One direction of a stream: what has been sent and has not arrived."""

    reader: Machine
    number: StreamId | None
    items: deque[bytes | str] = field(default_factory=deque)
    finished: bool = False
    other: Pipe | None = None


@dataclass
class Run:
    order: RunEngine
    before: int
    text: str = ""
    tokens: int = 0
    is_started: bool = False
    is_cancelled: bool = False


class Machine:
    """A peer and its half of every stream."""

    def __init__(self, name: str, world: Conversations) -> None:
        self.world = world
        self.peer = Peer(ALONE, signing_key(name), sealer_of(name), random.Random(name), now(world.at_s))
        self.node = self.peer.node
        self.writes: dict[StreamId, Pipe] = {}
        self.runs: dict[RunId, Run] = {}
        self.written: dict[int, str] = {}
        self.started: dict[int, int] = {}
        self.inbound = 2

    def feed(self, event: Event) -> None:
        for effect in self.peer.handle(event, now(self.world.at_s)):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        world = self.world
        if isinstance(effect, Send):
            pipe = self.writes.get(effect.stream)
            if pipe is not None:
                assert not pipe.finished, "a send on a finished stream"
                pipe.items.append(effect.data)
                if sent(effect.data, JobOpen) is not None:
                    world.orders.append((self.node, pipe.reader, effect.data))
        elif isinstance(effect, OpenStream):
            world.open(self, effect)
        elif isinstance(effect, FinishStream):
            pipe = self.writes.get(effect.stream)
            if pipe is not None:
                assert not pipe.finished, "a stream is finished twice"
                pipe.finished = True
                pipe.items.append("finish")
        elif isinstance(effect, ResetStream):
            pipe = self.writes.pop(effect.stream, None)
            if pipe is not None:
                pipe.items.append("reset")
        elif isinstance(effect, Dial):
            world.later.append((self, DialFailed(effect.peer, "refused")))
        elif isinstance(effect, HangUp):
            world.hang_ups.append((self, effect.peer))
        elif isinstance(effect, RunEngine):
            self.runs[effect.run] = Run(effect, effect.request.continuation.count(" "))
            self.started[effect.sampling.seed] = self.started.get(effect.sampling.seed, 0) + 1
        elif isinstance(effect, CancelEngine):
            self.runs[effect.run].is_cancelled = True
        else:
            world.on_application(effect)


class Conversations(RuleBasedStateMachine):
    """An asker, two providers, and the world between them."""

    @initialize()
    def start(self) -> None:
        self.at_s = 0.0
        self.pipes: list[Pipe] = []
        self.later: list[tuple[Machine, Event]] = []
        self.hang_ups: list[tuple[Machine, NodeId]] = []
        self.orders: list[tuple[NodeId, Machine, bytes]] = []
        self.open_jobs: set[JobId] = set()
        self.ended: set[JobId] = set()
        self.texts: dict[JobId, str] = {}
        self.jobs = 0
        self.replays = 0
        self.has_drained = False
        self.asker = Machine("asker", self)
        self.providers = [Machine("p", self), Machine("q", self)]
        self.machines = {machine.node: machine for machine in (self.asker, *self.providers)}
        for slots, provider in enumerate(self.providers, 1):
            provider.feed(SetOffer(offer(models=(replace(OFFER, concurrency=slots),))))
            provider.feed(Allow(frozenset({self.asker.node})))
            self.connect(provider)
        self.drain()

    # ------------------------------------------------------------ the network

    def connect(self, provider: Machine) -> None:
        self.asker.feed(PeerConnected(provider.node, ADDRESS, False))
        provider.feed(PeerConnected(self.asker.node, ADDRESS, True))

    def is_connected(self, provider: Machine) -> bool:
        return provider.node in self.asker.peer._connections

    def open(self, machine: Machine, effect: OpenStream) -> None:
        target = self.machines[effect.peer]
        if machine.node not in target.peer._connections:
            self.later.append((machine, StreamBroken(effect.stream, "not connected")))
            return
        there, back = Pipe(target, None), Pipe(machine, effect.stream)
        there.other, back.other = back, there
        there.items.append(effect.protocol)
        machine.writes[effect.stream] = there
        self.pipes += [there, back]

    def deliver(self, pipe: Pipe, cut: float = 1.0) -> None:
        """The next thing on a pipe arrives; of bytes, perhaps only the first part."""
        item = pipe.items.popleft()
        reader = pipe.reader
        if isinstance(item, bytes):
            at = max(1, round(len(item) * cut))
            if item[at:]:
                pipe.items.appendleft(item[at:])
            if pipe.number in reader.writes or self._is_readable(pipe):
                reader.feed(BytesReceived(self._number(pipe), item[:at]))
        elif item == "finish":
            reader.feed(StreamFinished(self._number(pipe)))
        elif item == "reset":
            if reader.writes.pop(self._number(pipe), None) is not None:
                reader.feed(StreamBroken(self._number(pipe), "reset"))
        else:
            pipe.number = StreamId(reader.inbound)
            reader.inbound += 2
            assert pipe.other is not None
            reader.writes[pipe.number] = pipe.other
            opener = pipe.other.reader
            reader.feed(StreamOpened(pipe.number, opener.node, item))
        if not pipe.items and pipe.finished and pipe in self.pipes:
            self.pipes.remove(pipe)

    @staticmethod
    def _is_readable(pipe: Pipe) -> bool:
        return pipe.number is not None and pipe.number in pipe.reader.peer._streams

    @staticmethod
    def _number(pipe: Pipe) -> StreamId:
        assert pipe.number is not None
        return pipe.number

    def waiting(self) -> list[Pipe]:
        return [pipe for pipe in self.pipes if pipe.items]

    def drain(self) -> None:
        """Everything that is on its way arrives, and everything that this causes."""
        while True:
            if self.hang_ups:
                machine, node = self.hang_ups.pop()
                self.disconnect(machine if machine is not self.asker else self.machines[node])
            elif self.later:
                machine, event = self.later.pop(0)
                machine.feed(event)
            elif waiting := self.waiting():
                self.deliver(waiting[0])
            else:
                return

    def disconnect(self, provider: Machine) -> None:
        between = {self.asker, provider}
        for pipe in list(self.pipes):
            assert pipe.other is not None
            if {pipe.reader, pipe.other.reader} == between:
                self.pipes.remove(pipe)
                if pipe.number is not None and pipe.reader.writes.pop(pipe.number, None) is not None:
                    pipe.reader.feed(StreamBroken(pipe.number, "lost"))
        self.asker.feed(PeerDisconnected(provider.node))
        provider.feed(PeerDisconnected(self.asker.node))

    # ------------------------------------------------------------ what the application sees

    def on_application(self, effect: Effect) -> None:
        if isinstance(effect, (JobDone, JobFailed)):
            assert effect.job in self.open_jobs, "a job ended that was not open"
            self.open_jobs.remove(effect.job)
            self.ended.add(effect.job)
            if isinstance(effect, JobDone):
                provider = self.machines[effect.receipt.provider]
                seed = int.from_bytes(effect.job, "big")
                text = self.texts.get(effect.job, "")
                assert text.endswith(provider.written[seed])
                assert sum(part.output_tokens for part in effect.served) == text.count(" ")
        elif isinstance(effect, JobText):
            assert effect.job in self.open_jobs, "text of a job that has ended"
            text = self.texts[effect.job] = self.texts.get(effect.job, "") + effect.text
            assert text == "".join(f" {number}" for number in range(1, effect.output_tokens + 1))
        elif isinstance(effect, (JobAccepted, JobQueued, JobResumed)):
            assert effect.job in self.open_jobs

    # ------------------------------------------------------------ what can happen

    @precondition(lambda self: len(self.open_jobs) < 6)
    @rule(chosen=st.sampled_from([None, None, 0, 1]), timeout_s=st.sampled_from([3.0, 600.0, 600.0]))
    def ask(self, chosen: int | None, timeout_s: float) -> None:
        provider = self.providers[chosen].node if chosen is not None else None
        for _ in range(2):
            self.jobs += 1
            job = chat(self.jobs, provider=provider, timeout_s=timeout_s)
            self.open_jobs.add(job.job)
            self.asker.feed(job)

    @precondition(lambda self: self.open_jobs)
    @rule(back=st.integers(0, 3))
    def stop(self, back: int) -> None:
        self.asker.feed(StopAsking(chat(max(1, self.jobs - back)).job))

    @precondition(lambda self: self.waiting())
    @rule(which=st.integers(0, 10**6), cut=st.sampled_from([0.01, 0.5, 1.0, 1.0]), count=st.integers(1, 6))
    def arrive(self, which: int, cut: float, count: int) -> None:
        for _ in range(count):
            waiting = self.waiting()
            if waiting:
                self.deliver(waiting[which % len(waiting)], cut)

    @rule()
    def all_arrives(self) -> None:
        self.drain()

    @rule(seconds=st.sampled_from([0.02] * 8 + [0.5, 2.0] * 2 + [5.1, 20.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        end_s = self.at_s + seconds
        while True:
            due = [
                (deadline, node)
                for node, machine in self.machines.items()
                if (deadline := machine.peer.next_deadline()) is not None and deadline <= end_s
            ]
            if not due:
                break
            deadline, node = min(due)
            self.at_s = max(self.at_s, deadline)
            machine = self.machines[node]
            machine.feed(DEADLINE)
            following = machine.peer.next_deadline()
            assert following is None or following > self.at_s
        self.at_s = end_s

    def _runs(self) -> list[tuple[Machine, Run]]:
        return [(provider, run) for provider in self.providers for run in provider.runs.values()]

    @precondition(lambda self: self._runs())
    @rule(
        which=st.integers(0, 10**6),
        what=st.sampled_from(["text", "text", "burst", "progress", "finish", "finish", "length", "fail", "drop"]),
    )
    def engine(self, which: int, what: str) -> None:
        runs = self._runs()
        provider, run = runs[which % len(runs)]
        number, seed = run.order.run, run.order.sampling.seed
        if what == "fail":
            self.end(provider, run, EngineFailed(number, Refusal.ENGINE_FAILED, "it broke"))
        elif what == "drop" or run.is_cancelled:
            self.end(provider, run, EngineFinished(number, Outcome.CANCELLED, run.tokens))
        elif not run.is_started:
            run.is_started = True
            provider.feed(EngineStarted(number, 3))
        elif what == "progress":
            provider.feed(EngineProgress(number, 1, 3))
        elif what in ("text", "burst") and self.room(run):
            for _ in range(min(20 if what == "burst" else 1, self.room(run))):
                self.write(provider, run)
        else:
            provider.written[seed] = run.text
            outcome = Outcome.LENGTH if what == "length" else Outcome.STOP
            self.end(provider, run, EngineFinished(number, outcome, run.tokens))

    @precondition(lambda self: self.open_jobs)
    @rule(tokens=st.integers(1, 30))
    def all_goes_well_for_a_while(self, tokens: int) -> None:
        """Without this, hardly a job would get far enough for the rest to hurt."""
        self.drain()
        for provider, run in self._runs():
            if not run.is_started:
                run.is_started = True
                provider.feed(EngineStarted(run.order.run, 3))
            for _ in range(tokens):
                if not run.is_cancelled and self.room(run):
                    self.write(provider, run)
        self.drain()

    @staticmethod
    def room(run: Run) -> int:
        """How many tokens the order still allows."""
        return run.order.output_tokens_max - run.tokens

    @staticmethod
    def write(provider: Machine, run: Run) -> None:
        run.tokens += 1
        text = f" {run.before + run.tokens}"
        run.text += text
        provider.feed(EngineText(run.order.run, text, run.tokens))

    @staticmethod
    def end(provider: Machine, run: Run, event: EngineFinished | EngineFailed) -> None:
        del provider.runs[run.order.run]
        provider.feed(event)

    def _job_pipes(self) -> list[Pipe]:
        return [pipe for pipe in self.pipes if self._is_readable(pipe)]

    @precondition(lambda self: self._job_pipes())
    @rule(which=st.integers(0, 10**6), what=st.sampled_from(["break", "overflow", "garbage", "fault", "again"]))
    def harm(self, which: int, what: str) -> None:
        pipes = self._job_pipes()
        pipe = pipes[which % len(pipes)]
        number = self._number(pipe)
        if what == "break":
            assert pipe.other is not None
            pipe.items.append("reset")
            pipe.other.items.append("reset")
        elif what == "overflow" and number in pipe.reader.writes:
            pipe.reader.feed(OutboxFull(number))
        elif what == "garbage" and not pipe.finished:
            pipe.items.append(b"\x00\x00\x00\x02\x91\x7e")
        elif what == "fault" and not pipe.finished:
            pipe.items.append(encode_message(Fault(1, "made up")))
        elif what == "again" and pipe.items and isinstance(pipe.items[-1], bytes):
            pipe.items.append(pipe.items[-1])

    @precondition(lambda self: self.orders)
    @rule(which=st.integers(0, 10**6))
    def replay(self, which: int) -> None:
        """Somebody in the middle brings an order a second time, on a stream of its own."""
        asker, provider, data = self.orders[which % len(self.orders)]
        if asker not in provider.peer._connections:
            return
        self.replays += 1
        number = StreamId(provider.inbound)
        provider.inbound += 2
        provider.feed(StreamOpened(number, asker, c.JOB_PROTOCOL))
        provider.feed(BytesReceived(number, data))
        provider.feed(StreamBroken(number, "gone again"))

    @rule(which=st.integers(0, 1))
    def vanish_or_come_back(self, which: int) -> None:
        provider = self.providers[which]
        if self.is_connected(provider):
            self.disconnect(provider)
        else:
            self.connect(provider)

    @precondition(lambda self: self.jobs > 8 and not self.has_drained)
    @rule()
    def retire(self) -> None:
        self.has_drained = True
        self.providers[1].feed(Drain())

    # ------------------------------------------------------------ what must hold

    @invariant()
    def a_run_is_started_once_per_order(self) -> None:
        if not hasattr(self, "providers"):
            return
        ordered = Counter(
            (provider, int.from_bytes(decode_record(opening.order.body, JobOpenRecord).job, "big"))
            for _, provider, data in self.orders
            if (opening := sent(data, JobOpen)) is not None
        )
        for provider in self.providers:
            for seed, count in provider.started.items():
                assert count <= ordered[provider, seed], "an order ran twice"

    def teardown(self) -> None:
        if not hasattr(self, "providers"):
            return
        for _ in range(12):
            self.drain()
            for provider, run in self._runs():
                outcome = Outcome.CANCELLED if run.is_cancelled else Outcome.STOP
                if not run.is_cancelled and not run.is_started:
                    run.is_started = True
                    provider.feed(EngineStarted(run.order.run, 3))
                if not run.is_cancelled:
                    provider.written[run.order.sampling.seed] = run.text
                self.end(provider, run, EngineFinished(run.order.run, outcome, run.tokens))
            self.drain()
            self.time_passes(70.0)
        assert not self.open_jobs, "a job never ended"
        for machine in self.machines.values():
            statistics = machine.peer.statistics()
            assert (statistics.jobs_asked, statistics.jobs_running, statistics.queries) == (0, 0, 0)
            assert statistics.streams <= 2 * statistics.connections


TestConversations = Conversations.TestCase
TestConversations.settings = settings(stateful_step_count=60, deadline=None)
