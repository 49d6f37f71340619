"""What became of the orders of others that a provider has had since it started: numbers for its owner alone."""

from __future__ import annotations

from msgspec import Struct, structs

from protocol.ids import NodeId
from protocol.records import Outcome


class JobCounts(Struct, frozen=True):
    """A snapshot. Each order that the engine got is running, or one of the four ways in which it may have ended.

    `refused` are orders that the engine never got, and the tokens those that were sent, for whatever ended.
    """

    taken: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    unpaid: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


_FIELDS = {
    Outcome.STOP: "completed",
    Outcome.LENGTH: "completed",
    Outcome.CANCELLED: "cancelled",
    Outcome.UNPAID: "unpaid",
}


class JobNow(Struct, frozen=True):
    """An order that holds a slot, or waits for one: for its provider's owner, with nothing of what is asked or said.

    `age_s` goes from when it came; `tokens_per_s` is the pace of its answer so far, 0 before the first of it.
    """

    asker: NodeId
    model: str
    waits: bool
    is_paid: bool
    prompt_tokens: int
    output_tokens: int
    age_s: float
    tokens_per_s: float


class JobCounting:
    """Counts."""

    def __init__(self) -> None:
        self._counts = JobCounts()

    def snapshot(self) -> JobCounts:
        return self._counts

    def took(self) -> None:
        """The engine gets an order."""
        self._add(taken=1)

    def refused(self) -> None:
        """An order is turned away, at once or after it has waited."""
        self._add(refused=1)

    def ended(self, outcome: Outcome, prompt_tokens: int, output_tokens: int) -> None:
        """An order that the engine got has ended."""
        self._add(
            **{_FIELDS.get(outcome, "failed"): 1},
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )

    def _add(self, **more: int) -> None:
        added = {name: getattr(self._counts, name) + count for name, count in more.items()}
        self._counts = structs.replace(self._counts, **added)
