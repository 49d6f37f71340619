"""The engine process: what it inherits, what it may say about itself, and that it never outlives the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import trio

from infernet.confinement import seccomp
from infernet.engines import process as process_module
from infernet.engines.contract import EngineConfig
from infernet.engines.frames import FrameReader, Load, LoadFailed, Ping, Pong, encode
from infernet.engines.process import describe_exit, open_worker, reason_in, worker_command, worker_environment


@contextmanager
def bare_worker(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real engine process, driven by hand."""
    process = subprocess.Popen(
        worker_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_environment(os.environ),
        cwd=directory,
    )
    with process:
        yield process
        process.kill()


def ask(process: subprocess.Popen[bytes], command: Load | Ping) -> object:
    """Send one command and read one report."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(encode(command))
    process.stdin.flush()
    reader = FrameReader()
    while data := os.read(process.stdout.fileno(), 65536):
        messages = reader.feed(data)
        if messages:
            return messages[0]
    raise AssertionError("it ended")


def test_it_gives_up_what_an_engine_does_not_need(tmp_path: Path) -> None:
    with bare_worker(tmp_path) as process:
        assert ask(process, Ping(5)) == Pong(5)
        seen = psutil.Process(process.pid)
        assert seen.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert seen.nice() > psutil.Process().nice()
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
        assert "NoNewPrivs:\t1" in status
        # What native code prints goes where errors go, and not between the frames.
        assert os.readlink(f"/proc/{process.pid}/fd/1") == os.readlink(f"/proc/{process.pid}/fd/2")
        process.send_signal(signal.SIGINT)
        assert ask(process, Ping(6)) == Pong(6)


def test_it_ends_when_its_input_closes(tmp_path: Path) -> None:
    with bare_worker(tmp_path) as process:
        assert ask(process, Ping(1)) == Pong(1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_it_ends_on_a_command_that_is_none(tmp_path: Path) -> None:
    with bare_worker(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.write(b"hello, engine\n")
        process.stdin.flush()
        process.wait(timeout=10)


@pytest.mark.model
@pytest.mark.skipif(not seccomp.is_available(), reason="needs a kernel with seccomp filters")
def test_it_is_confined_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no weights")
    with bare_worker(tmp_path) as process:
        assert "Seccomp:\t0" in Path(f"/proc/{process.pid}/status").read_text("ascii")
        assert isinstance(ask(process, Load(EngineConfig("m", str(path)), str(tmp_path))), LoadFailed)
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        assert len(threads) > 0
        assert all("Seccomp:\t2" in (thread / "status").read_text("ascii") for thread in threads)


def test_an_owner_may_leave_it_unconfined(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no weights")
    with bare_worker(tmp_path) as process:
        config = EngineConfig("m", str(path), confine=False)
        assert isinstance(ask(process, Load(config, str(tmp_path))), LoadFailed)
        assert "Seccomp:\t0" in Path(f"/proc/{process.pid}/status").read_text("ascii")


@pytest.mark.model
def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no weights")
    with bare_worker(tmp_path) as process:
        answer = ask(process, Load(EngineConfig("m", str(path)), str(tmp_path)))
        assert answer == LoadFailed(f"llama.cpp cannot load {path}")


def test_it_gets_no_secrets_of_the_environment() -> None:
    kept = worker_environment(
        {
            "PATH": "/bin",
            "CUDA_VISIBLE_DEVICES": "0",
            "INFERNET_KEY": "x",
            "AWS_SECRET": "x",
            "HOME": "/h",
            "PIP_X": "y",
        }
    )
    assert kept.keys() == {"PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"}


@pytest.mark.anyio
async def test_it_runs_in_a_folder_of_its_own_which_goes_with_it() -> None:
    async with open_worker([sys.executable, "-c", "import time; time.sleep(600)"]) as worker:
        directory, pid = worker.directory, worker.pid
        assert psutil.Process(pid).environ()["TMPDIR"] == directory
        assert is_private(directory)
        assert os.readlink(f"/proc/{pid}/cwd") == directory
    assert not is_private(directory)
    assert not psutil.pid_exists(pid)


def is_private(directory: str) -> bool:
    """Whether a folder is there, and for its owner alone."""
    path = Path(directory)
    return path.exists() and path.stat().st_mode & 0o077 == 0


@pytest.mark.anyio
async def test_a_process_that_dies_at_once_is_explained() -> None:
    with trio.fail_after(20):
        async with open_worker([sys.executable, "-m", "infernet_that_is_not_there"]) as worker:
            assert await worker.receive() is None
            why = await worker.why_gone()
    assert why == "the engine process exited with status 1: the installation of infernet is incomplete"


@pytest.mark.anyio
async def test_one_that_floods_its_errors_costs_little_and_is_explained_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = 0

    def counted(line: str) -> str | None:
        nonlocal looked_at
        looked_at += 1
        return reason_in(line)

    monkeypatch.setattr(process_module, "reason_in", counted)
    script = "import os; os.write(2, b'\\n' * 60_000 + b'GGML_ASSERT\\n')"
    with trio.fail_after(20):
        async with open_worker([sys.executable, "-c", script]) as worker:
            assert await worker.receive() is None
            why = await worker.why_gone()
    assert "impossible state" in why
    # Each look costs microseconds in which nobody else of the node is served.
    assert looked_at < 6_000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0.00 E llama_model_load: error: unknown model architecture: 'secret'", "architecture"),
        ("ggml_gallocr: failed to allocate buffer of size 99", "memory"),
        ("CUDA error: out of memory", "memory"),
        ("prompt: tell me about my secret", None),
    ],
)
def test_of_its_errors_only_known_reasons_are_kept(line: str, reason: str | None) -> None:
    told = reason_in(line)
    assert told is None if reason is None else told is not None and reason in told
    assert "secret" not in (told or "")


def test_how_it_ended_is_said_in_words() -> None:
    assert describe_exit(2) == "the engine process exited with status 2"
    assert "SIGKILL, perhaps because the machine ran out of memory" in describe_exit(-signal.SIGKILL)
    assert "SIGILL, because this CPU lacks" in describe_exit(-signal.SIGILL)
    # Python has no name for most of the real-time signals, and a broken process may send itself any.
    assert describe_exit(-40) == "the engine process was ended by signal 40"


def test_a_packaged_binary_starts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert worker_command() == [sys.executable, "engine-worker"]
    assert "PYTHONPATH" not in worker_environment({"PATH": "/bin"})
