"""`infernet benchmark`: a measurement of what is served, kept to be shown again."""

from __future__ import annotations

import pytest

from infernet.engines.benchmark import kept
from tests.helpers_cli import Home, invoke, invoke_beside
from tests.helpers_openai_servers import ollama

pytestmark = pytest.mark.anyio

Capture = pytest.CaptureFixture[str]


async def test_what_is_measured_is_shown_and_kept(home: Home, capsys: Capture) -> None:
    words = ["benchmark", "--engine", "openai", "--rounds", "2"]
    async with ollama().running() as server:
        measured = await invoke_beside(capsys, *words, "--engine-url", server.url, "--json")
        shown = await invoke_beside(capsys, *words, "--engine-url", server.url)
    assert measured.code == 0, measured.err
    (speed,) = measured.json["models"]
    assert (speed["model"], speed["rounds"], speed["output_tokens"]) == ("qwen2.5:7b", 2, 6)
    assert "qwen2.5:7b" in shown.out
    assert speed["fingerprint"] is None  # a server does not tell
    assert kept(home.config.state_dir) is not None
    last = invoke(capsys, "benchmark", "--last")
    assert "with --engine openai:" in last.out
    assert "qwen2.5:7b" in last.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--last"], 1, "nothing was measured here yet"),
        (["--rounds", "0"], 2, "--rounds must be"),
        (["--rounds", "x"], 2, "--rounds must be a whole number"),
        (["--engine", "none"], 2, "no engine to measure"),
        (["--engine", "openai", "--engine-url", "http://127.0.0.1:9"], 1, "nobody answers at http://127.0.0.1:9"),
        ([], 1, "run `infernet model pull`, or give the path of a model that you have (--model)"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    home: Home, capsys: Capture, words: list[str], code: int, told: str
) -> None:
    outcome = invoke(capsys, "benchmark", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert told in outcome.complaint
    assert outcome.err.count("\n") == 1
    assert "--role client" not in outcome.err
