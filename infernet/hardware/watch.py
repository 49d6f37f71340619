"""The cards of this machine while a node runs: looked at again when one comes or goes, or falls silent.

udev tells of cards that are plugged in, pulled out, or given to another driver. Nothing tells of one that has fallen
off the bus while it stays in every list, and without udev nothing tells of anything: so the bus is glanced at every
few seconds, which is a few small reads of sysfs, and the drivers are asked only when that shows something new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import trio

from infernet.hardware import pci, udev
from infernet.hardware.contract import Card, announced_all
from infernet.hardware.detect import find_cards
from infernet.hardware.machine import THIS_MACHINE, Machine
from infernet.hardware.udev import Plugs
from protocol.records import Gpu

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often is looked, in seconds."""

    glance_s: float = 5.0
    # A driver needs a moment after its card has appeared, and events come in bunches.
    settle_s: float = 1.0
    # A card that its driver did not tell of, but that is on the bus, is asked for once more before it is given up:
    # tools fail now and then when a machine is busy.
    confirm_s: float = 3.0
    # Drivers are asked now and then without any sign: a driver may give up a card that still answers on the bus.
    look_s: float = 600.0
    # The same while a card is in trouble, which its owner may be mending.
    trouble_s: float = 60.0


# What a glance sees of one card: address, numbers, driver, and whether it answers.
_Glance = tuple[tuple[str, int, int, str, bool], ...]


def _nothing(_cards: Sequence[Card]) -> None:
    pass


@dataclass
class Watch:
    """The state. `on_change` is called when what others are told has changed, `on_gone` with cards that were usable."""

    machine: Machine = THIS_MACHINE
    pace: Pace = field(default_factory=Pace)
    open_plugs: Callable[[], Plugs | None] = udev.open_plugs
    find: Callable[[Machine], list[Card]] = find_cards
    on_change: Callable[[], None] = lambda: None
    on_gone: Callable[[Sequence[Card]], None] = _nothing
    cards: tuple[Card, ...] = ()
    _woken: trio.Event = field(default_factory=trio.Event)

    @property
    def announced(self) -> tuple[Gpu, ...]:
        """What others are told now."""
        return announced_all(self.cards)

    async def run(self) -> None:
        """Look at once, and again whenever there is reason to, until cancelled."""
        async with trio.open_nursery() as nursery:
            plugs = self.open_plugs()
            if plugs is not None:
                nursery.start_soon(self._listen, plugs)
            await self._look_on()

    async def _look_on(self) -> None:
        seen: _Glance | None = None
        next_look_s = 0.0
        woken = False
        while True:
            glance = await _in_thread(self._glance)
            if woken or glance != seen or (glance and trio.current_time() >= next_look_s):
                self.take(await self._look())
                seen = glance
                is_well = all(card.is_usable for card in self.cards)
                next_look_s = trio.current_time() + (self.pace.look_s if is_well else self.pace.trouble_s)
            with trio.move_on_after(self.pace.glance_s):
                await self._woken.wait()
                await trio.sleep(self.pace.settle_s)
            woken, self._woken = self._woken.is_set(), trio.Event()

    async def _listen(self, plugs: Plugs) -> None:
        """Let the other task look when a device comes or goes."""
        try:
            while True:
                await trio.lowlevel.wait_readable(plugs.fileno())
                if plugs.drain():
                    self._woken.set()
                # A descriptor that is broken is readable all the time.
                await trio.sleep(self.pace.settle_s)
        except OSError as error:
            log.warning("hardware.udev_lost", reason=str(error))
        finally:
            plugs.close()

    def _glance(self) -> _Glance:
        found = (adapter for adapter in pci.adapters(self.machine, named=False) if adapter.is_gpu)
        return tuple((a.slot, a.vendor_id, a.device_id, a.driver, pci.answers(self.machine, a)) for a in found)

    async def _look(self) -> tuple[Card, ...]:
        cards = await _in_thread(lambda: tuple(self.find(self.machine)))
        missing = _lost(self.cards, cards)
        if not missing:
            return cards
        answering = {slot for slot, *_, answers in await _in_thread(self._glance) if answers}
        if all(card.slot is not None and card.slot not in answering for card in missing):
            return cards
        await trio.sleep(self.pace.confirm_s)
        return await _in_thread(lambda: tuple(self.find(self.machine)))

    def take(self, cards: tuple[Card, ...]) -> None:
        """These are the cards now: tell whoever wants to know of what that changes."""
        told, gone = self.announced, _lost(self.cards, cards)
        self.cards = cards
        if self.announced != told:
            # Models and tiers are public; what names a card is not written down.
            log.info("hardware.changed", detail=", ".join(gpu.model for gpu in self.announced) or "no GPU")
        for card in gone:
            log.warning("hardware.gone", detail=card.model)
        if gone:
            self.on_gone(gone)
        if self.announced != told:
            self.on_change()


def _lost(before: Iterable[Card], after: Iterable[Card]) -> list[Card]:
    """Cards that could be used and cannot any more."""
    usable = {_identity(card) for card in after if card.is_usable}
    return [card for card in before if card.is_usable and _identity(card) not in usable]


def _identity(card: Card) -> tuple[object, ...]:
    # The same card may be told of by another source, with less; a part of one has its card's slot and its own name.
    return (card.vendor, card.slot or card.index, card.uuid if "MIG" in card.model else None)


_T = TypeVar("_T")


async def _in_thread(look: Callable[[], _T]) -> _T:
    """Tools are waited for in a thread, which ends by itself when this is cancelled."""
    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)
