"""An engine that is a llama-server of ours whose model is spread over several machines.

llama-server runs while there is a session with every worker. It does not survive the loss of one (it aborts), so it is
ended and started again when the workers are back, each time later; runs in flight fail over to other providers, and the
node goes on. What it serves is offered by the adapter that serves every OpenAI-compatible server.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from infernet.cluster import binaries
from infernet.cluster.head import HeadPatience, Members
from infernet.cluster.network import Network
from infernet.cluster.program import Program, ProgramGone, open_program, private_directory
from infernet.engines import models
from infernet.engines.contract import (
    Description,
    EngineEvent,
    EnginePart,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    loading_for,
)
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine, Patience
from infernet.engines.openai_http import ApiKey
from infernet.host.files import reason_of
from protocol.clusters import Attached, Build
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import NodeId, RunId
from protocol.records import EngineKind, ModelOffer

log = structlog.get_logger(__name__)

_LISTENS_FOR: Final = {"listening": binaries.LISTENING}
_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class ClusterConfig:
    """Which model on which machines, and what it costs. `split` is the share of each worker, in their order."""

    workers: tuple[NodeId, ...]
    model: str
    path: Path
    llama_server: str | None = None
    split: tuple[int, ...] = ()
    slots: int = 4
    context_tokens: int = 2048
    threads: int | None = None
    price_in_uusd: int = 0
    price_out_uusd: int = 0
    price_job_uusd: int = 0
    #: The SHA-256 that the file must have; without one it is taken as it is.
    fingerprint: bytes | None = None
    quantisation: str = ""


@dataclass(frozen=True)
class ClusterPatience:
    """When the supervisor loses patience, in seconds."""

    # The whole model goes over the network: 100 GB take a quarter of an hour on gigabit Ethernet.
    load_s: float = 3600.0
    # llama-server is there and does not answer the adapter, as when a worker hangs.
    hang_s: float = 60.0
    look_s: float = 5.0
    # Runs that break with it say so themselves.
    last_words_s: float = 5.0
    again_first_s: float = 1.0
    again_max_s: float = 60.0
    healthy_s: float = 60.0
    workers: HeadPatience = field(default_factory=HeadPatience)
    server: Patience = field(default_factory=Patience)


def command(config: ClusterConfig, server: Path, doors: str, key_file: Path) -> list[str]:
    """The command line of llama-server. The key is in a file, because others can read command lines."""
    words = [str(server), "--model", str(config.path), "--alias", config.model]
    words += ["--host", "127.0.0.1", "--port", "0", "--api-key-file", str(key_file)]
    # Saving prompts aborts with RPC (ggml-org/llama.cpp#26529), so none are kept.
    words += ["--rpc", doors, "-ngl", "99", "--cache-ram", "0"]
    words += ["--parallel", str(config.slots), "--ctx-size", str(config.slots * config.context_tokens)]
    if config.split:
        words += ["--tensor-split", ",".join(map(str, config.split))]
    if config.threads is not None:
        words += ["--threads", str(config.threads)]
    return words


def _nothing() -> None:
    pass


def _read_build(named: str | None) -> tuple[Path, Build]:
    server = binaries.find(named).server
    return server, binaries.read_build(server)


class ClusterEngine:
    """`contract.Engine` over a llama-server of ours; `use_network` comes before `run`."""

    def __init__(
        self,
        config: ClusterConfig,
        patience: ClusterPatience = ClusterPatience(),
        read_build: Callable[[str | None], tuple[Path, Build]] = _read_build,
    ) -> None:
        self._config = config
        self._patience = patience
        self._read_build = read_build
        self.on_change: Callable[[], None] = _nothing
        self._network: Network | None = None
        self._members: Members | None = None
        self._build: Build | None = None
        self._report: Report | None = None
        self._inner: OpenAiEngine | None = None
        self._is_up = False
        self._state = EngineState.STOPPED
        self._started_at_s = 0.0
        self._runs_total = 0
        self._restarts = 0
        self._last_error = ""
        self._program: Program | None = None
        self._run_ended = trio.Event()

    def use_network(self, network: Network) -> None:
        """As `NeedsNetwork.use_network`."""
        self._network = network

    # ------------------------------------------------------------ the contract

    def start(self, run: RunEngine) -> None:
        """Start a run, or refuse it; see `contract.Engine`."""
        assert self._report is not None, "the engine was never run"
        self._runs_total += 1
        if self._inner is None or not self._is_up:
            text = "the machines behind this engine are not all there: try again in a minute"
            self._report(EngineFailed(run.run, Refusal.ENGINE_UNAVAILABLE, text))
            return
        self._inner.start(run)

    def cancel(self, run: RunId) -> None:
        """Stop a run; see `contract.Engine`."""
        if self._inner is not None:
            self._inner.cancel(run)

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that holds; see `contract.Engine`."""
        if self._inner is not None:
            self._inner.proceed(run)

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment."""
        # SPEC 11: A head MUST offer the model only while there is a session with every worker, and `llama-server`
        #   answers.
        return self._inner.models() if self._inner is not None and self._is_up else ()

    def described(self) -> Mapping[str, Description]:
        """See `contract.DescribesModels`."""
        return {offer.name: Description(self._config.quantisation, EngineKind.LLAMA_CPP) for offer in self.models()}

    def statistics(self) -> EngineStatistics:
        """What the engine did so far."""
        inner = self._inner.statistics() if self._inner is not None else None
        state = inner.state if inner is not None and self._is_up else self._state
        active = inner.runs_active if inner is not None else 0
        waits_for = "" if self._is_up else self._waits_for()
        loading_s = None if waits_for else loading_for(state, self._started_at_s)
        error = waits_for or self._last_error
        return EngineStatistics(state, active, self._runs_total, self._restarts, 0, error, loading_s=loading_s)

    def parts(self) -> tuple[EnginePart, ...]:
        """The one model that it has; see `contract.TellsParts`."""
        told, count = self.statistics(), len(self._config.workers)
        trouble = told.last_error if told.state is not EngineState.READY else ""
        where = f"{count} other machine{'s' if count != 1 else ''}"
        runs, restarts = told.runs_active, told.restarts
        return (
            EnginePart("cluster", (self._config.model,), told.state, where, runs, restarts, trouble, told.loading_s),
        )

    def _waits_for(self) -> str:
        missing = self._members.missing() if self._members is not None else []
        return "; ".join(f"waits for the worker {member.name}: {member.problem}" for member in missing)

    def cluster_status(self) -> dict[str, Any]:
        """What `infernet cluster status` shows of a head."""
        members = self._members.members if self._members is not None else ()
        return {
            "model": self._config.model,
            "serving": bool(self.models()),
            "build": str(self._build) if self._build is not None else None,
            "llama_server_pid": self._program.pid if self._program is not None else None,
            "restarts": self._restarts,
            "last_error": self._last_error,
            "split": list(self._config.split),
            "workers": [member.status() for member in members],
        }

    # ------------------------------------------------------------ life

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, whenever all workers are there.

        Unlike other engines it has started when it knows that it can: when its workers come is nobody's to say.
        Raises EngineUnavailable when it never can.
        """
        if self._network is None:
            raise EngineUnavailable(
                "a cluster is reached through a node that runs, with p2p_enabled on: `infernet start`, and then "
                "`infernet cluster` shows it"
            )
        self._report = report
        self._state = EngineState.STARTING
        self._started_at_s = trio.current_time()
        try:
            await self._check_file()
            server, build = await trio.to_thread.run_sync(
                self._read_build, self._config.llama_server, abandon_on_cancel=True
            )
            self._build = build
            members = self._members = Members(self._config.workers, build, self._network, self._patience.workers)
            async with trio.open_nursery() as nursery:
                await nursery.start(members.run)
                task_status.started()
                await self._supervise(server, members)
        finally:
            self._down(EngineState.STOPPED)

    async def _check_file(self) -> None:
        """See that the model is the one that was fetched, if it was. Raises ModelError."""
        config = self._config
        if config.fingerprint is not None:
            await trio.to_thread.run_sync(models.verify, config.path, config.fingerprint, abandon_on_cancel=True)

    async def _supervise(self, server: Path, members: Members) -> None:
        patience = self._patience
        wait_s = patience.again_first_s
        while True:
            await members.until_complete()
            self._state = EngineState.STARTING
            self._started_at_s = trio.current_time()
            self._last_error = await self._one_life(server, members)
            log.warning("cluster.stopped", model=self._config.model, reason=self._last_error)
            self._down(EngineState.WAITING)
            if trio.current_time() - self._started_at_s > patience.healthy_s:
                wait_s = patience.again_first_s
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, patience.again_max_s)
            self._restarts += 1

    async def _one_life(self, server: Path, members: Members) -> str:
        """From starting llama-server to its end; why it ended, in one line."""
        key, sessions = secrets.token_urlsafe(_KEY_BYTES), members.sessions()
        try:
            with private_directory() as directory:
                key_file = directory / "key"
                key_file.touch(0o600)
                key_file.write_text(f"{key}\n", "ascii")
                words = command(self._config, server, members.doors(), key_file)
                async with open_program(words, str(directory), _LISTENS_FOR) as program:
                    self._program = program
                    try:
                        await self._follow(program, members, sessions, ApiKey(key))
                    finally:
                        self._program = None
                    # Nothing is raised in here: what leaves a nursery is a group.
                    await program.gone.wait()
                return program.why_gone()
        except ProgramGone as error:
            return str(error)
        except OSError as error:
            return f"the key of llama-server cannot be written ({reason_of(error)})"

    async def _follow(
        self, program: Program, members: Members, sessions: Sequence[Attached | None], key: ApiKey
    ) -> None:
        """Serve what llama-server has, until it is gone or is to go."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_without_workers, program, members, sessions)
            try:
                heard = await program.hear("listening", self._patience.load_s)
            except ProgramGone as error:
                program.end(str(error))
            else:
                nursery.start_soon(self._adapt, program, f"http://127.0.0.1:{heard[1]}", key)
            await program.gone.wait()
            self._withdraw()
            await self._last_words()
            nursery.cancel_scope.cancel()
        self._inner = None

    async def _end_without_workers(
        self, program: Program, members: Members, sessions: Sequence[Attached | None]
    ) -> None:
        lost = await members.until_broken(sessions)
        program.end(f"the worker {lost.name} is lost ({lost.problem})" if lost.problem else f"{lost.name} came anew")

    async def _adapt(self, program: Program, url: str, key: ApiKey) -> None:
        """Have the adapter serve it. Whatever becomes of the adapter, llama-server does not outlive it."""
        config = self._config
        adapted = OpenAiConfig(
            url=url,
            models=(config.model,),
            key=key,
            slots=config.slots,
            context_tokens=config.context_tokens,
            price_in_uusd=config.price_in_uusd,
            price_out_uusd=config.price_out_uusd,
            price_job_uusd=config.price_job_uusd,
        )
        inner = self._inner = OpenAiEngine(adapted, self._patience.server)
        inner.on_change = self._inner_changed
        self._is_up = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_it_hangs, program, inner)
                await inner.run(self._pass_on)
        except* EngineUnavailable as error:
            program.end(f"llama-server does not answer as it should ({error.exceptions[0]})")

    def _pass_on(self, event: EngineEvent) -> None:
        assert self._report is not None
        self._report(event)
        if isinstance(event, EngineFinished | EngineFailed):
            self._run_ended.set()
            self._run_ended = trio.Event()

    def _inner_changed(self) -> None:
        if self.models():
            self._state = EngineState.READY
            log.info("cluster.serving", model=self._config.model, count=len(self._config.workers))
        self.on_change()

    async def _end_when_it_hangs(self, program: Program, inner: OpenAiEngine) -> None:
        well_at_s = trio.current_time()
        while trio.current_time() < well_at_s + self._patience.hang_s:
            await trio.sleep(self._patience.look_s)
            if inner.statistics().state is not EngineState.WAITING:
                well_at_s = trio.current_time()
        program.end("llama-server did not answer any more")

    async def _last_words(self) -> None:
        """Let runs end by themselves: their connections are broken."""
        inner = self._inner
        with trio.move_on_after(self._patience.last_words_s):
            while inner is not None and inner.statistics().runs_active:
                await self._run_ended.wait()

    def _withdraw(self) -> None:
        was_offering = bool(self.models())
        self._is_up = False
        self._state = EngineState.WAITING
        if was_offering:
            self.on_change()

    def _down(self, state: EngineState) -> None:
        self._withdraw()
        self._state = state
        self._inner = None
