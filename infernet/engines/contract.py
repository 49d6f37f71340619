"""The room's contract: what the node may ask of an engine, and what an engine tells the node.

An engine turns a prompt into text or vectors. The node hands it runs (`RunEngine`) and gets back the engine events
of `protocol.events`. Engines and the double that tests use pass one suite, tests/infernet/engines/test_contract.py.

How tokens are counted, in every engine (jobs are paid by these counts):

- Prompt tokens are the ids that the engine is given, after the chat template, the control tokens that the template
  adds included. For embeddings: the ids of all inputs together.
- Output tokens are the ids that the engine sampled, the end-of-sequence token excluded. Tokens of a stop string
  were sampled, so they count, though their text is not given; so do tokens whose bytes never became a whole
  character. What the engine samples after the token that completed a stop string, or after a cancel took effect,
  is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import trio
from msgspec import Struct

from infernet.confinement.contract import Protection
from protocol.effects import RunEngine
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.ids import RunId
from protocol.records import EngineKind, Kind, ModelOffer

if TYPE_CHECKING:
    from infernet.hardware.contract import Card

EngineEvent = EngineStarted | EngineProgress | EngineText | EngineVector | EngineFinished | EngineFailed
Report = Callable[[EngineEvent], None]


class EngineUnavailable(Exception):
    """No engine can be started; the message is one line for people: what happened, why, what to do."""


class EngineBroken(Exception):
    """The engine is past use, and its process with it; the message is the kind of error alone, which quotes nobody."""


class EngineState(StrEnum):
    """Where an engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # it broke, and waits before it starts again


class ExllamaOptions(Struct, frozen=True):
    """How ExLlama loads a model: which release of it, and what goes onto which card.

    Without a split, in GB for each card, one card after the other is filled. `cache_bits` is how exactly contexts are
    kept: 16, 8, 6 or 4.
    """

    version: int
    gpu_split_gb: tuple[float, ...] = ()
    tensor_parallel: bool = False
    cache_bits: int = 16


class EngineConfig(Struct, frozen=True):
    """One model to serve: where it is, how it is loaded, what it costs.

    `fingerprint` is the SHA-256 that the file must have; without one the file is taken as it is. Context is per
    slot, and `slots` runs go on at once. Without `threads` the engine leaves one core to everything else.
    `system_prompt` is put before a chat that has no system message. Prices are micro-USD per 1,000,000 tokens. With
    `exllama` the path is a folder, and ExLlama loads it; without, it is a file, and llama.cpp does.
    """

    name: str
    path: str
    fingerprint: bytes | None = None
    kinds: tuple[Kind, ...] = (Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING)
    context_tokens: int = 2048
    slots: int = 4
    threads: int | None = None
    system_prompt: str = ""
    price_in_uusd: int = 0
    price_out_uusd: int = 0
    price_job_uusd: int = 0
    #: Leave GPUs alone, though there are some.
    on_processor: bool = False
    exllama: ExllamaOptions | None = None
    #: Whether its process gives up what it does not need; see `infernet.confinement`.
    confine: bool = True
    #: The form of the weights, as their file or folder says.
    quantisation: str = ""


class EngineStatistics(Struct, frozen=True):
    """Counts since the engine was made, but for `runs_active` and `state`, which are of this moment.

    `slots_leaked` is how many slots the engine itself called busy when it had no run; it must be 0, and an engine
    that leaks is restarted. `last_error` says in one line why the engine last went down, or is empty.
    """

    state: EngineState
    runs_active: int
    runs_total: int
    restarts: int
    slots_leaked: int
    last_error: str
    #: What the kernel keeps the engine's process from; nothing for an engine that is no process of ours.
    protections: tuple[Protection, ...] = ()
    #: For how long it has been loading what it is to serve; None when it does not.
    loading_s: float | None = None


class EnginePart(Struct, frozen=True):
    """What runs one model or the models of one server: which engine (`llama`, `openai`), and where.

    `models` are those that are offered at this moment, or are to be; `trouble` says in one line why they are not, and
    `loading_s` for how long they have been loading, if they are.
    """

    engine: str
    models: tuple[str, ...]
    state: EngineState
    where: str
    runs_active: int
    restarts: int
    trouble: str
    loading_s: float | None = None


def loading_for(state: EngineState, since_s: float) -> float | None:
    """For how long an engine that is in this state since this instant has been loading."""
    return round(trio.current_time() - since_s, 1) if state is EngineState.STARTING else None


class Description(Struct, frozen=True):
    """What is known of a model beside what it costs; "" where the form of its weights is not known."""

    quantisation: str = ""
    engine: EngineKind = EngineKind.UNKNOWN


class Engine(Protocol):
    """Something that runs prompts, of one model or of several.

    `on_change` is called whenever what `models` gives has changed; the node sets it before `run`.
    """

    on_change: Callable[[], None]

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the model, then serve until cancelled; an engine that breaks is started again, each time later.

        `started()` comes when the model is loaded. `report` is called on trio's thread, now and then from within
        `start`; it must not wait and must not raise. When this is cancelled, runs still active end with
        EngineFailed. Raises EngineUnavailable when the first load fails.
        """

    def start(self, run: RunEngine) -> None:
        """Start a run; never waits and never raises.

        A run that is taken reports EngineStarted, then progress, text or vectors, then exactly one EngineFinished
        or EngineFailed; once that is reported its slot is free. A run that is refused, or cancelled before it
        started, reports EngineFailed alone: EngineFinished never comes without EngineStarted.
        """

    def cancel(self, run: RunId) -> None:
        """Stop a run; never waits. Nothing happens for a run that is over or unknown."""

    def proceed(self, run: RunId) -> None:
        """Read the prompt of a run that was started with `holds`; never waits.

        Until then such a run has reported EngineStarted and does nothing, but can be cancelled. Nothing happens for a
        run that does not hold, is over or unknown.
        """

    def models(self) -> tuple[ModelOffer, ...]:
        """What can be run at this moment: nothing while the engine is down."""

    def statistics(self) -> EngineStatistics:
        """What the engine did so far."""


@runtime_checkable
class RunsOnCards(Protocol):
    """An engine that may run on GPUs, and wants to hear when one is gone. Others need not have this."""

    def card_gone(self) -> None:
        """A card of this machine is gone; never waits.

        An engine that runs on cards ends what runs, offers nothing, and starts again on what is left. One that runs
        on the processor goes on.
        """


@runtime_checkable
class DividesCards(Protocol):
    """An engine that has given certain GPUs to certain models, and must know which of them is gone."""

    def lose_cards(self, cards: Sequence[Card]) -> None:
        """These cards are gone; never waits. What ran on others goes on."""


@runtime_checkable
class DescribesModels(Protocol):
    """An engine that knows more of its models than what they cost."""

    def described(self) -> Mapping[str, Description]:
        """By the names of what it offers at this moment."""


@runtime_checkable
class TellsParts(Protocol):
    """An engine that tells its owner which model runs where."""

    def parts(self) -> tuple[EnginePart, ...]:
        """What it is made of, at this moment."""


@runtime_checkable
class ChecksFiles(Protocol):
    """An engine that reads its files whole before it loads them, which takes minutes for large ones."""

    async def check(self) -> None:
        """Do that before the first `run`, which then does not. Raises EngineUnavailable for what cannot be loaded."""


def models_loading(engine: object) -> tuple[str, ...]:
    """What an engine is to serve and does not yet, or not again: it loads, or waits for its next try."""
    if not isinstance(engine, TellsParts):
        return ()
    coming = (EngineState.STARTING, EngineState.WAITING)
    return tuple(model for part in engine.parts() if part.state in coming for model in part.models)
