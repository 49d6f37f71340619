"""M2 for the coordinator's store: killed before any system call, it has everything that it acknowledged."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.store.db import DATABASE_NAME, open_writer
from tests.helpers_kills import CannotFollow, Killed, Killer, can_kill, run_until_killed
from tests.helpers_power_cuts import inspect
from tests.helpers_workloads import DemonstrationLedger, Lost

TARGET = "tests.helpers_killed_store:write_until_killed"
ROUNDS = 12
NIGHTLY_KILLS = 1000
BEYOND_THE_END = 1_000_000_000


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    if not can_kill():
        pytest.skip("processes cannot be followed here: ptrace and seccomp are needed, on x86_64 or aarch64")
    with Killer(target=TARGET) as killer:
        yield killer


@pytest.fixture
def home() -> Iterator[Path]:
    """In memory where there is such a place, because a kill, unlike a power cut, leaves the kernel's pages alone."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="kills-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def acknowledged(killed: Killed) -> list[tuple[str, int]]:
    return [tuple(json.loads(line)) for line in killed.lines if line.startswith("[")]


def look(home: Path, killed: Killed) -> None:
    """Open what the process left. Raises Lost, Unbalanced or Corrupt."""
    connection = open_writer(home / DATABASE_NAME)
    try:
        inspect(connection, DemonstrationLedger(), acknowledged(killed))
    finally:
        connection.close()


def kill_at(killer: Killer, home: Path, seed: int, call: int) -> Killed:
    """Kill one in an empty home, look at what it left, and leave the home empty."""
    killed = killer.call([str(home), seed, ROUNDS], call)
    look(home, killed)
    for path in home.iterdir():
        path.unlink()
    return killed


@pytest.mark.slow
def test_a_store_killed_at_any_system_call_has_what_it_acknowledged(killer: Killer, home: Path) -> None:
    whole = kill_at(killer, home, 1, BEYOND_THE_END)
    assert not whole.was_killed
    assert len(whole.lines) > 2 * ROUNDS
    killed = [kill_at(killer, home, 1, call) for call in range(1, whole.calls, max(1, whole.calls // 40))]
    # Threads take turns differently each time, so that the last ones may end before.
    assert sum(each.was_killed for each in killed) >= 38
    assert any(0 < len(acknowledged(each)) < len(acknowledged(whole)) for each in killed)


@pytest.mark.slow
def test_a_store_is_killed_again_and_again_and_goes_on(killer: Killer, home: Path) -> None:
    """The same home each time, with other steps: a recovery is killed, too."""
    everything: list[str] = []
    for number in range(20):
        killed = killer.call([str(home), number, ROUNDS, 1 + 1000 * number], 40 + 41 * number % 300)
        assert killed.was_killed
        everything += killed.lines
        look(home, Killed(everything, killed.calls, killed.was_killed))
    assert len(everything) > 40


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_a_store_killed_a_thousand_times(killer: Killer, home: Path, seed: int) -> None:
    calls = kill_at(killer, home, seed, BEYOND_THE_END).calls
    started_s = time.perf_counter()
    wanted = NIGHTLY_KILLS // 5
    killed = [kill_at(killer, home, seed, 1 + number * calls // wanted).was_killed for number in range(wanted + 10)]
    took_s = time.perf_counter() - started_s
    Console(width=120).print(
        f"seed {seed}: killed {sum(killed)} times at {calls} system calls, nothing lost; "
        f"{took_s * 1000 / len(killed):.0f} ms each"
    )
    assert sum(killed) >= wanted


# ---------------------------------------------------------------- the killer


def test_a_program_is_killed_before_the_call_and_not_after_it(killer: Killer) -> None:
    program = ["sh", "-c", "echo one; echo two; echo three"]
    first, second, none = (run_until_killed(program, ("write",), call) for call in (1, 3, 4))
    assert first == Killed([], 1, was_killed=True)
    assert second == Killed(["one", "two"], 3, was_killed=True)
    assert none == Killed(["one", "two", "three"], 3, was_killed=False)


def test_calls_are_counted_from_a_line_on_when_that_is_asked_for(killer: Killer) -> None:
    program = ["sh", "-c", "echo ready; echo two; echo three"]
    assert run_until_killed(program, ("write",), 2, after_lines=1).lines == ["ready", "two"]


def test_a_target_that_is_not_there_is_told(killer: Killer) -> None:
    with Killer(target="tests.helpers_absent:nothing") as absent, pytest.raises((CannotFollow, BrokenPipeError)):
        absent.call([], 1)


@pytest.mark.slow
def test_a_store_that_acknowledges_too_early_is_caught(killer: Killer, home: Path) -> None:
    caught = 0
    with Killer(("write", "pwrite64", "fdatasync"), "tests.helpers_killed_store:acknowledge_too_early") as early:
        for call in range(160, 360, 10):
            killed = early.call([str(home), 1, ROUNDS], call)
            try:
                look(home, killed)
            except Lost:
                caught += 1
            for path in home.iterdir():
                path.unlink()
    assert caught >= 5
