"""infernet/hardware/udev.py: pyudev's answers, through a stand-in and through itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infernet.hardware import udev
from infernet.hardware.machine import THIS_MACHINE


class Monitor:
    """The stand-in's monitor: gives what it was made with, an exception by raising it."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.subsystems: list[str] = []
        self.source = ""
        self.is_started = False

    def filter_by(self, subsystem: str) -> None:
        self.subsystems.append(subsystem)

    def start(self) -> None:
        self.is_started = True

    def fileno(self) -> int:
        return 7

    def poll(self, timeout: float) -> Any:
        assert timeout == 0, "waited"
        event = self.events.pop(0) if self.events else None
        if isinstance(event, Exception):
            raise event
        return event


def stand_in(devices: list[Any], monitor: Monitor | None = None) -> ModuleType:
    """A module with these devices on its bus."""
    module: Any = ModuleType("pyudev")

    def list_devices(subsystem: str) -> list[Any]:
        assert subsystem == "pci"
        return devices

    def from_netlink(_context: Any, source: str) -> Monitor:
        assert monitor is not None
        monitor.source = source
        return monitor

    module.Context = lambda: SimpleNamespace(list_devices=list_devices)
    module.Monitor = SimpleNamespace(from_netlink=from_netlink)
    result: ModuleType = module
    return result


def device(name: str, **properties: str) -> Any:
    return SimpleNamespace(sys_name=name, properties=properties)


def events(*actions: str) -> list[Any]:
    return [SimpleNamespace(action=action) for action in actions]


def test_devices_have_the_names_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [
        device("0000:01:00.0", ID_MODEL_FROM_DATABASE="AD102 [GeForce RTX 4090]\x1b[2J"),
        device("0000:00:1f.0"),
        device("pci_bus"),
    ]
    monkeypatch.setitem(sys.modules, "pyudev", stand_in(devices))
    assert udev.pci_names() == {"0000:01:00.0": "AD102 [GeForce RTX 4090]", "0000:00:1f.0": ""}


@pytest.mark.parametrize("module", [None, ModuleType("pyudev")], ids=["absent", "without its library"])
def test_without_udev_there_is_nothing(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", module)
    assert udev.pci_names() == {}
    assert udev.open_plugs() is None


def test_devices_that_come_and_go_are_counted_and_screens_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(events("add", "change", "bind", "remove"))
    monkeypatch.setitem(sys.modules, "pyudev", stand_in([], monitor))
    plugs = udev.open_plugs()
    assert plugs is not None
    assert (monitor.subsystems, monitor.is_started, plugs.fileno()) == (["pci", "drm"], True, 7)
    assert monitor.source in ("udev", "kernel")
    assert plugs.drain() == 3
    assert plugs.drain() == 0
    plugs.close()


def test_events_that_were_lost_are_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor([*events("change"), OSError(105, "No buffer space available"), *events("change")])
    monkeypatch.setitem(sys.modules, "pyudev", stand_in([], monitor))
    plugs = udev.open_plugs()
    assert plugs is not None
    assert [plugs.drain(), plugs.drain()] == [1, 0]


def test_a_storm_is_taken_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", stand_in([], Monitor(events(*["add"] * 300))))
    plugs = udev.open_plugs()
    assert plugs is not None
    assert [plugs.drain(), plugs.drain()] == [256, 44]


@pytest.mark.skipif(importlib.util.find_spec("pyudev") is None, reason="pyudev is for Linux, and not installed here")
def test_the_real_module_answers_as_expected() -> None:
    listed = {path.name for path in THIS_MACHINE.list(THIS_MACHINE.root / "sys/bus/pci/devices")}
    assert set(udev.pci_names()) <= listed
    plugs = udev.open_plugs()
    # A sandbox may forbid netlink sockets; then there is nothing to listen to, and no error.
    if plugs is not None:
        assert plugs.fileno() >= 0
        assert plugs.drain() >= 0
        plugs.close()
