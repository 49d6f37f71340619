"""infernet/cli/__main__.py: the right verb, or one line that helps."""

from __future__ import annotations

import importlib
import subprocess
from types import ModuleType

import pytest

import infernet
from infernet.cli.__main__ import HIDDEN, VERBS
from tests.helpers_cli import ROOT, Home, Outcome, invoke


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["help", "nonsense"]])
def test_help_names_every_verb_and_no_hidden_one(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    outcome = invoke(capsys, *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert all(f"  {verb} " in outcome.out for verb in VERBS)
    assert not any(verb in outcome.out for verb in HIDDEN)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    outcome = invoke(capsys, verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: infernet {verb} ")
    assert "example" in outcome.out
    assert f"infernet {verb}" in outcome.out.partition("example")[2]
    assert "--json" in outcome.out
    assert invoke(capsys, "help", verb).out == outcome.out


def test_the_readme_names_every_verb() -> None:
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    assert [verb for verb in VERBS if f"`infernet {verb}" not in table] == ["version"]


@pytest.mark.parametrize("verb", HIDDEN)
def test_hidden_verbs_exist(verb: str) -> None:
    assert callable(importlib.import_module(f"infernet.cli.{verb.replace('-', '_')}").run)


def test_without_a_verb_help_is_shown_and_it_counts_as_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys)
    assert (outcome.code, outcome.out) == (2, "")
    assert "usage: infernet VERB" in outcome.err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("strat", "did you mean start or stats?"),
        ("stoop", "did you mean stop?"),
        ("Why is the sky blue?", 'infernet chat "..."'),
        ("\x1b[2J", ""),
    ],
)
def test_an_unknown_verb_gets_a_hint_in_one_line(capsys: pytest.CaptureFixture[str], word: str, hint: str) -> None:
    outcome = invoke(capsys, word)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert hint in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_the_version_is_told(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert invoke(capsys, *words).out.startswith(f"infernet {infernet.__version__} (protocol 1, ")
    assert invoke(capsys, "version", "--json").json["version"] == infernet.__version__


@pytest.mark.parametrize(
    "words", [["status", "--colour"], ["chat", "--max-tokens", "x", "hi"], ["config"], ["start", "now"]]
)
def test_a_flag_that_does_not_exist_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    outcome = invoke(capsys, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert f"(see infernet {words[0]} --help)" in outcome.err


def test_ctrl_c_while_a_verb_is_loaded_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert invoke(capsys, "status") == Outcome(130, "", "")


def test_a_process_with_closed_streams_does_not_break(home: Home) -> None:
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        words = " ".join(home.command("status"))
        done = subprocess.run(
            ["sh", "-c", f"{words} {closed}"], check=False, capture_output=True, env=home.environment(), text=True
        )
        assert done.returncode == 1, closed
        assert "Traceback" not in done.stdout + done.stderr
