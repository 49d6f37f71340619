"""protocol/hearsay.py: reports are checked, counted once, bounded, and summed up for the node that they are about."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol import hearsay as module
from protocol.codec import encode_record
from protocol.directory import Directory
from protocol.envelope import sign_record
from protocol.errors import BadFrame, BadSignature
from protocol.events import Now
from protocol.hearsay import BUCKET_MS, DAY_MS, HOUR_MS, Heard, Hearsay
from protocol.ids import NodeId
from protocol.messages import Reports
from protocol.ranking import STRANGER
from protocol.records import Signed
from protocol.reputation import Reputation
from protocol.routing import Exclusion
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, PROVIDER, order, signing_key
from tests.helpers_reports import evidence, report, report_entry, signed_report

OURS = PROVIDER
SOURCE = signing_key("source").node
OTHER = signing_key("other provider")


class Listener:
    """A provider that hears reports."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.reputation = Reputation(OURS.node)
        self.hearsay = Hearsay(OURS.node, self.directory, self.reputation)

    def take(self, *records: Signed, at: Now | None = None, source: NodeId = SOURCE) -> list[NodeId]:
        return self.hearsay.take(source, records, at or now())[0]

    def last_hour(self, at_ms: int = NOW_MS) -> Heard:
        return self.hearsay.about_us(at_ms - HOUR_MS)


@pytest.fixture
def listener() -> Listener:
    return Listener()


def asker(name: str) -> NodeId:
    return signing_key(name).node


def test_what_is_said_about_us_is_summed_up(listener: Listener) -> None:
    one = report_entry(reasons=((32, 5), (33, 1)), first_token_ms=300)
    other = report_entry(reasons=((32, 2),), jobs_done=0, jobs_failed=1, first_token_ms=900, tokens_per_s_milli=0)
    assert listener.take(signed_report("x", one), signed_report("y", other, report_entry(OTHER))) == [
        asker("x"),
        asker("y"),
    ]
    assert listener.last_hour() == Heard(
        askers=2,
        considered=20,
        chosen=8,
        jobs_done=4,
        jobs_failed=1,
        reasons=((Exclusion.OUTRANKED.number, 7), (Exclusion.FULL.number, 1)),
        first_token_ms=900,
        tokens_per_s_milli=40_000,
    )


def test_nobody_has_said_anything(listener: Listener) -> None:
    assert listener.last_hour() == Heard()


def test_a_report_counts_once_and_only_the_newest(listener: Listener) -> None:
    first = signed_report("x", sequence=5)
    assert listener.hearsay.take(SOURCE, [first], now()) == ([asker("x")], [])
    assert listener.hearsay.take(SOURCE, [first], now()) == ([], [asker("x")])
    assert listener.take(signed_report("x", sequence=4)) == []
    assert listener.last_hour().considered == 10
    assert listener.take(signed_report("x", sequence=6)) == [asker("x")]
    assert listener.last_hour().considered == 20
    assert listener.last_hour().askers == 1


@pytest.mark.parametrize(
    "times",
    [
        {"expires_at_ms": NOW_MS},
        {"issued_at_ms": NOW_MS + c.CLOCK_SKEW_MS_MAX + 1, "expires_at_ms": NOW_MS + 2 * c.CLOCK_SKEW_MS_MAX},
        {"expires_at_ms": NOW_MS + c.REPORT_LIFETIME_MS_MAX + 1},
        {"issued_at_ms": NOW_MS + 2, "expires_at_ms": NOW_MS + 1},
    ],
)
def test_a_report_that_is_not_fresh_is_skipped_and_blames_nobody(listener: Listener, times: dict[str, Any]) -> None:
    assert listener.hearsay.take(SOURCE, [signed_report("x", **times)], now()) == ([], [])
    assert listener.last_hour() == Heard()


def test_a_report_of_a_newer_version_is_skipped(listener: Listener) -> None:
    body = encode_record(report(signing_key("x")))
    newer = Signed(body[:1] + b"\x02" + body[2:], bytes(64))
    assert listener.hearsay.take(SOURCE, [newer], now()) == ([], [])


def test_a_forged_one_is_the_fault_of_whoever_brings_it(listener: Listener) -> None:
    good = signed_report("x")
    with pytest.raises(BadSignature):
        listener.take(Signed(good.body, bytes(64)))
    with pytest.raises(BadFrame):
        listener.take(Signed(good.body[:-1], good.signature))
    with pytest.raises(BadFrame):
        listener.take(sign_record(order(), signing_key("asker")))
    assert listener.take(good) == [asker("x")]


def test_nothing_is_kept_of_what_comes_with_a_forged_one(listener: Listener) -> None:
    good, other = signed_report("x"), signed_report("y")
    with pytest.raises(BadSignature):
        listener.take(good, Signed(other.body, bytes(64)))
    assert listener.last_hour() == Heard()
    assert listener.take(good) == [asker("x")], "it is still news, and goes on to others"


def test_of_two_in_one_message_the_newer_one_is_kept(listener: Listener) -> None:
    assert listener.take(signed_report("x", sequence=6), signed_report("x", sequence=5)) == [asker("x")]
    assert listener.hearsay.sequence(asker("x")) == 6


def test_our_own_report_comes_back_as_nothing_new(listener: Listener) -> None:
    ours = sign_record(report(OURS, report_entry(OTHER)), OURS)
    assert listener.hearsay.take(SOURCE, [ours], now()) == ([], [OURS.node])


def test_what_it_proves_about_others_is_believed(listener: Listener) -> None:
    listener.directory.add(record_of("other provider"), NOW_MS)
    proof = report_entry(OTHER, evidence=evidence(OTHER, asker("x")))
    claim = report_entry(OTHER, jobs_failed=10**6)
    listener.take(signed_report("x", proof), signed_report("y", claim))
    account = listener.reputation.account(OTHER.node, OFFER.name, NOW_MS)
    assert (account.askers, account.others_bad) == (1, 0)
    assert account.others_ok > 0
    # Of whom no record is held, nothing is believed either.
    third = signing_key("third")
    listener.take(signed_report("z", report_entry(third, evidence=evidence(third, asker("z")))))
    assert listener.reputation.standing(third.node, OFFER.name, NOW_MS) == STRANGER


def test_hours_and_days_pass(listener: Listener) -> None:
    def at(hours: float) -> Now:
        return now(hours * 3600)

    def said(hours: float) -> None:
        at_ms = at(hours).wall_ms
        fresh = {"sequence": at_ms, "issued_at_ms": at_ms, "expires_at_ms": at_ms + 1000}
        assert listener.take(signed_report("x", **fresh), at=at(hours)) == [asker("x")]

    for hours in (0, 3, 3.5):
        said(hours)
    wall_ms = at(3.5).wall_ms
    assert listener.hearsay.about_us(wall_ms - HOUR_MS).considered == 20
    assert listener.hearsay.about_us(wall_ms - DAY_MS).considered == 30
    said(26)
    wall_ms = at(26).wall_ms
    assert listener.hearsay.about_us(wall_ms - HOUR_MS).considered == 10
    assert listener.hearsay.about_us(wall_ms - DAY_MS).considered == 30
    # A clock that was set back adds to what there is.
    assert listener.take(signed_report("y"), at=Now(at(26).monotonic_s, NOW_MS)) == [asker("y")]
    assert listener.hearsay.about_us(wall_ms - BUCKET_MS).considered == 20


def test_one_asker_is_listened_to_now_and_then(listener: Listener) -> None:
    heard = [len(listener.take(signed_report("x", sequence=number))) for number in range(1, 8)]
    assert heard == [1, 1, 1, 1, 0, 0, 0]
    assert listener.take(signed_report("x", sequence=9), at=now(61)) == [asker("x")]


def test_one_source_cannot_make_us_check_without_end(listener: Listener) -> None:
    flood = [signed_report(f"x{number}") for number in range(40)]
    assert len(listener.take(*flood)) == 32
    assert listener.take(*flood[32:]) == []
    assert len(listener.take(*flood[32:], source=signing_key("quiet").node)) == 8


def test_tables_are_bounded(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKERS_PER_BUCKET_MAX", 3)
    for number in range(5):
        listener.take(signed_report(f"x{number}"))
    assert (listener.last_hour().askers, listener.last_hour().considered) == (3, 30)


def test_absurd_counts_are_cut(listener: Listener) -> None:
    listener.take(signed_report("x", report_entry(considered=2**32 - 1, reasons=((32, 2**32 - 1),))))
    assert listener.last_hour().considered == module.COUNT_MAX
    assert listener.last_hour().reasons == ((32, module.COUNT_MAX),)


def test_as_a_kind_of_record_it_holds_the_newest_for_those_concerned(listener: Listener) -> None:
    hearsay = listener.hearsay
    record = signed_report("x", report_entry(OTHER, model="other"), report_entry())
    listener.take(record)
    x = asker("x")
    assert not hearsay.is_repaired
    assert hearsay.record(x) == record
    assert hearsay.sequence(x) == NOW_MS
    assert hearsay.sequence(asker("y")) == -1
    assert hearsay.record(asker("y")) is None
    assert hearsay.concerns(x, None)
    assert hearsay.concerns(x, frozenset({"other"}))
    assert not hearsay.concerns(x, frozenset({"third"}))
    assert not hearsay.concerns(asker("y"), None)
    assert hearsay.pack([record] * 5) == [Reports((record,) * 4), Reports((record,))]


def test_reports_held_are_bounded(listener: Listener) -> None:
    hearsay = listener.hearsay
    held = report(signing_key("x"), sequence=7)
    for number in range(module.REPORTS_HELD_MAX + 1):
        hearsay.keep(Signed(b"body", bytes(64)), replace(held, asker=NodeId(number.to_bytes(32, "big"))))
    first = NodeId(bytes(32))
    assert hearsay.record(first) is None
    assert hearsay.sequence(first) == 7
