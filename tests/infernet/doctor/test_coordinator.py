"""infernet/doctor/coordinator.py: what is wrong between a node and its coordinator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers_cli import Home
from tests.helpers_doctor import FakeCoordinator, Report, examine, fake_coordinator, link, put
from tests.helpers_market import Coordinator
from tests.helpers_processes import free_port

SKIP = "--skip-engine"


@pytest.fixture
def coordinator(well: Home) -> Iterator[FakeCoordinator]:
    with fake_coordinator() as double:
        link(well, double)
        yield double


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path / "coordinator")
    yield running
    running.close()


def test_a_coordinator_that_is_well(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator
) -> None:
    report = examine(capsys, SKIP)
    assert report.faults == {}
    names = ("reachable", "key", "protocol", "healthy", "encrypted")
    assert all(report.checks[f"coordinator.{name}"]["status"] == "ok" for name in names)
    assert report.checks["clock.skew"]["status"] == "ok"


@pytest.mark.parametrize(
    ("ahead_s", "status", "direction"), [(30, "warn", "behind"), (3600, "fail", "behind"), (-3600, "fail", "ahead of")]
)
def test_a_clock_that_is_wrong(
    well: Home,
    capsys: pytest.CaptureFixture[str],
    coordinator: FakeCoordinator,
    ahead_s: int,
    status: str,
    direction: str,
) -> None:
    coordinator.ahead_ms = 1000 * ahead_s
    report = examine(capsys, SKIP)
    assert report.faults == {"clock.skew": status}
    assert direction in report.told("clock.skew")
    assert "timedatectl set-ntp true" in report.told("clock.skew")
    coordinator.ahead_ms = 0
    assert examine(capsys, SKIP).faults == {}


@pytest.mark.parametrize("version", [0, 99])
def test_another_protocol(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator, version: int
) -> None:
    coordinator.protocol_version = version
    report = examine(capsys, SKIP)
    assert report.faults == {"coordinator.protocol": "fail"}
    assert ("upgrade infernet" in report.told("coordinator.protocol")) == (version == 99)


def test_one_that_says_that_it_is_not_well(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator
) -> None:
    coordinator.ok = False
    assert examine(capsys, SKIP).faults == {"coordinator.healthy": "warn"}


@pytest.mark.parametrize("body", [b"<html>Welcome to nginx", b"[1]", b"{}", b'{"key": 7}', b"[" * 100_000])
def test_something_that_is_no_coordinator(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator, body: bytes
) -> None:
    coordinator.body = body
    report = examine(capsys, SKIP)
    assert report.faults == {"coordinator.reachable": "fail"}
    assert "--url URL" in report.told("coordinator.reachable")


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/api/v1/coordinator", "coordinator.reachable", "fail"),
        ("/api/health", "coordinator.healthy", "warn"),
    ],
)
def test_one_that_refuses(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator, path: str, name: str, status: str
) -> None:
    coordinator.errors[path] = 503
    report = examine(capsys, SKIP)
    assert report.faults == {name: status}
    assert "503" in report.told(name)
    coordinator.errors.clear()
    assert examine(capsys, SKIP).faults == {}


def test_a_key_that_is_none(well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator) -> None:
    coordinator.body = b'{"key": "nonsense\\u001b[2J", "protocol_version": 1}'
    report = examine(capsys, SKIP)
    assert report.faults["coordinator.key"] == "fail"
    assert "\x1b" not in report.outcome.out


def test_nobody_there(well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator) -> None:
    put(well, coordinator_url=f"http://127.0.0.1:{free_port()}")
    report = examine(capsys, SKIP)
    assert report.faults == {"coordinator.reachable": "fail"}
    assert "/api/health" in report.told("coordinator.reachable")


def test_left_out_with_the_network(
    well: Home, capsys: pytest.CaptureFixture[str], coordinator: FakeCoordinator
) -> None:
    put(well, coordinator_url=f"http://127.0.0.1:{free_port()}")
    report = examine(capsys)
    assert report.faults == {}
    assert report.checks["coordinator.reachable"]["found"] == "left out (--skip-network)"


def _wrong_key(home: Home, real: Coordinator) -> Callable[[], object]:
    put(home, coordinator_key="ab" * 32)
    return lambda: put(home, coordinator_key=real.key.hex())


def _stopped(_home: Home, real: Coordinator) -> Callable[[], object]:
    """It accepts connections and says nothing, as a machine that is out of memory does."""
    os.kill(real.process.pid, signal.SIGSTOP)
    return lambda: os.kill(real.process.pid, signal.SIGCONT)


def _killed(_home: Home, real: Coordinator) -> Callable[[], object]:
    real.kill()
    return real.start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "name", "words"),
    [
        (_wrong_key, "coordinator.key", "not over this network"),
        (_stopped, "coordinator.reachable", "see whether it is up"),
        (_killed, "coordinator.reachable", "see whether it is up"),
    ],
)
def test_a_real_coordinator(
    well: Home,
    capsys: pytest.CaptureFixture[str],
    real: Coordinator,
    plant: Callable[[Home, Coordinator], Callable[[], object]],
    name: str,
    words: str,
) -> None:
    put(well, coordinator_url=real.url, coordinator_key=real.key.hex())
    assert examine(capsys, SKIP).faults == {}
    mend = plant(well, real)
    report: Report = examine(capsys, SKIP)
    assert report.faults == {name: "fail"}
    assert words in report.told(name)
    mend()
    assert examine(capsys, SKIP).faults == {}
