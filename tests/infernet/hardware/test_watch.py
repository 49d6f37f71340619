"""infernet/hardware/watch.py: cards that come, go and fall silent while a node runs.

Nothing here waits for an amount of time: the watch is told to look often, and the tests wait for what it then does.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from infernet.hardware import pci
from infernet.hardware.contract import Card
from infernet.hardware.machine import Machine
from infernet.hardware.udev import Plugs
from infernet.hardware.watch import Pace, Watch
from protocol.records import Gpu, GpuVendor, VramTier
from tests.helpers_hardware import FakeMachine

pytestmark = pytest.mark.anyio

DEADLINE_S = 20.0
# Glances at once; everything that only a glance or udev should bring about never comes by itself.
QUICK = Pace(glance_s=0.01, settle_s=0.001, confirm_s=0.01, look_s=1e6, trouble_s=1e6)
ONE, TWO = "0000:03:00.0", "0000:83:00.0"
VRAM = {"mem_info_vram_total": str(24 << 30)}
TOLD = Gpu(GpuVendor.AMD, VramTier.FROM_24, "PCI device 1002:744c")


class Pipe:
    """Stands in for udev: a pipe into which a test writes for each event."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.is_closed = False

    def fileno(self) -> int:
        return self.reading

    def drain(self) -> int:
        return len(os.read(self.reading, 4096))

    def close(self) -> None:
        self.is_closed = True
        os.close(self.reading)
        os.close(self.writing)


class Bench:
    """A watch over a picture of a machine, and what it told."""

    def __init__(self, fake: FakeMachine, **watch: object) -> None:
        self.fake = fake
        self.told: list[tuple[Gpu, ...]] = []
        self.gone: list[str] = []
        settings = {"pace": QUICK, "open_plugs": lambda: None, **watch}
        self.watch = Watch(fake.machine, **settings)  # type: ignore[arg-type]
        self.watch.on_change = lambda: self.told.append(self.watch.announced)
        self.watch.on_gone = lambda cards: self.gone.extend(card.model for card in cards)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(DEADLINE_S):
            while not condition():
                await trio.testing.wait_all_tasks_blocked(0.002)


@asynccontextmanager
async def watching(fake: FakeMachine, **watch: object) -> AsyncIterator[Bench]:
    """A watch as long as the block lasts."""
    bench = Bench(fake, **watch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.watch.run)
        yield bench
        nursery.cancel_scope.cancel()


def plug(fake: FakeMachine, slot: str, **more: object) -> None:
    fake.plug(slot, pci.AMD, 0x744C, **{"driver": "amdgpu", "files": VRAM, **more})  # type: ignore[arg-type]


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


async def test_a_card_that_appears_is_announced_and_one_that_is_pulled_out_is_not(fake: FakeMachine) -> None:
    plug(fake, ONE)
    async with watching(fake) as bench:
        await bench.until(lambda: bench.told == [(TOLD,)])
        plug(fake, TWO)
        await bench.until(lambda: bench.told[1:] == [(TOLD, TOLD)])
        fake.unplug(ONE)
        await bench.until(lambda: bench.told[2:] == [(TOLD,)])
        fake.unplug(TWO)
        await bench.until(lambda: bench.told[3:] == [()])
        assert bench.gone == ["PCI device 1002:744c"] * 2


async def test_a_card_that_falls_silent_is_gone_though_every_list_has_it(fake: FakeMachine) -> None:
    plug(fake, ONE)
    async with watching(fake) as bench:
        await bench.until(lambda: bench.told == [(TOLD,)])
        plug(fake, ONE, files=VRAM | {"config": b"\xff" * 64})
        await bench.until(lambda: bench.told[1:] == [()])
        assert len(bench.gone) == 1
        assert "does not answer" in bench.watch.cards[0].trouble


async def test_a_card_that_is_given_to_a_virtual_machine_is_gone(fake: FakeMachine) -> None:
    plug(fake, ONE)
    async with watching(fake) as bench:
        await bench.until(lambda: bench.told == [(TOLD,)])
        plug(fake, ONE, driver="vfio-pci")
        await bench.until(lambda: bench.told[1:] == [()])
        assert len(bench.gone) == 1


async def test_udev_wakes_the_watch_between_glances(fake: FakeMachine) -> None:
    pipe = Pipe()
    patient = Pace(glance_s=1e6, settle_s=0.001, confirm_s=0.01)
    async with watching(fake, pace=patient, open_plugs=lambda: pipe) as bench:
        plug(fake, ONE)
        os.write(pipe.writing, b"a")
        await bench.until(lambda: bench.told == [(TOLD,)])
        fake.unplug(ONE)
        os.write(pipe.writing, b"r")
        await bench.until(lambda: bench.told[1:] == [()])
    assert pipe.is_closed


async def test_nothing_new_asks_no_driver_again(fake: FakeMachine) -> None:
    plug(fake, ONE)
    glances = 0
    looks = 0

    def find(_machine: Machine) -> list[Card]:
        nonlocal looks
        looks += 1
        return [Card(GpuVendor.AMD, 0, "X", "sysfs", slot=ONE)]

    class Counted(Watch):
        def _glance(self) -> tuple[tuple[str, int, int, str, bool], ...]:
            nonlocal glances
            glances += 1
            return super()._glance()

    watch = Counted(fake.machine, QUICK, lambda: None, find)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        with trio.fail_after(DEADLINE_S):
            while glances < 20:
                await trio.testing.wait_all_tasks_blocked(0.002)
        nursery.cancel_scope.cancel()
    assert looks == 1


async def test_a_driver_that_fails_once_costs_no_card(fake: FakeMachine) -> None:
    """A tool that ran out of time must not end the jobs of a card that is in its place."""
    plug(fake, ONE)
    card = Card(GpuVendor.NVIDIA, 0, "X", "nvml", slot=ONE)
    answers = [[card], [], [card]]
    pipe = Pipe()

    def find(_machine: Machine) -> list[Card]:
        return answers.pop(0) if answers else [card]

    async with watching(fake, find=find, open_plugs=lambda: pipe) as bench:
        await bench.until(lambda: len(bench.told) == 1)
        os.write(pipe.writing, b"c")
        await bench.until(lambda: not answers)
        await bench.until(lambda: bench.watch.cards == (card,))
        assert (len(bench.told), bench.gone) == (1, [])


async def test_a_driver_that_goes_on_failing_is_believed(fake: FakeMachine) -> None:
    plug(fake, ONE)
    answers = [[Card(GpuVendor.NVIDIA, 0, "X", "nvml", slot=ONE)]]
    pipe = Pipe()
    async with watching(fake, find=lambda _: answers.pop(0) if answers else [], open_plugs=lambda: pipe) as bench:
        await bench.until(lambda: len(bench.told) == 1)
        os.write(pipe.writing, b"c")
        await bench.until(lambda: bench.told[1:] == [()])
        assert bench.gone == ["X"]


async def test_a_card_in_trouble_is_looked_at_again_without_a_sign(fake: FakeMachine) -> None:
    plug(fake, ONE)
    card = Card(GpuVendor.NVIDIA, 0, "X", "nvml", slot=ONE, trouble="no driver")
    answers = [[card], [card]]
    mended = Card(GpuVendor.NVIDIA, 0, "X", "nvml", slot=ONE)
    pace = Pace(glance_s=0.01, trouble_s=0.02)
    async with watching(fake, find=lambda _: answers.pop(0) if answers else [mended], pace=pace) as bench:
        await bench.until(lambda: bench.watch.cards == (mended,))
        assert len(bench.told) == 1


async def test_the_parts_of_a_card_are_known_one_by_one(fake: FakeMachine) -> None:
    plug(fake, ONE)
    parts = [Card(GpuVendor.NVIDIA, 0, f"A MIG {n}g", "nvml", slot=ONE, uuid=f"MIG-{n}") for n in (1, 2)]
    bench = Bench(fake)
    bench.watch.take(tuple(parts))
    bench.watch.take(tuple(parts[1:]))
    assert bench.gone == ["A MIG 1g"]


async def test_the_same_card_told_of_by_another_source_is_not_gone(fake: FakeMachine) -> None:
    bench = Bench(fake)
    bench.watch.take((Card(GpuVendor.AMD, 0, "Radeon", "rocm-smi", slot=ONE, uuid="U"),))
    bench.watch.take((Card(GpuVendor.AMD, 0, "Navi 31", "sysfs", slot=ONE),))
    assert bench.gone == []
    assert len(bench.told) == 2


async def test_a_broken_descriptor_ends_listening_and_glances_go_on(fake: FakeMachine) -> None:
    class Broken(Pipe):
        def drain(self) -> int:
            raise OSError(9, "Bad file descriptor")

    pipe: Plugs = Broken()
    os.write(pipe.writing, b"a")  # type: ignore[attr-defined]
    async with watching(fake, open_plugs=lambda: pipe) as bench:
        await bench.until(lambda: pipe.is_closed)  # type: ignore[attr-defined]
        plug(fake, ONE)
        await bench.until(lambda: bench.told == [(TOLD,)])
