"""infernet/ipc/why.py: verdicts in words and figures, reasons with what to do, and honesty when nobody spoke."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infernet.ipc.why import (
    ADVICE_FOR_ASKERS,
    ADVICE_FOR_OWNERS,
    Situation,
    WhyRequest,
    asking,
    facts,
    serving,
)
from protocol.details import Said, extensions_of
from protocol.events import LearnRecord
from protocol.hearsay import HOUR_MS
from protocol.records import Availability, EngineKind, FreePolicy, Role
from protocol.routing import Exclusion
from tests.helpers_machines import Bench, provider_record
from tests.helpers_records import NOW_MS, OFFER, signing_key
from tests.helpers_reports import report_entry, signed_report

M = OFFER.name
WELL = Situation(
    role=Role.PROVIDER,
    models=[M],
    engine="ready",
    engine_error="",
    availability=Availability.AVAILABLE,
    free_for="all",
    peers=3,
    coordinator="https://c.example",
    is_linked=True,
    link_error="",
    is_published=True,
    reach_advice="",
    jobs_running=0,
    slots=4,
)


def bench(*names: str, **changes: Any) -> Bench:
    found = Bench()
    for name in names:
        fields = {"free_policy": FreePolicy.ALL, "expires_at_ms": NOW_MS + 1_800_000} | changes
        found.feed(LearnRecord(provider_record(name, **fields)))
        found.connect(signing_key(name).node)
    return found


def ask(of: Bench, **request: Any) -> dict[str, Any]:
    return asking(of.peer, WhyRequest(**request), of.now())


# ---------------------------------------------------------------- for askers


def test_candidates_come_with_their_figures_and_others_with_their_reasons() -> None:
    of = bench("a", "b")
    of.feed(LearnRecord(provider_record("gone", availability=Availability.OFFLINE)))
    reputation = of.peer.experience.reputation
    for _ in range(5):
        reputation.job_done(signing_key("b").node, M, of.now().wall_ms)
        reputation.measured(signing_key("b").node, M, of.now().wall_ms, first_token_s=0.2, tokens_per_s=50)
    answer = ask(of, model=M)
    first, second, last = answer["nodes"]
    assert (first["node_id"], first["verdict"], first["place"]) == (signing_key("b").node.hex(), "candidate", 1)
    assert (first["own_ok"], first["own_bad"], first["is_measured"]) == (5, 0, True)
    assert 0.5 < first["reliability"] < 0.7
    assert (second["node_id"], second["place"], second["is_measured"]) == (signing_key("a").node.hex(), 2, False)
    assert first["score_s"] < second["score_s"]
    assert last["verdict"] == "left out"
    assert last["reason"] == {"number": 6, "name": "offline"}
    assert last["text"] == "it says it is offline"
    assert (answer["candidates"], answer["left_out"], answer["advice"]) == (2, 1, None)
    assert answer["summary"] == (
        f"chat jobs with {M} would go to {signing_key('b').node.hex()[:8]}, and 1 more could do them"
    )


@pytest.mark.parametrize("availability", [Availability.AVAILABLE, Availability.DRAINING])
def test_a_node_that_serves_the_model_answers_itself(availability: Availability) -> None:
    of = bench("a", "b")
    of.provide(availability=availability)
    answer = ask(of, model=M)
    assert answer["summary"] == f"this node answers chat jobs with {M} itself, and 2 other nodes could do them"
    assert (answer["candidates"], answer["advice"]) == (2, None)
    assert "would go to" not in ask(of)["summary"]
    assert "nobody can do" in ask(of, model="other")["summary"]
    of.provide(availability=Availability.OFFLINE)
    assert "would go to" in ask(of, model=M)["summary"]


def test_explaining_changes_nothing() -> None:
    of = bench("a")
    before = of.peer.next_deadline()
    ask(of)
    assert of.peer.next_deadline() == before
    assert of.peer.experience.router.active == 0


def test_who_knows_nobody_is_told_how_to_meet_somebody() -> None:
    answer = ask(bench())
    assert (answer["candidates"], answer["nodes"]) == (0, [])
    assert answer["summary"] == "nobody can do chat jobs: this node knows no provider yet"
    assert "infernet join" in answer["advice"]


@pytest.mark.parametrize(
    ("changes", "request_", "words", "advice"),
    [
        ({"models": ()}, {"model": "other"}, "it does not serve this model", "infernet peers"),
        ({}, {"model": "other"}, "it does not serve this model", "infernet peers"),
        ({"free_policy": FreePolicy.NOBODY}, {}, "it runs free jobs for nobody", "paid"),
        ({}, {"kind": "embedding"}, "it does not do this kind of job", "another model"),
        ({"availability": Availability.DRAINING}, {}, "it is finishing its jobs", "when they are back"),
    ],
)
def test_why_nobody_was_found_and_what_to_do(
    changes: dict[str, Any], request_: dict[str, Any], words: str, advice: str
) -> None:
    answer = ask(bench("a", "b", **changes), **request_)
    assert answer["candidates"] == 0
    assert words in answer["summary"]
    assert advice in answer["advice"]


def test_who_comes_closest_counts_more_than_who_serves_something_else() -> None:
    of = bench("x", "y", "z", models=())
    of.feed(LearnRecord(provider_record("near", availability=Availability.DRAINING)))
    assert ask(of, model=M)["summary"] == (
        f"nobody can do chat jobs with {M}: 4 nodes known; what keeps out the 1 that come closest: "
        "it is finishing its jobs and takes no new ones"
    )


def test_what_a_stranger_says_is_shown_as_that_and_is_no_measurement() -> None:
    said = {M: Said("Q4_K_M", EngineKind.LLAMA_CPP, 640, 24, ("tiny",))}
    of = bench("a", models=(OFFER,), extensions=extensions_of((OFFER,), said))
    (node,) = ask(of, model="tiny")["nodes"]
    assert node["says"] == {
        "quantisation": "Q4_K_M",
        "engine": "llama_cpp",
        "prompt_tokens_per_s": 640,
        "tokens_per_s": 24,
        "aliases": ["tiny"],
    }
    assert (node["model"], node["tokens_per_s"], node["is_measured"]) == (M, 24, False)
    reputation = of.peer.experience.reputation
    reputation.measured(signing_key("a").node, M, of.now().wall_ms, first_token_s=0.2, tokens_per_s=9)
    (node,) = ask(of, model=M)["nodes"]
    assert (node["says"]["tokens_per_s"], node["is_measured"]) == (24, True)
    assert node["tokens_per_s"] < 10
    assert [node["says"] for node in ask(bench("b"))["nodes"]] == [None]


# ---------------------------------------------------------------- for owners


def test_a_node_that_is_well_has_nothing_to_explain() -> None:
    assert facts(WELL) == []


@pytest.mark.parametrize(
    ("changes", "text", "advice"),
    [
        ({"role": Role.CLIENT}, "this node is a client, which runs no jobs", "--role provider"),
        ({"role": Role.AGGREGATOR}, "this node is an aggregator", "--role provider"),
        ({"availability": Availability.DRAINING}, "it takes no new jobs", "start it again"),
        ({"models": [], "engine": "waiting", "engine_error": "no such file"}, "waiting (no such file)", "its log"),
        ({"models": [], "engine": "starting"}, "it serves no model yet: the engine is loading", "wait"),
        ({"models": [], "engine": None}, "it has no engine", "`infernet config set --engine llama`"),
        ({"peers": 0, "coordinator": None, "is_linked": False}, "nobody is connected to it", "infernet join"),
        ({"is_linked": False, "link_error": "refused"}, "its link to https://c.example is down (refused)", "URL"),
        ({"reach_advice": "forward TCP port 46337"}, "others cannot dial it", "forward TCP port 46337"),
        ({"is_published": False, "coordinator": None, "is_linked": False}, "it publishes no address", "--advertise"),
        ({"free_for": "nobody"}, "it runs free jobs for nobody", "--free-for"),
        ({"free_for": "known"}, "only for those its owner knows", "--free-for all"),
        ({"jobs_running": 4}, "all its 4 slots are taken", "it has work"),
    ],
)
def test_every_fact_that_explains_has_what_to_do(changes: dict[str, Any], text: str, advice: str) -> None:
    (fact,) = facts(Situation(**{name: getattr(WELL, name) for name in WELL.__dataclass_fields__} | changes))
    assert text in fact["text"]
    assert advice in fact["advice"]


def test_a_node_outside_its_hours_is_not_taken_for_one_that_is_stopping() -> None:
    closed = replace(WELL, availability=Availability.DRAINING, hours="outside its hours until 22:00")
    (fact,) = facts(closed)
    assert fact["text"] == "it takes no new jobs: it is outside its hours until 22:00"
    assert "infernet schedule" in fact["advice"]


def test_when_nobody_has_said_anything_that_is_said() -> None:
    of = bench()
    answer = serving(of.peer, WELL, of.now())
    assert answer["summary"].startswith("nobody has told this node yet")
    assert (answer["reasons"], answer["hour"]["askers"], answer["day"]["first_token_s"]) == ([], 0, None)


def test_what_others_said_is_counted_by_reason_with_what_to_do() -> None:
    of = bench()
    us = signing_key("bench")
    hearsay = of.peer.experience.hearsay
    hearsay.take(us.node, [signed_report("x", report_entry(us, reasons=((32, 5), (200, 1))))], of.now())
    of.wait(2 * HOUR_MS / 1000)
    at_ms = of.now().wall_ms
    later = {"sequence": at_ms, "issued_at_ms": at_ms, "expires_at_ms": at_ms + 60_000}
    hearsay.take(us.node, [signed_report("y", report_entry(us, reasons=((33, 2), (32, 1))), **later)], of.now())
    answer = serving(of.peer, WELL, of.now())
    assert answer["summary"] == (
        "in the last hour 1 asker considered this node 10 times and chose it 4 times; 4 jobs went well, 0 did not"
    )
    assert [(r["number"], r["name"], r["hour"], r["day"]) for r in answer["reasons"]] == [
        (32, "outranked", 1, 6),
        (33, "full", 2, 2),
        (200, None, 0, 1),
    ]
    assert answer["reasons"][0]["text"] == "another one was expected to be done sooner"
    assert "--slots" in answer["reasons"][1]["advice"]
    assert answer["reasons"][2]["text"] == "a reason that this version does not know (200)"
    assert (answer["day"]["askers"], answer["day"]["considered"]) == (2, 20)
    assert (answer["hour"]["first_token_s"], answer["hour"]["tokens_per_s"]) == (0.3, 40.0)


def test_every_reason_that_owners_may_hear_has_what_to_do() -> None:
    """The golden list: words change on purpose, and no reason is left without advice."""
    assert set(ADVICE_FOR_OWNERS) == set(Exclusion) - {Exclusion.OURSELVES, Exclusion.TRIED}
    assert {reason: reason.words for reason in ADVICE_FOR_ASKERS} == {
        Exclusion.NO_MODEL: "it does not serve this model",
        Exclusion.WRONG_KIND: "it does not do this kind of job with this model",
        Exclusion.CONTEXT: "its context is too small for this request",
        Exclusion.TOO_LARGE: "the prompt is larger than it accepts",
        Exclusion.NOT_FREE: "it runs free jobs for nobody, and this one offers no payment",
        Exclusion.NO_SEALING_KEY: "it publishes no key to seal prompts for",
        Exclusion.UNREACHABLE: "no address of it is known and it is not connected",
        Exclusion.NOT_CONNECTED: "it is not connected, and this asker does not dial",
        Exclusion.DRAINING: "it is finishing its jobs and takes no new ones",
        Exclusion.OFFLINE: "it says it is offline",
        Exclusion.EXPIRED: "its last heartbeat has expired",
    }
