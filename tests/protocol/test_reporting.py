"""protocol/reporting.py: what was decided and measured is counted, and said now and then to those whom it concerns."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from protocol import constants as c
from protocol import reporting as module
from protocol.directory import Entry
from protocol.envelope import open_record
from protocol.events import Now
from protocol.ids import NodeId
from protocol.records import ReportEntry, ReportRecord
from protocol.reporting import REPORT_INTERVAL_S, Report, Reporting
from protocol.router import AttemptEnd, Result
from protocol.routing import Candidate, Decision, Exclusion, Verdict
from tests.helpers_machines import entry_of, now
from tests.helpers_records import ASKER, OFFER, PROVIDER, signing_key
from tests.helpers_reports import evidence

M = OFFER.name
A, B = signing_key("a").node, signing_key("b").node
LATER = now(REPORT_INTERVAL_S * 1.5)


def reporting(connected: Collection[NodeId] = (), *, is_active: bool = True) -> Reporting:
    return Reporting(ASKER, random.Random(1), is_active=is_active, connected=lambda: connected)


def verdict(node: NodeId, against: Exclusion | None = None, model: str | None = M) -> Verdict:
    return Verdict(node, model, against, None)


def decision(chosen: Entry | None, *others: Verdict) -> Decision:
    own = [verdict(chosen.heartbeat.node)] if chosen is not None else []
    return Decision(Candidate(chosen, M) if chosen is not None else None, (*own, *others))


def entries(reports: list[Report]) -> dict[tuple[NodeId, str], ReportEntry]:
    return {(entry.provider, entry.model): entry for report in reports for entry in report.record.entries}


def test_decisions_and_jobs_become_a_signed_report() -> None:
    machine = reporting()
    proof = evidence(signing_key("a"), ASKER.node)
    for _ in range(3):
        machine.decided(decision(entry_of("a"), verdict(B, Exclusion.OUTRANKED)), now(5))
    machine.decided(decision(None, verdict(B, Exclusion.DRAINING)), now(6))
    for first_token_s, rate in ((0.2, 40.0), (0.4, None), (0.3, 50.0)):
        machine.ended(AttemptEnd(A, M, Result.DONE, True, first_token_s, rate, proof), now(8))
    machine.ended(AttemptEnd(A, M, Result.FAILED, True), now(9))
    machine.ended(AttemptEnd(B, M, Result.REFUSED), now(9))
    machine.ended(AttemptEnd(B, M, Result.NOT_REACHED), now(9))
    (report,) = machine.on_deadline(LATER)
    assert (report.to_all, report.receivers) == (True, ())
    record = open_record(report.signed, ReportRecord)
    assert record == report.record
    assert (record.asker, record.sequence, record.issued_at_ms) == (ASKER.node, LATER.wall_ms, LATER.wall_ms)
    assert record.expires_at_ms - record.issued_at_ms <= c.REPORT_LIFETIME_MS_MAX
    assert record.covers_s == REPORT_INTERVAL_S * 1.5 - 5
    assert record.entries == (
        ReportEntry(A, M, 3, 3, (), 3, 1, 300, 45_000, proof),
        ReportEntry(
            B,
            M,
            4,
            0,
            (
                (Exclusion.OUTRANKED.number, 3),
                (Exclusion.DRAINING.number, 1),
                (Exclusion.REFUSED.number, 1),
                (Exclusion.NOT_REACHED.number, 1),
            ),
            0,
            0,
            0,
            0,
            None,
        ),
    )


def test_it_speaks_when_it_is_time_and_has_something_to_say() -> None:
    machine = reporting()
    assert machine.next_deadline() is None
    assert machine.on_deadline(LATER) == []
    machine.decided(decision(entry_of("a")), now(0))
    due_s = machine.next_deadline()
    assert due_s is not None
    assert 0.8 * REPORT_INTERVAL_S <= due_s <= 1.2 * REPORT_INTERVAL_S
    machine.decided(decision(entry_of("a")), now(100))
    assert machine.next_deadline() == due_s
    assert machine.on_deadline(now(due_s - 1)) == []
    assert len(machine.on_deadline(now(due_s))) == 1
    assert machine.next_deadline() is None
    machine.decided(decision(entry_of("a")), now(due_s + 1))
    (again,) = machine.on_deadline(now(due_s + 2 * REPORT_INTERVAL_S))
    assert again.record.entries[0].considered == 1


def test_nodes_that_start_together_do_not_speak_together() -> None:
    dues = set()
    for seed in range(5):
        machine = Reporting(ASKER, random.Random(seed), is_active=True, connected=tuple)
        machine.decided(decision(entry_of("a")), now(0))
        dues.add(machine.next_deadline())
    assert len(dues) == 5


def test_without_leave_nothing_is_counted_or_said() -> None:
    machine = reporting(is_active=False)
    machine.decided(decision(entry_of("a")), now(0))
    machine.ended(AttemptEnd(A, M, Result.DONE, True), now(0))
    assert machine.next_deadline() is None
    assert machine.on_deadline(LATER) == []


def test_own_affairs_are_nobodys_reasons() -> None:
    machine = reporting()
    machine.decided(
        decision(
            None,
            verdict(ASKER.node, Exclusion.OURSELVES),
            verdict(A, Exclusion.TRIED),
            verdict(B, Exclusion.NOT_PROVIDER, model=None),
        ),
        now(0),
    )
    assert machine.next_deadline() is None


def test_silence_before_and_after_the_acceptance() -> None:
    machine = reporting()
    machine.ended(AttemptEnd(A, M, Result.SILENT), now(0))
    machine.ended(AttemptEnd(A, M, Result.SILENT, is_accepted=True), now(0))
    machine.ended(AttemptEnd(A, M, Result.FAILED), now(0))
    (entry,) = entries(machine.on_deadline(LATER)).values()
    assert (entry.jobs_failed, entry.reasons) == (1, ((Exclusion.SILENT.number, 2),))


def test_connected_providers_get_the_report_that_names_them() -> None:
    many = [signing_key(str(number)).node for number in range(40)]
    machine = reporting(connected=[*many, signing_key("nobody").node])
    machine.decided(decision(None, *(verdict(node, Exclusion.OUTRANKED) for node in many)), now(0))
    reports = machine.on_deadline(LATER)
    assert [report.to_all for report in reports] == [False, False, True]
    assert sorted(node for report in reports for node in report.receivers) == sorted(many)
    assert all(len(report.record.entries) <= c.REPORT_PROVIDERS_MAX for report in reports)
    sequences = [report.record.sequence for report in reports]
    assert sequences == sorted(set(sequences))
    for report in reports:
        assert {entry.provider for entry in report.record.entries} == set(report.receivers)
    assert machine.next_deadline() is None


def test_who_is_told_nothing_this_time_is_told_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIRECT_RECORDS_MAX", 1)
    many = [signing_key(str(number)).node for number in range(60)]
    machine = reporting(connected=many)
    machine.decided(decision(None, *(verdict(node, Exclusion.OUTRANKED) for node in many)), now(0))
    told: list[NodeId] = []
    at = LATER
    while machine.next_deadline() is not None:
        for report in machine.on_deadline(at):
            told += report.receivers
        at = Now(at.monotonic_s + 2 * REPORT_INTERVAL_S, at.wall_ms + 2000)
    assert sorted(told) == sorted(many)


def test_all_models_of_a_provider_are_in_one_report() -> None:
    machine = reporting(connected=[A, B])
    for number in range(10):
        machine.decided(decision(None, verdict(A, Exclusion.FULL, f"m{number}")), now(0))
    for number in range(10):
        machine.decided(decision(None, verdict(B, Exclusion.FULL, f"m{number}")), now(0))
    reports = machine.on_deadline(LATER)
    assert sorted(len(entries([report])) for report in reports if A in report.receivers) == [10]


def test_jobs_come_before_decisions_and_much_before_little() -> None:
    machine = reporting()
    names = [signing_key(str(number)).node for number in range(c.REPORT_PROVIDERS_MAX)]
    for _ in range(5):
        machine.decided(decision(None, *(verdict(node, Exclusion.OUTRANKED) for node in names)), now(0))
    machine.decided(decision(None, verdict(B, Exclusion.OUTRANKED)), now(0))
    machine.ended(AttemptEnd(A, M, Result.DONE, True), now(0))
    (report,) = machine.on_deadline(LATER)
    assert report.record.entries[0].provider == A
    assert B not in {entry.provider for entry in report.record.entries}


def test_a_report_fits_into_a_record_whatever_models_are_called() -> None:
    machine = reporting()
    long = "\N{GRINNING FACE}" * c.MODEL_NAME_CHARACTERS_MAX
    reasons = list(Exclusion)[2 : 2 + c.REPORT_REASONS_MAX]
    for number in range(c.REPORT_PROVIDERS_MAX):
        key = signing_key(str(number))
        for reason in reasons:
            machine.decided(decision(None, verdict(key.node, reason, long)), now(0))
        proof = evidence(key, ASKER.node, extensions=((1, bytes(500)),))
        machine.ended(AttemptEnd(key.node, long, Result.DONE, True, 1.0, 9.0, proof), now(0))
    (report,) = machine.on_deadline(LATER)
    assert len(report.signed.body) <= c.RECORD_BYTES_MAX
    assert 8 < len(report.record.entries) < c.REPORT_PROVIDERS_MAX
    assert open_record(report.signed, ReportRecord) == report.record


def test_a_receipt_that_is_blown_up_crowds_nobody_out() -> None:
    machine = reporting()
    extensions = tuple((number, bytes(1024)) for number in range(1, 17, 2))
    large = evidence(signing_key("a"), ASKER.node, extensions=extensions)
    machine.ended(AttemptEnd(A, M, Result.DONE, True, receipt=large), now(0))
    machine.ended(AttemptEnd(B, M, Result.DONE, True), now(0))
    reported = entries(machine.on_deadline(LATER))
    assert reported[A, M].evidence is None
    assert reported[A, M].jobs_done == reported[B, M].jobs_done == 1


def test_a_full_report_of_short_names_has_no_more_values_than_a_record_may() -> None:
    machine = reporting()
    reasons = list(Exclusion)[2:]
    assert len(reasons) >= c.REPORT_REASONS_MAX
    for number in range(c.REPORT_PROVIDERS_MAX):
        key = signing_key(str(number))
        for reason in reasons:
            machine.decided(decision(None, verdict(key.node, reason)), now(0))
        machine.ended(AttemptEnd(key.node, M, Result.DONE, True, 1.0, 9.0, evidence(key, ASKER.node)), now(0))
    (report,) = machine.on_deadline(LATER)
    assert len(report.record.entries) == c.REPORT_PROVIDERS_MAX
    assert all(len(entry.reasons) == c.REPORT_REASONS_MAX for entry in report.record.entries)


def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = reporting(connected=[PROVIDER.node])
    for number in range(module.COUNTED_MAX + 10):
        machine.decided(decision(None, verdict(NodeId(number.to_bytes(32, "big")), Exclusion.FULL)), now(0))
    machine.decided(decision(None, verdict(PROVIDER.node, Exclusion.FULL)), now(0))
    assert (PROVIDER.node, M) in entries(machine.on_deadline(LATER))


def test_the_sequence_grows_though_the_clock_is_set_back() -> None:
    machine = reporting()
    machine.decided(decision(entry_of("a")), now(0))
    (first,) = machine.on_deadline(LATER)
    machine.decided(decision(entry_of("a")), LATER)
    (second,) = machine.on_deadline(Now(LATER.monotonic_s + 2 * REPORT_INTERVAL_S, LATER.wall_ms - 10_000))
    assert second.record.sequence == first.record.sequence + 1
