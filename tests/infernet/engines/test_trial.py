"""Trying engines out, and what is measured by it: a double with a known pace, and engines that do not answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from trio.testing import MockClock

from infernet.engines import benchmark
from infernet.engines.benchmark import Benchmark, Speed, kept, prompts, speeds_of
from infernet.engines.contract import EngineUnavailable, Report
from infernet.engines.several import Part, SeveralEngines
from infernet.engines.trial import Trial, TrialFailed, question, try_engine
from tests.helpers_engine import PacedEngine
from tests.helpers_records import OFFER

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, MockClock]]:
    """Trio, with a clock that jumps to whatever is waited for."""
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_an_answer_is_timed_from_its_prompt_and_from_its_first_text() -> None:
    engine = PacedEngine(tokens_per_s=10, prompt_tokens_per_s=3)
    (trial,) = await try_engine(engine, lambda _: [question()], 21, 5, 60)
    assert (trial.model, trial.prompt_tokens, trial.output_tokens) == ("paced", 6, 21)
    # Two seconds of reading, and the first token.
    assert trial.prompt_s == pytest.approx(2.1)
    assert trial.tokens_per_s == pytest.approx(10)
    assert engine.models() == ()


async def test_an_engine_that_is_too_slow_is_told_with_what_to_do() -> None:
    with pytest.raises(TrialFailed, match="had not answered after 5 s: give it more with --timeout"):
        await try_engine(PacedEngine(tokens_per_s=1), lambda _: [question()], 21, 5, 5)


async def test_an_engine_that_refuses_or_says_nothing_is_told() -> None:
    with pytest.raises(TrialFailed, match="paced did not answer: the prompt has"):
        await try_engine(PacedEngine(context_tokens=3), lambda _: [question()], 21, 5, 60)
    with pytest.raises(TrialFailed, match="answered with nothing"):
        await try_engine(PacedEngine(answer_tokens=0), lambda _: [question()], 21, 5, 60)


async def test_one_of_several_that_does_not_load_fails_the_trial_of_all() -> None:
    class Damaged(PacedEngine):
        """A paced engine that cannot load."""

        async def run(self, report: Report, *, task_status: object = None) -> None:
            """Say why."""
            raise EngineUnavailable("the file is damaged")

    parts = [Part("paced", PacedEngine("good"), ("good",)), Part("paced", Damaged("bad"), ("bad",))]
    with pytest.raises(TrialFailed, match=r"^bad is not served: the file is damaged$"):
        await try_engine(SeveralEngines(parts), lambda _: [question()], 3, 5, 60)


async def test_rounds_are_measured_and_their_medians_kept(tmp_path: Path) -> None:
    engine = PacedEngine(tokens_per_s=20, prompt_tokens_per_s=100, context_tokens=2048)
    trials = await try_engine(engine, partial(prompts, 3), 64, 5, 600)
    (speed,) = speeds_of(trials, {"paced": engine.offer})
    assert (speed.model, speed.rounds, speed.output_tokens) == ("paced", 3, 64)
    assert speed.tokens_per_s == pytest.approx(20)
    assert speed.prompt_tokens_per_s == pytest.approx(speed.prompt_tokens / speed.prompt_s)
    assert 90 < (speed.prompt_tokens_per_s or 0) < 100
    measured = Benchmark(1, "llama", [speed])
    assert kept(tmp_path) is None
    benchmark.keep(tmp_path, measured)
    assert kept(tmp_path) == measured


def test_the_median_forgives_one_bad_round() -> None:
    def trial(prompt_s: float, rate: float | None) -> Trial:
        return Trial("m", 100, "text", 50, 10, prompt_s, rate)

    (speed,) = speeds_of([trial(1, 10), trial(100, None), trial(2, 30)], {"m": OFFER})
    assert speed == Speed("m", 50, 2, 25, 10, 20, 3, OFFER.fingerprint.hex())


def test_no_two_prompts_begin_alike_and_all_fit() -> None:
    offer = PacedEngine(context_tokens=256).offer
    texts = [request.messages[0].content for request in prompts(5, offer)]
    assert len({text[:8] for text in texts}) == 5
    assert all(len(text.split()) < 256 - benchmark.OUTPUT_TOKENS for text in texts)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 9999, b'{"at_ms":1,"engine":"x","models":[{}]}'])
def test_what_is_kept_is_not_believed_beyond_its_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / benchmark.FILE_NAME).write_bytes(content)
    assert kept(tmp_path) is None
