"""`infernet engine`: what it finds, what it tries, and what it says when that is of no use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infernet.engines import openai_servers
from infernet.engines.contract import EngineUnavailable
from infernet.engines.exllama_library import import_library
from tests.helpers_cli import Home, invoke, invoke_beside
from tests.helpers_openai_servers import ANSWER, KEY, OddServer, ollama

pytestmark = pytest.mark.anyio


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the usual ports of this machine alone: nobody answers at the only one that is tried."""
    monkeypatch.setattr(openai_servers, "USUAL_PORTS", ((9, "Ollama"),))


async def test_the_list_names_what_answers_and_why_the_rest_is_of_no_use(
    home: Home, nobody: None, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ollama().running() as server:
        listed = await invoke_beside(
            capsys, "engine", "list", "--engine-url", server.url, "--engine", "openai", "--json"
        )
        shown = await invoke_beside(capsys, "engine", "list", "--engine-url", server.url)
    embedded, *_, named, usual = listed.json["engines"]
    assert (embedded["engine"], embedded["is_set"]) == ("llama", False)
    assert named == {
        "engine": "openai",
        "kind": "Ollama",
        "where": server.url,
        "models": ["qwen2.5:7b"],
        "why_not": "",
        "is_set": True,
    }
    assert (usual["where"], usual["why_not"], usual["is_set"]) == ("http://127.0.0.1:9", "nobody answers", False)
    assert "qwen2.5:7b" in shown.out
    assert "\x1b" not in shown.out


async def test_a_library_that_does_not_fit_is_looked_at_in_a_process_of_its_own(
    home: Home, nobody: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libraries" / "exllamav3"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("raise OSError('CUDA_HOME environment variable is not set')")
    (tmp_path / "libraries" / "exllamav2.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    listed = await invoke_beside(capsys, "engine", "list", "--json")
    why_not = {engine["engine"]: engine["why_not"] for engine in listed.json["engines"]}
    assert "does not start here (OSError)" in why_not["exllamav3"]
    assert why_not["exllamav2"] == "the engine process was ended by SIGSEGV"


async def test_in_the_packaged_program_nobody_is_told_to_install_anything(
    home: Home, nobody: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    listed = await invoke_beside(capsys, "engine", "list", "--json")
    why_not = {engine["engine"]: engine["why_not"] for engine in listed.json["engines"]}
    for name in ("exllamav2", "exllamav3"):
        assert why_not[name] == (
            f"{name} is not in this binary, into which nothing can be installed: use the Python package"
        )
        with pytest.raises(EngineUnavailable, match="is not in this binary"):
            import_library(name, "pip install it")


async def test_the_key_is_shown_to_the_named_server_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERNET_ENGINE_KEY", KEY)
    async with ollama().running() as named, ollama().running() as other:
        port = int(other.url.rpartition(":")[2])
        monkeypatch.setattr(openai_servers, "USUAL_PORTS", ((port, "Ollama"),))
        outcome = await invoke_beside(capsys, "engine", "list", "--engine-url", named.url)
    assert outcome.code == 0
    assert {asked.headers.get("authorization") for asked in named.asked} == {f"Bearer {KEY}"}
    assert {asked.headers.get("authorization") for asked in other.asked} == {None}
    assert KEY not in outcome.out + outcome.err


async def test_ollama_of_another_machine_is_named_and_not_asked(
    home: Home, nobody: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://me:secret@gpu.invalid:1")
    outcome = await invoke_beside(capsys, "engine", "list", "--json")
    assert [engine["where"] for engine in outcome.json["engines"] if engine["engine"] == "openai"] == [
        "http://127.0.0.1:9"
    ]
    assert "give --engine-url http://gpu.invalid:1 to use it" in outcome.err
    assert "secret" not in outcome.out + outcome.err


async def test_names_of_models_cannot_do_anything_to_a_terminal(
    home: Home, nobody: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server = OddServer().serves("/v1/models", {"data": [{"id": "evil\x1b[2J\nmodel"}]})
    async with server.running():
        outcome = await invoke_beside(capsys, "engine", "list", "--engine-url", server.url)
    assert "\x1b" not in outcome.out
    assert "evil" in outcome.out


async def test_a_server_is_tried_with_a_real_question(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    async with ollama().running() as server:
        outcome = await invoke_beside(capsys, "engine", "test", f"{server.url}/v1", "--json")
    (answer,) = outcome.json["answers"]
    assert (outcome.code, answer["model"], answer["text"]) == (0, "qwen2.5:7b", "".join(ANSWER))
    assert (answer["output_tokens"], answer["context_tokens"]) == (6, 4096)


async def test_a_server_that_does_not_answer_is_told_in_one_line(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ollama("[DONE]")
    async with server.running():
        outcome = await invoke_beside(capsys, "engine", "test", server.url)
        assert (outcome.code, outcome.out) == (1, "")
        assert "does not work: qwen2.5:7b did not answer: the engine broke down" in outcome.complaint
    gone = await invoke_beside(capsys, "engine", "test", server.url)
    assert gone.code == 1
    assert "nobody answers at" in gone.complaint


def test_who_tries_an_engine_is_not_told_to_do_without_one(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "engine", "test")
    assert (outcome.code, outcome.out) == (1, "")
    assert "run `infernet model pull`" in outcome.complaint
    assert "--role client" not in outcome.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["test", "vllm"], "NAME is llama, exllamav2, exllamav3, openai, or the address of a server"),
        (["test", "--timeout", "-1"], "--timeout must be seconds"),
        (["test", "--engine", "none"], "name one to test"),
        (["list", "llama"], "list takes no name"),
        (["start"], "there is no action 'start': there are list and test"),
    ],
)
def test_misuse_is_one_line(home: Home, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    outcome = invoke(capsys, "engine", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.complaint


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_engine_says_paris(
    home: Home, starter_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.config.models_dir.mkdir(parents=True)
    (home.config.models_dir / starter_model_path.name).symlink_to(starter_model_path)
    outcome = invoke(capsys, "engine", "test", "llama")
    assert outcome.code == 0, outcome.err
    assert "Paris" in outcome.out
    assert "tokens/s" in outcome.out
