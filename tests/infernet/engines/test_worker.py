"""infernet/engines/worker.py: which engine it loads, and what happens to its process when that is past use."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from infernet.engines import exllama, llama_cpp
from infernet.engines.contract import EngineConfig, ExllamaOptions, RunsOnCards
from infernet.engines.isolated import IsolatedEngine, Timeouts
from infernet.engines.models import ModelCorrupt
from infernet.engines.worker import load_model
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineStarted
from protocol.ids import RunId
from protocol.records import Kind
from tests.helpers_engine import chat
from tests.helpers_exllama import write_folder
from tests.infernet.engines.conftest import running

pytestmark = pytest.mark.anyio

DOUBLE = Path(__file__).with_name("breaking_worker.py")


async def test_an_engine_that_is_past_use_takes_its_process_along_and_another_is_started(tmp_path: Path) -> None:
    config = EngineConfig("m", str(write_folder(tmp_path / "m")), exllama=ExllamaOptions(3))
    command = [sys.executable, "-P", str(DOUBLE)]
    timeouts = replace(Timeouts(), restart_first_s=0.05)
    async with running(IsolatedEngine(config, timeouts, command)) as bench:
        holding = bench.order(Kind.CHAT, chat("?"), holds=True)
        bench.engine.start(holding)
        await bench.recorder.until(lambda: any(isinstance(event, EngineStarted) for event in bench.recorder.events))
        run = bench.start(Kind.CHAT, chat("?"))
        end, held_end = await bench.recorder.end_of(run), await bench.recorder.end_of(holding.run)
        for failed in (end, held_end):
            assert isinstance(failed, EngineFailed)
            assert failed.code is Refusal.ENGINE_FAILED
        assert bench.recorder.ends() == {RunId(run): 1, holding.run: 1}
        with trio.fail_after(60):
            while bench.changes.count(1) < 2:
                await bench.changed.wait()
        statistics = bench.engine.statistics()
        assert (statistics.restarts, statistics.slots_leaked) == (1, 0)
        assert statistics.last_error == "the engine process exited with status 70: not enough memory on the cards"
        assert isinstance(bench.engine, RunsOnCards)


def test_the_configuration_says_which_engine_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exllama, "load", lambda config: ("exllama", config))
    monkeypatch.setattr(llama_cpp, "LlamaCpp", lambda config, directory: ("llama", config, directory))
    config = EngineConfig("m", "/m")
    assert load_model(config, "/private") == ("llama", config, "/private")
    on_cards = msgspec.structs.replace(config, exllama=ExllamaOptions(2))
    assert load_model(on_cards, "/private") == ("exllama", on_cards)


async def test_a_folder_that_changed_since_it_was_configured_is_not_loaded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    config = EngineConfig("m", str(folder), fingerprint=bytes(32), exllama=ExllamaOptions(3))
    with pytest.raises(ModelCorrupt, match="have changed"):
        await IsolatedEngine(config, command=["/nonexistent"]).run(lambda _: None)
