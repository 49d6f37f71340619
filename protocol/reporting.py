"""What this node's decisions and jobs say about providers, told to them and to other askers.

Every routing decision and the end of every attempt is counted by provider and model. Every ten minutes, when there is
something to say and the node's owner allows it, signed reports go out: one, with what matters most, to all who are
interested, and to each connected provider one that names it. So an owner learns why jobs go elsewhere, and askers learn
how a provider works for others. A report tells the world which models this node asks for, about how often, and whom it
chose; never what it asked.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from protocol import codec
from protocol import constants as c
from protocol.envelope import Signer, sign_record
from protocol.events import Now
from protocol.ids import NodeId
from protocol.recent import Recent
from protocol.records import ReportEntry, ReportRecord, Signed
from protocol.router import AttemptEnd, Result
from protocol.routing import Decision, Exclusion

# As often as full heartbeats; the share left to chance keeps nodes that started together apart.
REPORT_INTERVAL_S: Final = 600.0
REPORT_JITTER: Final = 0.2
# Providers' models that are counted at once; what was not touched for longest is forgotten.
COUNTED_MAX: Final = 1024
SAMPLES_MAX: Final = 32
# How many connected providers are told in one round, beside the report for all; the others hear in the next one.
DIRECT_RECORDS_MAX: Final = 16
# A receipt has some 350 bytes. Its provider may blow it up with extensions, to crowd out what is said of others.
EVIDENCE_BYTES_MAX: Final = 1024
_OWN_AFFAIRS: Final = (Exclusion.OURSELVES, Exclusion.TRIED)

Key = tuple[NodeId, str]


@dataclass(slots=True)
class _Counts:
    """What happened with one model of one provider since it was last reported."""

    since_s: float
    considered: int = 0
    chosen: int = 0
    done: int = 0
    failed: int = 0
    reasons: Counter[int] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    receipt: Signed | None = None

    @property
    def weight(self) -> tuple[int, int]:
        """What is reported first: jobs, then decisions."""
        return self.done + self.failed + self.chosen, self.considered


class Report(Struct, frozen=True):
    """A signed report, the connected providers that it goes to, and whether it goes to all who are interested."""

    signed: Signed
    record: ReportRecord
    receivers: tuple[NodeId, ...]
    to_all: bool


class Reporting:
    """The state machine. Without `is_active` it neither counts nor says anything."""

    def __init__(
        self, signer: Signer, rng: random.Random, *, is_active: bool, connected: Callable[[], Iterable[NodeId]]
    ) -> None:
        self._signer = signer
        self._rng = rng
        self._is_active = is_active
        self._connected = connected
        self._counted: Recent[Key, _Counts] = Recent(COUNTED_MAX)
        self._due_s: float | None = None
        self._sequence = 0

    def next_deadline(self) -> float | None:
        return self._due_s

    # ------------------------------------------------------------ counting

    def decided(self, decision: Decision, now: Now) -> None:
        """A routing decision was made."""
        # SPEC 10: A node MUST report only when its owner allows it.
        if not self._is_active:
            return
        chosen = decision.chosen.node if decision.chosen is not None else None
        for verdict in decision.verdicts:
            if verdict.model is None or verdict.against in _OWN_AFFAIRS:
                continue
            counts = self._counts(verdict.node, verdict.model, now)
            counts.considered += 1
            if verdict.node == chosen:
                counts.chosen += 1
            elif verdict.against is not None:
                counts.reasons[verdict.against.number] += 1

    def ended(self, end: AttemptEnd, now: Now) -> None:
        """An attempt ended."""
        if not self._is_active:
            return
        counts = self._counts(end.provider, end.model, now)
        if end.result is Result.DONE:
            counts.done += 1
        elif end.is_accepted:
            counts.failed += 1
        elif end.result in _REASON_OF_RESULT:
            counts.reasons[_REASON_OF_RESULT[end.result].number] += 1
        if end.first_token_s is not None and len(counts.first_token_s) < SAMPLES_MAX:
            counts.first_token_s.append(end.first_token_s)
        if end.tokens_per_s is not None and len(counts.tokens_per_s) < SAMPLES_MAX:
            counts.tokens_per_s.append(end.tokens_per_s)
        if end.receipt is not None and len(end.receipt.body) <= EVIDENCE_BYTES_MAX:
            counts.receipt = end.receipt

    def _counts(self, provider: NodeId, model: str, now: Now) -> _Counts:
        if self._due_s is None:
            self._plan(now)
        key = (provider, model)
        return self._counted.put(key, self._counted.get(key) or _Counts(now.monotonic_s))

    # ------------------------------------------------------------ reporting

    def on_deadline(self, now: Now) -> list[Report]:
        """The reports that are due."""
        if self._due_s is None or now.monotonic_s < self._due_s:
            return []
        self._due_s = None
        connected = frozenset(self._connected())
        by_weight = self._by_weight()
        for_all = _first(by_weight)
        told = {provider for provider, _ in for_all}
        to_tell = [key for key in by_weight if key[0] in connected and key[0] not in told]
        reports: list[Report] = []
        while to_tell and len(reports) < DIRECT_RECORDS_MAX:
            keys = _first(to_tell)
            providers = {provider for provider, _ in keys}
            to_tell = [key for key in to_tell if key[0] not in providers]
            reports.append(self._report(keys, connected, now, to_all=False))
        if for_all:
            # Last, with the highest sequence: whoever got another one takes this one, too.
            reports.append(self._report(for_all, connected, now, to_all=True))
        if self._counted:
            self._plan(now)
        return reports

    def _by_weight(self) -> list[Key]:
        """What is counted, jobs before decisions, much before little."""
        weighed = zip(self._counted, self._counted.values(), strict=True)
        return [key for key, _ in sorted(weighed, key=lambda item: item[1].weight, reverse=True)]

    def _plan(self, now: Now) -> None:
        jitter = self._rng.uniform(1 - REPORT_JITTER, 1 + REPORT_JITTER)
        self._due_s = now.monotonic_s + REPORT_INTERVAL_S * jitter

    def _report(self, keys: list[Key], connected: frozenset[NodeId], now: Now, *, to_all: bool) -> Report:
        """Sign what was counted for these, and begin their counts anew."""
        counted = [(key, counts) for key in keys if (counts := self._counted.pop(key)) is not None]
        entries = tuple(_entry(key, counts) for key, counts in counted)
        covers_s = max(now.monotonic_s - counts.since_s for _, counts in counted)
        record = self._record(entries, covers_s, now)
        # Names of models can be long: what does not fit into a record is left out, least important first.
        while len(codec.encode_value(record)) > c.RECORD_BYTES_MAX:
            record = replace(record, entries=record.entries[:-1])
        self._sequence = record.sequence
        named = dict.fromkeys(entry.provider for entry in record.entries)
        receivers = tuple(node for node in named if node in connected)
        return Report(sign_record(record, self._signer), record, receivers, to_all)

    def _record(self, entries: tuple[ReportEntry, ...], covers_s: float, now: Now) -> ReportRecord:
        return ReportRecord(
            version=1,
            asker=self._signer.node,
            # SPEC 10: A node MUST sign every report with a higher sequence than the one before, over restarts too.
            # The wall clock carries the sequence over a restart; it may stand still or go back while we run.
            sequence=max(self._sequence + 1, now.wall_ms),
            issued_at_ms=now.wall_ms,
            expires_at_ms=now.wall_ms + c.REPORT_LIFETIME_MS_MAX,
            covers_s=round(covers_s),
            entries=entries,
            extensions=(),
        )


_REASON_OF_RESULT: Final = {
    Result.NOT_REACHED: Exclusion.NOT_REACHED,
    Result.REFUSED: Exclusion.REFUSED,
    Result.SILENT: Exclusion.SILENT,
    Result.FAILED: Exclusion.SILENT,
}


def _first(keys: list[Key]) -> list[Key]:
    """As many of these as one report holds, all models of a provider together: only its last report counts."""
    of_provider: dict[NodeId, list[Key]] = {}
    for key in keys:
        of_provider.setdefault(key[0], []).append(key)
    chosen: list[Key] = []
    for theirs in of_provider.values():
        if not chosen or len(chosen) + len(theirs) <= c.REPORT_PROVIDERS_MAX:
            chosen += theirs[: c.REPORT_PROVIDERS_MAX]
    return chosen


def _entry(key: Key, counts: _Counts) -> ReportEntry:
    provider, model = key
    return ReportEntry(
        provider=provider,
        model=model,
        considered=counts.considered,
        chosen=counts.chosen,
        reasons=tuple(counts.reasons.most_common(c.REPORT_REASONS_MAX)),
        jobs_done=counts.done,
        jobs_failed=counts.failed,
        first_token_ms=round(median(counts.first_token_s) * 1000) if counts.first_token_s else 0,
        tokens_per_s_milli=round(median(counts.tokens_per_s) * 1000) if counts.tokens_per_s else 0,
        evidence=counts.receipt,
    )
