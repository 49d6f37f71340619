"""What other askers report: checked, believed as far as it is proven, and summed up where it is about ourselves.

A report counts when its signature holds, it is fresh, and newer than the last one of its asker. What it says of others
goes to `reputation`, which believes what comes with a receipt. What it says of us is added up by tenths of hours for
our owner, who wants to know why no job comes. Tables are bounded, and so is how often one asker, and one source, is
listened to. As a kind of record (`links.Kind`) it holds the newest reports for those who are to hear of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from protocol import codec
from protocol import constants as c
from protocol.directory import Directory, Scope
from protocol.envelope import verify
from protocol.errors import UnknownVersion
from protocol.events import Now
from protocol.ids import NodeId
from protocol.links import RECORDS_BYTES_MAX, packed
from protocol.messages import Message, Reports
from protocol.rates import Rates
from protocol.recent import Recent
from protocol.records import ModelOffer, ReportEntry, ReportRecord, Signed
from protocol.reputation import Reputation

# Whose last sequence is remembered, and whose last report is held to be passed on: 8 MiB of reports at most.
ASKERS_MAX: Final = 4096
REPORTS_HELD_MAX: Final = 512
# A node reports every ten minutes, and may send several in one round.
_ASKER_PER_S: Final = 1 / 60
_ASKER_BURST: Final = 4
# What one source brings costs up to seventeen signature checks each, about a millisecond.
_SOURCE_PER_S: Final = 4.0
_SOURCE_BURST: Final = 32

BUCKET_MS: Final = 6 * 60 * 1000
BUCKETS_MAX: Final = 240  # a day
HOUR_MS: Final = 60 * 60 * 1000
DAY_MS: Final = 24 * HOUR_MS
ASKERS_PER_BUCKET_MAX: Final = 256
# Counts of one report above this are no counts of ten minutes.
COUNT_MAX: Final = 1_000_000


class Heard(Struct, frozen=True):
    """What was said about us in some time: by how many askers, and how often what. `reasons` is by number of specs/01.

    `first_token_ms` and `tokens_per_s_milli` are the middle of what askers measured, 0 where none did.
    """

    askers: int = 0
    considered: int = 0
    chosen: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0
    reasons: tuple[tuple[int, int], ...] = ()
    first_token_ms: int = 0
    tokens_per_s_milli: int = 0


@dataclass(slots=True)
class _Bucket:
    """What was said within six minutes."""

    number: int
    askers: set[NodeId] = field(default_factory=set)
    considered: int = 0
    chosen: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0
    reasons: Counter[int] = field(default_factory=Counter)
    first_token_ms: list[int] = field(default_factory=list)
    tokens_per_s_milli: list[int] = field(default_factory=list)

    def add(self, asker: NodeId, entry: ReportEntry) -> None:
        if asker not in self.askers and len(self.askers) >= ASKERS_PER_BUCKET_MAX:
            return
        self.askers.add(asker)
        self.considered += min(entry.considered, COUNT_MAX)
        self.chosen += min(entry.chosen, COUNT_MAX)
        self.jobs_done += min(entry.jobs_done, COUNT_MAX)
        self.jobs_failed += min(entry.jobs_failed, COUNT_MAX)
        for number, count in entry.reasons:
            self.reasons[number] += min(count, COUNT_MAX)
        if entry.first_token_ms and len(self.first_token_ms) < ASKERS_PER_BUCKET_MAX:
            self.first_token_ms.append(entry.first_token_ms)
        if entry.tokens_per_s_milli and len(self.tokens_per_s_milli) < ASKERS_PER_BUCKET_MAX:
            self.tokens_per_s_milli.append(entry.tokens_per_s_milli)


class Hearsay:
    """The state machine; it has no deadlines."""

    def __init__(self, node: NodeId, directory: Directory, reputation: Reputation) -> None:
        self._node = node
        self._directory = directory
        self._reputation = reputation
        self._sequences: Recent[NodeId, int] = Recent(ASKERS_MAX)
        self._held: Recent[NodeId, tuple[Signed, ReportRecord]] = Recent(REPORTS_HELD_MAX)
        self._askers: Rates[NodeId] = Rates(_ASKER_PER_S, _ASKER_BURST)
        self._sources: Rates[NodeId] = Rates(_SOURCE_PER_S, _SOURCE_BURST)
        self._buckets: deque[_Bucket] = deque(maxlen=BUCKETS_MAX)

    # ------------------------------------------------------------ taking reports

    def take(self, source: NodeId, records: Iterable[Signed], now: Now) -> tuple[list[NodeId], list[NodeId]]:
        """Take reports that a peer sent: whose were news, and whose we had.

        Raises RemoteProtocolError for bytes or a signature that are bad: nobody honest passes those on. Nothing of such
        a message is kept, or whoever sent it could slip reports in that nobody else hears of.
        """
        # SPEC 04: The receiver MUST keep and forward nothing of a message that holds a record whose bytes or signature
        #   are bad.
        checked: list[tuple[Signed, ReportRecord]] = []
        repeated: list[NodeId] = []
        for record in records:
            # SPEC 10: The receiver MUST take reports from every connected peer, and MUST bound how many it takes of one
            #   asker, and how many it checks for one peer.
            if not self._sources.take(source, now.monotonic_s):
                break
            try:
                report = codec.decode_record(record.body, ReportRecord)
            except UnknownVersion:
                continue
            if self._is_old(report):
                repeated.append(report.asker)
            elif _is_fresh(report, now.wall_ms):
                # SPEC 10: The receiver MUST check the signature of a report before it uses or forwards it.
                verify(report.asker, ReportRecord.TAG, record.body, record.signature)
                checked.append((record, report))
        return [report.asker for record, report in checked if self._take_one(record, report, now)], repeated

    def _take_one(self, record: Signed, report: ReportRecord, now: Now) -> bool:
        """Keep a report that is good, unless the same message brought a newer one, or its asker says too much."""
        if self._is_old(report) or not self._askers.take(report.asker, now.monotonic_s):
            return False
        self.keep(record, report)
        self._believe(report, now.wall_ms)
        return True

    def _is_old(self, report: ReportRecord) -> bool:
        # SPEC 10: The receiver MUST take of each asker only what has a higher sequence than what it took before.
        return report.asker == self._node or report.sequence <= self.sequence(report.asker)

    def keep(self, record: Signed, report: ReportRecord) -> None:
        """Hold a report, one of ours or one that was checked, for those who are to hear of it."""
        self._sequences.put(report.asker, report.sequence)
        self._held.put(report.asker, (record, report))

    def _believe(self, report: ReportRecord, wall_ms: int) -> None:
        self._reputation.hear(report, self._offer_of, wall_ms)
        for entry in report.entries:
            if entry.provider == self._node:
                self._bucket(wall_ms).add(report.asker, entry)

    def _offer_of(self, provider: NodeId, model: str) -> ModelOffer | None:
        entry = self._directory.get(provider)
        return entry.offer(model) if entry is not None else None

    # ------------------------------------------------------------ what is said about us

    def _bucket(self, wall_ms: int) -> _Bucket:
        number = wall_ms // BUCKET_MS
        # A clock that was set back adds to the newest there is.
        if not self._buckets or self._buckets[-1].number < number:
            self._buckets.append(_Bucket(number))
        return self._buckets[-1]

    def about_us(self, since_ms: int) -> Heard:
        """What was said about us since this moment of the wall clock, to six minutes."""
        buckets = [bucket for bucket in self._buckets if (bucket.number + 1) * BUCKET_MS > since_ms]
        reasons: Counter[int] = Counter()
        for bucket in buckets:
            reasons.update(bucket.reasons)
        return Heard(
            askers=len(frozenset().union(*(bucket.askers for bucket in buckets))),
            considered=sum(bucket.considered for bucket in buckets),
            chosen=sum(bucket.chosen for bucket in buckets),
            jobs_done=sum(bucket.jobs_done for bucket in buckets),
            jobs_failed=sum(bucket.jobs_failed for bucket in buckets),
            reasons=tuple(reasons.most_common()),
            first_token_ms=_middle([value for bucket in buckets for value in bucket.first_token_ms]),
            tokens_per_s_milli=_middle([value for bucket in buckets for value in bucket.tokens_per_s_milli]),
        )

    # ------------------------------------------------------------ as a kind of record that is passed on

    @property
    def is_repaired(self) -> bool:
        """What is missed is not asked for: the next report comes in ten minutes."""
        return False

    def record(self, signer: NodeId) -> Signed | None:
        """The newest report of an asker, if it is held."""
        held = self._held.get(signer)
        return held[0] if held is not None else None

    def sequence(self, signer: NodeId) -> int:
        """The sequence of the last report of an asker; -1 for none."""
        sequence = self._sequences.get(signer)
        return -1 if sequence is None else sequence

    def concerns(self, signer: NodeId, scope: Scope) -> bool:
        """Whether an asker's report speaks of a model that somebody wants to hear of."""
        held = self._held.get(signer)
        if held is None or scope is None:
            return held is not None
        return any(entry.model in scope for entry in held[1].entries)

    def pack(self, records: Iterable[Signed]) -> list[Message]:
        """As few messages as the limits allow."""
        return [Reports(batch) for batch in packed(records, c.REPORTS_MAX, RECORDS_BYTES_MAX)]


def _is_fresh(report: ReportRecord, wall_ms: int) -> bool:
    # SPEC 10: The receiver MUST skip a report that has expired, that was issued more than 60 seconds in its future, or
    #   that claims to live longer than a day.
    return (
        report.expires_at_ms > wall_ms
        and report.issued_at_ms <= wall_ms + c.CLOCK_SKEW_MS_MAX
        and 0 < report.expires_at_ms - report.issued_at_ms <= c.REPORT_LIFETIME_MS_MAX
    )


def _middle(values: list[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0
