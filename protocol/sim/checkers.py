"""The judges: each sees what goes into the peers and what comes out, knows one rule, and keeps what breaks it.

They know nothing of the machines' insides. What travels is read off the bytes that are sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from protocol import constants as c
from protocol.codec import decode_record
from protocol.effects import (
    JobAccepted,
    JobDone,
    JobFailed,
    JobQueued,
    JobResumed,
    JobText,
    JobVector,
    Misbehaved,
    Note,
    RunEngine,
    Send,
)
from protocol.events import Ask, EngineFailed, EngineFinished, EngineText
from protocol.ids import JobId, NodeId, RunId
from protocol.messages import JobAccept, JobOpen, Receipt
from protocol.peer import PeerStatistics
from protocol.records import JobAcceptRecord, JobOpenRecord, ReceiptRecord
from protocol.sim.bank import Bank
from protocol.sim.engine import word
from protocol.sim.reading import sent


class Crashed(Struct, frozen=True):
    """Not an event of the protocol: the observed machine lost its state."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event before a machine takes it, or an effect before it is performed."""

    at_s: float
    index: int
    node: NodeId
    #: How often this machine has crashed before.
    life: int
    item: Any


@dataclass(frozen=True, slots=True)
class Ending:
    """What the judges are shown when everything should have come to rest."""

    statistics: Sequence[PeerStatistics]
    network_streams: int
    engine_runs: int
    #: The coordinator and its clock, where there is money.
    bank: Bank | None = None
    wall_ms: int = 0


class Checker:
    """Base of all judges."""

    def __init__(self) -> None:
        self.violations: list[str] = []

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        """What this judge wants to see, and who looks at it."""
        return {}

    def finish(self, ending: Ending, /) -> None:
        """Judge the end."""

    def blame(self, at_s: float, text: str) -> None:
        self.violations.append(f"{at_s:.3f} s: {type(self).__name__}: {text}")


class AtMostOnce(Checker):
    """A provider accepts and runs one attempt of a job at most once, over its crashes and over replays, too."""

    def __init__(self) -> None:
        super().__init__()
        self._job_of_seed: dict[int, JobId] = {}
        self._ordered: defaultdict[tuple[NodeId, JobId], set[int]] = defaultdict(set)
        self._accepted: set[tuple[NodeId, JobId, int]] = set()
        self._runs: defaultdict[tuple[NodeId, JobId], int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Ask: self._on_ask, Send: self._on_send, RunEngine: self._on_run}

    def _on_ask(self, seen: Seen) -> None:
        self._job_of_seed[seen.item.sampling.seed] = seen.item.job

    def _on_send(self, seen: Seen) -> None:
        data: bytes = seen.item.data
        if (opening := sent(data, JobOpen)) is not None:
            order = decode_record(opening.order.body, JobOpenRecord)
            self._ordered[order.provider, order.job].add(order.attempt)
        elif (accepting := sent(data, JobAccept)) is not None:
            record = decode_record(accepting.acceptance.body, JobAcceptRecord)
            if record.provider != seen.node:
                return  # it is passed on
            key = (record.provider, record.job, record.attempt)
            if key in self._accepted:
                self.blame(seen.at_s, f"peer {seen.index} accepted attempt {record.attempt} of a job twice")
            self._accepted.add(key)

    def _on_run(self, seen: Seen) -> None:
        job = self._job_of_seed[seen.item.sampling.seed]
        self._runs[seen.node, job] += 1
        runs, ordered = self._runs[seen.node, job], len(self._ordered[seen.node, job])
        if runs > ordered:
            self.blame(seen.at_s, f"peer {seen.index} ran a job {runs} times of which it had {ordered} orders")


class OneEnding(Checker):
    """Every job that was asked ends exactly once, and nothing of it comes after the end."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[JobId, Seen] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            Ask: self._on_ask,
            JobAccepted: self._on_piece,
            JobQueued: self._on_piece,
            JobResumed: self._on_piece,
            JobText: self._on_piece,
            JobVector: self._on_piece,
            JobDone: self._on_end,
            JobFailed: self._on_end,
            Crashed: self._on_crash,
        }

    def _on_ask(self, seen: Seen) -> None:
        self._open[seen.item.job] = seen

    def _on_piece(self, seen: Seen) -> None:
        if seen.item.job not in self._open:
            self.blame(seen.at_s, f"peer {seen.index}: {type(seen.item).__name__} of a job that has ended")

    def _on_end(self, seen: Seen) -> None:
        if self._open.pop(seen.item.job, None) is None:
            self.blame(seen.at_s, f"peer {seen.index}: {type(seen.item).__name__} of a job that has ended")

    def _on_crash(self, seen: Seen) -> None:
        for job in [job for job, asked in self._open.items() if asked.index == seen.index]:
            del self._open[job]

    def finish(self, _ending: Ending, /) -> None:
        for asked in self._open.values():
            self.blame(asked.at_s, f"a job that peer {asked.index} asked then never ended")


class EngineRuns(Checker):
    """Every run of an engine ends exactly once, and what it wrote reaches the asker whole or not as done."""

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[tuple[int, int, RunId], Seen] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            RunEngine: self._on_run,
            EngineFinished: self._on_end,
            EngineFailed: self._on_end,
            Crashed: self._on_crash,
        }

    def _on_run(self, seen: Seen) -> None:
        self._running[seen.index, seen.life, seen.item.run] = seen

    def _on_end(self, seen: Seen) -> None:
        if self._running.pop((seen.index, seen.life, seen.item.run), None) is None:
            self.blame(seen.at_s, f"peer {seen.index}: run {seen.item.run} ended, and was not running")

    def _on_crash(self, seen: Seen) -> None:
        for key in [key for key in self._running if key[0] == seen.index]:
            del self._running[key]

    def finish(self, _ending: Ending, /) -> None:
        for (index, _, run), seen in self._running.items():
            self.blame(seen.at_s, f"peer {index}: run {run} that began then never ended")


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    output_tokens: int = 0


class Receipts(Checker):
    """A job is done only with a receipt that its last provider sent, over exactly the text that its engine wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._seed_of_job: dict[JobId, int] = {}
        self._written: dict[tuple[int, int, RunId], _Answer] = {}
        self._latest: dict[tuple[NodeId, int], _Answer] = {}
        self._read: defaultdict[JobId, list[str]] = defaultdict(list)
        self._receipts: dict[tuple[NodeId, JobId, int], ReceiptRecord] = {}

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {
            Ask: self._on_ask,
            RunEngine: self._on_run,
            EngineText: self._on_engine_text,
            EngineFinished: self._on_engine_finished,
            Send: self._on_send,
            JobAccepted: self._on_attempt,
            JobResumed: self._on_attempt,
            JobText: self._on_text,
            JobDone: self._on_done,
        }

    def _on_ask(self, seen: Seen) -> None:
        self._seed_of_job[seen.item.job] = seen.item.sampling.seed

    def _on_run(self, seen: Seen) -> None:
        answer = self._written[seen.index, seen.life, seen.item.run] = _Answer()
        self._latest[seen.node, seen.item.sampling.seed] = answer

    def _answer(self, seen: Seen) -> _Answer:
        return self._written[seen.index, seen.life, seen.item.run]

    def _on_engine_text(self, seen: Seen) -> None:
        self._answer(seen).text.append(seen.item.text)

    def _on_engine_finished(self, seen: Seen) -> None:
        self._answer(seen).output_tokens = seen.item.output_tokens

    def _on_send(self, seen: Seen) -> None:
        if (message := sent(seen.item.data, Receipt)) is not None:
            record = decode_record(message.receipt.body, ReceiptRecord)
            self._receipts[record.provider, record.job, record.attempt] = record

    def _on_attempt(self, seen: Seen) -> None:
        self._read[seen.item.job] = []

    def _on_text(self, seen: Seen) -> None:
        self._read[seen.item.job].append(seen.item.text)

    def _on_done(self, seen: Seen) -> None:
        job, receipt = seen.item.job, seen.item.receipt
        if self._receipts.get((receipt.provider, job, receipt.attempt)) != receipt:
            self.blame(seen.at_s, f"peer {seen.index} took a receipt that its provider did not send")
            return
        written = self._latest[receipt.provider, self._seed_of_job[job]]
        if "".join(self._read.pop(job, [])) != "".join(written.text):
            self.blame(seen.at_s, f"peer {seen.index} read another text than the engine wrote")
        if receipt.output_tokens != written.output_tokens:
            self.blame(seen.at_s, f"a receipt over {receipt.output_tokens} tokens of {written.output_tokens}")


class WholeAnswers(Checker):
    """An answer is the same whoever gave it: nothing is missing where another provider went on, and no token is counted
    twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tokens: defaultdict[JobId, int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {JobText: self._on_text, JobResumed: self._on_resumed, JobDone: self._on_done}

    def _on_text(self, seen: Seen) -> None:
        job = seen.item.job
        before, self._tokens[job] = self._tokens[job], seen.item.output_tokens
        expected = "".join(word(number) for number in range(before + 1, seen.item.output_tokens + 1))
        if seen.item.text != expected:
            self.blame(seen.at_s, f"peer {seen.index} read something else than the words after the first {before}")

    def _on_resumed(self, seen: Seen) -> None:
        if seen.item.output_tokens_before != self._tokens[seen.item.job]:
            self.blame(seen.at_s, f"peer {seen.index} resumes after other tokens than it has read")

    def _on_done(self, seen: Seen) -> None:
        job, served = seen.item.job, seen.item.served
        if sum(part.output_tokens for part in served) != self._tokens[job]:
            self.blame(seen.at_s, f"peer {seen.index} counts other tokens for its providers than it has read")
        attempts = [part.attempt for part in served]
        if attempts != sorted(set(attempts)) or not served or served[-1].attempt != seen.item.receipt.attempt:
            self.blame(seen.at_s, f"peer {seen.index} names the attempts {attempts} of a job")


class Fencing(Checker):
    """The orders of one job are numbered without gaps or repetition, and there are only so many of them."""

    def __init__(self) -> None:
        super().__init__()
        self._attempts: defaultdict[tuple[int, JobId], int] = defaultdict(int)

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Send: self._on_send}

    def _on_send(self, seen: Seen) -> None:
        if (opening := sent(seen.item.data, JobOpen)) is None:
            return
        order = decode_record(opening.order.body, JobOpenRecord)
        if order.asker != seen.node:
            return  # it is passed on
        key = (seen.index, order.job)
        self._attempts[key] += 1
        if order.attempt != self._attempts[key] or order.attempt > 2 * c.ORDERS_MAX:
            self.blame(seen.at_s, f"peer {seen.index} sent order {self._attempts[key]} as attempt {order.attempt}")


class CleanEnd(Checker):
    """Honest peers never blame each other, and when all is done nothing is left but connections and their gossip."""

    def interests(self) -> dict[type, Callable[[Seen], None]]:
        return {Misbehaved: self._on_misbehaved, Note: self._on_note}

    def _on_misbehaved(self, seen: Seen) -> None:
        self.blame(seen.at_s, f"peer {seen.index} blames an honest peer: {seen.item.reason}")

    def _on_note(self, seen: Seen) -> None:
        if seen.item.event == "peer.misbehaved":
            self.blame(seen.at_s, f"peer {seen.index} blames an honest peer: {seen.item.detail}")

    def finish(self, ending: Ending, /) -> None:
        for index, statistics in enumerate(ending.statistics):
            if statistics.bad_frames:
                self.blame(0.0, f"peer {index} counted {statistics.bad_frames} bad frames from honest peers")
            left = (statistics.jobs_asked, statistics.jobs_running, statistics.queries)
            if any(left):
                self.blame(0.0, f"peer {index} still holds (jobs asked, runs, queries) = {left}")
            if statistics.streams > 2 * statistics.connections:
                self.blame(0.0, f"peer {index} holds {statistics.streams} streams on {statistics.connections} links")
        if ending.engine_runs:
            self.blame(0.0, f"{ending.engine_runs} runs are left in the engines")
        held = sum(statistics.streams for statistics in ending.statistics)
        if held != ending.network_streams:
            self.blame(0.0, f"the peers know of {held} ends of streams, the network of {ending.network_streams}")


def all_checkers() -> list[Checker]:
    """One of each."""
    return [AtMostOnce(), OneEnding(), EngineRuns(), Receipts(), WholeAnswers(), Fencing(), CleanEnd()]
