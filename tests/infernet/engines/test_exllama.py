"""Our engine over a generator that does what a test says: counts, cancels, threads, and libraries that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infernet.engines.contract import EngineBroken, EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.exllama import Exllama
from infernet.engines.exllama_pump import NotTaken, Pump
from infernet.engines.exllama_words import FolderWords
from infernet.engines.folders import Folder, read_folder
from infernet.engines.prompts import Refused
from infernet.engines.templates import ChatTemplate
from infernet.engines.wishes import Wishes
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText
from protocol.ids import RunId
from protocol.records import JobRequest, Kind, Outcome
from tests.helpers_engine import GREEDY, chat
from tests.helpers_exllama import write_folder
from tests.helpers_exllama_double import GeneratorDouble, Ids, character_library, streamed

BROKEN = "\N{REPLACEMENT CHARACTER}"
Turn = Callable[[list[int]], list[dict[str, Any]]]


def says(text: str) -> list[Turn]:
    """A turn for each character, then the token that ends a sequence."""
    turns: list[Turn] = [lambda jobs, c=c: [streamed(job, c, [ord(c)]) for job in jobs] for c in text]  # type: ignore[misc]
    return [*turns, lambda jobs: [ended(job, "stop_token", len(text) + 1) for job in jobs]]


def ended(serial: int, reason: str, new_tokens: int, **others: Any) -> dict[str, Any]:
    """The last result of a job."""
    return streamed(serial, eos=True, eos_reason=reason, new_tokens=new_tokens, **others)


def engine_over(generator: GeneratorDouble, path: Path) -> Exllama:
    folder = write_folder(path / "m")
    config = EngineConfig("m", str(folder), context_tokens=512, slots=4, exllama=ExllamaOptions(2))
    return Exllama(config, character_library(generator), read_folder(folder))


def run(
    engine: Exllama, request: JobRequest, tokens: int = 32, wishes: Wishes | None = None, *, holds: bool = False
) -> list[Any]:
    """Do a run on this thread."""
    events: list[Any] = []
    kind = Kind.COMPLETION if request.prompt else Kind.CHAT
    order = RunEngine(RunId(1), kind, "m", request, GREEDY, 4096, tokens, holds)
    engine.run(order, events.append, wishes or Wishes(holds=holds))
    return events


def test_counts_rise_and_the_end_is_told_once(tmp_path: Path) -> None:
    events = run(engine_over(GeneratorDouble(*says("Hey")), tmp_path), JobRequest(prompt="Hi"))
    assert isinstance(events[0], EngineStarted)
    texts = [(event.text, event.output_tokens) for event in events if isinstance(event, EngineText)]
    assert texts == [("H", 1), ("e", 2), ("y", 3)]
    assert events[-1] == EngineFinished(RunId(1), Outcome.STOP, 3)


def test_how_far_a_prompt_is_read_is_told(tmp_path: Path) -> None:
    def reads(jobs: list[int]) -> list[dict[str, Any]]:
        stage = {"stage": "prefill", "eos": False, "curr_progress": 5, "max_progress": 9}
        return [{"serial": jobs[0], "stage": "started", "eos": False}, {"serial": jobs[0], **stage}]

    events = run(engine_over(GeneratorDouble(reads, *says("x")), tmp_path), JobRequest(prompt="0123456789"))
    # The token that begins a text is written in three characters here.
    assert EngineProgress(RunId(1), 5, 13) in events


def test_what_the_library_counts_otherwise_is_not_paid(tmp_path: Path) -> None:
    turns: list[Turn] = [
        lambda jobs: [streamed(jobs[0], "a", [97])],
        lambda jobs: [ended(jobs[0], "max_new_tokens", 7)],
    ]
    (*_, end) = run(engine_over(GeneratorDouble(*turns), tmp_path), JobRequest(prompt="x"))
    assert end == EngineFailed(RunId(1), Refusal.ENGINE_FAILED, "the engine counts its tokens in two ways")


def test_half_a_character_at_the_end_counts_and_is_not_given(tmp_path: Path) -> None:
    turns: list[Turn] = [
        lambda jobs: [streamed(jobs[0])],
        lambda jobs: [ended(jobs[0], "max_new_tokens", 2, text=f"ab{BROKEN}", token_ids=Ids([97, 98, ord(BROKEN)]))],
    ]
    events = run(engine_over(GeneratorDouble(*turns), tmp_path), JobRequest(prompt="x"))
    assert [event.text for event in events if isinstance(event, EngineText)] == ["ab"]
    assert events[-1] == EngineFinished(RunId(1), Outcome.LENGTH, 2)


def test_what_was_held_for_the_rest_of_a_character_is_given_when_nothing_follows(tmp_path: Path) -> None:
    held = {"text": f"a{BROKEN}", "token_ids": Ids([97, ord(BROKEN), 2])}
    turns: list[Turn] = [
        lambda jobs: [streamed(jobs[0])],
        lambda jobs: [ended(jobs[0], "stop_token", 2, held=held)],
    ]
    events = run(engine_over(GeneratorDouble(*turns), tmp_path), JobRequest(prompt="x"))
    assert [(event.text, event.output_tokens) for event in events if isinstance(event, EngineText)] == [("a", 1)]
    assert events[-1] == EngineFinished(RunId(1), Outcome.STOP, 1)


def test_a_stop_string_takes_the_job_out_of_the_generator(tmp_path: Path) -> None:
    generator = GeneratorDouble(lambda jobs: [streamed(job, "ab", [97]) for job in jobs])
    engine = engine_over(generator, tmp_path)
    events = run(engine, JobRequest(prompt="x", stop=("ba",)))
    assert events[-1] == EngineFinished(RunId(1), Outcome.STOP, 2)
    assert "".join(event.text for event in events if isinstance(event, EngineText)) == "a"
    assert (generator.jobs, len(generator.cancelled), engine.slots_busy()) == ({}, 1, 0)


def test_a_run_that_holds_is_counted_and_not_begun(tmp_path: Path) -> None:
    generator = GeneratorDouble(*says("x"))
    engine, wishes, events = engine_over(generator, tmp_path), Wishes(holds=True), []
    order = RunEngine(RunId(1), Kind.CHAT, "m", chat("Hi"), GREEDY, 4096, 8, True)
    started = threading.Event()

    def report(event: Any) -> None:
        events.append(event)
        started.set()

    thread = threading.Thread(target=engine.run, args=(order, report, wishes), daemon=True)
    thread.start()
    assert started.wait(10)
    assert not generator.entered.is_set()
    wishes.cancel()
    thread.join(10)
    assert events[1:] == [EngineFinished(RunId(1), Outcome.CANCELLED, 0)]
    assert not generator.entered.is_set()


def test_a_cancel_is_seen_after_the_turn_under_way(tmp_path: Path) -> None:
    generator = GeneratorDouble(lambda jobs: [streamed(job, "a", [97]) for job in jobs])
    generator.may_turn.clear()
    engine, wishes = engine_over(generator, tmp_path), Wishes()
    events: list[Any] = []
    order = RunEngine(RunId(1), Kind.CHAT, "m", chat("Hi"), GREEDY, 4096, 300)
    thread = threading.Thread(target=engine.run, args=(order, events.append, wishes), daemon=True)
    thread.start()
    assert generator.entered.wait(10)
    wishes.cancel()
    generator.may_turn.set()
    thread.join(10)
    assert events[-1] == EngineFinished(RunId(1), Outcome.CANCELLED, 0)
    assert len(generator.cancelled) == 1
    assert generator.jobs == {}


def test_a_job_that_the_library_gives_up_is_the_end_of_that_run_alone(tmp_path: Path) -> None:
    def gives_up(jobs: list[int]) -> list[dict[str, Any]]:
        return [{"serial": jobs[0], "stage": "error", "eos": True, "error": RuntimeError("somebody's prompt")}]

    engine = engine_over(GeneratorDouble(gives_up, *says("ok")), tmp_path)
    (*_, end) = run(engine, JobRequest(prompt="x"))
    assert end == EngineFailed(RunId(1), Refusal.ENGINE_FAILED, "the engine gave up on this prompt")
    assert run(engine, JobRequest(prompt="x"))[-1] == EngineFinished(RunId(1), Outcome.STOP, 2)


def test_a_prompt_that_leaves_no_room_is_not_given_to_the_library(tmp_path: Path) -> None:
    generator = GeneratorDouble(*says("x"))
    engine = engine_over(generator, tmp_path)
    # Three for the token that begins a text; one place is needed for what follows the last.
    assert run(engine, JobRequest(prompt="x" * 508))[-1] == EngineFinished(RunId(1), Outcome.LENGTH, 0)
    (refused,) = run(engine, JobRequest(prompt="x" * 509))
    assert refused.code is Refusal.CONTEXT_EXCEEDED
    assert run(engine, JobRequest(prompt="x"), tokens=0)[-1] == EngineFinished(RunId(1), Outcome.LENGTH, 0)
    assert not generator.entered.is_set()


@pytest.mark.parametrize(("said", "used"), [(0, (0,)), ([0, 5], (0, 5)), (None, (2,))])
def test_what_ends_an_answer_is_what_the_folder_says(tmp_path: Path, said: object, used: tuple[int, ...]) -> None:
    folder = write_folder(tmp_path / "m", eos_token_id=said)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    generator = GeneratorDouble(*says("x"))
    jobs: list[Any] = []
    enqueue = generator.enqueue
    generator.enqueue = lambda job: (jobs.append(job), enqueue(job))[1]  # type: ignore[func-returns-value,method-assign]
    config = EngineConfig("m", str(folder), context_tokens=512, exllama=ExllamaOptions(2))
    run(Exllama(config, character_library(generator), read_folder(folder)), JobRequest(prompt="x"))
    assert jobs[0][3] == used


# ---------------------------------------------------------------- the pump


def test_one_thread_owns_the_generator(tmp_path: Path) -> None:
    generator = GeneratorDouble(lambda jobs: [ended(job, "stop_token", 1) for job in jobs])
    pump = Pump(generator)

    def ask() -> None:
        list(pump.submit(object, threading.Event()).results())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(generator.threads) == 1
    assert threading.get_ident() not in generator.threads
    assert pump.jobs() == 0


@pytest.mark.parametrize("error", [AssertionError("Job requires 9 pages"), ValueError("x")])
def test_a_job_that_is_not_taken_disturbs_nobody(error: Exception) -> None:
    pump = Pump(GeneratorDouble(lambda jobs: [ended(job, "stop_token", 1) for job in jobs]))
    with pytest.raises(NotTaken):
        list(pump.submit(lambda: error, threading.Event()).results())
    assert len(list(pump.submit(object, threading.Event()).results())) == 1


def test_a_job_that_nobody_wants_any_more_is_not_begun() -> None:
    generator = GeneratorDouble(lambda jobs: [])
    cancelled = threading.Event()
    cancelled.set()
    assert list(Pump(generator).submit(object, cancelled).results()) == []
    assert not generator.entered.is_set()


def test_results_of_a_job_that_is_over_are_dropped() -> None:
    def twice(jobs: list[int]) -> list[dict[str, Any]]:
        return [ended(jobs[0], "stop_token", 1), streamed(jobs[0], "late", [1]), streamed(9999, "unknown", [1])]

    pump = Pump(GeneratorDouble(twice))
    ticket = pump.submit(object, threading.Event())
    assert len(list(ticket.results())) == 1
    ticket.give_up()
    assert list(ticket.results()) == []


def test_what_breaks_a_turn_breaks_all_runs_and_quotes_nobody() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def breaks(_jobs: list[int]) -> list[dict[str, Any]]:
        raise OutOfMemoryError("somebody's prompt")

    generator = GeneratorDouble(breaks)
    generator.may_turn.clear()
    pump = Pump(generator)
    tickets = [pump.submit(object, threading.Event()) for _ in range(3)]
    generator.may_turn.set()
    for ticket in tickets:
        with pytest.raises(EngineBroken, match=r"^OutOfMemoryError$"):
            list(ticket.results())
    with pytest.raises(EngineBroken):
        pump.submit(object, threading.Event())


# ---------------------------------------------------------------- words


def words_of(path: Path, **changes: Any) -> tuple[FolderWords, Folder]:
    folder = read_folder(write_folder(path / "m"))
    assert folder.template is not None
    library = character_library(GeneratorDouble(lambda _: []))
    return FolderWords(library, folder, ChatTemplate(folder.template, folder.names)), folder


def test_a_text_begins_with_the_token_for_that_once(tmp_path: Path) -> None:
    words, _ = words_of(tmp_path)

    def text(tokens: list[int]) -> str:
        return "".join(map(chr, tokens))

    assert text(words.tokens("Hi", special=True, begin=True)) == "<s>Hi"
    assert text(words.tokens("<s>Hi", special=True, begin=True)) == "<s>Hi"
    assert text(words.tokens("Hi", special=True, begin=False)) == "Hi"
    assert text(words.tokens("Hi", special=False, begin=True)) == "Hi"
    assert words.tokens("", special=True, begin=True) == []


def test_a_text_is_cut_within_each_control_token(tmp_path: Path) -> None:
    words, folder = words_of(tmp_path)
    text = "a<|im_end|><|im_<|im_end|>end|><s>b"
    pieces = words._cut(text)
    assert "".join(pieces) == text
    assert not [piece for piece in pieces for control in folder.control if control in piece]


def test_a_control_token_that_comes_through_all_the_same_is_dropped(tmp_path: Path) -> None:
    words, _ = words_of(tmp_path)
    assert words.tokens("a\x02b", special=False, begin=False) == [ord("a"), ord("b")]
    assert words.spelt([ord("a"), 2]) is None
    assert words.spelt([ord("a"), 2**31]) is None
    assert words.spelt([ord("a")]) == "a"


def test_a_template_that_refuses_says_no_more_than_that(tmp_path: Path) -> None:
    folder = read_folder(write_folder(tmp_path / "m"))
    library = character_library(GeneratorDouble(lambda _: []))
    refusing = FolderWords(library, folder, ChatTemplate("{{ raise_exception(messages[0].content) }}", {}))
    with pytest.raises(Refused, match="refuses these messages"):
        refusing.chat([("user", "a secret")])
    with pytest.raises(Refused, match="no chat template") as refused:
        FolderWords(library, folder, None).chat([("user", "a secret")])
    assert refused.value.code is Refusal.UNSUPPORTED


def test_a_template_that_is_none_is_told_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{% for %}")
    config = EngineConfig("m", str(folder), exllama=ExllamaOptions(3))
    with pytest.raises(EngineUnavailable, match=r"chat template of .* is none"):
        Exllama(config, character_library(GeneratorDouble(lambda _: [])), read_folder(folder))
