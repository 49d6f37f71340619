"""protocol/experience.py in whole peers: a job is measured, reported to its provider, heard there and passed on."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from protocol import constants as c
from protocol.directory import Directory
from protocol.effects import HangUp, JobDone, OpenStream
from protocol.envelope import open_record
from protocol.events import LearnRecord, Now
from protocol.experience import Experience
from protocol.hearsay import HOUR_MS, Hearsay
from protocol.ids import NodeId
from protocol.links import Outgoing
from protocol.messages import Reports
from protocol.records import FreePolicy, ReceiptRecord, ReportRecord
from protocol.reporting import REPORT_INTERVAL_S
from protocol.router import AttemptEnd, Result
from protocol.routing import Exclusion
from tests.helpers_machines import ALONE, Bench, chat, hello_of, now, provider_record
from tests.helpers_puppets import Provider
from tests.helpers_records import ASKER, NOW_MS, OFFER, signing_key
from tests.helpers_reports import signed_report

ROUND_S = 1.5 * REPORT_INTERVAL_S
P, Q = signing_key("p"), signing_key("q")


def asker_bench(*, reports: bool = True) -> Bench:
    """An asker that is connected with two providers and knows both."""
    bench = Bench("asker", replace(ALONE, reports=reports))
    for name in ("p", "q"):
        fields = {"free_policy": FreePolicy.ALL, "expires_at_ms": NOW_MS + 1_800_000}
        bench.feed(LearnRecord(provider_record(name, **fields)))
        bench.connect(signing_key(name).node, inbound=True)
        bench.hear(bench.accept_stream(signing_key(name).node, c.HELLO_PROTOCOL), hello_of(gossips=True))
    return bench


def have_a_job_done(bench: Bench) -> tuple[Provider, Provider]:
    """One job; who did it, and who did not."""
    bench.feed(chat())
    ordered = [effect.peer for effect in bench.all(OpenStream) if effect.protocol == c.JOB_PROTOCOL]
    name, other = ("p", "q") if ordered == [P.node] else ("q", "p")
    provider = Provider(name)
    provider.take(bench)
    bench.hear(provider.stream, provider.accept())
    bench.wait(0.5)
    bench.hear(provider.stream, provider.chunk("a"))
    bench.hear(provider.stream, provider.receipt())
    assert bench.all(JobDone)
    return provider, Provider(other)


def reports_to(bench: Bench, node: NodeId) -> list[Reports]:
    streams = [s for s, opened in bench.opened.items() if (opened.peer, opened.protocol) == (node, c.GOSSIP_PROTOCOL)]
    return [message for stream in streams for message in bench.said[stream] if isinstance(message, Reports)]


def test_each_connected_provider_is_told_what_was_decided_and_measured() -> None:
    bench = asker_bench()
    chosen, other = have_a_job_done(bench)
    bench.wait(ROUND_S)
    for provider in (chosen, other):
        (message,) = reports_to(bench, provider.node)
        record = open_record(message.records[0], ReportRecord)
        (entry,) = [entry for entry in record.entries if entry.provider == provider.node]
        assert (entry.model, entry.considered) == (OFFER.name, 1)
        if provider is other:
            assert entry.reasons == ((Exclusion.OUTRANKED.number, 1),)
            assert entry.evidence is None
        else:
            assert (entry.chosen, entry.jobs_done, entry.first_token_ms) == (1, 1, 500)
            assert entry.evidence is not None
            assert open_record(entry.evidence, ReceiptRecord).asker == ASKER.node


def test_who_is_not_to_report_says_nothing_and_learns_all_the_same() -> None:
    bench = asker_bench(reports=False)
    chosen, other = have_a_job_done(bench)
    bench.wait(ROUND_S)
    assert not reports_to(bench, chosen.node)
    assert not reports_to(bench, other.node)
    standing = bench.peer.experience.reputation.standing(chosen.node, OFFER.name, NOW_MS)
    assert (standing.jobs, standing.has_served) == (1, True)


def provider_bench() -> Bench:
    bench = Bench("p", ALONE)
    bench.provide()
    bench.connect(ASKER.node, inbound=True)
    return bench


def test_a_provider_hears_it_from_a_peer_that_is_no_neighbour() -> None:
    asker = asker_bench()
    have_a_job_done(asker)
    asker.wait(ROUND_S)
    provider = provider_bench()
    provider.at_s = asker.at_s
    (message,) = reports_to(asker, P.node)
    provider.hear(provider.accept_stream(ASKER.node, c.GOSSIP_PROTOCOL), message)
    heard = provider.peer.experience.hearsay.about_us(provider.now().wall_ms - HOUR_MS)
    assert (heard.askers, heard.considered) == (1, 1)
    assert heard.chosen + sum(count for _, count in heard.reasons) == 1


def test_a_forged_report_is_a_bad_frame() -> None:
    provider = provider_bench()
    good = signed_report("x")
    for number in range(c.BAD_FRAMES_MAX):
        stream = provider.accept_stream(ASKER.node, c.GOSSIP_PROTOCOL)
        provider.hear(stream, Reports((type(good)(good.body, bytes([number]) * 64),)))
    assert provider.all(HangUp)


class Wired:
    """The machines without a peer, and what they hand to the broadcast."""

    def __init__(self) -> None:
        self.spread: list[tuple[list[NodeId], NodeId | None]] = []
        self.experience = Experience(
            ASKER,
            Directory(),
            random.Random(1),
            connected=lambda: [P.node],
            is_connected=lambda _: True,
            has_address=lambda _: True,
            spread=self._spread,
            reports=True,
        )

    def _spread(self, kind: Hearsay, signers: Iterable[NodeId], now: Now, *, source: NodeId | None) -> list[Outgoing]:
        signers = list(signers)
        self.spread.append((signers, source))
        records = [record for signer in signers if (record := kind.record(signer)) is not None]
        return [Outgoing(Q.node, message) for message in kind.pack(records)]


@pytest.fixture
def wired() -> Wired:
    return Wired()


def test_our_report_goes_to_whom_it_names_and_along_the_tree(wired: Wired) -> None:
    wired.experience.reporting.ended(AttemptEnd(P.node, OFFER.name, Result.DONE, True), now(0))
    assert wired.experience.next_deadline() is not None
    outgoing = wired.experience.on_deadline(now(ROUND_S))
    assert [out.neighbour for out in outgoing] == [P.node, Q.node]
    assert outgoing[0].message == outgoing[1].message
    assert wired.spread == [([ASKER.node], None)]


def test_news_of_others_are_passed_on_once(wired: Wired) -> None:
    message = Reports((signed_report("x"), signed_report("y")))
    outgoing = wired.experience.on_reports(P.node, message, now(0))
    assert wired.spread == [([signing_key("x").node, signing_key("y").node], P.node)]
    assert [out.message for out in outgoing] == [message]
    assert wired.experience.on_reports(Q.node, message, now(1)) == []
