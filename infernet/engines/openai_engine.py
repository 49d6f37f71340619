"""An engine that is somebody else's server: the models of an Ollama, vLLM, llama-server or another of their kind.

The server is not ours to start or to end. It is looked at now and then, and closely after each run that it failed;
while it does not answer, or answers wrongly, nothing is offered. What it does wrong costs the run that it did it to,
which then fails over to another provider, and never the node.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx
import structlog
import trio

from infernet.engines.contract import (
    Description,
    EnginePart,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    loading_for,
)
from infernet.engines.openai_answer import Answer
from infernet.engines.openai_http import ApiKey, Server, ServerBroken, ServerError, ServerGone, ServerRefused
from infernet.engines.openai_servers import (
    Found,
    Served,
    chosen,
    count_before,
    count_by_asking,
    identify,
    look_around,
    ollama_elsewhere,
    probe,
    say_a_token,
    usual_urls,
)
from infernet.engines.openai_shapes import Dialect, check_request, generate_body, path_of
from infernet.engines.prompts import Refused
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted
from protocol.ids import RunId
from protocol.records import EngineKind, ModelOffer, Outcome

log = structlog.get_logger(__name__)

_NO_FINGERPRINT: Final = bytes(32)
# What tells that a prompt is too long: llama-server's, vLLM's and OpenAI's words for it.
_TOO_LONG: Final = ("exceed_context_size", "context_length", "maximum context length", "context size")

_KINDS: Final = {
    Dialect.LLAMA: EngineKind.LLAMA_CPP,
    Dialect.VLLM: EngineKind.VLLM,
    Dialect.SGLANG: EngineKind.SGLANG,
    Dialect.OLLAMA: EngineKind.OLLAMA,
    Dialect.LM_STUDIO: EngineKind.LM_STUDIO,
}


@dataclass(frozen=True)
class Patience:
    """How long the server may take, in seconds."""

    look_interval_s: float = 10.0
    # One that is busy reading a long prompt may answer nothing else meanwhile, so two looks have to fail.
    looks_max: int = 2
    # A model that is loaded says a token in a moment; one that was put away has to be loaded again.
    doubt_s: float = 60.0
    # Reading a long prompt on a CPU. Whoever asked has given up by then.
    first_s: float = 120.0
    next_s: float = 30.0
    # From the end of the text to the counts.
    counts_s: float = 5.0
    again_first_s: float = 0.5
    again_max_s: float = 30.0


@dataclass(frozen=True)
class Terms:
    """How many jobs of a model at once, and at which price."""

    slots: int
    price_in_uusd: int
    price_out_uusd: int
    price_job_uusd: int


@dataclass(frozen=True)
class OpenAiConfig:
    """Which server, which of its models, at which price. Without `url` the usual ports of this machine are tried."""

    url: str | None = None
    models: tuple[str, ...] = ()
    key: ApiKey | None = None
    slots: int = 4
    # Where the server does not tell.
    context_tokens: int = 2048
    price_in_uusd: int = 0
    price_out_uusd: int = 0
    price_job_uusd: int = 0
    #: By way of which `url` is asked.
    proxy: httpx.Proxy | None = None
    #: By name, those models for which something else holds.
    terms: Mapping[str, Terms] = field(default_factory=dict)

    def terms_of(self, model: str) -> Terms:
        """What holds for this model."""
        terms = self.terms.get(model.lower())
        return terms or Terms(self.slots, self.price_in_uusd, self.price_out_uusd, self.price_job_uusd)


@dataclass
class _Run:
    server: Server
    dialect: Dialect
    served: Served
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    may_go_on: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    has_started: bool = False

    @property
    def output_tokens(self) -> int:
        return self.answer.output_tokens if self.answer is not None else 0


def _nothing() -> None:
    pass


class OpenAiEngine:
    """`contract.Engine` over an OpenAI-compatible server; it may serve several of its models."""

    def __init__(self, config: OpenAiConfig, patience: Patience = Patience()) -> None:
        self._config = config
        self._patience = patience
        self.on_change: Callable[[], None] = _nothing
        self._report: Report | None = None
        self._state = EngineState.STOPPED
        self._started_at_s = 0.0
        self._server: Server | None = None
        self._dialect = Dialect.OTHER
        self._served: dict[str, Served] = {}
        self._offers: tuple[ModelOffer, ...] = ()
        # What it offers, or offered last.
        self._names = config.models
        self._runs: dict[RunId, _Run] = {}
        self._nursery: trio.Nursery | None = None
        self._doubt = trio.Event()
        self._moved_at_s = -math.inf
        self._runs_total = 0
        self._restarts = 0
        self._last_error = ""

    @property
    def description(self) -> str:
        """Which server it is, for people."""
        return f"{self._dialect.value} at {self._server.url}" if self._server is not None else "no server"

    # ------------------------------------------------------------ the contract

    def start(self, run: RunEngine) -> None:
        """Start a run, or refuse it; see `contract.Engine`."""
        assert self._report is not None, "the engine was never run"
        assert run.run not in self._runs, "two runs of one number"
        self._runs_total += 1
        refusal = self._refusal(run)
        if refusal is not None:
            self._report(EngineFailed(run.run, *refusal))
            return
        assert self._nursery is not None
        assert self._server is not None
        active = self._runs[run.run] = _Run(self._server, self._dialect, self._served[run.model])
        if not run.holds:
            active.may_go_on.set()
        self._nursery.start_soon(self._do, run, active)

    def _refusal(self, run: RunEngine) -> tuple[Refusal, str] | None:
        if self._state is not EngineState.READY or self._nursery is None:
            return Refusal.ENGINE_UNAVAILABLE, "the server behind this engine does not answer: try again in a minute"
        served = self._served.get(run.model)
        if served is None:
            return Refusal.NO_MODEL, f"this engine serves {', '.join(self._served)}"[:256]
        if run.kind not in served.kinds:
            return Refusal.UNSUPPORTED, f"{served.name} is not offered for this kind of job"
        # Of each model so many, as they are offered; a server that is asked for more lets them wait.
        slots = self._config.terms_of(served.name).slots
        if sum(active.served.name == served.name for active in self._runs.values()) >= slots:
            return Refusal.BUSY, f"all {slots} slots of the engine are in use"
        return None

    def cancel(self, run: RunId) -> None:
        """Stop a run; see `contract.Engine`. The server notices that nobody listens any more."""
        if run in self._runs:
            self._runs[run].scope.cancel()

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that holds; see `contract.Engine`."""
        if run in self._runs:
            self._runs[run].may_go_on.set()

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment."""
        return self._offers

    def described(self) -> Mapping[str, Description]:
        """What the server told of its models; see `contract.DescribesModels`."""
        kind = _KINDS.get(self._dialect, EngineKind.UNKNOWN)
        return {one.name: Description(one.quantisation, kind) for one in self._served.values()}

    def statistics(self) -> EngineStatistics:
        """What the engine did so far. A server's slots are not seen from here."""
        return EngineStatistics(
            *(self._state, len(self._runs), self._runs_total, self._restarts, 0, self._last_error),
            loading_s=loading_for(self._state, self._started_at_s),
        )

    def parts(self) -> tuple[EnginePart, ...]:
        """What the server has of ours; see `contract.TellsParts`."""
        trouble = self._last_error if self._state is not EngineState.READY else ""
        runs, loading_s = len(self._runs), loading_for(self._state, self._started_at_s)
        where, restarts = self.description, self._restarts
        return (EnginePart("openai", self._names, self._state, where, runs, restarts, trouble, loading_s),)

    # ------------------------------------------------------------ life

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Find the server, then serve until cancelled; see `contract.Engine`."""
        self._report = report
        self._state = EngineState.STARTING
        self._started_at_s = trio.current_time()
        try:
            async with trio.open_nursery() as self._nursery:
                await self._live(task_status)
        finally:
            self._nursery = None
            self._withdraw(EngineState.STOPPED)
        # `_live` comes back only from a server that was never of use.
        raise EngineUnavailable(self._last_error)

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        patience = self._patience
        is_first, wait_s = True, patience.again_first_s
        while True:
            try:
                url = self._config.url or await self._find()
                # Who listens on a usual port may be anybody of this machine: the key is for the named one alone.
                key = self._config.key if self._config.url is not None else None
                async with Server(url, key, self._config.proxy) as self._server:
                    await self._look(self._server)
                    if is_first:
                        is_first = False
                        task_status.started()
                    wait_s = patience.again_first_s
                    log.info("engine.server_answers", url=url, kind=self._dialect.value, count=len(self._offers))
                    await self._watch(self._server)
            except ServerError as error:
                self._last_error = self._told(error)
                if is_first:
                    return
                if self._state is EngineState.READY:
                    log.warning("engine.server_gone", reason=self._last_error)
            self._withdraw(EngineState.WAITING)
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, patience.again_max_s)
            self._restarts += 1

    def _told(self, error: ServerError) -> str:
        where = self._server.url if self._server is not None else self._config.url
        if isinstance(error, ServerGone) or where is None:
            return f"{error}: start it, or name another one with --engine-url"
        if isinstance(error, ServerRefused) and error.status in (401, 403):
            return (
                f"the server at {where} wants another API key: give the file that holds it, with --engine-key-file, "
                "and name the server, with --engine-url"
            )
        return f"the server at {where} cannot be used: {error}"

    async def _find(self) -> str:
        """The first server on a usual port that has what is to be served. Raises ServerError."""
        answers = await look_around(usual_urls())
        found = [answer for answer in answers if isinstance(answer, Found)]
        fitting = [one for one in found if all(one.named(name) is not None for name in self._config.models)]
        if fitting:
            return fitting[0].url
        if found:
            where = ", ".join(one.url for one in found)
            raise ServerGone(f"no server of this machine ({where}) has all models of --engine-models")
        elsewhere = f", and OLLAMA_HOST names another machine, {url}" if (url := ollama_elsewhere()) else ""
        raise ServerGone(f"no OpenAI-compatible server answers on the usual ports of this machine{elsewhere}")

    async def _look(self, server: Server) -> None:
        """Offer what answers. Raises ServerError when nothing does."""
        found = await identify(server)
        self._dialect = found.dialect
        served: dict[str, Served] = {}
        why: ServerError | None = None
        for model in chosen(found, self._config.models):
            try:
                one = await probe(server, found.dialect, model)
            except ServerError as error:
                why = error
                continue
            served.setdefault(one.name, one)
        if not served:
            raise why or ServerBroken("it lists no model")
        if why is not None:
            self._last_error = self._told(why)
        self._served = served
        self._offers = tuple(map(self._offer, served.values()))
        self._names = tuple(served)
        self._state = EngineState.READY
        self._doubt = trio.Event()
        self.on_change()

    def _offer(self, served: Served) -> ModelOffer:
        config = self._config
        terms = config.terms_of(served.name)
        return ModelOffer(
            name=served.name,
            fingerprint=_NO_FINGERPRINT,
            kinds=served.kinds,
            context_tokens=served.context_tokens or config.context_tokens,
            concurrency=terms.slots,
            price_in_uusd=terms.price_in_uusd,
            price_out_uusd=terms.price_out_uusd,
            price_job_uusd=terms.price_job_uusd,
        )

    def _withdraw(self, state: EngineState) -> None:
        self._state = state
        if self._offers:
            self._offers = ()
            self._served = {}
            self.on_change()

    async def _watch(self, server: Server) -> None:
        """Look at the server now and then. Raises ServerError when it is to be offered no more."""
        failures = 0
        while True:
            looked_at_s = trio.current_time()
            with trio.move_on_after(self._patience.look_interval_s):
                await self._doubt.wait()
            if self._doubt.is_set():
                self._doubt = trio.Event()
                await self._examine(server)
            elif self._moved_at_s < looked_at_s:
                try:
                    listed = await identify(server)
                    chosen(listed, [served.id for served in self._served.values()])
                except ServerGone:
                    raise
                except ServerError:
                    failures += 1
                    if failures >= self._patience.looks_max:
                        raise
                    continue
            failures = 0

    async def _examine(self, server: Server) -> None:
        """Have each model say a token, after a run that failed. Raises ServerError when one does not."""
        for served in list(self._served.values()):
            await say_a_token(server, self._dialect, served.id, self._patience.doubt_s)

    # ------------------------------------------------------------ runs

    async def _do(self, run: RunEngine, active: _Run) -> None:
        assert self._report is not None
        end: EngineFinished | EngineFailed = EngineFailed(run.run, Refusal.SHUTDOWN, "the node is stopping")
        try:
            with active.scope:
                end = await self._serve(run, active)
            if active.scope.cancelled_caught:
                end = (
                    EngineFinished(run.run, Outcome.CANCELLED, active.output_tokens)
                    if active.has_started
                    else EngineFailed(run.run, Refusal.CANCELLED, "cancelled before it started")
                )
        finally:
            del self._runs[run.run]
            self._report(end)

    async def _serve(self, run: RunEngine, active: _Run) -> EngineFinished | EngineFailed:
        try:
            return await self._generate(run, active)
        except Refused as refused:
            return EngineFailed(run.run, refused.code, refused.text)
        except ServerError as error:
            return self._failed(run, error, active)
        except Exception as error:  # noqa: BLE001 - one run is what a server that nobody thought of may cost
            return self._failed(run, ServerBroken(f"something unexpected ({type(error).__name__})"), active)

    async def _generate(self, run: RunEngine, active: _Run) -> EngineFinished:
        assert self._report is not None
        server, served = active.server, active.served
        check_request(run.kind, run.request)
        context_tokens = served.context_tokens or self._config.context_tokens
        prompt_tokens = await self._count(run, active, context_tokens)
        tokens_max = min(run.output_tokens_max, context_tokens - prompt_tokens)
        body = generate_body(active.dialect, served.id, run, tokens_max, secrets.token_hex(16))
        active.has_started = True
        self._report(EngineStarted(run.run, prompt_tokens))
        await active.may_go_on.wait()
        if tokens_max <= 0:
            return EngineFinished(run.run, Outcome.LENGTH, 0)
        answer = active.answer = Answer(run, tokens_max, self._report)

        def take(data: bytes) -> bool:
            self._moved_at_s = trio.current_time()
            return answer.take(data)

        deadline_s = trio.current_time() + self._patience.first_s

        def patience_s() -> float:
            nonlocal deadline_s
            # Bytes alone are no progress: a server can send comments for ever.
            now_s = trio.current_time()
            if answer.is_complete:
                deadline_s = min(deadline_s, now_s + self._patience.counts_s)
            elif answer.moved():
                step_s = self._patience.next_s if answer.has_begun else self._patience.first_s
                deadline_s = now_s + step_s
            return max(0.0, deadline_s - now_s)

        try:
            await server.stream(path_of(run.kind), body, take, patience_s)
        except ServerBroken:
            if not answer.is_complete:
                raise
            # All text is here. What comes after it is not worth losing it.
        return answer.end()

    async def _count(self, run: RunEngine, active: _Run, context_tokens: int) -> int:
        """The tokens of the prompt. Raises Refused when it is too long, ServerError when that is not to be known."""
        server, served = active.server, active.served
        too_long = f"and the context of this model holds {context_tokens}"
        if active.dialect.cuts_prompts:
            # More tokens than half its bytes are not to be expected of a text.
            texts = (run.request.prompt, *(message.content for message in run.request.messages))
            size = sum(len(text.encode()) for text in texts)
            if size > 2 * context_tokens:
                raise Refused(
                    Refusal.CONTEXT_EXCEEDED,
                    f"the prompt has {size} bytes, {too_long} tokens: this engine would cut it without saying so",
                )
        if served.counts_first:
            tokens = await count_before(server, active.dialect, served.id, run.kind, run.request)
        else:
            tokens = await count_by_asking(server, served.id, run.kind, run.request, self._patience.first_s)
        if tokens >= context_tokens:
            raise Refused(Refusal.CONTEXT_EXCEEDED, f"the prompt has {tokens} tokens, {too_long}")
        if tokens > run.prompt_tokens_max:
            text = f"the prompt has {tokens} tokens, and the order allows {run.prompt_tokens_max}"
            raise Refused(Refusal.TOO_LARGE, text)
        return tokens

    def _failed(self, run: RunEngine, error: ServerError, active: _Run) -> EngineFailed:
        """What the asker is told of a server's failure: never in the server's words, which may quote a prompt."""
        self._last_error = self._told(error)
        if isinstance(error, ServerRefused) and not active.has_started:
            if any(word in error.kind for word in _TOO_LONG):
                return EngineFailed(run.run, Refusal.CONTEXT_EXCEEDED, "the prompt is too long for this model")
            if error.status in (400, 413, 422):
                return EngineFailed(run.run, Refusal.BAD_REQUEST, "the engine does not take this prompt")
            if error.status in (429, 503):
                self._doubt.set()
                return EngineFailed(run.run, Refusal.BUSY, "the engine has too much to do")
        self._doubt.set()
        return EngineFailed(run.run, Refusal.ENGINE_FAILED, "the engine broke down during the answer")
