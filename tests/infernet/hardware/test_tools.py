"""infernet/hardware/tools.py: another program's output, within limits."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from infernet.hardware import tools

DEADLINE_S = 20.0


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def program(folder: Path, script: str, name: str = "some-smi") -> str:
    """Write a program of these lines."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return name


def test_what_a_program_prints_is_given_whatever_its_status(on_path: Path) -> None:
    tool = program(on_path, 'echo "$1 and $2"; echo complaint >&2; exit 9')
    assert tools.output_of([tool, "a; b", "$HOME"]) == b"a; b and $HOME\n"


def test_a_program_that_is_not_there_gives_nothing(on_path: Path) -> None:
    assert tools.output_of(["no-such-smi"]) is None


def test_a_program_that_cannot_be_started_gives_nothing(on_path: Path) -> None:
    path = on_path / "broken-smi"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    assert tools.output_of(["broken-smi"]) is None
    assert tools.output_of(["some\0thing"]) is None


@pytest.mark.slow
def test_a_program_that_hangs_is_ended_with_what_it_started(on_path: Path) -> None:
    told = on_path / "pid"
    tool = program(on_path, f"sleep 600 &\necho $! > {told}\necho part\nwait")
    began_s = time.monotonic()
    assert tools.output_of([tool], timeout_s=2.0) is None
    assert time.monotonic() - began_s < DEADLINE_S
    child = int(told.read_text())
    while time.monotonic() - began_s < DEADLINE_S and is_running(child):
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Whether this process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_closes_its_output_and_hangs_is_ended(on_path: Path) -> None:
    tool = program(on_path, "echo all; exec >&-; exec sleep 600")
    began_s = time.monotonic()
    assert tools.output_of([tool], timeout_s=0.5) is None
    assert time.monotonic() - began_s < DEADLINE_S


@pytest.mark.slow
def test_a_program_that_cannot_be_ended_is_not_started_again(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs in the kernel does not hear SIGKILL. Nothing may pile up behind it."""
    started = on_path / "started"
    tool = program(on_path, f"echo $$ >> {started}\nexec sleep 600")
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "killpg", lambda _group, _signal: None)
        deaf.setattr(tools, "_KILL_TIMEOUT_S", 0.05)
        assert [tools.output_of([tool], timeout_s=2.0) for _ in range(3)] == [None] * 3
    (pid,) = map(int, started.read_text().split())
    os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    while time.monotonic() - began_s < DEADLINE_S and is_running(pid):
        time.sleep(0.01)
    assert tools.output_of([tool], timeout_s=2.0) is None
    assert len(started.read_text().split()) == 2


def test_a_program_that_says_too_much_is_ended(on_path: Path) -> None:
    assert tools.output_of(["head", "-c", "1000", "/dev/zero"], bytes_max=1000) == bytes(1000)
    assert tools.output_of(["head", "-c", "1001", "/dev/zero"], bytes_max=1000) is None
    tool = program(on_path, "exec cat /dev/zero")
    began_s = time.monotonic()
    assert tools.output_of([tool], bytes_max=1 << 20) is None
    assert time.monotonic() - began_s < DEADLINE_S


def test_a_tool_learns_no_secret_and_answers_in_english(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNET_KEY", "nsec1-not-for-tools")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "1")
    output = tools.output_of(["env"])
    assert output is not None
    assert b"nsec1" not in output
    assert b"LC_ALL=C\n" in output
    assert b"NVIDIA_VISIBLE_DEVICES=1\n" in output
