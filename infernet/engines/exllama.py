"""ExLlama inside the engine process: text by continuous batching on NVIDIA cards, for models in EXL2 and EXL3.

Both releases have the same generator to us (`exllama_pump.py`), and a short loader each. As with llama.cpp, requests go
in as token ids, stop strings are found here and not in the library, and slots share no prefix cache. One prompt is
read at a time, so that a cancelled run is gone after one piece of one prompt.

What a folder's template can do to this process is bounded; the process is what bounds the rest, as for all engines.
**Nothing of this has been run on a GPU.** What was run, and how, is in docs/engines.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from infernet.engines import exllama_v2, exllama_v3
from infernet.engines.contract import EngineConfig, EngineUnavailable, ExllamaOptions, Report
from infernet.engines.exllama_fitting import refuse_too_large
from infernet.engines.exllama_library import Library
from infernet.engines.exllama_pump import NotTaken, Pump, Result, Ticket
from infernet.engines.exllama_words import FolderWords
from infernet.engines.folders import Folder, read_folder
from infernet.engines.prompts import Prompt, Prompter, Refused, check_ordered
from infernet.engines.reading import Reading
from infernet.engines.spelling import Spelling
from infernet.engines.stops import StopMatcher
from infernet.engines.templates import ChatTemplate, TemplateFailed
from infernet.engines.turns import Turn, Turns
from infernet.engines.wishes import Wishes
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted, EngineText
from protocol.records import Kind, Outcome

# What a tokenizer gives for bytes that are no character, or not yet one.
_BROKEN_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"


def load(config: EngineConfig) -> Exllama:
    """Load the folder that is configured. Raises EngineUnavailable."""
    options = config.exllama
    assert options is not None, "the configuration of another engine"
    release = exllama_v2 if options.version == 2 else exllama_v3
    (exllama_v2.import_exllamav2 if options.version == 2 else exllama_v3.import_exllamav3)()
    folder = read_folder(Path(config.path))
    _check_context(config, folder)
    refuse_too_large(config, options, folder)
    try:
        library = release.load(config, options)
    except EngineUnavailable:
        raise
    except Exception as error:
        # The library raises what it likes, and with it paths and numbers of the machine.
        raise EngineUnavailable(_why_not(release.NAME, config, options, error)) from error
    return Exllama(config, library, folder)


def _check_context(config: EngineConfig, folder: Folder) -> None:
    most = folder.context_tokens_max
    if most is not None and config.context_tokens > most:
        raise EngineUnavailable(
            f"{config.name} has a context of {most} tokens, and {config.context_tokens} were asked for: set "
            f"--context-tokens {most} or less"
        )


def _why_not(name: str, config: EngineConfig, options: ExllamaOptions, error: Exception) -> str:
    kind = type(error).__name__
    if "OutOfMemory" in kind:
        return (
            f"the cards have not enough memory for {config.name}: set fewer --slots, less --context-tokens, a smaller "
            "--cache, or another --gpu-split"
        )
    other = "exllamav3" if options.version == 2 else "exllamav2"
    formats = "EXL2 or GPTQ" if options.version == 2 else "EXL3"
    return (
        f"{name} cannot load {config.path} ({kind}): it must be a model in {formats}, fetched whole; for the other "
        f"format set --engine {other}"
    )


class Exllama:
    """A loaded model. `run` is called on one thread per run."""

    on_cards = True

    def __init__(self, config: EngineConfig, library: Library, folder: Folder) -> None:
        """Raises EngineUnavailable for a chat template that is none."""
        self.context_tokens = config.context_tokens
        self._library = library
        self._words = FolderWords(library, folder, _chat_template(folder))
        self._prompter = Prompter(self._words, config.context_tokens, config.system_prompt)
        # Where a folder says nothing the library guesses.
        self._ends = folder.ends or (() if library.end_token is None else (library.end_token,))
        self._pump = Pump(library.generator)
        self._prompt_turns = Turns()

    def slots_busy(self) -> int:
        """How many jobs ExLlama itself says it has."""
        return self._pump.jobs()

    def run(self, run: RunEngine, report: Report, wishes: Wishes) -> None:
        """Do a run on this thread and report it to its end; when that is reported, its slot is free.

        Raises EngineBroken when the process is past use; the run has then not ended.
        """
        try:
            end: EngineFinished | EngineFailed = self._generate(run, report, wishes)
        except Refused as refused:
            end = EngineFailed(run.run, refused.code, refused.text)
        report(end)

    def _generate(self, run: RunEngine, report: Report, wishes: Wishes) -> EngineFinished:
        if run.kind is Kind.EMBEDDING:
            raise Refused(Refusal.UNSUPPORTED, "ExLlama makes no embeddings")
        cancelled = wishes.cancelled
        prompt = self._prompter.prompt(run.kind, run.request)
        length = len(prompt.tokens)
        check_ordered(length, run.prompt_tokens_max)
        if cancelled.is_set():
            raise Refused(Refusal.CANCELLED, "cancelled before it started")
        report(EngineStarted(run.run, length))
        if not wishes.wait():
            return EngineFinished(run.run, Outcome.CANCELLED, 0)
        # The token that ends the context has no place for what comes after it.
        tokens = min(run.output_tokens_max, self.context_tokens - length - 1)
        if tokens <= 0:
            return EngineFinished(run.run, Outcome.LENGTH, 0)
        reading = Reading(run.run, length, report)
        turn = self._prompt_turns.take(cancelled, length, reading.ahead)
        if turn is None:
            return EngineFinished(run.run, Outcome.CANCELLED, 0)
        try:
            ticket = self._pump.submit(
                lambda: self._library.make_job(prompt.tokens, tokens, run.sampling, self._ends), cancelled
            )
            answer = _Answer(run, prompt, reading, report, turn, self._library)
            return answer.follow(ticket)
        except NotTaken:
            raise Refused(Refusal.ENGINE_FAILED, "the engine did not take the prompt") from None
        finally:
            turn.give_back()


def _chat_template(folder: Folder) -> ChatTemplate | None:
    if folder.template is None:
        return None
    try:
        return ChatTemplate(folder.template, folder.names)
    except TemplateFailed:
        raise EngineUnavailable(
            f"the chat template of {folder.path} is none that can be used: fetch the model again, or another one"
        ) from None


class _Answer:
    """One answer as it comes out of ExLlama, token by token, on the run's thread."""

    def __init__(
        self, run: RunEngine, prompt: Prompt, reading: Reading, report: Report, turn: Turn, library: Library
    ) -> None:
        self._run = run.run
        self._prompt_tokens = len(prompt.tokens)
        self._reading = reading
        self._report = report
        self._turn = turn
        self._library = library
        self._stops = StopMatcher(run.request.stop, run.request.continuation)
        self._spelling = Spelling(prompt.unspelt) if prompt.unspelt is not None else None
        self._output_tokens = 0

    def follow(self, ticket: Ticket) -> EngineFinished:
        """Report what comes, and give the end. Raises Refused, NotTaken or EngineBroken."""
        outcome: Outcome | None = None
        for result in ticket.results():
            if not ticket.is_wanted:
                break
            outcome = self._take(result)
            if outcome is not None:
                break
        ticket.give_up()
        return EngineFinished(self._run, outcome or Outcome.CANCELLED, self._output_tokens)

    def _take(self, result: Result) -> Outcome | None:
        """Take a result; how the answer ended, once it did."""
        match result["stage"]:
            case "prefill":
                self._read(int(result["curr_progress"]), int(result["max_progress"]))
            case "streaming":
                self._turn.give_back()
                return self._sampled(result)
            case "error":
                raise Refused(Refusal.ENGINE_FAILED, "the engine gave up on this prompt")
        return None

    def _read(self, done: int, total: int) -> None:
        # The last token of the prompt is read with the first of the answer.
        self._reading.read(done)
        self._turn.work_left(total - done)
        if done >= total:
            self._turn.give_back()

    def _sampled(self, result: Result) -> Outcome | None:
        """One token more. The last one, if it ends a sequence, is not counted."""
        reason = result.get("eos_reason") if result["eos"] else None
        if reason != "stop_token":
            self._output_tokens += 1
        if reason is not None and result["new_tokens"] - (reason == "stop_token") != self._output_tokens:
            raise Refused(Refusal.ENGINE_FAILED, "the engine counts its tokens in two ways")
        text, ids = _told(result)
        if reason is not None and _BROKEN_CHARACTER in text:
            # Pieces of characters that became none, or that nobody put together in the end.
            text, ids = self._mended(text, ids), []
        if text and self._spelling is not None:
            self._spelling.sampled(text, ids)
        text = self._stops.feed(text)
        if reason is not None and not self._stops.stopped:
            text += self._stops.finish()
        if text:
            token_ids = self._spelling.given(text) if self._spelling is not None else b""
            self._report(EngineText(self._run, text, self._output_tokens, token_ids))
        if self._stops.stopped or reason == "stop_token":
            return Outcome.STOP
        return Outcome.LENGTH if reason is not None else None

    def _mended(self, text: str, ids: list[int]) -> str:
        """The text of the last tokens, without what is no whole character at its end."""
        whole = self._library.decode(ids, False)
        # Decoded by itself a text can lose the space that it begins with.
        space = text[: len(text) - len(text.lstrip(" "))]
        return (space + whole.lstrip(" ")).rstrip(_BROKEN_CHARACTER)


def _told(result: Result) -> tuple[str, list[int]]:
    """The text of a result and its tokens, with what was held back for the rest of a character if nothing follows."""
    text, ids = result.get("text", ""), _ids(result)
    held: Any = result.get("held")
    if held is not None and result.get("eos_reason") == "stop_token":
        # The token that ends the sequence is the last of them, and has no text.
        return text + held.get("text", ""), ids + _ids(held)[:-1]
    return text, ids


def _ids(result: Any) -> list[int]:
    ids = result.get("token_ids")
    return [] if ids is None else [int(token) for token in ids[0].tolist()]
