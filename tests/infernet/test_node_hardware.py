"""A node and the GPUs of its machine: what others are told, and what happens to what runs on a card that is gone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from coordinator.core.specs import from_heartbeat, sanitise
from infernet.hardware.contract import Card
from infernet.hardware.watch import Watch
from infernet.node import Node
from protocol.records import Gpu, GpuVendor, VramTier
from tests.helpers_engine import PacedEngine
from tests.helpers_node import settle, world

pytestmark = pytest.mark.anyio

CARD = Card(
    GpuVendor.NVIDIA,
    0,
    "NVIDIA GeForce RTX 4090",
    "nvml",
    vram_bytes=24564 << 20,
    driver="550.54.14",
    slot="0000:01:00.0",
    uuid="GPU-0",
)
TOLD = Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "NVIDIA GeForce RTX 4090")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class ScriptedWatch(Watch):
    """A double of the watch: it looks nowhere, and a test says what is there."""

    async def run(self) -> None:
        await trio.sleep_forever()


class EngineOnCards(PacedEngine):
    """A paced engine that runs on GPUs."""

    cards_gone = 0

    def card_gone(self) -> None:
        self.cards_gone += 1


def heard(node: Node, of: Node) -> tuple[Gpu, ...] | None:
    """What one node has heard of another's cards."""
    entry = node.driver.peer.directory.get(of.node_id)
    return entry.heartbeat.gpus if entry is not None else None


async def test_others_hear_of_vendor_tier_and_model_and_of_every_change() -> None:
    async with world() as w:
        watch = ScriptedWatch()
        watch.take((CARD,))
        provider = await w.start(PacedEngine(), hardware=watch)
        client = await w.start(None, provider)
        await settle(client, lambda: heard(client, provider) == (TOLD,))
        watch.take((CARD, CARD))
        await settle(client, lambda: heard(client, provider) == (TOLD, TOLD))
        watch.take(())
        await settle(client, lambda: heard(client, provider) == ())
        entry = client.driver.peer.directory.get(provider.node_id)
        assert entry is not None
        assert all(word not in repr(entry.heartbeat) for word in ("GPU-0", "0000:01", "550.54"))


async def test_a_coordinator_hears_the_same_at_registration() -> None:
    async with world() as w:
        watch = ScriptedWatch()
        watch.take((CARD, Card(GpuVendor.AMD, 0, "broken", "pci", trouble="no driver")))
        provider = await w.start(PacedEngine(), hardware=watch)
        specs = provider._registration()["specs"]
        assert isinstance(specs, dict)
        assert specs["gpus"] == [{"vendor": "nvidia", "vram_tier": "24-48gb", "model": "NVIDIA GeForce RTX 4090"}]
        assert specs["gpu_count"] == 1
        assert provider.status()["gpus"] == specs["gpus"]
        # What the coordinator keeps of this and of the signed record is the same.
        entry = provider.driver.peer.directory.get(provider.node_id)
        assert entry is not None
        kept = sanitise(specs)
        assert kept.gpus == from_heartbeat(entry.heartbeat).gpus
        assert len(kept.gpus) == 1


async def test_an_engine_on_cards_hears_when_one_is_gone_and_another_engine_need_not() -> None:
    async with world() as w:
        engine = EngineOnCards()
        watch, other = ScriptedWatch(), ScriptedWatch()
        for each in (watch, other):
            each.take((CARD,))
        await w.start(engine, hardware=watch)
        await w.start(PacedEngine(), hardware=other)
        watch.take((CARD, Card(GpuVendor.AMD, 1, "new", "sysfs")))
        assert engine.cards_gone == 0
        watch.take(())
        other.take(())
        assert engine.cards_gone == 1


async def test_an_engine_that_divides_cards_hears_which_is_gone() -> None:
    class EngineThatDivides(EngineOnCards):
        """A paced engine that has given cards to models."""

        lost: Sequence[Card] = ()

        def lose_cards(self, cards: Sequence[Card]) -> None:
            self.lost = cards

    async with world() as w:
        engine, watch, other = EngineThatDivides(), ScriptedWatch(), replace(CARD, slot="0000:02:00.0")
        watch.take((CARD, other))
        await w.start(engine, hardware=watch)
        watch.take((CARD,))
        assert (list(engine.lost), engine.cards_gone) == ([other], 0)


async def test_a_node_without_cards_says_so() -> None:
    async with world() as w:
        provider = await w.start(PacedEngine(), hardware=ScriptedWatch())
        client = await w.start(None, provider)
        await settle(client, lambda: heard(client, provider) == ())
        assert provider.status()["gpus"] == []
