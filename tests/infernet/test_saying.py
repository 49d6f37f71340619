"""What a node says of its models: what its engine knows, what its owner wrote, and what was measured not long ago."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from infernet.engines.benchmark import Benchmark, Speed, keep
from infernet.engines.contract import Description
from infernet.saying import BENCHMARK_AGE_MS_MAX, LOOK_S, Saying, speeds_by_fingerprint
from infernet.settings.models import ModelSettings
from protocol.details import Said, said_of
from protocol.effects import JobDone, JobFailed
from protocol.records import EngineKind
from tests.helpers_engine import PacedEngine
from tests.helpers_node import ask, config_of_nobody, question, settle, virtual_wall_ms, world
from tests.helpers_records import NOW_MS, OFFER

pytestmark = pytest.mark.anyio

SPEED = Speed("any", 300, 0.5, 644.9, 64, 59.9, 3, OFFER.fingerprint.hex())


class Described(PacedEngine):
    """A paced engine that knows what it runs."""

    quantisation = "Q4_K_M"

    def described(self) -> dict[str, Description]:
        return {self.offer.name: Description(self.quantisation, EngineKind.LLAMA_CPP)}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def benchmark(at_ms: int, *speeds: Speed) -> Benchmark:
    return Benchmark(at_ms, "llama", list(speeds or (SPEED,)))


def saying(engine: PacedEngine, state_dir: Path, *own: ModelSettings) -> Saying:
    config = config_of_nobody(state_dir=state_dir, model_settings=own)
    return Saying(config, engine, lambda: NOW_MS, changed=lambda: None)


def test_speeds_are_those_of_known_weights_measured_within_thirty_days() -> None:
    unknown, other = replace(SPEED, fingerprint=None), replace(SPEED, fingerprint="22" * 32, tokens_per_s=None)
    found = speeds_by_fingerprint(benchmark(NOW_MS, unknown, SPEED, other), NOW_MS)
    assert found == {"11" * 32: SPEED, "22" * 32: other}
    assert speeds_by_fingerprint(benchmark(NOW_MS - BENCHMARK_AGE_MS_MAX), NOW_MS)
    assert not speeds_by_fingerprint(benchmark(NOW_MS - BENCHMARK_AGE_MS_MAX - 1), NOW_MS)
    assert not speeds_by_fingerprint(benchmark(NOW_MS + 3_600_000), NOW_MS)
    assert not speeds_by_fingerprint(None, NOW_MS)


def test_what_is_said_comes_from_engine_settings_and_benchmark(tmp_path: Path) -> None:
    keep(tmp_path, benchmark(NOW_MS))
    own = ModelSettings(name="Tiny-135M", aliases=("tiny", "little"))
    said = saying(Described(OFFER.name), tmp_path, own)
    other = replace(OFFER, name="other", fingerprint=bytes(32))
    assert said.of((OFFER, other)) == {
        OFFER.name: Said("Q4_K_M", EngineKind.LLAMA_CPP, 640, 56, ("tiny", "little")),
    }


def test_who_knows_nothing_says_nothing(tmp_path: Path) -> None:
    assert saying(PacedEngine(OFFER.name), tmp_path).of((OFFER,)) == {}
    (tmp_path / "benchmark.json").write_text("{")
    assert saying(PacedEngine(OFFER.name), tmp_path).of((OFFER,)) == {}


@pytest.mark.parametrize(
    ("told", "said"), [("x" * 40, "x" * 16), ("Q4·K", ""), ("Q4\nK", ""), ("exl2 4.0bpw", "exl2 4.0bpw")]
)
def test_a_server_may_call_its_weights_anything(tmp_path: Path, told: str, said: str) -> None:
    engine = Described(OFFER.name)
    engine.quantisation = told
    assert saying(engine, tmp_path).of((OFFER,))[OFFER.name].quantisation == said


@pytest.mark.slow
async def test_others_hear_it_and_ask_for_the_model_by_its_alias(tmp_path: Path) -> None:
    engine = Described()
    keep(tmp_path, benchmark(virtual_wall_ms(), replace(SPEED, fingerprint=engine.offer.fingerprint.hex())))
    own = ModelSettings(name="paced", aliases=("tiny",))
    async with world() as w:
        provider = await w.start(engine, state_dir=tmp_path, model_settings=(own,))
        client = await w.start(None, provider)
        await settle(client, lambda: client.driver.peer.directory.get(provider.node_id) is not None)
        entry = client.driver.peer.directory.get(provider.node_id)
        assert entry is not None
        assert said_of(entry.heartbeat, "paced") == Said("Q4_K_M", EngineKind.LLAMA_CPP, 640, 56, ("tiny",))
        assert isinstance((await ask(client, question(model="tiny")))[-1], JobDone)
        assert isinstance((await ask(client, question(model="paced")))[-1], JobDone)
        assert isinstance((await ask(client, question(model="small")))[-1], JobFailed)


async def test_a_measurement_beside_the_running_node_is_said_and_an_old_one_no_more(tmp_path: Path) -> None:
    told: list[dict[str, Said]] = []
    config = config_of_nobody(state_dir=tmp_path)
    machine = Saying(
        config, PacedEngine(OFFER.name), virtual_wall_ms, changed=lambda: told.append(machine.of((OFFER,)))
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.run)
        await trio.sleep(2.5 * LOOK_S)
        assert told == []
        keep(tmp_path, benchmark(virtual_wall_ms()))
        await trio.sleep(2 * LOOK_S)
        assert told == [{OFFER.name: Said(prompt_tokens_per_s=640, tokens_per_s=56)}]
        keep(tmp_path, benchmark(virtual_wall_ms() - BENCHMARK_AGE_MS_MAX))
        await trio.sleep(2 * LOOK_S)
        assert told[1:] == [{}]
        nursery.cancel_scope.cancel()
