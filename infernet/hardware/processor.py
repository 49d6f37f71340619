"""What the processor is called: for its owner only."""

from __future__ import annotations

import platform
from typing import Final

from infernet.hardware import values
from infernet.hardware.machine import THIS_MACHINE, Machine

_NAME_ON_MACS: Final = ("sysctl", "-n", "machdep.cpu.brand_string")


def model(machine: Machine = THIS_MACHINE) -> str:
    """The name that the processor gives itself, or the architecture where it gives none."""
    if machine.platform == "darwin":
        name = values.text((machine.output_of(_NAME_ON_MACS) or b"").strip())
    else:
        lines = machine.read(machine.root / "proc/cpuinfo").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = values.text(next(named, ""))
    return name or platform.machine() or "unknown"
