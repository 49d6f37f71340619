"""What a node wants to hear of: everything while it has room for everything, else the models that it has to do with.

A model is of interest when this node serves it, or has asked for it lately. Whoever serves a model wants to hear of
others that do, because it sends them what it cannot take itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from protocol import constants as c
from protocol.directory import Directory, Scope
from protocol.events import Now
from protocol.messages import Interest

# An asker that comes back within this long finds the providers of its model known, and their load fresh.
ASKED_S: Final = 3600.0
ASKED_MAX: Final = 16


class Interests:
    """The state. `directory` says whether there is room for everything."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._served: tuple[str, ...] = ()
        self._asked_at_s: dict[str, float] = {}
        self._is_narrow = False
        self.ours: Scope = None

    def serve(self, models: Collection[str]) -> None:
        """These are the models that this node serves from now on."""
        self._served = tuple(dict.fromkeys(models))

    def ask(self, model: str, now: Now) -> None:
        """This node asks for a model."""
        self._asked_at_s.pop(model, None)
        self._asked_at_s[model] = now.monotonic_s
        if len(self._asked_at_s) > ASKED_MAX:
            del self._asked_at_s[next(iter(self._asked_at_s))]

    def refresh(self, now: Now) -> bool:
        """Find out what is of interest now; returns whether that is something else than before."""
        # Between full and roomy it stays as it is, or both sides of one record would change it for ever.
        if self._directory.is_full:
            self._is_narrow = True
        elif self._directory.is_roomy:
            self._is_narrow = False
        before = self.ours
        self.ours = frozenset(self.models(now)) if self._is_narrow else None
        return self.ours != before

    def models(self, now: Now) -> list[str]:
        """The models of interest, whether or not there is room for all others: asked last first, then those served."""
        asked = [model for model, at_s in reversed(self._asked_at_s.items()) if now.monotonic_s - at_s < ASKED_S]
        return list(dict.fromkeys((*asked, *self._served)))[: c.INTEREST_MODELS_MAX]

    def message(self) -> Interest:
        """What neighbours are told."""
        return Interest(1, ()) if self.ours is None else Interest(0, tuple(sorted(self.ours)))


def scope_of(interest: Interest) -> Scope:
    """What a neighbour wants to hear of."""
    return None if interest.everything else frozenset(interest.models)
