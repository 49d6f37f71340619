"""infernet/metrics: what Prometheus reads is what the node says of itself, in names and labels that never grow."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from infernet.hardware.contract import Card
from infernet.metrics import exposition
from infernet.metrics.exposition import CARDS_FRESH_S, PACE_S, Cards, NodeMetrics, Pace, render
from infernet.metrics.table import COUNTER, METRICS, Facts, Process
from protocol.records import GpuVendor
from tests.helpers_node import ask, config_of_nobody, pair, question, settle, world

PROCESS = Process(1.5, 1000, 2000)
CARD = Card(GpuVendor.NVIDIA, 0, "Some GPU", "a test", 8 << 30, 1 << 30, 50, 61, 120.5, slot="0000:01:00.0", uuid="u")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values, as Prometheus's own library reads them."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.anyio
async def test_they_agree_with_the_status() -> None:
    async with world() as w:
        provider, _, client = await pair(w)
        await ask(client, question(max_tokens=5))
        await settle(client, lambda: client.status()["peers_known"] == 1)
        status = provider.status()
        found = samples(await NodeMetrics(lambda: status, None).text())
        jobs = status["counts"]["jobs"]
        assert found["infernet_jobs_total", ("completed",)] == jobs["completed"] == 1
        assert found["infernet_output_tokens_total", ()] == jobs["output_tokens"] == 5
        assert found["infernet_engine_state", ("ready",)] == 1
        assert found["infernet_engine_state", ("waiting",)] == 0
        assert ("infernet_engine_loading_seconds", ()) not in found
        status["engine"] |= {"state": "starting", "loading_s": 7.5}
        loads = samples(await NodeMetrics(lambda: status, None).text())
        assert loads["infernet_engine_loading_seconds", ()] == 7.5
        assert found["infernet_peers_connected", ()] == 1
        assert found["infernet_transport_bytes_total", ("sent",)] == status["transport"]["bytes_out"]
        assert found["infernet_sent_bytes_total", ("gossip",)] > 0
        assert found["infernet_received_bytes_total", ("job",)] == status["traffic"]["in"]["/infernet/job/1"] > 0
        asked = samples(await NodeMetrics(client.status, client.find_cards).text())
        assert asked["infernet_asked_total", ("answered",)] == 1
        assert asked["infernet_asked_output_tokens_total", ()] == 5
        assert asked["infernet_peers_known", ("provider",)] == 1
        assert asked["infernet_peers_known", ("client",)] == 0, "it does not count itself"
        assert not any(name.startswith(("infernet_engine", "infernet_earned", "infernet_link")) for name, _ in asked)


@pytest.mark.anyio
async def test_nobody_s_name_or_key_is_in_them() -> None:
    async with world() as w:
        provider, _, client = await pair(w)
        await ask(client, question("a secret question", max_tokens=5))
        text = await NodeMetrics(provider.status, provider.find_cards).text()
        status = provider.status()
        for word in (client.node_id.hex(), status["node_id"], status["npub"], status["peer_id"], "secret", "127.0.0.1"):
            assert word not in text
        assert config_of_nobody().name not in text.replace("latest", "")


def facts(status: dict[str, Any] | None = None, **more: Any) -> Facts:
    return Facts(status or {}, **{"process": PROCESS, "cards": (), "output_tokens_per_s": 0.0, **more})


def test_what_does_not_apply_is_left_out() -> None:
    names = {name for name, _ in samples(render(facts()))}
    assert "infernet_jobs_total" not in names
    assert "infernet_gpu_memory_bytes" not in names
    assert "process_resident_memory_bytes" in names


def test_money_counts_in_millionths_and_the_link_is_up_or_not() -> None:
    money = {"earned_uusd": 1_500_000, "unclaimed_uusd": 7, "lost_uusd": 0, "leases_given": 2, "leases_held": 1}
    found = samples(render(facts({"money": money, "coordinator": {"state": "waiting"}})))
    assert found["infernet_earned_micro_usd_total", ()] == 1_500_000
    assert found["infernet_unclaimed_micro_usd", ()] == 7
    assert (found["infernet_leases", ("given",)], found["infernet_leases", ("held",)]) == (2, 1)
    assert found["infernet_link_up", ()] == 0
    assert samples(render(facts({"coordinator": {"state": "connected"}})))["infernet_link_up", ()] == 1


def test_cards_are_told_by_their_place_and_not_by_what_names_them() -> None:
    unknown = Card(GpuVendor.AMD, 0, "Other", "a test", trouble="no driver")
    text = render(facts(cards=(CARD, unknown)))
    found = samples(text)
    assert found["infernet_gpu_utilisation_ratio", ("0", "nvidia")] == 0.5
    assert found["infernet_gpu_memory_used_bytes", ("0", "nvidia")] == 1 << 30
    assert found["infernet_gpu_temperature_celsius", ("0", "nvidia")] == 61
    assert found["infernet_gpu_power_watts", ("0", "nvidia")] == 120.5
    assert (found["infernet_gpu_usable", ("0", "nvidia")], found["infernet_gpu_usable", ("1", "amd")]) == (1, 0)
    assert ("infernet_gpu_memory_bytes", ("1", "amd")) not in found
    assert "0000:01:00.0" not in text


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"(infernet|process)_[a-z][a-z0-9_]*[a-z0-9]", metric.name), metric.name
        assert not metric.name.endswith("_total"), metric.name
        assert metric.help.endswith("."), metric.name
        assert metric.kind in (COUNTER, "gauge")
        assert not re.search(r"_(ms|mb|kb|percent|minutes)(_|$)", metric.name), "base units"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.dictionaries(
            st.sampled_from(
                ["counts", "jobs", "money", "coordinator", "engine", "state", "transport", "traffic", "in", "peers"]
            ),
            inner,
        ),
    )
)
@settings(max_examples=50)
def test_a_status_of_any_shape_ends_in_no_error(status: object) -> None:
    render(facts(status if isinstance(status, dict) else {}))


# ---------------------------------------------------------------- tokens per second


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.look(100.0, 50, 10.0) == 5.0, "the first look takes all of it"
    assert pace.look(110.0, 70, 20.0) == 2.0
    assert pace.look(130.0, 70, 40.0) == pytest.approx(20 / 30)
    assert pace.look(130.0 + PACE_S, 70, 100.0) == 0.0
    assert Pace().look(1.0, 0, 0.0) == 0.0


def test_who_looks_all_the_time_sees_the_same_pace() -> None:
    pace = Pace()
    for tenth in range(2000):
        shown_pace = pace.look(tenth / 10, tenth, 1.0)
    assert shown_pace == pytest.approx(10.0)
    assert len(pace._looks) <= exposition.LOOKS_MAX


# ---------------------------------------------------------------- drivers


def test_a_driver_is_asked_once_in_a_while() -> None:
    clock = MockClock()
    asked = []

    def find() -> tuple[Card, ...]:
        asked.append(1)
        return (CARD,)

    async def look() -> None:
        cards = Cards(find)
        assert await cards.look() == await cards.look() == (CARD,)
        assert len(asked) == 1
        clock.jump(CARDS_FRESH_S)
        await cards.look()
        assert len(asked) == 2
        assert await Cards(None).look() == ()

    trio.run(look, clock=clock)


def test_a_driver_that_hangs_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "CARDS_WAIT_S", 0.05)
    import threading

    released = threading.Event()

    def find() -> tuple[Card, ...]:
        released.wait(10)
        return (CARD,)

    async def look_twice() -> None:
        cards = Cards(find)
        assert await cards.look() == ()
        released.set()
        while await cards.look() != (CARD,):  # what it says late is there for the next one
            await trio.lowlevel.checkpoint()

    trio.run(look_twice)
