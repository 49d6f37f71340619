"""The command as people start it: what it prints, how it fails, how it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.__main__ import main
from protocol.ids import node_id_from_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@contextmanager
def started(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and the first line that it printed."""
    process = subprocess.Popen(
        command("--home", str(home), "--port", "0", *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_it_says_when_it_is_ready_serves_and_stops_at_a_signal(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    with started(home, "--json") as (process, line):
        ready = json.loads(line)
        fields = httpx.get(f"{ready['url']}/api/v1/coordinator", timeout=10).json()
        assert fields["key"] == ready["key"] == node_id_from_text(ready["npub"]).hex()
        assert ready["pid"] == process.pid
        for name in (".", "coordinator.key", "coordinator.sqlite3", "coordinator.lock"):
            assert (home / name).stat().st_mode & 0o077 == 0, f"{name} is open to others"
        second = run("--home", str(home), "--port", "0", "--log-level", "error")
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr.startswith("infernet-coordinator: another coordinator already runs on")
        assert len(second.stderr.splitlines()) == 1
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert all(isinstance(json.loads(line), dict) for line in errors.splitlines())


def test_it_starts_again_with_its_key_after_a_kill_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path, "--json") as (process, line):
        before = json.loads(line)
        process.kill()
        process.communicate()
    with started(tmp_path) as (process, line):
        assert line.startswith("Infernet coordinator on http://127.0.0.1:")
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[0].rstrip().endswith("/chat")
        assert before["key"] in lines[1]
        assert before["npub"] in lines[2]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, "Traceback" in errors) == (0, False)


def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--home", str(tmp_path), "--port", str(port), "--log-level", "error")
    why = "Address already in use; choose another with --port"
    assert done.stderr == f"infernet-coordinator: cannot listen on 127.0.0.1 port {port}: {why}\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_a_wrong_setting_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERNET_COORDINATOR_CHAT_PER_HOUR", "3")
    assert main(["--home", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "infernet-coordinator: environment: unknown setting 'chat_per_hour'; did you mean chats_per_hour?\n"
    )


def exit_code(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return exit_.value.code


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for word in ("Try it:", "--port", "config.toml", "INFERNET_COORDINATOR_", "coordinator.key", "trusted_proxies"):
        assert word in text


@pytest.mark.parametrize("command", ["backup", "restore", "check", "payouts", "deposits"])
def test_every_command_teaches_by_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert exit_code(command, "--help") == 0
    assert f"  infernet-coordinator {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prot", "1"),
        ("--port", "x"),
        ("--log-level", "loud"),
        ("extra",),
        ("backup",),
        ("payouts", "decide", "x", "burn"),
        ("check", "\x1b[31mred"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), "\x1b" in captured.err) == ("", 1, False)


@pytest.mark.parametrize(
    ("where", "code", "says"), [(">&-", 0, ""), (">/dev/full", 1, "cannot write the output (no space left on device)")]
)
def test_a_result_that_nobody_can_read_is_no_traceback(tmp_path: Path, where: str, code: int, says: str) -> None:
    with started(tmp_path):
        pass
    words = " ".join(command("check", "--home", str(tmp_path)))
    done = subprocess.run(
        ["bash", "-c", f"{words} {where}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1 if says else 0)
    assert says in done.stderr
