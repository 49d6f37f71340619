"""`SharedReader`: heartbeats that one simulated peer has decoded and verified are not worked through again by others.

Nothing is skipped: every distinct record is decoded, and every distinct signature checked, once for all peers. A node
does the same for itself alone; here a thousand nodes live in one process and would do it a thousand times.
"""

from __future__ import annotations

from protocol.directory import Entry, HeartbeatReader
from protocol.records import Signed


class SharedReader(HeartbeatReader):
    """Remembers what was read and what was found good; forgeries are looked at anew each time."""

    def __init__(self) -> None:
        self._entries: dict[Signed, Entry] = {}
        self._good: set[Signed] = set()

    def read(self, record: Signed) -> Entry:
        entry = self._entries.get(record)
        if entry is None:
            entry = self._entries[record] = super().read(record)
        return entry

    def verify(self, entry: Entry) -> None:
        if entry.record not in self._good:
            super().verify(entry)
            self._good.add(entry.record)
