"""An engine in a process of its own, and its supervision.

The process is ended and started again when it crashes, when it does not answer, when it stands still while it loads,
when nothing happens on any run for too long, when a cancelled run does not end, when it says what no engine may say,
and when it leaks a slot. Runs in flight end with EngineFailed, each exactly once; each start that fails makes the wait
before the next one longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from infernet.confinement.contract import Protection, describe
from infernet.engines import folders, models
from infernet.engines.contract import (
    Description,
    EngineConfig,
    EngineEvent,
    EnginePart,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    loading_for,
)
from infernet.engines.frames import Idle, Load, LoadFailed, Ping, Pong, Probed, Ready, Seen, WorkerReport
from infernet.engines.process import ANYWHERE, Place, WorkerProcess, open_worker, worker_command
from infernet.host.files import reason_of
from infernet.host.processes import work_done
from protocol.constants import TOKEN_ID_BYTES
from protocol.effects import CancelEngine, ContinueEngine, RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.formats.text import clean_line
from protocol.ids import RunId
from protocol.records import EngineKind, ModelOffer, Outcome

log = structlog.get_logger(__name__)

# What an engine process may say of why it cannot load; a path has a part in it.
_REASON_CHARACTERS_MAX: Final = 1024
# More than the longest token of any vocabulary spells. Without an end a broken process would fill the node's memory
# with text that waits to be paid for.
_TOKEN_CHARACTERS_MAX: Final = 4096
# How often it is looked, in that time, whether a process that loads does anything.
_LOOKS: Final = 20


@dataclass(frozen=True)
class Timeouts:
    """When the supervisor loses patience, in seconds."""

    # Loading takes as long as a disk likes; a process that neither computes nor reads for this long will not end it.
    load_idle_s: float = 600.0
    # The process answers pings on a thread of its own, whatever the engine does.
    ping_interval_s: float = 1.0
    ping_answer_s: float = 5.0
    # No token, no prompt batch, no result on any run: one batch of a large model on a CPU takes several seconds.
    stall_s: float = 120.0
    # A batch that is under way is not interrupted, so this is not CANCEL_DEADLINE_S.
    cancel_s: float = 60.0
    restart_first_s: float = 0.5
    restart_max_s: float = 60.0
    # A process that served this long was well; the next fault is not counted with the last.
    healthy_s: float = 60.0


class _BrokenContract(Exception):
    """The engine process reported what no engine may report."""


@dataclass
class _Run:
    output_tokens_max: int
    prompt_tokens_max: int
    inputs: int
    holds: bool = False
    started: bool = False
    output_tokens: int = 0
    characters: int = 0
    vectors: set[int] = field(default_factory=set)
    cancelled_at_s: float = math.inf


@dataclass
class _Ping:
    number: int = 0
    answered: int = 0
    sent_at_s: float = 0.0


_NOT_READY: Final = {
    EngineState.STOPPED: "the engine is stopped",
    EngineState.STARTING: "the engine is loading its model: try again in a few seconds",
    EngineState.WAITING: "the engine broke and is being restarted: try again in a few seconds",
}


def _nothing() -> None:
    pass


class IsolatedEngine:
    """`contract.Engine` over an engine process, which is told what to load by an `EngineConfig`."""

    def __init__(
        self,
        config: EngineConfig,
        timeouts: Timeouts = Timeouts(),
        command: Sequence[str] | None = None,
        place: Place = ANYWHERE,
    ) -> None:
        """`command` starts another process than our own; it must speak `frames`."""
        self._config = config
        self._checked: bytes | None = None
        self._place: Place | None = place
        self._no_place = ""
        self._timeouts = timeouts
        self._command = worker_command() if command is None else list(command)
        self.on_change: Callable[[], None] = _nothing
        self._report: Report | None = None
        self._state = EngineState.STOPPED
        self._started_at_s = 0.0
        self._worker: WorkerProcess | None = None
        self._on_cards = False
        self._offer: ModelOffer | None = None
        self._runs: dict[RunId, _Run] = {}
        self._busy = trio.Event()
        self._ping = _Ping()
        self._moved_at_s = 0.0
        self._runs_total = 0
        self._restarts = 0
        self._slots_leaked = 0
        self._last_error = ""
        self._protections: tuple[Protection, ...] = ()

    @property
    def pid(self) -> int | None:
        """The engine process's id, while there is one."""
        return self._worker.pid if self._worker is not None else None

    @property
    def name(self) -> str:
        """The model's name, whether or not it is offered now."""
        return self._config.name

    @property
    def place(self) -> Place | None:
        """Where it may run; None once there is no place for it."""
        return self._place

    def move(self, place: Place | None, reason: str) -> None:
        """Run elsewhere from now on, or nowhere any more; what runs ends, for this reason. Never waits."""
        self._place, self._no_place = place, reason
        if self._worker is not None:
            self._worker.kill(reason)

    def parts(self) -> tuple[EnginePart, ...]:
        """What runs where; see `contract.TellsParts`."""
        where = self._place.words if self._place is not None else ""
        if not where and self._worker is not None:
            where = "all GPUs" if self._on_cards else "the processor"
        trouble = self._last_error if self._state is not EngineState.READY else ""
        runs, restarts = len(self._runs), self._restarts
        exllama = self._config.exllama
        word = f"exllamav{exllama.version}" if exllama is not None else "llama"
        loading_s = loading_for(self._state, self._started_at_s)
        return (EnginePart(word, (self.name,), self._state, where, runs, restarts, trouble, loading_s),)

    # ------------------------------------------------------------ the contract

    def start(self, run: RunEngine) -> None:
        """Start a run, or refuse it; see `contract.Engine`."""
        assert self._report is not None, "the engine was never run"
        assert run.run not in self._runs, "two runs of one number"
        self._runs_total += 1
        refusal = self._refusal(run)
        if refusal is None:
            assert self._worker is not None
            try:
                self._worker.post(run)
            except UnicodeEncodeError:
                refusal = Refusal.BAD_REQUEST, "the prompt is not Unicode text"
        if refusal is not None:
            self._report(EngineFailed(run.run, *refusal))
            return
        if not self._runs:
            self._moved_at_s = trio.current_time()
            self._busy.set()
        self._runs[run.run] = _Run(run.output_tokens_max, run.prompt_tokens_max, len(run.request.inputs), run.holds)

    def _refusal(self, run: RunEngine) -> tuple[Refusal, str] | None:
        if self._state is not EngineState.READY:
            return Refusal.ENGINE_UNAVAILABLE, _NOT_READY[self._state]
        if run.model != self._config.name:
            return Refusal.NO_MODEL, f"this engine serves {self._config.name}"
        if run.kind not in self._config.kinds:
            return Refusal.UNSUPPORTED, f"{self._config.name} is not offered for this kind of job"
        if len(self._runs) >= self._config.slots:
            return Refusal.BUSY, f"all {self._config.slots} slots of the engine are in use"
        return None

    def cancel(self, run: RunId) -> None:
        """Stop a run; see `contract.Engine`."""
        active = self._runs.get(run)
        if active is None or active.cancelled_at_s < math.inf:
            return
        active.cancelled_at_s = trio.current_time()
        assert self._worker is not None
        self._worker.post(CancelEngine(run))

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that holds; see `contract.Engine`."""
        active = self._runs.get(run)
        if active is None or not active.holds:
            return
        active.holds = False
        self._moved_at_s = trio.current_time()
        assert self._worker is not None
        self._worker.post(ContinueEngine(run))

    def card_gone(self) -> None:
        """A GPU is gone; see `contract.RunsOnCards`."""
        # llama.cpp spreads a model over all cards, so what any one of them held is lost.
        if self._worker is not None and self._on_cards:
            self._worker.kill("a GPU is gone")

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment."""
        return (self._offer,) if self._offer is not None else ()

    def described(self) -> Mapping[str, Description]:
        """See `contract.DescribesModels`."""
        return {self._config.name: Description(self._config.quantisation, self._kind())}

    def _kind(self) -> EngineKind:
        exllama = self._config.exllama
        if exllama is None:
            return EngineKind.LLAMA_CPP
        return EngineKind.EXLLAMA_V2 if exllama.version == 2 else EngineKind.EXLLAMA_V3

    def statistics(self) -> EngineStatistics:
        """What the engine did so far."""
        return EngineStatistics(
            state=self._state,
            runs_active=len(self._runs),
            runs_total=self._runs_total,
            restarts=self._restarts,
            slots_leaked=self._slots_leaked,
            last_error=self._last_error,
            protections=self._protections,
            loading_s=loading_for(self._state, self._started_at_s),
        )

    # ------------------------------------------------------------ life

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the model, then serve until cancelled; see `contract.Engine`."""
        self._report = report
        wait_s = self._timeouts.restart_first_s
        told = False
        logged = ""

        def ready() -> None:
            nonlocal told, logged
            if logged:
                logged = ""
                log.info("engine.up", model=self.name, restarts=self._restarts)
            if not told:
                told = True
                task_status.started()

        try:
            while True:
                self._state = EngineState.STARTING
                self._started_at_s = trio.current_time()
                try:
                    self._last_error = await self._serve_once(ready)
                except models.ModelError as error:
                    if not told:
                        raise
                    self._last_error = str(error)
                if not told:
                    raise EngineUnavailable(self._last_error)
                self._down(EngineState.WAITING, Refusal.ENGINE_FAILED, "the engine broke down during the answer")
                if self._place is None:
                    raise EngineUnavailable(self._no_place)
                if trio.current_time() - self._started_at_s > self._timeouts.healthy_s:
                    wait_s = self._timeouts.restart_first_s
                # One that cannot be started again is said once, not at every try.
                if logged != self._last_error:
                    logged = self._last_error
                    log.warning("engine.down", model=self.name, reason=logged, retry_in_s=wait_s)
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._timeouts.restart_max_s)
                self._restarts += 1
        finally:
            self._down(EngineState.STOPPED, Refusal.SHUTDOWN, "the node is stopping")

    async def _serve_once(self, ready: Callable[[], None]) -> str:
        """One life of the engine process; why it ended, in one line. Raises ModelError."""
        digest, self._checked = self._checked or await self._check_file(), None
        place = self._place
        if place is None:
            return self._no_place
        try:
            async with open_worker(self._command, place) as worker:
                return await self._life(worker, place, digest, ready)
        except OSError as error:
            return f"the engine process cannot be started ({reason_of(error)})"

    async def check(self) -> None:
        """See `contract.ChecksFiles`."""
        self._checked = await self._check_file()

    async def _check_file(self) -> bytes:
        """The SHA-256 of the model file, which is the one that was configured. Raises ModelError."""
        path = Path(self._config.path)
        if self._config.exllama is not None:
            return await self._check_folder(path)
        if self._config.fingerprint is not None:
            await trio.to_thread.run_sync(models.verify, path, self._config.fingerprint, abandon_on_cancel=True)
        digest = await trio.to_thread.run_sync(models.fingerprint, path, abandon_on_cancel=True)
        # From the first load on it is this very file, or none.
        system_prompt = self._config.system_prompt or models.system_prompt_of(digest)
        self._config = replace(self._config, fingerprint=digest, system_prompt=system_prompt)
        return digest

    async def _check_folder(self, path: Path) -> bytes:
        digest = await trio.to_thread.run_sync(folders.fingerprint, path, abandon_on_cancel=True)
        if self._config.fingerprint not in (None, digest):
            raise models.ModelCorrupt(f"the files of the model folder {path} have changed: fetch the model again")
        return digest

    async def _life(self, worker: WorkerProcess, place: Place, digest: bytes, ready: Callable[[], None]) -> str:
        """From loading to the end of the process; why it ended."""
        worker.post(Load(replace(self._config, on_processor=place.on_processor), worker.directory))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_loading, worker)
            loaded = await worker.receive()
            nursery.cancel_scope.cancel()
        match loaded:
            case Ready() if self._place is not place:
                worker.kill("it was given another place while it loaded")
            case Ready():
                self._up(worker, digest, loaded)
                ready()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, worker)
                    await self._serve(worker)
                    nursery.cancel_scope.cancel()
            case LoadFailed():
                await worker.hear_reason()
                worker.kill(clean_line(loaded.text, _REASON_CHARACTERS_MAX))
            case None:
                pass
            case _:
                worker.kill("the engine process broke its contract (a report before the model was loaded)")
        return await worker.why_gone()

    def _up(self, worker: WorkerProcess, digest: bytes, loaded: Ready) -> None:
        config = self._config
        self._worker = worker
        self._on_cards = loaded.on_cards
        self._protections = loaded.protections
        if not all(each.is_on for each in loaded.protections):
            log.warning("engine.unconfined", reason=describe(loaded.protections))
        self._ping = _Ping()
        self._offer = ModelOffer(
            name=config.name,
            fingerprint=digest,
            kinds=config.kinds,
            context_tokens=loaded.context_tokens,
            concurrency=config.slots,
            price_in_uusd=config.price_in_uusd,
            price_out_uusd=config.price_out_uusd,
            price_job_uusd=config.price_job_uusd,
        )
        self._state = EngineState.READY
        self.on_change()

    def _down(self, state: EngineState, code: Refusal, text: str) -> None:
        """The process is gone: end all runs, offer nothing."""
        assert self._report is not None
        self._state = state
        self._worker = None
        self._busy = trio.Event()
        runs, self._runs = self._runs, {}
        offer, self._offer = self._offer, None
        for run in runs:
            self._report(EngineFailed(run, code, text))
        if offer is not None:
            self.on_change()

    # ------------------------------------------------------------ reports

    async def _serve(self, worker: WorkerProcess) -> None:
        while (report := await worker.receive()) is not None:
            try:
                self._take(report)
            except _BrokenContract as error:
                worker.kill(f"the engine process broke its contract ({error})")
                return

    def _take(self, report: WorkerReport) -> None:
        match report:
            case Pong():
                self._ping.answered = report.number
            case Idle():
                if report.slots_busy:
                    self._slots_leaked += report.slots_busy
                    raise _BrokenContract(f"{report.slots_busy} slots are busy without a run")
            case Ready() | LoadFailed() | Seen() | Probed():
                raise _BrokenContract("the model was loaded already")
            case _:
                self._pass_on(report)

    def _pass_on(self, event: EngineEvent) -> None:
        assert self._report is not None
        run = self._runs.get(event.run)
        if run is None:
            raise _BrokenContract("a report on a run that is not active")
        _check(event, run)
        self._moved_at_s = trio.current_time()
        if isinstance(event, EngineFinished | EngineFailed):
            del self._runs[event.run]
            if not self._runs:
                self._busy = trio.Event()
        self._report(event)

    # ------------------------------------------------------------ supervision

    async def _watch_loading(self, worker: WorkerProcess) -> None:
        """End a process that does nothing while it should load. One that does something has all the time it wants."""
        idle_s = self._timeouts.load_idle_s
        done, moved_at_s = work_done(worker.pid), trio.current_time()
        while True:
            await trio.sleep(idle_s / _LOOKS)
            now_done, now_s = work_done(worker.pid), trio.current_time()
            # Where it is not shown what a process does, that it lives must do.
            if now_done is None or now_done != done:
                done, moved_at_s = now_done, now_s
            elif now_s - moved_at_s > idle_s:
                worker.kill(f"the engine process stood still for {idle_s:.0f} s while it loaded the model")
                return

    async def _watch(self, worker: WorkerProcess) -> None:
        """End a process that hangs. While there is no run there is nothing to wait for, and it is left in peace."""
        while True:
            await self._busy.wait()
            await trio.sleep(self._timeouts.ping_interval_s)
            complaint = self._complaint(trio.current_time())
            if complaint is not None:
                worker.kill(complaint)
                return
            if self._ping.answered == self._ping.number:
                self._ping = _Ping(self._ping.number + 1, self._ping.answered, trio.current_time())
                worker.post(Ping(self._ping.number))

    def _complaint(self, now_s: float) -> str | None:
        if not self._runs:
            return None
        ping = self._ping
        if ping.answered != ping.number and now_s - ping.sent_at_s > self._timeouts.ping_answer_s:
            return "the engine process hung: it did not answer"
        # Runs that hold wait for somebody else, once they have started.
        works = any(not (run.holds and run.started) for run in self._runs.values())
        if works and now_s - self._moved_at_s > self._timeouts.stall_s:
            return "the engine hung: it made no progress on any run"
        if any(now_s - run.cancelled_at_s > self._timeouts.cancel_s for run in self._runs.values()):
            return "the engine did not end a run that was cancelled"
        return None


def _check(event: EngineEvent, run: _Run) -> None:
    """Keep the record of a run, and hold the process to the contract. Raises _BrokenContract.

    What an asker would refuse ends here: it would be held against this node.
    """
    if isinstance(event, EngineFailed):
        return
    if isinstance(event, EngineStarted):
        if run.started or event.prompt_tokens > run.prompt_tokens_max:
            raise _BrokenContract("a run started twice, or with more prompt tokens than ordered")
        run.started = True
        return
    if not run.started:
        raise _BrokenContract("a report on a run that did not start")
    if isinstance(event, EngineText) and not event.text and event.output_tokens == run.output_tokens:
        raise _BrokenContract("a report of nothing")
    if isinstance(event, EngineText | EngineFinished):
        if not run.output_tokens <= event.output_tokens <= run.output_tokens_max:
            raise _BrokenContract("a count of output tokens that shrinks, or exceeds the order")
        run.output_tokens = event.output_tokens
    if isinstance(event, EngineProgress) and event.done_tokens > event.total_tokens:
        raise _BrokenContract("progress beyond its own end")
    if isinstance(event, EngineText):
        run.characters += len(event.text)
        if run.characters > _TOKEN_CHARACTERS_MAX * (run.output_tokens + 1):
            raise _BrokenContract("more text than its tokens can spell")
        if len(event.token_ids) % TOKEN_ID_BYTES:
            raise _BrokenContract("a part of a token")
    if isinstance(event, EngineVector):
        if event.index >= run.inputs or event.index in run.vectors or not event.vector or len(event.vector) % 4:
            raise _BrokenContract("a vector that nobody asked for, or that is none")
        run.vectors.add(event.index)
    if isinstance(event, EngineFinished) and event.outcome not in (Outcome.STOP, Outcome.LENGTH, Outcome.CANCELLED):
        raise _BrokenContract("an outcome that no engine may report")
