"""The one thread that owns ExLlama's generator: it lets jobs in, turns the crank, and hands out what comes.

ExLlama knows no threads, and a job of it cannot be waited for. So runs wait on threads of their own for what the pump
puts into their ticket, and the pump looks at each ticket before each turn: a run that is cancelled is gone after the
turn under way. A job that the generator does not take is the end of that run alone. What breaks the generator's turn
breaks all of them: nothing is certain after it, so the process is to be ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from infernet.engines.contract import EngineBroken

Result = Mapping[str, Any]


class Generator(Protocol):
    """What of ExLlama's generators is used; those of both releases have it."""

    def enqueue(self, job: Any) -> Any:
        """Take a job and give its serial number. Raises AssertionError for one that can never fit."""

    def iterate(self) -> list[dict[str, Any]]:
        """One turn for all jobs, and what came of it."""

    def cancel(self, job: Any) -> None:
        """Forget a job. Nothing is said of it any more."""

    def num_remaining_jobs(self) -> int:
        """How many jobs are not done."""


class NotTaken(Exception):
    """The generator did not take a job."""


@dataclass(frozen=True)
class _Over:
    """No more results come: the job is done, was given up, was not taken, or the generator broke."""

    error: Exception | None = None


@dataclass
class Ticket:
    """One job as its run sees it."""

    make_job: Callable[[], Any]
    cancelled: threading.Event
    _results: SimpleQueue[Result | _Over] = field(default_factory=SimpleQueue)
    _given_up: threading.Event = field(default_factory=threading.Event)
    _is_over: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for the job."""
        return not (self.cancelled.is_set() or self._given_up.is_set())

    def results(self) -> Iterator[Result]:
        """What comes of the job; once this ends its slot is free. Raises NotTaken or EngineBroken."""
        while not self._is_over:
            result = self._results.get()
            if isinstance(result, _Over):
                self._is_over = True
                if result.error is not None:
                    raise result.error
                return
            yield result

    def give_up(self) -> None:
        """End the job, whatever comes of it, and wait until its slot is free. Raises EngineBroken."""
        self._given_up.set()
        for _ in self.results():
            pass

    def put(self, result: Result | _Over) -> None:
        """For the pump."""
        self._results.put(result)


class Pump:
    """Owns a generator from now on."""

    def __init__(self, generator: Generator) -> None:
        """Start the thread."""
        self._generator = generator
        self._arrivals: SimpleQueue[Ticket] = SimpleQueue()
        self._active: dict[Any, tuple[Any, Ticket]] = {}
        self._lock = threading.Lock()
        self._broken: EngineBroken | None = None
        threading.Thread(target=self._run, name="exllama", daemon=True).start()

    def submit(self, make_job: Callable[[], Any], cancelled: threading.Event) -> Ticket:
        """Have a job done, which is made on the pump's thread. Raises EngineBroken."""
        ticket = Ticket(make_job, cancelled)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._arrivals.put(ticket)
        return ticket

    def jobs(self) -> int:
        """How many jobs the generator itself says it has."""
        return self._generator.num_remaining_jobs()

    # ------------------------------------------------------------ on the pump's thread

    def _run(self) -> None:
        try:
            while True:
                self._let_in()
                self._let_go()
                if self._active:
                    for result in self._generator.iterate():
                        self._hand_out(result)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it; they end the process
            self._break(EngineBroken(type(error).__name__))

    def _let_in(self) -> None:
        """Take those that came, and wait for one while there is nothing to do."""
        while not self._active or not self._arrivals.empty():
            ticket = self._arrivals.get()
            if not ticket.is_wanted:
                ticket.put(_Over())
                continue
            try:
                job = ticket.make_job()
                serial = self._generator.enqueue(job)
            except (AssertionError, ValueError) as error:
                ticket.put(_Over(NotTaken(type(error).__name__)))
                continue
            self._active[serial] = job, ticket

    def _let_go(self) -> None:
        for serial, (job, ticket) in list(self._active.items()):
            if not ticket.is_wanted:
                self._generator.cancel(job)
                self._end(serial)

    def _hand_out(self, result: Result) -> None:
        entry = self._active.get(result["serial"])
        if entry is None:
            return  # a last word of a job that is over
        _, ticket = entry
        ticket.put(result)
        if result["eos"]:
            self._end(result["serial"])

    def _end(self, serial: Any) -> None:
        _, ticket = self._active.pop(serial)
        ticket.put(_Over())

    def _break(self, error: EngineBroken) -> None:
        with self._lock:
            self._broken = error
            waiting = [ticket for _, ticket in self._active.values()]
            while not self._arrivals.empty():
                waiting.append(self._arrivals.get())
        for ticket in waiting:
            ticket.put(_Over(error))
