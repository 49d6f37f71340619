"""What `infernet init` says of GPUs and firewall: a line each, whatever drivers do, and nothing for programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from infernet.cli import hints
from infernet.hardware import detect
from infernet.hardware.contract import Card
from infernet.host import firewalls
from protocol.records import GpuVendor
from tests.helpers_cli import Home, invoke

Capture = pytest.CaptureFixture[str]
RTX = Card(GpuVendor.NVIDIA, 0, "NVIDIA GeForce RTX 4090", "nvml", vram_bytes=24564 << 20)
BROKEN = Card(GpuVendor.AMD, 0, "AMD Radeon", "sysfs", trouble="no driver is loaded for it")


def look_at(monkeypatch: pytest.MonkeyPatch, find: Callable[[], list[Card]]) -> None:
    monkeypatch.setattr(detect, "find_cards", find)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing: no GPU, no firewall."""
    look_at(monkeypatch, list)
    monkeypatch.setattr(firewalls, "detect", lambda _platform: [])


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that does not answer while the test runs."""
    end = threading.Event()

    def find() -> list[Card]:
        end.wait(60)
        return [RTX]

    look_at(monkeypatch, find)
    monkeypatch.setattr(hints, "GPUS_TIMEOUT_S", 0.05)
    yield
    end.set()


def said(capsys: Capture, *words: str) -> list[str]:
    """The hints of an `init` that went well."""
    outcome = invoke(capsys, "init", "--yes", *words)
    assert (outcome.code, outcome.err) == (0, "")
    return [line for line in outcome.out.splitlines() if line.startswith(("GPUs:", "Firewall:"))]


@pytest.mark.parametrize(
    ("cards", "line"),
    [
        ([], "GPUs: none that can be used, so models run on the processor."),
        ([RTX, RTX], "GPUs: 2 x NVIDIA GeForce RTX 4090 (24 GiB)."),
        (
            [Card(GpuVendor.APPLE, 0, "Apple M3", "system_profiler"), BROKEN],
            "GPUs: Apple M3; 1 cannot be used, and `infernet gpu` says why.",
        ),
        ([Card(GpuVendor.NVIDIA, 0, "X\x1b[2J\nY", "nvml")], "GPUs: X Y."),
    ],
)
def test_gpus_are_named_in_one_line(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch, cards: list[Card], line: str
) -> None:
    look_at(monkeypatch, lambda: cards)
    assert said(capsys)[0] == line


@pytest.mark.usefixtures("hung")
def test_a_driver_that_hangs_holds_nothing_up(home: Home, capsys: Capture) -> None:
    assert said(capsys)[0] == "GPUs: their drivers do not answer now; `infernet gpu` asks again."


def test_a_driver_that_breaks_breaks_nothing(home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(monkeypatch, lambda: [][0])
    assert "do not answer" in said(capsys)[0]


def test_a_firewall_that_is_here_is_named(home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = "Firewall: peers come in by TCP port"
    assert said(capsys)[1] == f"{peers} 46337; if a firewall is in their way, `infernet firewall` says what to type."
    monkeypatch.setattr(firewalls, "detect", lambda _platform: list(firewalls.FIREWALLS[:2]))
    line = said(capsys, "--p2p-port", "5000")[1]
    assert line == f"{peers} 5000; ufw is installed, and `infernet firewall` says what to type."
    assert "give it one of its own with --p2p-port" in said(capsys, "--p2p-port", "0")[1]


def test_who_opens_nothing_and_runs_nothing_hears_nothing(home: Home, capsys: Capture) -> None:
    assert len(said(capsys, "--no-advertise")) == 1
    assert said(capsys, "--role", "client") == []


def test_programs_are_told_nothing_and_nobody_looks(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    look_at(monkeypatch, lambda: [RTX] if looked.append(True) is None else [])
    outcome = invoke(capsys, "init", "--yes", "--json")
    assert outcome.json["role"] == "provider"
    assert "GPU" not in outcome.out + outcome.err
    assert looked == []


def test_settings_of_the_environment_that_cannot_be_used_are_the_next_command_s(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_SLOTS", "many")
    assert said(capsys) == []
