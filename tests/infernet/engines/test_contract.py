"""What every engine must do: the suite that the product's engines and the test double pass."""

from __future__ import annotations

import math
import random
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from infernet.engines.contract import EngineConfig, EngineState, ExllamaOptions
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.openai_engine import ApiKey, OpenAiConfig, OpenAiEngine
from infernet.engines.several import Part, SeveralEngines
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted, EngineVector
from protocol.ids import RunId
from protocol.records import ChatMessage, JobRequest, Kind, Outcome
from tests.helpers_engine import PacedEngine, chat
from tests.helpers_exllama import write_folder
from tests.helpers_openai_servers import KEY, llama_server
from tests.infernet.engines.conftest import CONTEXT_TOKENS, SLOTS, Bench, running, starter_config

pytestmark = pytest.mark.anyio

EXLLAMA_WORKER = Path(__file__).with_name("exllama_worker.py")
QUESTION = "Name the three primary colours, and say which one is the sky's."
LONG_STORY = JobRequest(prompt="Once upon a time there was a king who counted to a thousand: 1, 2, 3, 4, 5, 6,")


_NEEDS_MODEL = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(
    scope="module",
    params=[
        "paced",
        "several",
        pytest.param("llama", marks=_NEEDS_MODEL),
        pytest.param("server", marks=_NEEDS_MODEL),
        pytest.param("exllama", marks=[pytest.mark.exllama, pytest.mark.slow]),
    ],
)
async def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One engine after the other, each loaded once."""
    if request.param == "exllama":
        folder = write_folder(tmp_path_factory.mktemp("models") / "tiny")
        kinds = (Kind.CHAT, Kind.COMPLETION)
        config = EngineConfig("tiny", str(folder), None, kinds, CONTEXT_TOKENS, SLOTS, exllama=ExllamaOptions(2))
        command = [sys.executable, "-P", str(EXLLAMA_WORKER)]
        async with running(IsolatedEngine(config, command=command)) as exllama:
            yield exllama
        return
    if request.param == "paced":
        async with running(PacedEngine(context_tokens=CONTEXT_TOKENS, slots=SLOTS)) as paced:
            yield paced
        return
    if request.param == "several":
        one = PacedEngine(context_tokens=CONTEXT_TOKENS, slots=SLOTS)
        async with running(SeveralEngines([Part("paced", one, (one.offer.name,))])) as several:
            yield several
        return
    if request.param == "server":
        with llama_server(request.getfixturevalue("starter_model_path"), CONTEXT_TOKENS, SLOTS) as (url, _):
            async with running(OpenAiEngine(OpenAiConfig(url, key=ApiKey(KEY), slots=SLOTS))) as server:
                yield server
    else:
        path: Path = request.getfixturevalue("starter_model_path")
        async with running(IsolatedEngine(starter_config(path))) as llama:
            yield llama


async def test_what_it_offers_can_be_put_into_a_heartbeat(bench: Bench) -> None:
    (offer,) = bench.engine.models()
    assert len(offer.fingerprint) == 32
    assert offer.context_tokens == CONTEXT_TOKENS
    assert offer.concurrency == SLOTS
    assert {Kind.CHAT, Kind.COMPLETION} <= set(offer.kinds)
    # Only whose weights are known embeds.
    assert any(offer.fingerprint) or Kind.EMBEDDING not in offer.kinds
    assert bench.engine.statistics().state is EngineState.READY


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
async def test_a_run_starts_gives_text_with_rising_counts_and_ends_once(bench: Bench, kind: Kind) -> None:
    request = chat(QUESTION) if kind is Kind.CHAT else LONG_STORY
    _, end = await bench.do(kind, request, tokens=10)
    events = bench.recorder.of(end.run)
    texts = bench.recorder.texts(end.run)
    counts = [text.output_tokens for text in texts]
    assert isinstance(events[0], EngineStarted)
    assert events[0].prompt_tokens > 5
    assert texts
    assert counts == sorted(set(counts))
    assert counts[-1] <= end.output_tokens
    assert bench.recorder.ends()[end.run] == 1


@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_never_a_token_more_than_ordered(bench: Bench, tokens: int) -> None:
    _, end = await bench.do(Kind.COMPLETION, LONG_STORY, tokens=tokens)
    assert (end.outcome, end.output_tokens) == (Outcome.LENGTH, tokens)


async def test_the_same_question_gets_the_same_answer_at_temperature_zero(bench: Bench) -> None:
    first, first_end = await bench.do(Kind.CHAT, chat(QUESTION))
    second, second_end = await bench.do(Kind.CHAT, chat(QUESTION))
    assert first
    assert (first, first_end.output_tokens) == (second, second_end.output_tokens)


async def test_a_stop_string_across_tokens_ends_the_answer_and_its_tokens_count(bench: Bench) -> None:
    _, end = await bench.do(Kind.CHAT, chat(QUESTION))
    pieces = bench.recorder.texts(end.run)
    at = next(at for at in range(2, len(pieces)) if len(pieces[at].text) > 1 and len(pieces[at + 1].text) > 1)
    stop = pieces[at].text[-1:] + pieces[at + 1].text[:1]
    before = "".join(piece.text for piece in pieces[: at + 2]).partition(stop)[0]

    text, stopped = await bench.do(Kind.CHAT, chat(QUESTION, stop=("never said", stop)), tokens=64)
    assert text == before
    assert (stopped.outcome, stopped.output_tokens) == (Outcome.STOP, pieces[at + 1].output_tokens)


async def test_what_only_looks_like_a_stop_string_is_given_in_the_end(bench: Bench) -> None:
    text, end = await bench.do(Kind.CHAT, chat(QUESTION))
    held, held_end = await bench.do(Kind.CHAT, chat(QUESTION, stop=(text[-3:] + "never said",)))
    assert held == text
    assert held_end == EngineFinished(held_end.run, end.outcome, end.output_tokens)


async def test_an_answer_is_continued_where_it_was_cut(bench: Bench) -> None:
    if not any(bench.engine.models()[0].fingerprint):
        refused = await bench.refusal(Kind.CHAT, chat(QUESTION, continuation="The "))
        assert refused.code is Refusal.UNSUPPORTED
        return
    whole, end = await bench.do(Kind.CHAT, chat(QUESTION), tokens=16)
    pieces = bench.recorder.texts(end.run)
    for cut in (1, 11):
        said = "".join(piece.text for piece in pieces[:cut])
        left = 16 - pieces[cut - 1].output_tokens
        rest, rest_end = await bench.do(Kind.CHAT, chat(QUESTION, continuation=said), tokens=left)
        assert said + rest == whole, f"cut after {cut} pieces"
        assert rest_end.output_tokens == left


async def test_a_completion_is_continued_too(bench: Bench) -> None:
    if not any(bench.engine.models()[0].fingerprint):
        refused = await bench.refusal(Kind.COMPLETION, JobRequest(prompt="Once", continuation=" upon"))
        assert refused.code is Refusal.UNSUPPORTED
        return
    whole, end = await bench.do(Kind.COMPLETION, LONG_STORY, tokens=12)
    pieces = bench.recorder.texts(end.run)
    said = "".join(piece.text for piece in pieces[:4])
    request = JobRequest(prompt=LONG_STORY.prompt, continuation=said)
    rest, _ = await bench.do(Kind.COMPLETION, request, tokens=12 - pieces[3].output_tokens)
    assert said + rest == whole


async def test_an_embedding_is_a_unit_vector_per_input(bench: Bench) -> None:
    inputs = ("a cat sat on the mat", "stock markets fell", "a cat sat on the mat")
    if Kind.EMBEDDING not in bench.engine.models()[0].kinds:
        assert (await bench.refusal(Kind.EMBEDDING, JobRequest(inputs=inputs))).code is Refusal.UNSUPPORTED
        return
    run = bench.start(Kind.EMBEDDING, JobRequest(inputs=inputs), tokens=0)
    end = await bench.recorder.end_of(run)
    started = bench.recorder.of(run)[0]
    vectors = [event for event in bench.recorder.of(run) if isinstance(event, EngineVector)]
    numbers = [struct.unpack(f"<{len(vector.vector) // 4}f", vector.vector) for vector in vectors]
    assert end == EngineFinished(RunId(run), Outcome.STOP, 0)
    assert isinstance(started, EngineStarted)
    assert started.prompt_tokens >= sum(len(text.split()) for text in inputs)
    assert [vector.index for vector in vectors] == [0, 1, 2]
    assert len({len(row) for row in numbers}) == 1
    assert all(math.isclose(math.hypot(*row), 1, rel_tol=1e-4) for row in numbers)
    assert vectors[0].vector == vectors[2].vector != vectors[1].vector


async def test_a_cancel_ends_a_run_and_frees_its_slot(bench: Bench) -> None:
    run = bench.start(Kind.COMPLETION, LONG_STORY, tokens=200)
    await bench.recorder.until(lambda: len(bench.recorder.texts(run)) >= 3)
    bench.engine.cancel(RunId(run))
    bench.engine.cancel(RunId(run))
    end = await bench.recorder.end_of(run)
    assert isinstance(end, EngineFinished)
    assert end.outcome is Outcome.CANCELLED
    assert end.output_tokens == bench.recorder.texts(run)[-1].output_tokens < 200

    runs = [bench.start(Kind.COMPLETION, LONG_STORY, tokens=2) for _ in range(SLOTS)]
    ends = [await bench.recorder.end_of(run) for run in runs]
    assert all(isinstance(end, EngineFinished) for end in ends)
    bench.engine.cancel(RunId(run))
    assert bench.recorder.ends()[RunId(run)] == 1


async def test_more_runs_than_slots_are_refused(bench: Bench) -> None:
    runs = [bench.start(Kind.COMPLETION, LONG_STORY, tokens=200) for _ in range(SLOTS)]
    refused = await bench.refusal(Kind.COMPLETION, LONG_STORY)
    assert refused.code is Refusal.BUSY
    for run in runs:
        bench.engine.cancel(RunId(run))
    for run in runs:
        await bench.recorder.end_of(run)
    assert bench.engine.statistics().runs_active == 0


@pytest.mark.parametrize(
    ("request_", "kind", "limits", "code", "told"),
    [
        (chat("hello"), Kind.CHAT, {"model": "another"}, Refusal.NO_MODEL, "serves"),
        (chat(QUESTION), Kind.CHAT, {"prompt_tokens_max": 3}, Refusal.TOO_LARGE, "order allows 3"),
        (chat("word " * 300), Kind.CHAT, {}, Refusal.CONTEXT_EXCEEDED, f"holds {CONTEXT_TOKENS}"),
        (JobRequest(), Kind.CHAT, {}, Refusal.BAD_REQUEST, ""),
        (JobRequest(), Kind.COMPLETION, {}, Refusal.BAD_REQUEST, "empty"),
        (JobRequest(messages=(ChatMessage("admin", "x"),)), Kind.CHAT, {}, Refusal.BAD_REQUEST, "role"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_a_reason(
    bench: Bench, request_: JobRequest, kind: Kind, limits: dict[str, int | str], code: Refusal, told: str
) -> None:
    refused = await bench.refusal(kind, request_, **limits)
    assert refused.code is code
    assert told in refused.text
    assert len(refused.text) <= 256


async def test_many_runs_with_random_cancels_each_end_once(bench: Bench) -> None:
    mine: list[int] = []

    async def one_after_another(rng: random.Random) -> None:
        for tokens in rng.sample([3, 150, 150], 3):
            run = bench.start(Kind.COMPLETION, JobRequest(prompt=f"{rng.random()} is a number"), tokens=tokens)
            mine.append(run)
            if tokens == 150:
                await bench.recorder.until(partial(_has_texts, bench, run, rng.randrange(4)))
                bench.engine.cancel(RunId(run))
            await bench.recorder.end_of(run)

    async with trio.open_nursery() as nursery:
        for seed in range(SLOTS):
            nursery.start_soon(one_after_another, random.Random(seed))
    assert all(bench.recorder.ends()[RunId(run)] == 1 for run in mine)
    told = Counter(
        end.outcome if isinstance(end, EngineFinished) else end.code
        for run in mine
        for end in bench.recorder.of(run)[-1:]
        if isinstance(end, EngineFinished | EngineFailed)
    )
    # A cancel that comes before the start ends with a refusal.
    assert told[Outcome.LENGTH] == SLOTS
    assert told[Outcome.CANCELLED] + told[Refusal.CANCELLED] == 2 * SLOTS
    assert told[Outcome.CANCELLED] > 0
    statistics = bench.engine.statistics()
    assert (statistics.runs_active, statistics.slots_leaked, statistics.restarts) == (0, 0, 0)


def _has_texts(bench: Bench, run: int, wanted: int) -> bool:
    return len(bench.recorder.texts(run)) >= wanted


async def test_stopping_the_engine_fails_what_still_runs() -> None:
    async with running(PacedEngine(tokens_per_s=50)) as bench:
        run = bench.start(Kind.COMPLETION, LONG_STORY, tokens=1000)
        await bench.recorder.until(lambda: bool(bench.recorder.texts(run)))
    end = bench.recorder.of(run)[-1]
    assert isinstance(end, EngineFailed)
    assert end.code is Refusal.SHUTDOWN
    assert bench.changes == [1, 0]
