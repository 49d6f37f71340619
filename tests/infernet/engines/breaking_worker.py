"""A test double of an engine process whose engine breaks at each run; the process itself is the product's.

python breaking_worker.py
"""

from __future__ import annotations

from infernet.engines import worker
from infernet.engines.contract import EngineBroken, EngineConfig, Report
from infernet.engines.wishes import Wishes
from protocol.effects import RunEngine
from protocol.events import EngineStarted


class Breaking:
    """Starts runs, and is then past use."""

    context_tokens = 512
    on_cards = True

    def run(self, run: RunEngine, report: Report, wishes: Wishes) -> None:
        """Break in the middle of it, unless it is to hold."""
        report(EngineStarted(run.run, 1))
        if wishes.wait():
            raise EngineBroken("OutOfMemoryError")

    def slots_busy(self) -> int:
        """None, as far as that is known."""
        return 0


def load_model(_config: EngineConfig, _directory: str) -> Breaking:
    """In place of an engine."""
    return Breaking()


worker.load_model = load_model
worker.main()
