"""Who broke the rules, how badly, and for how long that is held against them.

Three sorts of culprits are kept apart: a key, a host and a network. A key is free to make, so whoever rotates keys is
known by its host, and whoever rotates hosts by its network; many honest ones may share a host or a network, so these
bear more. Points halve with time, and so nobody is banned for a rare mistake. A ban ends by itself; the next one is
longer. (The shape, not the figures, is that of the peer scores of gossipsub 1.1: points that decay, and thresholds.)

Everything is bounded: a flood of culprits makes room for itself by forgetting the one of its sort that was blamed
longest ago.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from protocol.ids import NodeId
from protocol.networks import Prefix, is_host

# What one offence costs. A bad frame is an offence of weight one.
POINTS_PER_WEIGHT: Final = 10.0
# So five bad frames within minutes, or one every three minutes for ever, ban a key.
KEY_POINTS_MAX: Final = 45.0
# A home or an office may have several nodes that are broken in the same way.
HOST_POINTS_MAX: Final = 90.0
# A small provider's customers do not know each other.
NETWORK_POINTS_MAX: Final = 360.0
HALF_LIFE_S: Final = 600.0

# Long enough that an attack costs more addresses than it is worth; each further ban is four times as long.
BAN_FIRST_S: Final = 600.0
BAN_FACTOR: Final = 4.0
BAN_S_MAX: Final = 24 * 3600.0
# A ban is forgotten, one at a time, as long after its end.
BAN_MEMORY_S: Final = 24 * 3600.0

# Culprits of one sort that are remembered: some 200 bytes each.
CULPRITS_MAX: Final = 4096

Culprit = NodeId | Prefix


@dataclass(frozen=True, slots=True)
class Ban:
    """A culprit is to be refused until an instant of the clock that `blame` was told; `points` led to it."""

    culprit: Culprit
    until_s: float
    points: float
    reason: str


@dataclass(slots=True)
class _Record:
    points: float = 0.0
    at_s: float = 0.0
    bans: int = 0
    ban: Ban | None = None


@dataclass(slots=True)
class _Sort:
    """The culprits of one sort, the one that was blamed longest ago first."""

    points_max: float
    records: dict[Culprit, _Record] = field(default_factory=dict)


class Behaviour:
    """The state. `now_s` is any clock that only goes forward."""

    def __init__(self) -> None:
        self._keys = _Sort(KEY_POINTS_MAX)
        self._hosts = _Sort(HOST_POINTS_MAX)
        self._networks = _Sort(NETWORK_POINTS_MAX)

    def __len__(self) -> int:
        return sum(len(sort.records) for sort in (self._keys, self._hosts, self._networks))

    def blame(self, culprit: Culprit, weight: float, reason: str, now_s: float) -> Ban | None:
        """Hold an offence against a culprit; gives the ban that this is the last straw for."""
        sort = self._sort_of(culprit)
        record = sort.records.pop(culprit, None) or _Record(at_s=now_s)
        sort.records[culprit] = record
        if len(sort.records) > CULPRITS_MAX:
            del sort.records[next(iter(sort.records))]
        record.points = _decayed(record, now_s) + weight * POINTS_PER_WEIGHT
        record.at_s = now_s
        if record.points < sort.points_max or (record.ban is not None and now_s < record.ban.until_s):
            return None
        before = _bans_remembered(record, now_s)
        length_s = min(BAN_S_MAX, BAN_FIRST_S * BAN_FACTOR ** min(before, 16))
        record.ban = Ban(culprit, now_s + length_s, record.points, reason)
        record.bans = before + 1
        # It has been answered for: after the ban it begins anew, but for the length of the next one.
        record.points = 0.0
        return record.ban

    def ban_of(self, culprit: Culprit, now_s: float) -> Ban | None:
        """The ban that holds now."""
        record = self._sort_of(culprit).records.get(culprit)
        ban = record.ban if record is not None else None
        return ban if ban is not None and now_s < ban.until_s else None

    def points_of(self, culprit: Culprit, now_s: float) -> float:
        """What is held against a culprit now."""
        record = self._sort_of(culprit).records.get(culprit)
        return _decayed(record, now_s) if record is not None else 0.0

    def forgive(self, culprit: Culprit) -> None:
        """Forget everything about somebody who turns out to be known."""
        self._sort_of(culprit).records.pop(culprit, None)

    def bans(self, now_s: float) -> list[Ban]:
        """All bans that hold now."""
        sorts = (self._keys, self._hosts, self._networks)
        found = (record.ban for sort in sorts for record in sort.records.values())
        return [ban for ban in found if ban is not None and now_s < ban.until_s]

    def _sort_of(self, culprit: Culprit) -> _Sort:
        if isinstance(culprit, bytes):
            return self._keys
        return self._hosts if is_host(culprit) else self._networks


def _decayed(record: _Record, now_s: float) -> float:
    return record.points * math.pow(0.5, (now_s - record.at_s) / HALF_LIFE_S)


def _bans_remembered(record: _Record, now_s: float) -> int:
    if record.ban is None:
        return 0
    return max(0, record.bans - math.floor((now_s - record.ban.until_s) / BAN_MEMORY_S))
