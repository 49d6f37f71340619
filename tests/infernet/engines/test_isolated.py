"""Supervision: whatever an engine process does, the node lives, runs end once, and the engine comes back."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec import structs
from structlog.testing import capture_logs

from infernet.engines import models
from infernet.engines.contract import (
    EngineConfig,
    EngineState,
    EngineUnavailable,
    ExllamaOptions,
    RunsOnCards,
    models_loading,
)
from infernet.engines.isolated import IsolatedEngine, Timeouts
from infernet.engines.models import ModelCorrupt
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished
from protocol.ids import RunId
from protocol.records import JobRequest, Kind, Outcome
from tests.helpers_engine import Recorder, chat
from tests.infernet.engines.conftest import Bench, running

pytestmark = pytest.mark.anyio

DOUBLE = Path(__file__).with_name("worker_double.py")
# Patient with everything but the one thing that a test is about.
QUICK = Timeouts(
    ping_interval_s=0.05, ping_answer_s=30, stall_s=30, cancel_s=30, restart_first_s=0.05, restart_max_s=0.2
)
SECRET = "somebody's secret prompt"
WEIGHTS = b"weights"


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    """A model whose file the double never opens."""
    path = tmp_path / "model.gguf"
    path.write_bytes(WEIGHTS)
    return EngineConfig(name="double", path=str(path))


def engine(config: EngineConfig, mode: str, timeouts: Timeouts = QUICK) -> IsolatedEngine:
    """An engine whose process is the double in this mode."""
    return IsolatedEngine(config, timeouts, [sys.executable, str(DOUBLE), mode])


def change(model: Path) -> None:
    """Put something else in the place of a model."""
    model.write_bytes(b"other weights")


async def until_restarted(bench: Bench, times: int = 1) -> None:
    """Wait for the engine to be back."""
    with trio.fail_after(20):
        while bench.changes.count(1) < times + 1:
            await trio.testing.wait_all_tasks_blocked(0.005)


async def test_a_run_goes_through(config: EngineConfig) -> None:
    async with running(engine(config, "is good")) as bench:
        assert await bench.do(Kind.CHAT, chat("?")) == ("yes", EngineFinished(RunId(1), Outcome.STOP, 1))
        offer = bench.engine.models()[0]
        assert (offer.context_tokens, offer.concurrency, offer.is_free) == (512, 4, True)


@pytest.mark.parametrize(("own", "told"), [("", models.STARTER.system_prompt), ("Be brief.", "Be brief.")])
async def test_the_starter_model_is_told_what_it_needs_wherever_its_file_lies(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, own: str, told: str
) -> None:
    config = structs.replace(config, system_prompt=own)
    with pytest.raises(EngineUnavailable, match=f"^system prompt: '{own}'"):
        await engine(config, "says its system prompt").run(Recorder().report)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    monkeypatch.setattr(models, "STARTER", replace(models.STARTER, sha256=sha256))
    with pytest.raises(EngineUnavailable, match=f"^system prompt: '{told}'"):
        await engine(config, "says its system prompt").run(Recorder().report)


async def test_it_says_for_how_long_it_loads_and_holds_the_file_to_what_it_was_then(config: EngineConfig) -> None:
    model = Path(config.path)
    loads = engine(config, "loads when it may")
    assert loads.statistics().loading_s is loads.parts()[0].loading_s is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loads.run, Recorder().report)
        with trio.fail_after(20):
            while not model.with_suffix(".begun").exists():
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert models_loading(loads) == ("double",)
        seconds = loads.parts()[0].loading_s
        assert seconds is not None
        assert 0 <= seconds < 20
        model.with_suffix(".go").touch()
        with trio.fail_after(20):
            while not loads.models():
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert loads.statistics().loading_s is loads.parts()[0].loading_s is None
        assert models_loading(loads) == ()
        change(model)
        assert loads.pid is not None
        os.kill(loads.pid, signal.SIGKILL)
        with trio.fail_after(20):
            while "is corrupt" not in loads.statistics().last_error:
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert models_loading(loads) == ("double",)
        nursery.cancel_scope.cancel()


async def test_a_crash_fails_the_runs_and_the_engine_comes_back(config: EngineConfig) -> None:
    async with running(engine(config, "crashes")) as bench:
        runs = [bench.start(Kind.CHAT, chat("?")) for _ in range(3)]
        ends = [await bench.recorder.end_of(run) for run in runs]
        assert all(isinstance(end, EngineFailed) and end.code is Refusal.ENGINE_FAILED for end in ends)
        assert bench.engine.models() == ()
        down = await bench.refusal(Kind.CHAT, chat("?"), model="double")
        assert (down.code, bench.engine.statistics().state) == (Refusal.ENGINE_UNAVAILABLE, EngineState.WAITING)
        await until_restarted(bench)
        assert bench.changes == [1, 0, 1]
        statistics = bench.engine.statistics()
        assert (statistics.restarts, statistics.runs_total, statistics.runs_active) == (1, 4, 0)
        assert statistics.last_error == "the engine process was ended by SIGSEGV"


async def test_that_it_went_and_that_it_is_back_is_in_the_log(config: EngineConfig) -> None:
    with capture_logs() as logged:
        async with running(engine(config, "is good")) as bench:
            assert logged == []
            pid = bench.engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until_restarted(bench)
    down, up = logged
    assert (down["log_level"], down["event"], down["model"]) == ("warning", "engine.down", "double")
    assert down["reason"].startswith("the engine process was ended by SIGKILL")
    assert (up["log_level"], up["event"], up["restarts"]) == ("info", "engine.up", 1)


async def test_one_that_cannot_be_started_again_is_told_of_once(config: EngineConfig) -> None:
    with capture_logs() as logged:
        async with running(engine(config, "is good")) as bench:
            os.unlink(config.path)
            pid = bench.engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(20):
                while bench.engine.statistics().restarts < 4:
                    await trio.testing.wait_all_tasks_blocked(0.005)
    assert [line["event"] for line in logged] == ["engine.down", "engine.down"]
    assert "cannot be read (no such file" in logged[1]["reason"]


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("finishes what never started", "did not start"),
        ("reports on an unknown run", "not active"),
        ("starts twice", "started twice"),
        ("counts down", "shrinks"),
        ("exceeds the order", "exceeds the order"),
        ("exceeds the prompt", "more prompt tokens than ordered"),
        ("invents an outcome", "outcome"),
        ("sends garbage", "broke its contract"),
        ("sends half a frame", "broke its contract"),
        ("says more than it counts", "more text than its tokens"),
        ("says nothing again and again", "a report of nothing"),
        ("reads beyond the end", "progress beyond its own end"),
        ("tells a part of a token", "a part of a token"),
        ("gives a vector for a chat", "a vector that nobody"),
        ("sends no text", "broke its contract"),
        ("sends a nest", "broke its contract"),
        pytest.param(
            *("ends by a signal without a name", "ended by signal 40"),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="there are no real-time signals"),
        ),
    ],
)
async def test_a_process_that_misbehaves_is_ended_and_its_run_fails_once(
    config: EngineConfig, mode: str, told: str
) -> None:
    async with running(engine(config, mode)) as bench:
        run = bench.start(Kind.CHAT, chat("?"))
        end = await bench.recorder.end_of(run)
        assert isinstance(end, EngineFailed)
        assert end.code is Refusal.ENGINE_FAILED
        assert told in bench.engine.statistics().last_error
        await until_restarted(bench)
        assert bench.recorder.ends()[RunId(run)] == 1


@pytest.mark.parametrize(
    ("mode", "timeouts", "told"),
    [
        ("stops answering", replace(QUICK, ping_answer_s=0.3), "did not answer"),
        ("makes no progress", replace(QUICK, stall_s=0.3), "no progress"),
    ],
)
async def test_a_process_that_hangs_is_ended_and_its_run_fails(
    config: EngineConfig, mode: str, timeouts: Timeouts, told: str
) -> None:
    async with running(engine(config, mode, timeouts)) as bench:
        run = bench.start(Kind.CHAT, chat("?"))
        end = await bench.recorder.end_of(run)
        assert isinstance(end, EngineFailed)
        assert told in bench.engine.statistics().last_error
        await until_restarted(bench)


async def test_a_run_that_ignores_its_cancel_does_not_keep_its_slot(config: EngineConfig) -> None:
    async with running(engine(config, "ignores cancels", replace(QUICK, cancel_s=0.3))) as bench:
        run = bench.start(Kind.CHAT, chat("?"), tokens=10_000)
        await bench.recorder.until(lambda: bool(bench.recorder.texts(run)))
        bench.engine.cancel(RunId(run))
        await bench.recorder.end_of(run)
        assert "cancelled" in bench.engine.statistics().last_error


async def test_a_process_that_floods_does_not_get_ahead_of_who_takes_its_reports(config: EngineConfig) -> None:
    async with running(engine(config, "floods")) as bench, trio.open_nursery() as nursery:
        events = bench.recorder.events
        most = 0

        async def take_turns() -> None:
            nonlocal most
            while True:
                before = len(events)
                await trio.lowlevel.checkpoint()
                most = max(most, len(events) - before)

        nursery.start_soon(take_turns)
        await bench.recorder.end_of(bench.start(Kind.CHAT, chat("?")))
        nursery.cancel_scope.cancel()
    assert len(events) > 5000
    # The driver takes 64 each time that it has its turn.
    assert most <= 4


def test_it_says_which_engine_it_is(config: EngineConfig) -> None:
    assert [part.engine for part in engine(config, "is good").parts()] == ["llama"]
    for version in (2, 3):
        folder = structs.replace(config, exllama=ExllamaOptions(version))
        assert [part.engine for part in engine(folder, "is good").parts()] == [f"exllamav{version}"]


async def test_a_leaked_slot_is_counted_and_the_process_replaced(config: EngineConfig) -> None:
    async with running(engine(config, "leaks a slot")) as bench:
        await bench.do(Kind.CHAT, chat("?"))
        await until_restarted(bench)
        statistics = bench.engine.statistics()
        assert (statistics.slots_leaked, statistics.restarts) == (2, 1)
        assert bench.recorder.ends().total() == 1


async def test_each_fault_makes_the_wait_longer_up_to_a_limit(config: EngineConfig) -> None:
    timeouts = replace(QUICK, restart_first_s=0.2, restart_max_s=0.8)
    async with running(engine(config, "crashes", timeouts)) as bench:
        for times, least_s in enumerate((0.2, 0.4, 0.8, 0.8), start=1):
            await bench.recorder.end_of(bench.start(Kind.CHAT, chat("?")))
            down_at_s = trio.current_time()
            await until_restarted(bench, times)
            assert trio.current_time() - down_at_s >= least_s


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("cannot load", "the model cannot be loaded: the file is no GGUF model"),
        ("dies while loading", "the engine process exited with status 3: not enough memory"),
        ("never loads", "the engine process stood still for 1 s while it loaded the model"),
        ("stops while loading", "the engine process stood still for 1 s while it loaded the model"),
        ("starts too early", "broke its contract"),
        ("says no end of things", "no no no"),
    ],
)
async def test_a_first_load_that_fails_is_told_in_one_line_without_prompts(
    config: EngineConfig, mode: str, told: str
) -> None:
    # A busy machine takes its time to start a process; only one that stands still must be given up on.
    timeouts = Timeouts(load_idle_s=1.0 if "stood still" in told else 60.0)
    with pytest.raises(EngineUnavailable) as caught:
        await engine(config, mode, timeouts).run(Recorder().report)
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2_000


async def test_a_model_has_the_time_that_it_needs_while_its_process_does_something(config: EngineConfig) -> None:
    async with running(engine(config, "loads slowly", replace(QUICK, load_idle_s=1.5))) as bench:
        statistics = bench.engine.statistics()
        assert (statistics.state, statistics.restarts) == (EngineState.READY, 0)


async def test_a_file_that_is_not_the_one_configured_is_told_before_it_is_loaded(config: EngineConfig) -> None:
    with pytest.raises(ModelCorrupt, match="its sha256 differs"):
        await engine(structs.replace(config, fingerprint=bytes(32)), "is good").check()
    checked = engine(config, "is good")
    await checked.check()
    async with running(checked) as bench:
        (offer,) = bench.engine.models()
        assert offer.fingerprint == hashlib.sha256(b"weights").digest()


async def test_a_command_that_does_not_exist_is_told(config: EngineConfig) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be started"):
        await IsolatedEngine(config, QUICK, ["/nonexistent/engine"]).run(Recorder().report)


async def test_a_prompt_that_is_not_unicode_is_refused(config: EngineConfig) -> None:
    async with running(engine(config, "is good")) as bench:
        refused = await bench.refusal(Kind.CHAT, chat("\ud800"))
        assert refused.code is Refusal.BAD_REQUEST
        assert bench.engine.statistics().runs_active == 0


async def test_a_kind_that_is_not_offered_is_refused(config: EngineConfig) -> None:
    chat_only = EngineConfig(name="double", path=config.path, kinds=(Kind.CHAT,))
    async with running(engine(chat_only, "is good")) as bench:
        refused = await bench.refusal(Kind.EMBEDDING, JobRequest(inputs=("x",)))
        assert refused.code is Refusal.UNSUPPORTED


async def test_a_card_that_is_gone_ends_what_ran_on_it_and_the_engine_starts_again(config: EngineConfig) -> None:
    async with running(engine(config, "runs on cards")) as bench:
        run = bench.start(Kind.CHAT, chat("?"))
        isolated = bench.engine
        assert isinstance(isolated, RunsOnCards)
        isolated.card_gone()
        end = await bench.recorder.end_of(run)
        assert isinstance(end, EngineFailed)
        await until_restarted(bench)
        assert bench.changes == [1, 0, 1]
        assert bench.engine.statistics().last_error == "a GPU is gone"


async def test_an_engine_on_the_processor_goes_on_when_a_card_is_gone(config: EngineConfig) -> None:
    async with running(engine(config, "is good")) as bench:
        isolated = bench.engine
        assert isinstance(isolated, RunsOnCards)
        isolated.card_gone()
        assert await bench.do(Kind.CHAT, chat("?")) == ("yes", EngineFinished(RunId(1), Outcome.STOP, 1))
        assert bench.engine.statistics().restarts == 0
