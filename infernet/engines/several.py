"""Several engines behind one contract: each model goes to the engine that has it.

Each is supervised by itself. One that cannot load is tried again, each time later, while the others serve; one that
is down offers nothing, so its models leave the heartbeat at once, and theirs alone. Where cards are divided, the loss
of one moves only what ran on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from infernet.confinement.contract import Protection
from infernet.engines.contract import (
    ChecksFiles,
    DescribesModels,
    Description,
    Engine,
    EngineEvent,
    EnginePart,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    RunsOnCards,
    TellsParts,
)
from infernet.engines.dividing import Division
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.placement import NoPlace
from infernet.hardware.contract import Card
from protocol import constants as c
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import RunId
from protocol.records import ModelOffer

log = structlog.get_logger(__name__)

_ERROR_CHARACTERS_MAX: Final = 512


@dataclass(frozen=True)
class Waits:
    """How long is waited, in seconds."""

    # Once one model is up, the node does not keep it from others for the sake of a slow one.
    others_s: float = 20.0
    # An engine that could not load: its file may be mended, its server be started.
    again_first_s: float = 1.0
    again_max_s: float = 300.0


@dataclass
class Part:
    """One of the engines. `names` are its models, where they are known before it runs.

    `refusal` says why it runs nowhere, `trouble` why it could not be loaded.
    """

    word: str
    engine: Engine
    names: tuple[str, ...] = ()
    refusal: str = ""
    trouble: str = ""
    retries: int = 0
    is_running: bool = False
    was_up: bool = False
    heard: bool = False

    @property
    def label(self) -> str:
        """What it is called before people."""
        return ", ".join(self.names) or self.word

    def has_no_place(self) -> bool:
        """Whether it runs nowhere any more."""
        return bool(self.refusal)


class _Told(trio.TaskStatus[None]):
    """Hears that an engine is up for the first time."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def started(self, value: None = None) -> None:  # noqa: ARG002 - the protocol has it
        self._tell()


def _nothing() -> None:
    pass


def _weakest(protections: Iterable[Protection]) -> tuple[Protection, ...]:
    """Of each kind one: the one that is off, if any process goes without."""
    found: dict[str, Protection] = {}
    for protection in protections:
        if found.setdefault(protection.name, protection).is_on:
            found[protection.name] = protection
    return tuple(found.values())


class SeveralEngines:
    """`contract.Engine` over several. Of two that offer a model of one name, the first has it."""

    def __init__(self, parts: Sequence[Part], division: Division | None = None, waits: Waits = Waits()) -> None:
        """`division` says where the models of isolated engines run."""
        self._parts = list(parts)
        self._division = division
        self._waits = waits
        self.on_change: Callable[[], None] = _nothing
        self._report: Report | None = None
        self._offers: tuple[ModelOffer, ...] = ()
        # Whose each model is or was last: an engine that is down says best why it is.
        self._owners: dict[str, Part] = {name: part for part in reversed(self._parts) for name in part.names}
        self._runs: dict[RunId, Part] = {}
        self._news = trio.Event()
        self._refused_total = 0
        for part in self._parts:
            part.engine.on_change = self._changed

    # ------------------------------------------------------------ the contract

    def start(self, run: RunEngine) -> None:
        """Start a run with the engine of its model, or refuse it; see `contract.Engine`."""
        assert self._report is not None, "the engine was never run"
        assert run.run not in self._runs, "two runs of one number"
        part = self._owners.get(run.model)
        if part is None or not part.is_running:
            self._refused_total += 1
            names = ", ".join(offer.name for offer in self._offers)
            code, text = Refusal.NO_MODEL, f"this node serves {names}"[:256]
            if part is not None:
                code, text = Refusal.ENGINE_UNAVAILABLE, f"{run.model} is not loaded: try again in a minute"
            self._report(EngineFailed(run.run, code, text))
            return
        # First, because a run that is refused ends within.
        self._runs[run.run] = part
        part.engine.start(run)

    def cancel(self, run: RunId) -> None:
        """Stop a run; see `contract.Engine`."""
        if run in self._runs:
            self._runs[run].engine.cancel(run)

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that holds; see `contract.Engine`."""
        if run in self._runs:
            self._runs[run].engine.proceed(run)

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment, with whichever engine."""
        return self._offers

    def described(self) -> Mapping[str, Description]:
        """What each engine says of the models that are its own here; see `contract.DescribesModels`."""
        found: dict[str, Description] = {}
        for part in self._parts:
            engine: object = part.engine
            if isinstance(engine, DescribesModels):
                found |= {name: one for name, one in engine.described().items() if self._owners.get(name) is part}
        return found

    def statistics(self) -> EngineStatistics:
        """The sums over all; the state is that of the best."""
        each = [part.engine.statistics() for part in self._parts]
        errors = [
            part.refusal or f"{part.label}: {error}"
            for part, one in zip(self._parts, each, strict=True)
            if (error := part.refusal or part.trouble or one.last_error)
        ]
        return EngineStatistics(
            self._state([one.state for one in each]),
            sum(one.runs_active for one in each),
            sum(one.runs_total for one in each) + self._refused_total,
            sum(one.restarts for one in each) + sum(part.retries for part in self._parts),
            sum(one.slots_leaked for one in each),
            "; ".join(errors)[:_ERROR_CHARACTERS_MAX],
            _weakest(protection for one in each for protection in one.protections),
            max((one.loading_s for one in each if one.loading_s is not None), default=None),
        )

    def _state(self, states: Sequence[EngineState]) -> EngineState:
        for state in (EngineState.READY, EngineState.STARTING, EngineState.WAITING):
            if state in states:
                return state
        # Between two tries an engine is stopped, and we wait.
        return EngineState.STOPPED if self._report is None else EngineState.WAITING

    def parts(self) -> tuple[EnginePart, ...]:
        """Which model runs where; see `contract.TellsParts`."""
        return tuple(told for part in self._parts for told in _told(part))

    def lose_cards(self, cards: Sequence[Card]) -> None:
        """GPUs are gone; see `contract.DividesCards`."""
        if self._division is None or not self._division.cards:
            for part in self._parts:
                engine: object = part.engine
                if isinstance(engine, RunsOnCards):
                    engine.card_gone()
            return
        isolated = {part.engine.name: part for part in self._parts if isinstance(part.engine, IsolatedEngine)}
        for model in self._division.lose(cards):
            part, place = isolated[model], self._division.place(model)
            assert isinstance(part.engine, IsolatedEngine)
            if isinstance(place, NoPlace):
                part.refusal = place.reason
                part.engine.move(None, f"a GPU is gone, and {place.reason}")
            else:
                part.engine.move(place, "a GPU is gone")

    # ------------------------------------------------------------ life

    async def check(self) -> None:
        """See `contract.ChecksFiles`. What is wrong with one of them is told when it is loaded."""
        for part in self._parts:
            engine: object = part.engine
            if isinstance(engine, ChecksFiles) and not part.has_no_place():
                with suppress(EngineUnavailable):
                    await engine.check()

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load all, then serve until cancelled; see `contract.Engine`.

        Raises EngineUnavailable when not one could be loaded.
        """
        self._report = report
        try:
            async with trio.open_nursery() as nursery:
                for part in self._parts:
                    nursery.start_soon(self._keep, part)
                if await self._one_is_up():
                    task_status.started()
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
        finally:
            self._report = None
        raise EngineUnavailable("; ".join(part.refusal or f"{part.label}: {part.trouble}" for part in self._parts))

    async def _one_is_up(self) -> bool:
        """Wait until all have loaded or failed to, or for a while after the first has."""
        while not any(part.was_up for part in self._parts) and not self._all_heard():
            await self._news.wait()
        with trio.move_on_after(self._waits.others_s):
            while not self._all_heard():
                await self._news.wait()
        return any(part.was_up for part in self._parts)

    def _all_heard(self) -> bool:
        return all(part.heard for part in self._parts)

    def _hear(self, part: Part) -> None:
        part.heard = True
        self._news.set()
        self._news = trio.Event()

    async def _keep(self, part: Part) -> None:
        """Run one engine, and again when it could not be loaded."""
        wait_s = self._waits.again_first_s
        while not part.has_no_place():
            part.is_running = True
            try:
                await part.engine.run(self._take, task_status=_Told(lambda: self._up(part)))
            except EngineUnavailable as error:
                part.trouble = str(error)
            finally:
                part.is_running = False
            if part.has_no_place():
                break
            log.warning("engine.not_loaded", model=part.label, engine=part.word, reason=part.trouble)
            self._hear(part)
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._waits.again_max_s)
            part.retries += 1
        log.warning("engine.no_place", model=part.label, reason=part.refusal)
        self._hear(part)

    def _up(self, part: Part) -> None:
        part.trouble = ""
        part.was_up = True
        self._hear(part)

    def _take(self, event: EngineEvent) -> None:
        assert self._report is not None, "an engine that outlives its run"
        if isinstance(event, EngineFinished | EngineFailed):
            self._runs.pop(event.run, None)
        self._report(event)

    def _changed(self) -> None:
        """Merge what all offer, and tell the node."""
        before = {offer.name for offer in self._offers}
        offers: dict[str, ModelOffer] = {}
        for part in self._parts:
            for offer in part.engine.models():
                if offer.name not in offers and len(offers) < c.HEARTBEAT_MODELS_MAX:
                    offers[offer.name] = offer
                    self._owners[offer.name] = part
        self._offers = tuple(offers.values())
        if trio.current_effective_deadline() > trio.current_time():  # else all of it is being stopped
            for name in sorted(offers.keys() - before):
                log.info("engine.model_up", model=name)
            for name in sorted(before - offers.keys()):
                reason = self._owners[name].engine.statistics().last_error
                log.warning("engine.model_down", model=name, reason=reason)
        self.on_change()


def _told(part: Part) -> tuple[EnginePart, ...]:
    engine: object = part.engine
    if isinstance(engine, TellsParts):
        told = engine.parts()
    else:
        one, names = part.engine.statistics(), tuple(offer.name for offer in part.engine.models())
        names = names or part.names
        told = (EnginePart(part.word, names, one.state, "", one.runs_active, one.restarts, "", one.loading_s),)
    return tuple(_with_retries(one, part) for one in told)


def _with_retries(one: EnginePart, part: Part) -> EnginePart:
    """What an engine says of itself, with what only its supervisor knows."""
    state = one.state
    if part.refusal:
        return replace(one, state=EngineState.STOPPED, where="nowhere", trouble=part.refusal)
    if part.trouble and state is EngineState.STOPPED:
        state = EngineState.WAITING  # for the next try
    return replace(one, state=state, restarts=one.restarts + part.retries, trouble=part.trouble or one.trouble)
