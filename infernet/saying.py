"""What this node says of its models beside what they cost: their form, what runs them, how fast, and other names.

Form and engine come from the engine, other names from the settings, and speeds from the last `infernet benchmark`, as
long as it measured these very weights and not long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from infernet.config import Config
from infernet.engines.benchmark import Benchmark, Speed, kept
from infernet.engines.contract import DescribesModels, Description, Engine
from infernet.settings.models import settings_of
from protocol import constants as c
from protocol.details import NOTHING_SAID, Said, in_steps
from protocol.records import ModelOffer

BENCHMARK_AGE_MS_MAX: Final = 30 * 24 * 60 * 60 * 1000
# What is said may have become old while the node ran, or been measured beside it.
LOOK_S: Final = 3600.0
_NOTHING_KNOWN: Final = Description()


class Saying:
    """The last measurement is read when this is made, and again every hour."""

    def __init__(
        self, config: Config, engine: Engine | None, clock_ms: Callable[[], int], *, changed: Callable[[], None]
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock_ms = clock_ms
        self._changed = changed
        self._benchmark = kept(config.state_dir) if engine is not None else None
        self._speeds = self._young_speeds()

    def of(self, offers: Sequence[ModelOffer]) -> dict[str, Said]:
        """What is said of these models; nothing where there is nothing to say."""
        engine: object = self._engine
        described = engine.described() if isinstance(engine, DescribesModels) else {}
        said = {offer.name: self._said(offer, described.get(offer.name, _NOTHING_KNOWN)) for offer in offers}
        return {name: one for name, one in said.items() if one != NOTHING_SAID}

    def _said(self, offer: ModelOffer, known: Description) -> Said:
        speed = self._speeds.get(offer.fingerprint.hex())
        return Said(
            quantisation=_sayable(known.quantisation),
            engine=known.engine,
            prompt_tokens_per_s=_stated(speed.prompt_tokens_per_s) if speed is not None else 0,
            tokens_per_s=_stated(speed.tokens_per_s) if speed is not None else 0,
            aliases=settings_of(self._config.model_settings, offer.name).aliases or (),
        )

    async def run(self) -> None:
        """Look again now and then, until cancelled."""
        if self._engine is None:
            return
        while True:
            await trio.sleep(LOOK_S)
            self._benchmark = kept(self._config.state_dir)
            speeds = self._young_speeds()
            if speeds != self._speeds:
                self._speeds = speeds
                self._changed()

    def _young_speeds(self) -> dict[str, Speed]:
        """By the fingerprint of the weights."""
        return speeds_by_fingerprint(self._benchmark, self._clock_ms())


def speeds_by_fingerprint(benchmark: Benchmark | None, wall_ms: int) -> dict[str, Speed]:
    """What may be said of a measurement: nothing of weights that are not known, or when it is old."""
    # SPEC 01: The sender MUST state a speed only where it measured it with the very weights that the fingerprint names,
    #   within the last 30 days,
    if benchmark is None or not -c.CLOCK_SKEW_MS_MAX <= wall_ms - benchmark.at_ms <= BENCHMARK_AGE_MS_MAX:
        return {}
    return {speed.fingerprint: speed for speed in benchmark.models if speed.fingerprint}


def _stated(tokens_per_s: float | None) -> int:
    return in_steps(tokens_per_s) if tokens_per_s else 0


def _sayable(quantisation: str) -> str:
    """As much of a text as fits; a server may say anything."""
    # SPEC 01: The sender MUST write `quantisation` in printable ASCII,
    if not quantisation.isascii() or not quantisation.isprintable():
        return ""
    return quantisation[: c.QUANTISATION_CHARACTERS_MAX].strip()
