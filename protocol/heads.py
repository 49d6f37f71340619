"""Signed heads of our coordinators' ledgers: compared, passed on, and kept as proof where two of them contradict.

A coordinator that tells two people two things keeps two ledgers, and signs two heads with one number sooner or later.
Every node that it serves passes on what it hears, so the two meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocol import constants as c
from protocol.directory import Scope
from protocol.effects import Effect, Equivocation, Note
from protocol.envelope import open_record
from protocol.errors import RemoteProtocolError
from protocol.events import Now
from protocol.ids import NodeId
from protocol.messages import Heads as HeadsMessage
from protocol.messages import Message
from protocol.money_records import ClaimAckRecord, LedgerHeadRecord
from protocol.rates import Rates
from protocol.recent import Recent
from protocol.records import Signed

# A day of heads, one a minute: old ones can still contradict.
HEADS_KEPT_MAX: Final = 1_440
# Each costs a verification. A coordinator signs one a minute, and every neighbour may bring it.
CHECKED_PER_S: Final = 1.0
CHECKED_BURST: Final = 30


class Heads:
    """The state machine, and a kind of record that gossip spreads. `coordinators` are those that this node uses."""

    def __init__(self) -> None:
        self._coordinators: frozenset[NodeId] = frozenset()
        self._newest: dict[NodeId, tuple[int, Signed]] = {}
        self._seen: Recent[tuple[NodeId, int], tuple[bytes, Signed]] = Recent(HEADS_KEPT_MAX)
        self._contradicted: set[NodeId] = set()
        self._sources: Rates[NodeId] = Rates(CHECKED_PER_S, CHECKED_BURST)

    def use(self, coordinators: Iterable[NodeId]) -> None:
        """Whose heads matter to us from now on."""
        self._coordinators = frozenset(coordinators)

    # ------------------------------------------------------------ as gossip sees it

    @property
    def is_repaired(self) -> bool:
        """The next minute brings the next head."""
        return False

    def record(self, signer: NodeId) -> Signed | None:
        """The newest head of a coordinator."""
        newest = self._newest.get(signer)
        return newest[1] if newest is not None else None

    def sequence(self, signer: NodeId) -> int:
        """How many entries it has; -1 where none is known."""
        newest = self._newest.get(signer)
        return newest[0] if newest is not None else -1

    def concerns(self, signer: NodeId, scope: Scope) -> bool:  # noqa: ARG002 - what gossip asks of every kind
        """Whoever does not use this coordinator passes it over."""
        return True

    def pack(self, records: Iterable[Signed]) -> list[Message]:
        """As few messages as hold them."""
        every = tuple(records)
        return [HeadsMessage(every[start : start + c.HEADS_MAX]) for start in range(0, len(every), c.HEADS_MAX)]

    # ------------------------------------------------------------ taking heads

    def take(self, source: NodeId | None, records: Iterable[Signed], now: Now) -> tuple[list[NodeId], list[Effect]]:
        """Take heads that somebody sent, None: our coordinator; whose were news, and what follows from them.

        Raises RemoteProtocolError for bytes or a signature that are bad: nobody honest passes those on.
        """
        news: list[NodeId] = []
        effects: list[Effect] = []
        # All of them before any is kept: or a bad one would hide the proof that stands before it.
        for signed, record in self._open(source, records, now):
            # SPEC 06: A node MUST keep the heads of its own coordinators only, and pass on each of them once.
            if record.coordinator not in self._coordinators:
                continue
            if record.signed_at_ms > now.wall_ms + c.CLOCK_SKEW_MS_MAX:
                effects.append(Note("head.from_the_future", source, record.coordinator.hex()[:8]))
                continue
            is_new, found = self._see(record.coordinator, record.entry, record.head, signed)
            effects += found
            if is_new and record.entry > self.sequence(record.coordinator):
                self._newest[record.coordinator] = record.entry, signed
                news.append(record.coordinator)
        return news, effects

    def _open(
        self, source: NodeId | None, records: Iterable[Signed], now: Now
    ) -> list[tuple[Signed, LedgerHeadRecord]]:
        """As many as this source may have checked now."""
        opened: list[tuple[Signed, LedgerHeadRecord]] = []
        for signed in records:
            if source is not None and not self._sources.take(source, now.monotonic_s):
                break
            opened.append((signed, open_record(signed, LedgerHeadRecord)))
        return opened

    def acknowledged(self, signed: Signed) -> list[Effect]:
        """A coordinator has told us a head in its answer to a claim, which it has signed as well."""
        try:
            record = open_record(signed, ClaimAckRecord)
        except RemoteProtocolError:
            return []  # whoever claimed says so
        if record.coordinator not in self._coordinators:
            return []
        return [
            effect
            for credited in record.credited
            for effect in self._see(record.coordinator, credited.entry, credited.head, signed)[1]
        ]

    def _see(self, coordinator: NodeId, entry: int, head: bytes, proof: Signed) -> tuple[bool, list[Effect]]:
        before = self._seen.get((coordinator, entry))
        if before is None:
            self._seen.put((coordinator, entry), (head, proof))
            return True, []
        # SPEC 06: A node that sees two heads of one coordinator with the same number and different hashes MUST tell its
        #   owner, and keep both.
        if before[0] == head or coordinator in self._contradicted:
            return False, []
        self._contradicted.add(coordinator)
        return False, [Equivocation(coordinator, entry, before[1], proof)]
