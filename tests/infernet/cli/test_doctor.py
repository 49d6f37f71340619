"""infernet/cli/doctor.py: what is printed where, the exit code, and that nothing is changed or told."""

from __future__ import annotations

import io
import shutil
import sys

import pytest

from infernet import identity
from protocol.ids import bech32_encode
from tests.helpers_cli import Home, invoke
from tests.helpers_doctor import QUICK, examine, make_well, seal_in


def test_in_a_pipe_each_check_is_one_plain_line(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "doctor", *QUICK)
    assert outcome.code == 1
    assert "\x1b" not in outcome.out
    *lines, blank, summary = outcome.out.splitlines()
    assert blank == ""
    assert summary.startswith(f"{len(lines)} checks: ")
    assert all(line.split()[0] in ("ok", "warn", "fail", "skip") for line in lines)
    (line,) = (line for line in lines if line.startswith("fail key.present: "))
    assert line.endswith(" -> run `infernet init`")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_a_table(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stdout", terminal)
    code = __import__("infernet.cli.__main__", fromlist=["main"]).main(["doctor", *QUICK])
    assert code == 1
    assert "what to do" in terminal.getvalue()
    assert "key.present" in terminal.getvalue()


def test_strict_is_about_the_exit_code_alone(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    make_well(home, capsys)
    easy, strict = examine(capsys, *QUICK), examine(capsys, *QUICK, "--strict")
    assert (easy.outcome.code, strict.outcome.code) == (0, 1)
    assert easy.outcome.json["counts"] == strict.outcome.json["counts"]
    assert (easy.outcome.json["ok"], strict.outcome.json["ok"]) == (True, False)
    assert set(strict.outcome.json) == {"ok", "strict", "counts", "checks"}
    assert all(set(check) == {"id", "title", "status", "found", "fix", "ms"} for check in strict.checks.values())
    assert sum(strict.outcome.json["counts"].values()) == len(strict.checks)


def test_a_flag_that_does_not_exist_is_misuse(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "doctor", "--fix").code == 2


def test_nothing_is_changed_and_nothing_secret_is_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    make_well(home, capsys)
    # The marker is written by whoever serves the model, and not by the doctor.
    shutil.rmtree(home.config.state_dir / "verified")
    home.config.store_file.parent.mkdir(exist_ok=True)
    before = seal_in(home.path)
    outputs = [
        invoke(capsys, "doctor", *words).out for words in ((), ("--json",), ("--skip-network",), ("--strict", *QUICK))
    ]
    assert seal_in(home.path) == before
    secret = identity.load(home.config.key_file).secret_bytes()
    for form in (secret.hex(), bech32_encode("nsec", secret)):
        assert not any(form in output for output in outputs)


def test_an_empty_machine_is_no_trouble(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(capsys)
    assert set(report.faults) == {"config.readable", "key.present", "model.present"}
    assert not list(home.path.iterdir())


@pytest.mark.slow
def test_a_database_in_use_is_looked_at_without_being_touched(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from infernet.money.store import MoneyStore
    from infernet.store import Store

    make_well(home, capsys)
    # What is written is in the log, and not in the file itself, as after a crash.
    stores = [Store(home.config.store_file), MoneyStore(home.config.money_file)]
    before = seal_in(home.path)
    report = examine(capsys)
    assert seal_in(home.path) == before
    for store in stores:
        store.close()
    assert report.faults == {}
    assert report.checks["money.store"]["found"].endswith("is whole")
