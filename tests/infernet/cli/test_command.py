"""infernet/cli/command.py: every error becomes one line and an exit code, and no traceback reaches a user."""

from __future__ import annotations

import argparse
import importlib
import json
import stat
import subprocess
from types import ModuleType
from typing import Any

import pytest

from infernet.cli import command
from infernet.cli.command import Failure, Misuse, run
from infernet.config import ConfigError, FlagError
from protocol.errors import LocalProtocolError
from tests.helpers_cli import Home, invoke

CANARY = "a-secret-in-a-value"


def verb_raising(error: BaseException) -> ModuleType:
    """A verb that fails in one way."""
    module = ModuleType("verb")
    module.USAGE = module.DESCRIPTION = module.EXAMPLES = ""  # type: ignore[attr-defined]  # a module made by hand

    def fail(_arguments: argparse.Namespace) -> int:
        raise error

    module.add_arguments = lambda _parser: None  # type: ignore[attr-defined]  # as above
    module.run = fail  # type: ignore[attr-defined]  # as above
    return module


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Failure("it did not work: do that"), 1, "infernet: it did not work: do that"),
        (Misuse("give --this"), 2, "infernet: give --this"),
        (ConfigError("the file is bad"), 1, "infernet: the file is bad"),
        (FlagError("--slots must be a number"), 2, "infernet: --slots must be a number"),
        (LocalProtocolError("that cannot be asked"), 1, "infernet: that cannot be asked"),
        (
            PermissionError(13, "Permission denied", "/x/y"),
            1,
            "infernet: cannot use /x/y (permission denied): put that",
        ),
        (OSError(28, "No space left", "/x/y"), 1, "infernet: cannot use /x/y (no space left): put that right"),
        (OSError(28, "No space left on device"), 1, "infernet: cannot write the output (no space left on device)"),
        (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [Failure("inner")])]), 1, "infernet: inner"),
        (Failure("two\nlines \x1b[31mand colour"), 1, "infernet: two lines and colour"),
    ],
)
def test_an_error_for_people_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert run("test", verb_raising(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("g", [KeyboardInterrupt()])])
def test_ctrl_c_is_silent(capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert run("test", verb_raising(error), []) == 130
    assert capsys.readouterr() == ("", "")


def test_what_nobody_expected_is_one_line_and_a_file_without_values(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("test", verb_raising(ValueError(CANARY)), []) == 1
    out, err = capsys.readouterr()
    crash = home.path / "state" / "crash.log"
    assert (out, err.count("\n")) == ("", 1)
    assert f"unexpected went wrong (ValueError): where is in {crash}" in err
    assert "ValueError at " in crash.read_text()
    assert "test_command.py" in crash.read_text()
    assert stat.S_IMODE(crash.stat().st_mode) == 0o600
    assert CANARY not in crash.read_text() + err


def test_when_even_that_cannot_be_written_the_way_out_is_told(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    (home.path / "state").write_text("in the way")
    assert run("test", verb_raising(ValueError(CANARY)), []) == 1
    assert "INFERNET_DEBUG=1" in capsys.readouterr().err


def test_debug_shows_what_is_behind(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_DEBUG", "1")
    assert run("test", verb_raising(Failure("it did not work")), []) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "infernet: it did not work"


def test_with_json_the_error_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", verb_raising(Failure("no node", running=False)), ["--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "no node", "running": False}
    assert err == "infernet: no node\n"


@pytest.mark.parametrize("words", ["wallet --limit", "wallet steal", "payout", "chat --pay NaN hello"])
def test_with_json_a_misuse_is_an_object_too(capsys: pytest.CaptureFixture[str], words: str) -> None:
    outcome = invoke(capsys, *words.split(), "--json")
    assert outcome.code == 2
    assert outcome.err == f"infernet {words.split()[0]}: {outcome.json['error']}\n"


@pytest.mark.parametrize("word", ["--\x1b[31mred", "--" + "x" * 100_000, "--network=" + "x" * 100_000])
def test_a_misused_word_is_shown_clean_and_short(capsys: pytest.CaptureFixture[str], word: str) -> None:
    outcome = invoke(capsys, "wallet", word)
    assert (outcome.code, outcome.err.count("\n"), "\x1b" in outcome.err) == (2, 1, False)
    assert len(outcome.err) < 1100


def test_a_reader_that_has_enough_is_no_error_to_complain_about(home: Home) -> None:
    words = " ".join(home.command("config", "show"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -c 1; exit ${{PIPESTATUS[0]}}"],
        check=False,
        capture_output=True,
        text=True,
        env=home.environment(),
    )
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(home: Home, closed: str) -> None:
    words = " ".join(home.command("config", "show"))
    done = subprocess.run(
        ["bash", "-c", f"{words} {closed}"], check=False, capture_output=True, text=True, env=home.environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_class_on_the_list_exists() -> None:
    for module, name in command._FOR_PEOPLE:
        error: Any = getattr(importlib.import_module(module), name)
        assert issubclass(error, Exception)
