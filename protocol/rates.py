"""How often somebody may do something: a bucket of tokens per key, for a bounded number of keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Rates(Generic[Key]):
    """The state. A key may do it `burst` times at once, and `per_s` times a second in the long run."""

    def __init__(self, per_s: float, burst: int, keys_max: int = 4096) -> None:
        """The key that was quiet for longest makes room for one more: it then starts with a full bucket."""
        self._per_s = per_s
        self._burst = burst
        self._keys_max = keys_max
        self._buckets: OrderedDict[Key, tuple[float, float]] = OrderedDict()

    def take(self, key: Key, now_s: float) -> bool:
        """Whether the key may do it now; if so, that is counted."""
        tokens, at_s = self._buckets.pop(key, (float(self._burst), now_s))
        tokens = min(float(self._burst), tokens + (now_s - at_s) * self._per_s)
        is_allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if is_allowed else tokens, now_s)
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)
        return is_allowed

    def give_back(self, key: Key) -> None:
        """What the key did turned out to be of use: it costs nothing after all."""
        if key in self._buckets:
            tokens, at_s = self._buckets[key]
            self._buckets[key] = (min(float(self._burst), tokens + 1), at_s)
