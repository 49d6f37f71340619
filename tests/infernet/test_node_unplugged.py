"""A GPU is pulled out in mid-answer: the owner reads one line, the asker gets its answer, the node stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio

from infernet.hardware import pci
from infernet.hardware.watch import Pace, Watch
from infernet.node import Node
from protocol.effects import JobDone, JobEvent, JobResumed, JobText
from protocol.records import Gpu, Outcome
from tests.helpers_engine import PacedEngine
from tests.helpers_hardware import FakeMachine
from tests.helpers_node import ask, assert_idle, question, settle, world

pytestmark = pytest.mark.anyio

SLOT = "0000:03:00.0"
VRAM = {"mem_info_vram_total": str(24 << 30)}
QUICK = Pace(glance_s=0.01, settle_s=0.001, confirm_s=0.01, look_s=1e6, trouble_s=1e6)
WORDS = 400


class EngineOnCards(PacedEngine):
    """A paced engine that runs on GPUs, and breaks when one is gone."""

    def card_gone(self) -> None:
        """The kernel has taken the card away."""
        self.break_down()


async def test_a_card_pulled_out_in_mid_answer(tmp_path: Path) -> None:
    fake = FakeMachine(tmp_path)
    fake.plug(SLOT, pci.AMD, 0x744C, driver="amdgpu", files=VRAM)
    watch = Watch(fake.machine, pace=QUICK, open_plugs=lambda: None)
    on_card, other = EngineOnCards(tokens_per_s=200, answer_tokens=WORDS), PacedEngine(answer_tokens=WORDS)
    with structlog.testing.capture_logs() as lines:
        async with world() as w:
            provider = await w.start(on_card, hardware=watch)
            await settle(provider, lambda: len(watch.announced) == 1)
            client = await w.start(None, provider)
            async with trio.open_nursery() as nursery:
                events: list[JobEvent] = []

                async def follow() -> None:
                    events.extend(await ask(client, question(max_tokens=2 * WORDS)))

                nursery.start_soon(follow)
                await settle(provider, lambda: on_card.statistics().runs_active == 1)
                spare = await w.start(other, client)
                await settle(client, lambda: client.driver.peer.directory.get(spare.node_id) is not None)
                fake.unplug(SLOT)
            text = "".join(event.text for event in events if isinstance(event, JobText))
            assert sum(isinstance(event, JobResumed) for event in events) == 1
            assert isinstance(events[-1], JobDone)
            assert events[-1].receipt.outcome is Outcome.STOP
            assert len(text.split()) == WORDS
            # The other one finished what the first one had begun.
            assert other.statistics().runs_total == 1
            # The node is there, says that it has no card, and offers nothing until its engine is back.
            await settle(client, lambda: _offered(client, provider) == ((), 0))
            on_card.recover()
            await settle(client, lambda: _offered(client, provider) == ((), 1))
            await assert_idle(provider, client, spare)
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["hardware.gone"]


def _offered(client: Node, provider: Node) -> tuple[tuple[Gpu, ...], int]:
    """What one node has heard that another has: its cards, and how many models."""
    entry = client.driver.peer.directory.get(provider.node_id)
    assert entry is not None
    return entry.heartbeat.gpus, len(entry.heartbeat.models)
