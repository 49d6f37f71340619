"""Where readers look: the one thing that tests replace to show them another machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infernet.hardware import tools, udev

FILE_BYTES_MAX: Final = 4096


def worker_command(library: str) -> list[str]:
    """The command that starts a process which asks a driver's library: this Python, or this very binary."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "hardware-worker", library]
    return [sys.executable, "-P", "-m", "infernet.hardware.worker", library]


def _ask_library(library: str) -> bytes | None:
    return tools.output_of(worker_command(library))


@dataclass(frozen=True)
class Machine:
    """This machine, or a picture of one.

    `output_of` runs a tool, `ask_library` asks a driver's library (`nvml`, `amdsmi`) in a process of its own, and
    `pci_names` asks udev for every PCI device, by address, with its product name if it knows one.
    """

    root: Path = Path("/")
    platform: str = sys.platform
    output_of: Callable[[Sequence[str]], bytes | None] = tools.output_of
    ask_library: Callable[[str], bytes | None] = _ask_library
    pci_names: Callable[[], dict[str, str]] = field(default=udev.pci_names)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def read(self, path: Path) -> str:
        """The beginning of a small file, without white space around it; empty where it cannot be read."""
        try:
            with path.open("rb") as file:
                return file.read(FILE_BYTES_MAX).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return ""

    def list(self, path: Path) -> list[Path]:
        """What is in a folder, in order; nothing where it cannot be read."""
        try:
            return sorted(path.iterdir())
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is something at this absolute path."""
        try:
            return (self.root / path.lstrip("/")).exists()
        except OSError:
            return False


THIS_MACHINE: Final = Machine()
