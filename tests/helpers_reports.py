"""Reports of askers with receipts that providers signed, and offers that make them matter."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from protocol.envelope import SigningKey, sign_record
from protocol.ids import JobId, NodeId
from protocol.records import ModelOffer, ReportEntry, ReportRecord, Signed
from tests.helpers_records import NOW_MS, OFFER, PROVIDER, receipt, signing_key


def evidence(provider: SigningKey, asker: NodeId, number: int = 1, **changes: Any) -> Signed:
    """A receipt of a provider for the asker's job of this number."""
    record = receipt(provider=provider.node, asker=asker, job=JobId(number.to_bytes(16, "big")))
    return sign_record(replace(record, **changes), provider)


def report_entry(provider: SigningKey = PROVIDER, **changes: Any) -> ReportEntry:
    """One provider in a report: looked at ten times, chosen for four jobs that went well, without evidence."""
    entry = ReportEntry(
        provider=provider.node,
        model=OFFER.name,
        considered=10,
        chosen=4,
        reasons=((32, 5), (33, 1)),
        jobs_done=4,
        jobs_failed=0,
        first_token_ms=300,
        tokens_per_s_milli=40_000,
        evidence=None,
    )
    return replace(entry, **changes)


def report(asker: SigningKey, *entries: ReportEntry, **changes: Any) -> ReportRecord:
    """A report of an asker of this moment."""
    record = ReportRecord(
        version=1,
        asker=asker.node,
        sequence=NOW_MS,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 3_600_000,
        covers_s=600,
        entries=entries or (report_entry(),),
        extensions=(),
    )
    return replace(record, **changes)


def signed_report(name: str, *entries: ReportEntry, **changes: Any) -> Signed:
    """The same, signed by the asker of this name."""
    return sign_record(report(signing_key(name), *entries, **changes), signing_key(name))


def offers(_provider: NodeId, model: str) -> ModelOffer | None:
    """Everybody offers the test model."""
    return OFFER if model == OFFER.name else None
