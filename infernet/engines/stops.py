"""Stop strings: where an answer ends because of what it says.

Engines sample tokens, and a stop string may begin in the middle of one and end in another. So text that may turn
out to be the beginning of a stop string is held back until that is known.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through up to the first stop string."""

    def __init__(self, stops: Sequence[str], said: str = "") -> None:
        """`stops` are strings of at least one character; `said` is text before, in whose end one may have begun."""
        self._stops = tuple(stops)
        # SPEC 05: The provider MUST look for stop strings that begin in the continuation and end in what it writes.
        self._held = said[len(said) - self._undecided(said) :]
        # How much of what is held was said by somebody else.
        self._said = len(self._held)
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take more text; give what is certain to come before any stop string.

        Once `stopped` is true the rest of the text was dropped, and no more is to be fed.
        """
        held = self._held + text
        ends = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return self._new(held[: min(ends)])
        # SPEC 05: and MUST NOT send text that may still become a stop string.
        keep = self._undecided(held)
        self._held = held[len(held) - keep :]
        return self._new(held[: len(held) - keep])

    def finish(self) -> str:
        """No more text comes: give what was held back."""
        held, self._held = self._held, ""
        return self._new(held)

    def _new(self, text: str) -> str:
        """What of a text that is let go was not said before."""
        said = min(self._said, len(text))
        self._said -= said
        return text[said:]

    def _undecided(self, text: str) -> int:
        """How many characters at the end of `text` may begin a stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
