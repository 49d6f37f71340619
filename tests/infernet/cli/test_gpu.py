"""infernet/cli/gpu.py: what an owner sees of the GPUs, and what nobody sees."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from infernet.cli import gpu
from infernet.hardware import detect, nvidia, pci
from infernet.hardware.contract import Card
from protocol.records import GpuVendor
from tests import helpers_hardware as recorded
from tests.helpers_cli import Home, invoke
from tests.helpers_hardware import FakeMachine


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """The machine that the verb looks at: two NVIDIA cards, and one for which there is no driver."""
    fake = FakeMachine(tmp_path)
    fake.plug("0000:01:00.0", pci.NVIDIA, 0x2684, driver="nvidia")
    fake.plug("0000:0b:00.0", pci.NVIDIA, 0x2204, driver="nvidia")
    fake.plug("0000:0c:00.0", pci.AMD, 0x744C)
    fake.say(nvidia.QUERY, recorded.NVIDIA_SMI)
    fake.say(nvidia.TOPOLOGY, b"\tGPU0\tGPU1\nGPU0\t X \tNV4\nGPU1\tNV4\t X \n")
    fake.say(nvidia.HEADING, recorded.NVIDIA_SMI_HEADING)
    fake.adapter("mlx5_0", 0x15B3, "4: ACTIVE")
    fake.adapter("rdmap0s31", 0x1D0F, "4: ACTIVE")
    look_at(monkeypatch, fake)
    return fake


def look_at(monkeypatch: pytest.MonkeyPatch, fake: FakeMachine) -> None:
    """Let the verb look at a picture of a machine."""
    find_cards, find_interconnects = detect.find_cards, detect.find_interconnects
    monkeypatch.setattr(detect, "find_cards", lambda: find_cards(fake.machine))
    monkeypatch.setattr(detect, "find_interconnects", lambda cards: find_interconnects(cards, fake.machine))


@pytest.mark.parametrize("words", [["gpu"], ["gpu", "list"]])
def test_a_table_for_people(
    home: Home, capsys: pytest.CaptureFixture[str], fake: FakeMachine, words: list[str]
) -> None:
    outcome = invoke(capsys, *words)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["GPU", "MODEL", "MEMORY", "BUSY", "TEMP", "POWER", "DRIVER", "TOLD", "OTHERS"]
    assert "NVIDIA GeForce RTX 4090" in lines[1]
    assert "1.0 / 24.0 GiB" in lines[1]
    assert lines[1].endswith("  24-48gb")
    assert lines[3].endswith("nothing")
    assert "no driver is loaded for it: install AMD's" in lines[4]
    assert "CUDA  up to 12.4, by its driver" in lines[5]
    assert "NVLink  pair, 4 links" in lines[6]
    assert "RDMA  ports that are up: 1; adapters of Amazon (EFA): 1" in lines[7]
    assert "\x1b" not in outcome.out
    assert "GPU-0" not in outcome.out


@pytest.mark.parametrize("words", [["gpu", "json"], ["gpu", "--json"], ["gpu", "list", "--json"]])
def test_an_object_for_programs(
    home: Home, capsys: pytest.CaptureFixture[str], fake: FakeMachine, words: list[str]
) -> None:
    told = invoke(capsys, *words).json
    assert set(told) == {"host", "gpus", "cpus", "interconnects"}
    assert set(told["host"]) == {"os", "arch", "memory_bytes"}
    assert [set(cpu) for cpu in told["cpus"]] == [{"model", "cores", "threads"}]
    assert told["interconnects"] == {
        "nvlink": {"available": True, "topology": "pair", "link_count": 4},
        "xgmi": {"available": False, "topology": "none", "link_count": 0},
        "infiniband_ports": 1,
        "efa_adapters": 1,
        "rdma_capable": True,
    }
    first, _, last = told["gpus"]
    assert first == {
        "vendor": "nvidia",
        "index": 0,
        "model": "NVIDIA GeForce RTX 4090",
        "source": "nvidia-smi",
        "vram_bytes": 24564 << 20,
        "vram_used_bytes": 1021 << 20,
        "utilisation_percent": 37,
        "temperature_c": 56,
        "power_w": 228.8,
        "driver": "550.54.14",
        "cuda": "12.4",
        "slot": "0000:01:00.0",
        "uuid": "GPU-0",
        "trouble": None,
        "announced": {"vendor": "nvidia", "vram_tier": "24-48gb", "model": "NVIDIA GeForce RTX 4090"},
    }
    assert (last["vendor"], last["announced"], last["vram_bytes"]) == ("amd", None, None)
    assert last["trouble"].startswith("no driver")


def test_the_help_names_every_field(capsys: pytest.CaptureFixture[str], home: Home, fake: FakeMachine) -> None:
    told = invoke(capsys, "gpu", "json").json
    names = {*told, *told["host"], *told["gpus"][0], *told["gpus"][0]["announced"], *told["cpus"][0]}
    names |= {*told["interconnects"], *told["interconnects"]["nvlink"]}
    assert not [name for name in names if name not in gpu.DESCRIPTION]


def test_who_the_machine_belongs_to_is_not_told(
    home: Home, capsys: pytest.CaptureFixture[str], fake: FakeMachine
) -> None:
    out = invoke(capsys, "gpu", "json").out
    assert json.dumps(socket.gethostname()) not in out
    assert json.dumps(os.environ.get("USER", "nobody at all")) not in out


def test_a_machine_without_gpus_says_so(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(monkeypatch, FakeMachine(tmp_path / "bare"))
    outcome = invoke(capsys, "gpu")
    assert outcome.code == 0
    assert outcome.out.startswith("No GPU can be used here: jobs run on the processor.\n")
    assert "cores" in outcome.out


def test_what_a_tool_says_cannot_move_the_cursor(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(GpuVendor.NVIDIA, 0, "X\x1b[2J\nY", "nvml", driver="\x1b]0;title\x07", trouble="a\x1b[31mb")
    monkeypatch.setattr(detect, "find_cards", lambda: [card])
    out = invoke(capsys, "gpu").out + invoke(capsys, "gpu", "json").out
    assert "\x1b" not in out
    assert "\x07" not in out


@pytest.mark.parametrize("words", [["gpu", "show"], ["gpu", "list", "json"], ["gpu", "--all"]])
def test_misuse_is_one_line(home: Home, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    outcome = invoke(capsys, *words)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)


def test_this_very_machine_can_be_looked_at(home: Home) -> None:
    outcome = home.run("gpu", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert set(outcome.json) == {"host", "gpus", "cpus", "interconnects"}
