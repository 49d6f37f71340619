"""udev through pyudev: which PCI devices there are, what they are called, and when one comes or goes.

Without udev, or without its library (macOS, some containers), there is nothing here, and whoever asks looks into sysfs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

from infernet.hardware import values

# Where udevd listens. Without it only the kernel's own events arrive, which are enough.
_UDEVD: Final = Path("/run/udev/control")
_SUBSYSTEMS: Final = ("pci", "drm")
# A screen that is plugged in changes a card, and nothing for us.
_ACTIONS: Final = frozenset({"add", "remove", "bind", "unbind", "online", "offline"})
_DEVICES_MAX: Final = 4096
# pyudev raises its own errors from these, and what the kernel says as OSError.
_ERRORS: Final = (ImportError, OSError, LookupError, ValueError, TypeError, AttributeError)


class Plugs(Protocol):
    """Tells when devices come and go."""

    def fileno(self) -> int:
        """A descriptor that can be read from when something happened."""

    def drain(self) -> int:
        """Take what happened off the descriptor; how often a device came or went. Never waits and never raises."""

    def close(self) -> None:
        """Stop."""


def pci_names() -> dict[str, str]:
    """Every PCI device that udev knows, by address, with the name that its database has, or an empty one."""
    try:
        import pyudev

        names: dict[str, str] = {}
        for device in pyudev.Context().list_devices(subsystem="pci"):
            address = values.slot(device.sys_name)
            if address is not None and len(names) < _DEVICES_MAX:
                names[address] = values.text(device.properties.get("ID_MODEL_FROM_DATABASE")) or ""
    except _ERRORS:
        return {}
    return names


def open_plugs() -> Plugs | None:
    """Listen for devices that come and go; None where there is no udev."""
    try:
        import pyudev

        source = "udev" if _UDEVD.exists() else "kernel"
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        for subsystem in _SUBSYSTEMS:
            monitor.filter_by(subsystem)
        monitor.start()
    except _ERRORS:
        return None
    return _Monitor(monitor)


class _Monitor:
    """`Plugs` over pyudev's monitor."""

    # More than this at once is a machine that starts; what is left wakes us again.
    _EVENTS_MAX: Final = 256

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def drain(self) -> int:
        count = 0
        try:
            for _ in range(self._EVENTS_MAX):
                device = self._monitor.poll(timeout=0)
                if device is None:
                    break
                count += device.action in _ACTIONS
        except _ERRORS:
            # What overflowed or could not be understood was an event, too.
            count += 1
        return count

    def close(self) -> None:
        # The library closes its socket when the monitor is forgotten.
        self._monitor = None
