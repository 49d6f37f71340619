"""Runs the sources side by side. One that fails in a way nobody foresaw is started again, and hurts no other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from infernet.discovery.contract import Finds, Source
from infernet.driver import Driver

log = structlog.get_logger(__name__)

RESTART_S_MIN: Final = 1.0
RESTART_S_MAX: Final = 300.0


class Discovery:
    """All sources of one node."""

    def __init__(self, driver: Driver, sources: Sequence[Source], rng: random.Random) -> None:
        self._rng = rng
        self._sources = [(source, Finds(source.name, driver, source.per_minute)) for source in sources]

    async def run(self) -> None:
        """Run every source until cancelled."""
        async with trio.open_nursery() as nursery:
            for source, finds in self._sources:
                nursery.start_soon(self._keep_running, source, finds)

    def statistics(self) -> dict[str, int]:
        """How many nodes and records each source has brought."""
        return {source.name: finds.found for source, finds in self._sources}

    async def _keep_running(self, source: Source, finds: Finds) -> None:
        pause_s = RESTART_S_MIN
        while True:
            try:
                await source.run(finds)
            # SPEC 03: A node SHOULD use every source that its owner allows, and MUST go on when one of them fails.
            except Exception as error:
                # Mistakes of ours, above all on what strangers sent: the node must not die of a hint.
                log.exception("discovery.failed", source=source.name, error=type(error).__name__)
            else:
                return
            await trio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(RESTART_S_MAX, 2 * pause_s)
