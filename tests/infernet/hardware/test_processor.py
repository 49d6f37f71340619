"""infernet/hardware/processor.py: what the processor is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.hardware.processor import model
from tests.helpers_hardware import FakeMachine


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9754\x1b[2J 128-Core\n",
            "AMD EPYC 9754 128-Core",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", None),
        ("", None),
    ],
    ids=["named", "arm", "empty"],
)
def test_its_own_name_or_the_architecture(tmp_path: Path, cpuinfo: str, name: str | None) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    told = model(FakeMachine(tmp_path).machine)
    assert told == name if name is not None else told and "\n" not in told


def test_on_a_mac(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path, "darwin")
    fake.say(("sysctl", "-n", "machdep.cpu.brand_string"), b"Apple M3 Pro\n")
    assert model(fake.machine) == "Apple M3 Pro"
