"""Dividing the cards of a machine: what is asked, what each engine process is told, and what is left without cards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.engines.dividing import Division, devices_seen, divide, divisible, place_of, wish_of
from infernet.engines.fitting import WORKING_BYTES, Memory
from infernet.engines.frames import Device
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.placement import NoPlace, Placed, Wish
from infernet.engines.process import ANYWHERE, Place, worker_environment
from infernet.hardware.contract import Card
from protocol.records import GpuVendor, Kind
from tests.helpers_engine import chat
from tests.helpers_gguf import model
from tests.infernet.engines.conftest import running, starter_config

pytestmark = pytest.mark.anyio

DOUBLE = Path(__file__).with_name("worker_double.py")
GB = 10**9
NVIDIA = Card(
    GpuVendor.NVIDIA, 0, "RTX", "nvml", vram_bytes=24 * GB, vram_used_bytes=4 * GB, slot="0000:01:00.0", uuid="GPU-a"
)
OTHER = replace(NVIDIA, index=1, slot="0000:02:00.0", uuid="GPU-b")
AMD = Card(GpuVendor.AMD, 2, "Radeon", "rocm-smi", vram_bytes=16 * GB, slot="0000:03:00.0")
PART = replace(NVIDIA, model="A100 MIG 3g.40gb", uuid="MIG-1", slot="0000:04:00.0")
PARTS = [PART, replace(PART, uuid="MIG-2")]
CUDA, ROCM, VULKAN = Device("CUDA0", 24 * GB), Device("ROCm0", 16 * GB), Device("Vulkan0", 24 * GB)


def double(mode: str) -> list[str]:
    return [sys.executable, str(DOUBLE), mode]


def files(tmp_path: Path, **weights: int) -> list[EngineConfig]:
    """Models whose files have so many bytes, which are holes."""
    configs = []
    for name, size in weights.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(b"no header")
        with path.open("r+b") as file:
            file.truncate(size)
        configs.append(EngineConfig(name, str(path)))
    return configs


def words_of(division: Division) -> dict[str, str]:
    found = {name: division.place(name) for name in division.wishes}
    return {name: place.words if isinstance(place, Place) else "nowhere" for name, place in found.items()}


async def test_an_engine_process_says_which_gpus_it_sees() -> None:
    assert await devices_seen(double("sees CUDA0 CUDA1")) == (CUDA, Device("CUDA1", 24 * GB))
    assert await devices_seen(double("sees")) == ()


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("cannot load", "llama.cpp is not installed"),
        ("dies while loading", "exited with status 3"),
        ("is good", "broke its contract"),
    ],
)
async def test_one_that_does_not_say_is_told_in_one_line(mode: str, told: str) -> None:
    with pytest.raises(EngineUnavailable, match=told) as refused:
        await devices_seen(double(mode))
    assert "\n" not in str(refused.value)


async def test_a_command_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(EngineUnavailable, match="cannot be started"):
        await devices_seen(["/nonexistent/engine"])


@pytest.mark.model
async def test_the_real_llama_cpp_says_what_it_sees() -> None:
    # Whatever this machine has: an answer, and no engine that stays.
    assert isinstance(await devices_seen(), tuple)


@pytest.mark.model
@pytest.mark.slow
async def test_a_real_model_that_is_placed_on_the_processor_answers_there(starter_model_path: Path) -> None:
    place = place_of(Placed({}, 1), divisible([NVIDIA], [CUDA]))
    async with running(IsolatedEngine(starter_config(starter_model_path, slots=1), place=place)) as bench:
        text, _ = await bench.do(Kind.CHAT, chat("What is the capital of France?"), 8)
        assert text.strip()
        assert isinstance(bench.engine, IsolatedEngine)
        assert [part.where for part in bench.engine.parts()] == ["the processor"]


def test_only_cards_that_llama_cpp_drives_and_whose_memory_is_known_are_divided() -> None:
    cards = [NVIDIA, replace(OTHER, trouble="lost"), AMD, replace(AMD, slot="x", vram_bytes=None)]
    assert list(divisible(cards, [CUDA]).values()) == [NVIDIA]
    assert list(divisible(cards, [ROCM]).values()) == [AMD]
    assert divisible(cards, [VULKAN, Device("Metal", 0)]) == {}
    assert divisible(cards, []) == {}
    assert list(divisible(PARTS, [CUDA])) == ["MIG-1", "MIG-2"]


def environment(place: Place) -> dict[str, str]:
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0", "SECRET": "s"}
    told = worker_environment(inherited, place)
    return {name: value for name, value in told.items() if name not in ("PYTHONPATH", "PATH")}


def test_an_engine_process_sees_its_own_cards_by_name_and_no_others() -> None:
    cards = divisible([NVIDIA, OTHER], [CUDA])
    one = place_of(Placed({"0000:02:00.0": 1}), cards)
    assert environment(one) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert (one.words, one.on_processor) == ("RTX (nvidia 1)", False)
    both = place_of(Placed({"0000:01:00.0": 1, "0000:02:00.0": 1}), cards)
    assert environment(both) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert both.words == "RTX (nvidia 0), RTX (nvidia 1)"


def test_a_card_of_amd_is_named_by_its_number() -> None:
    told = place_of(Placed({"0000:03:00.0": 1}), divisible([AMD], [ROCM]))
    # HIP would count anew within what ROCR leaves, and obeys CUDA's variable too.
    assert environment(told) == {"ROCR_VISIBLE_DEVICES": "2"}


def test_on_the_processor_no_card_is_seen() -> None:
    told = place_of(Placed({}, 1), divisible([NVIDIA], [CUDA]))
    assert environment(told) == {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    assert told.on_processor


def test_without_a_place_of_its_own_a_process_inherits_what_the_owner_set() -> None:
    assert environment(ANYWHERE)["CUDA_VISIBLE_DEVICES"] == "0,1"


async def test_models_are_divided_over_what_is_free_on_the_cards(tmp_path: Path) -> None:
    configs = files(tmp_path, large=18 * GB, small=10 * GB, least=2 * GB)
    division = await divide(
        configs,
        look=lambda: [NVIDIA, OTHER],
        memory=lambda: Memory(8 * GB, 1),
        command=double("sees CUDA0 CUDA1"),
    )
    # 20 GB are free on each card.
    assert words_of(division) == {"large": "RTX (nvidia 0)", "small": "RTX (nvidia 1)", "least": "RTX (nvidia 1)"}


async def test_without_cards_to_divide_all_see_everything_and_must_fit_together(tmp_path: Path) -> None:
    configs = files(tmp_path, one=6 * GB, two=5 * GB)

    def look() -> list[Card]:
        raise AssertionError("nobody's drivers are asked for what llama.cpp does not drive")

    alone = await divide(configs, look=look, memory=lambda: Memory(8 * GB, 1), command=double("sees"))
    assert alone.place("one") is ANYWHERE
    two = alone.place("two")
    assert isinstance(two, NoPlace)
    assert "two needs 5.3 GB, and beside the other models 1.7 GB of this machine are left" in two.reason
    vulkan = await divide(configs, look=look, memory=lambda: Memory(8 * GB, 1), command=double("sees Vulkan0"))
    assert (vulkan.place("one"), vulkan.place("two")) == (ANYWHERE, ANYWHERE)


def test_what_a_model_takes_is_known_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model())
    config = EngineConfig("m", str(path), context_tokens=1024, slots=3)
    assert wish_of(config) == Wish("m", len(model()) + 256 * 1024 * 3 + WORKING_BYTES)
    assert wish_of(EngineConfig("m", str(tmp_path / "none"))).needed_bytes == 0


def test_when_a_card_goes_only_what_was_on_it_moves_and_to_what_is_left() -> None:
    wishes = {name: Wish(name, size * GB) for name, size in (("a", 15), ("b", 12), ("c", 4))}
    division = Division(wishes, divisible([NVIDIA, OTHER], [CUDA]), 14 * GB)
    assert words_of(division) == {"a": "RTX (nvidia 0)", "b": "RTX (nvidia 1)", "c": "RTX (nvidia 0)"}
    assert division.lose([NVIDIA]) == ["a", "c"]
    # 8 GB are left on the other card, 14 GB of the machine.
    assert words_of(division) == {"a": "nowhere", "b": "RTX (nvidia 1)", "c": "RTX (nvidia 1)"}
    assert division.lose([NVIDIA]) == []
    assert division.lose([OTHER]) == ["b", "c"]
    assert words_of(division) == {"a": "nowhere", "b": "the processor", "c": "nowhere"}
