"""infernet/hardware/nvml.py: NVIDIA's bindings, in the worker process, over a library that a C compiler makes here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from infernet.hardware import nvidia, pci, tools, worker
from infernet.hardware.contract import Card, announced_all
from infernet.hardware.detect import find_cards
from infernet.hardware.machine import Machine, worker_command
from infernet.hardware.nvml import cuda_version
from protocol.gpus import as_words
from protocol.records import GpuVendor
from tests import helpers_hardware as recorded
from tests.helpers_hardware import FakeMachine

COMPILER = shutil.which("cc")
MIB = 1 << 20

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-in library: apt-get install gcc"),
    pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in library."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_double.c")
    assert COMPILER is not None
    command = [
        COMPILER,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(folder / "libnvidia-ml.so.1"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def double(library: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stand-in is found in place of the driver's library."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    return monkeypatch


def ask(double: pytest.MonkeyPatch, what: str, **limits: float) -> list[Card] | None:
    """What the worker tells when the library behaves so."""
    double.setenv("NVIDIA_DOUBLE", what)
    return worker.parse(tools.output_of(worker_command("nvml"), **limits))  # type: ignore[arg-type]


def test_a_whole_card_and_the_parts_of_one(double: pytest.MonkeyPatch) -> None:
    cards = ask(double, "fine")
    assert cards is not None
    assert cards[0] == Card(
        vendor=GpuVendor.NVIDIA,
        index=0,
        model="NVIDIA GeForce RTX 4090",
        source="nvml",
        vram_bytes=24564 * MIB,
        vram_used_bytes=1021 * MIB,
        utilisation_percent=37,
        temperature_c=56,
        power_w=228.8,
        driver="550.54.14",
        cuda="12.4",
        slot="0000:01:00.0",
        uuid="GPU-0",
    )
    assert [(card.index, card.model, card.vram_bytes, card.uuid) for card in cards[1:]] == [
        (1, "NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192 * MIB, "MIG-10"),
        (1, "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728 * MIB, "MIG-11"),
    ]
    assert [as_words(gpu)["vram_tier"] for gpu in announced_all(cards)] == ["24-48gb", "24-48gb", "8-16gb"]


def test_a_card_that_fell_off_the_bus_is_in_trouble_and_the_others_are_not(double: pytest.MonkeyPatch) -> None:
    cards = ask(double, "lost")
    assert cards is not None
    assert [card.is_usable for card in cards] == [False, True, True]
    assert "fallen off the PCI bus" in cards[0].trouble


def test_mig_without_parts_leaves_nothing_to_run_on(double: pytest.MonkeyPatch) -> None:
    cards = ask(double, "undivided")
    assert cards is not None
    assert [card.is_usable for card in cards] == [True, False]
    assert "has no parts" in cards[1].trouble


def test_a_card_that_answers_nothing_is_a_card(double: pytest.MonkeyPatch) -> None:
    cards = ask(double, "dumb")
    assert cards is not None
    assert cards[0] == Card(GpuVendor.NVIDIA, 0, "NVIDIA GeForce RTX 4090", "nvml", driver="550.54.14", cuda="12.4")


def test_what_a_library_prints_is_not_taken_for_the_answer(double: pytest.MonkeyPatch) -> None:
    cards = ask(double, "chatty")
    assert cards is not None
    assert len(cards) == 3


@pytest.mark.parametrize("what", ["crash", "none"])
def test_a_library_that_crashes_or_has_no_driver_tells_nothing(double: pytest.MonkeyPatch, what: str) -> None:
    assert ask(double, what) is None


def test_a_library_that_hangs_is_not_waited_for(double: pytest.MonkeyPatch) -> None:
    began_s = time.monotonic()
    assert ask(double, "hang", timeout_s=1.0) is None
    assert time.monotonic() - began_s < 20


def test_without_the_library_the_tool_is_asked(double: pytest.MonkeyPatch, tmp_path: Path) -> None:
    double.setenv("NVIDIA_DOUBLE", "crash")
    fake = FakeMachine(tmp_path)
    fake.plug("0000:01:00.0", pci.NVIDIA, 0x2684, driver="nvidia")
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    real = Machine(tmp_path, "linux", fake.machine.output_of, pci_names=dict)
    assert [card.source for card in find_cards(real)] == ["nvidia-smi", "nvidia-smi"]
    double.setenv("NVIDIA_DOUBLE", "fine")
    assert [card.source for card in find_cards(real)] == ["nvml"] * 3


@pytest.mark.parametrize(
    ("number", "version"),
    [(12040, "12.4"), (13000, "13.0"), (9020, "9.2"), (0, None), (-1, None), (None, None), ("x", None), (10**12, None)],
)
def test_a_version_of_cuda_is_a_number(number: object, version: str | None) -> None:
    assert cuda_version(number) == version
