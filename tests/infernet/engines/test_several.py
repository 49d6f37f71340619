"""Several engines behind one contract: who gets which run, and what is left when one of them is down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from infernet.confinement.contract import Protection
from infernet.engines.contract import (
    Description,
    DividesCards,
    EngineConfig,
    EngineState,
    EngineStatistics,
    EngineUnavailable,
    Report,
    TellsParts,
)
from infernet.engines.dividing import Division
from infernet.engines.isolated import IsolatedEngine, Timeouts
from infernet.engines.placement import Wish
from infernet.engines.process import Place
from infernet.engines.several import Part, SeveralEngines, Waits
from infernet.hardware.contract import Card
from protocol import constants as c
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted
from protocol.ids import RunId
from protocol.records import GpuVendor, Kind, Outcome
from tests.helpers_engine import PacedEngine, Recorder, chat
from tests.infernet.engines.conftest import Bench, running

pytestmark = pytest.mark.anyio

DOUBLE = Path(__file__).with_name("worker_double.py")
QUICK = Timeouts(restart_first_s=0.05, restart_max_s=0.2)
IMPATIENT = Waits(others_s=0.05, again_first_s=0.05, again_max_s=0.1)
GB = 10**9


class Unloadable(PacedEngine):
    """A paced engine that cannot load, so many times."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name)
        self.times = times

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, or say why not."""
        if self.times > 0:
            self.times -= 1
            raise EngineUnavailable("the file is damaged")
        await super().run(report, task_status=task_status)


class NeverLoads(PacedEngine):
    """A paced engine that loads for ever."""

    async def run(self, report: Report, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load."""
        await trio.sleep_forever()


def part(engine: PacedEngine) -> Part:
    return Part("paced", engine, (engine.offer.name,))


def names(engine: SeveralEngines) -> list[str]:
    return [offer.name for offer in engine.models()]


async def until(bench: Bench, condition: Callable[[], bool]) -> None:
    """Wait for what comes with a change of what is offered."""
    with trio.fail_after(20):
        while not condition():
            await bench.changed.wait()


async def test_each_model_is_run_by_its_engine_and_counted_together() -> None:
    one, two = PacedEngine("one"), PacedEngine("two")
    several = SeveralEngines([part(one), part(two)])
    async with running(several) as bench:
        assert names(several) == ["one", "two"]
        for model in ("two", "one", "two"):
            run = bench.start(Kind.CHAT, chat("why"), 3, model=model)
            assert await bench.recorder.end_of(run) == EngineFinished(RunId(run), Outcome.LENGTH, 3)
        assert (one.statistics().runs_total, two.statistics().runs_total) == (1, 2)
        refused = await bench.refusal(Kind.CHAT, chat("why"), model="three")
        assert (refused.code, refused.text) == (Refusal.NO_MODEL, "this node serves one, two")
        statistics = several.statistics()
        assert (statistics.state, statistics.runs_total, statistics.runs_active) == (EngineState.READY, 4, 0)
    assert several.models() == ()
    assert several.statistics().state is EngineState.STOPPED


class Confined(PacedEngine):
    """A paced engine that says from what its process is kept."""

    def __init__(self, name: str, *protections: Protection) -> None:
        super().__init__(name)
        self.protections = protections

    def statistics(self) -> EngineStatistics:
        return replace(super().statistics(), protections=self.protections)


def test_what_one_process_goes_without_is_told_of_all() -> None:
    on = (Protection("files", is_on=True), Protection("network", is_on=True))
    off = Protection("network", is_on=False, why_not="refused")
    several = SeveralEngines(
        [part(Confined("one", *on)), part(Confined("two", on[0], off)), part(PacedEngine("three"))]
    )
    assert several.statistics().protections == (on[0], off)


async def test_a_cancel_reaches_the_run_that_it_is_for_and_no_other() -> None:
    several = SeveralEngines([part(PacedEngine("one", 50.0)), part(PacedEngine("two", 50.0))])
    async with running(several) as bench:
        one = bench.start(Kind.CHAT, chat("why"), 10, model="one")
        two = bench.start(Kind.CHAT, chat("why"), 100_000, model="two")
        await bench.recorder.until(lambda: all(bench.recorder.texts(run) for run in (one, two)))
        several.cancel(RunId(two))
        end = await bench.recorder.end_of(two)
        assert isinstance(end, EngineFinished)
        assert end.outcome is Outcome.CANCELLED
        assert await bench.recorder.end_of(one) == EngineFinished(RunId(one), Outcome.LENGTH, 10)
        several.cancel(RunId(two))
        several.cancel(RunId(99))


async def test_a_run_that_holds_goes_on_when_it_is_told_to() -> None:
    several = SeveralEngines([part(PacedEngine("one")), part(PacedEngine("two"))])
    async with running(several) as bench:
        order = bench.order(Kind.CHAT, chat("why"), 2, model="two", holds=True)
        several.start(order)
        await bench.recorder.until(lambda: bool(bench.recorder.of(order.run)))
        assert bench.recorder.of(order.run) == [EngineStarted(order.run, 1)]
        several.proceed(order.run)
        assert await bench.recorder.end_of(order.run) == EngineFinished(order.run, Outcome.LENGTH, 2)


async def test_a_model_whose_engine_is_down_is_withdrawn_and_the_others_serve_on() -> None:
    one, two = PacedEngine("one"), PacedEngine("two", 50.0)
    several = SeveralEngines([part(one), part(two)])
    async with running(several) as bench:
        going_on = bench.start(Kind.CHAT, chat("why"), 5, model="two")
        one.break_down()
        assert names(several) == ["two"]
        down = await bench.refusal(Kind.CHAT, chat("why"), model="one")
        assert down.code is Refusal.ENGINE_UNAVAILABLE
        assert "being restarted" in down.text
        assert isinstance(await bench.recorder.end_of(going_on), EngineFinished)
        run = bench.start(Kind.CHAT, chat("why"), 3, model="two")
        assert isinstance(await bench.recorder.end_of(run), EngineFinished)
        assert several.statistics().state is EngineState.READY
        one.recover()
        assert names(several) == ["one", "two"]
        assert several.statistics().restarts == 1


async def test_one_that_cannot_load_is_tried_again_while_the_others_serve() -> None:
    bad = Unloadable("bad", 3)
    several = SeveralEngines([part(bad), part(PacedEngine("good"))], waits=IMPATIENT)
    async with running(several) as bench:
        assert names(several) == ["good"]
        assert several.statistics().last_error == "bad: the file is damaged"
        told = several.parts()[0]
        assert (told.models, told.trouble) == (("bad",), "the file is damaged")
        assert told.state in (EngineState.WAITING, EngineState.STARTING)
        refused = await bench.refusal(Kind.CHAT, chat("why"), model="bad")
        assert (refused.code, refused.text) == (
            Refusal.ENGINE_UNAVAILABLE,
            "bad is not loaded: try again in a minute",
        )
        await until(bench, lambda: names(several) == ["bad", "good"])
        assert several.statistics().restarts == 3
        assert several.statistics().last_error == ""


async def test_when_none_loads_the_first_start_fails_and_says_of_each_why() -> None:
    several = SeveralEngines([part(Unloadable("one", 9)), part(Unloadable("two", 9))], waits=IMPATIENT)
    with pytest.raises(EngineUnavailable, match=r"^one: the file is damaged; two: the file is damaged$"):
        await several.run(Recorder().report)


async def test_one_that_loads_for_ever_does_not_keep_the_others_from_serving() -> None:
    several = SeveralEngines([part(NeverLoads("slow")), part(PacedEngine("good"))], waits=IMPATIENT)
    with trio.fail_after(10):
        async with running(several):
            assert names(several) == ["good"]


async def test_one_without_a_place_is_never_run_and_says_why() -> None:
    large = Part("paced", PacedEngine("large"), ("large",), refusal="large needs 80.0 GB")
    several = SeveralEngines([large, part(PacedEngine("good"))])
    async with running(several) as bench:
        assert names(several) == ["good"]
        told = several.parts()
        assert [(one.models, one.where, one.trouble) for one in told] == [
            (("large",), "nowhere", "large needs 80.0 GB"),
            (("good",), "", ""),
        ]
        assert (await bench.refusal(Kind.CHAT, chat("why"), model="large")).code is Refusal.ENGINE_UNAVAILABLE
    with pytest.raises(EngineUnavailable, match=r"^large needs 80\.0 GB$"):
        await SeveralEngines([large]).run(Recorder().report)


async def test_of_two_with_one_name_the_first_has_it_and_the_second_takes_over() -> None:
    first, second = PacedEngine("same", prices=(1, 1, 1)), PacedEngine("same")
    several = SeveralEngines([part(first), part(second)])
    async with running(several) as bench:
        assert several.models() == (first.offer,)
        first.break_down()
        assert several.models() == (second.offer,)
        run = bench.start(Kind.CHAT, chat("why"), 2, model="same")
        assert isinstance(await bench.recorder.end_of(run), EngineFinished)
        assert second.statistics().runs_total == 1


async def test_no_more_is_offered_than_a_heartbeat_holds() -> None:
    several = SeveralEngines([part(PacedEngine(f"m{n}")) for n in range(c.HEARTBEAT_MODELS_MAX + 1)])
    async with running(several):
        assert names(several) == [f"m{n}" for n in range(c.HEARTBEAT_MODELS_MAX)]


# ---------------------------------------------------------------- with processes


def isolated(tmp_path: Path, name: str, mode: str, place: Place | None = None) -> IsolatedEngine:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"weights")
    config = EngineConfig(name=name, path=str(path))
    return IsolatedEngine(config, QUICK, [sys.executable, str(DOUBLE), mode], place or Place())


async def test_a_job_for_one_model_goes_through_while_the_process_of_another_is_down(tmp_path: Path) -> None:
    crashing, good = isolated(tmp_path, "a", "crashes"), isolated(tmp_path, "b", "is good")
    several = SeveralEngines([Part("llama", crashing, ("a",)), Part("llama", good, ("b",))])
    async with running(several) as bench:
        failed = bench.start(Kind.CHAT, chat("?"), model="a")
        end = await bench.recorder.end_of(failed)
        assert isinstance(end, EngineFailed)
        assert end.code is Refusal.ENGINE_FAILED
        assert names(several) == ["b"]
        run = bench.start(Kind.CHAT, chat("?"), model="b")
        assert await bench.recorder.end_of(run) == EngineFinished(RunId(run), Outcome.STOP, 1)
        assert names(several) == ["b"]
        await until(bench, lambda: names(several) == ["a", "b"])
        assert several.statistics().last_error == "a: the engine process was ended by SIGSEGV"


async def test_an_engine_process_is_told_where_to_run(tmp_path: Path) -> None:
    place = Place("x", (("CUDA_VISIBLE_DEVICES", "GPU-a"), ("HIP_VISIBLE_DEVICES", None)), on_processor=True)
    engine = isolated(tmp_path, "a", "says what it was told", place)
    with pytest.raises(EngineUnavailable) as told:
        await engine.run(Recorder().report)
    assert str(told.value).startswith("{'CUDA_VISIBLE_DEVICES': 'GPU-a'}, on the processor: True")


async def test_one_that_is_moved_while_it_loads_is_loaded_again_elsewhere(tmp_path: Path) -> None:
    engine = isolated(tmp_path, "a", "loads when it may", Place("here"))
    several = SeveralEngines([Part("llama", engine, ("a",)), part(PacedEngine("good"))], waits=IMPATIENT)
    async with running(several) as bench:
        with trio.fail_after(20):
            while not (tmp_path / "a.begun").exists():
                await trio.testing.wait_all_tasks_blocked(0.005)
        engine.move(Place("there"), "a GPU is gone")
        (tmp_path / "a.go").touch()
        await until(bench, lambda: "a" in names(several))
        assert several.parts()[0].where == "there"
        assert several.statistics().restarts == 1


CARDS = [
    Card(GpuVendor.NVIDIA, n, "RTX", "nvml", vram_bytes=size * GB, vram_used_bytes=0, slot=f"0000:0{n}:00.0", uuid=uuid)
    for n, size, uuid in ((0, 24, "GPU-a"), (1, 12, "GPU-b"))
]


def divided(tmp_path: Path, memory_bytes: int) -> tuple[SeveralEngines, dict[str, IsolatedEngine]]:
    """A large model on the first card, and a small one on the second."""
    wishes = {"large": Wish("large", 20 * GB), "small": Wish("small", 10 * GB)}
    division = Division(wishes, {card.slot or "": card for card in CARDS}, memory_bytes)
    engines = {}
    for name in wishes:
        place = division.place(name)
        assert isinstance(place, Place)
        engines[name] = isolated(tmp_path, name, "runs on cards", place)
    return SeveralEngines([Part("llama", engine, (name,)) for name, engine in engines.items()], division), engines


def environ_of(engine: IsolatedEngine) -> dict[str, str | None]:
    assert engine.place is not None
    return dict(engine.place.environ)


async def test_only_what_ran_on_a_card_that_is_gone_is_moved(tmp_path: Path) -> None:
    several, engines = divided(tmp_path, 64 * GB)
    assert isinstance(several, DividesCards)
    assert isinstance(several, TellsParts)
    assert environ_of(engines["large"])["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert environ_of(engines["small"])["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    async with running(several) as bench:
        assert [one.where for one in several.parts()] == ["RTX (nvidia 0)", "RTX (nvidia 1)"]
        pid = engines["small"].pid
        runs = {name: bench.start(Kind.CHAT, chat("?"), model=name) for name in engines}
        await bench.recorder.until(lambda: all(bench.recorder.of(run) for run in runs.values()))
        several.lose_cards(CARDS[:1])
        end = await bench.recorder.end_of(runs["large"])
        assert isinstance(end, EngineFailed)
        await until(bench, lambda: names(several) == ["large", "small"])
        assert engines["small"].pid == pid
        assert bench.recorder.ends()[RunId(runs["small"])] == 0
        assert engines["large"].place is not None
        assert engines["large"].place.on_processor
        assert [one.where for one in several.parts()] == ["the processor", "RTX (nvidia 1)"]
        several.lose_cards([Card(GpuVendor.AMD, 0, "another", "sysfs")])
        assert names(several) == ["large", "small"]


async def test_what_has_no_place_once_a_card_is_gone_is_withdrawn_for_good(tmp_path: Path) -> None:
    several, engines = divided(tmp_path, 4 * GB)
    async with running(several) as bench:
        run = bench.start(Kind.CHAT, chat("?"), model="large")
        await bench.recorder.until(lambda: bool(bench.recorder.of(run)))
        several.lose_cards(CARDS[:1])
        end = await bench.recorder.end_of(run)
        assert isinstance(end, EngineFailed)
        assert end.code is Refusal.ENGINE_FAILED
        await until(bench, lambda: names(several) == ["small"])
        # Not even tried: what is on the processor would take the memory of others.
        with trio.fail_after(10):
            while engines["large"].statistics().state is not EngineState.STOPPED:
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert names(several) == ["small"]
        assert "large needs 20.0 GB" in several.statistics().last_error
        refused = await bench.refusal(Kind.CHAT, chat("?"), model="large")
        assert refused.code is Refusal.ENGINE_UNAVAILABLE
        assert several.parts()[0].where == "nowhere"


async def test_each_model_is_described_by_the_engine_that_has_it() -> None:
    class Described(PacedEngine):
        def __init__(self, name: str, quantisation: str) -> None:
            super().__init__(name)
            self._known = {each: Description(quantisation) for each in (name, "both")}

        def described(self) -> dict[str, Description]:
            return self._known

    first, second = Described("a", "Q4_K_M"), Described("b", "Q8_0")
    parts = [Part("x", first, ("a", "both")), Part("x", PacedEngine("c"), ("c",)), Part("x", second, ("b", "both"))]
    engine = SeveralEngines(parts)
    assert engine.described() == {"a": Description("Q4_K_M"), "both": Description("Q4_K_M"), "b": Description("Q8_0")}
