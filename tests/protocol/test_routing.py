"""A job goes to a provider that fits; every other node has a reason that can be shown."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.codec import encode_value
from protocol.details import EXTENSION_ALIASES, Said, extensions_of
from protocol.directory import Directory
from protocol.ids import NodeId
from protocol.ranking import STRANGER, Standing
from protocol.records import Availability, FreePolicy, Kind, ModelOffer, Role
from protocol.routing import (
    SAMPLE,
    Candidate,
    Decision,
    Exclusion,
    RouteRequest,
    Surroundings,
    Verdict,
    choose,
    exclusion,
    explain,
    model_for,
)
from tests.helpers_machines import entry_of, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

CHAT = RouteRequest(OFFER.name, Kind.CHAT)
NOBODY = signing_key("nobody").node


def why(request: RouteRequest = CHAT, *, connected: bool = True, has_address: bool = True, **changes: Any) -> object:
    return exclusion(
        entry_of("a", **changes),
        request,
        NOW_MS,
        ourselves=NOBODY,
        tried=(),
        connected=lambda _: connected,
        has_address=lambda _: has_address,
    )


def around(**changes: Any) -> Surroundings:
    """Everybody is a stranger that is connected."""
    settings: dict[str, Any] = {"ourselves": NOBODY, "connected": lambda _: True, "has_address": lambda _: True}
    return Surroundings(**(settings | changes))


def decision(
    directory: Directory,
    request: RouteRequest = CHAT,
    seed: int = 1,
    tried: Collection[NodeId] = (),
    known: dict[str, Standing] | None = None,
    favourites: Collection[NodeId] = (),
) -> Decision:
    standings = {signing_key(name).node: standing for name, standing in (known or {}).items()}
    surroundings = around(
        standing=lambda node, _model: standings.get(node, STRANGER), favourites=lambda _model: favourites
    )
    return choose(request, directory, surroundings, tried, NOW_MS, random.Random(seed))


def pick(
    directory: Directory, request: RouteRequest = CHAT, seed: int = 1, tried: Collection[NodeId] = ()
) -> Candidate | None:
    return decision(directory, request, seed, tried).chosen


def market(*names: str, **changes: Any) -> Directory:
    """A directory of providers of these names."""
    directory = Directory()
    for name in names:
        directory.add(record_of(name, **({"free_policy": FreePolicy.ALL} | changes)), NOW_MS)
    return directory


def reasons(made: Decision) -> dict[NodeId, Exclusion | None]:
    return {verdict.node: verdict.against for verdict in made.verdicts}


def node(name: str) -> NodeId:
    return signing_key(name).node


def test_a_fitting_provider_has_nothing_against_it() -> None:
    assert why() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": Role.CLIENT}, Exclusion.NOT_PROVIDER),
        ({"expires_at_ms": NOW_MS}, Exclusion.EXPIRED),
        ({"availability": Availability.DRAINING}, Exclusion.DRAINING),
        ({"availability": Availability.OFFLINE}, Exclusion.OFFLINE),
        ({"availability": Availability.UNKNOWN}, Exclusion.OFFLINE),
        ({"models": ()}, Exclusion.NO_MODEL),
        ({"models": (replace(OFFER, name="other"),)}, Exclusion.NO_MODEL),
        ({"models": (replace(OFFER, kinds=(Kind.EMBEDDING,)),)}, Exclusion.WRONG_KIND),
        ({"free_policy": FreePolicy.NOBODY}, Exclusion.NOT_FREE),
        ({"sealing_key": None}, Exclusion.NO_SEALING_KEY),
    ],
)
def test_every_reason_of_the_record(changes: dict[str, Any], reason: Exclusion) -> None:
    assert why(**changes) is reason


def test_reasons_of_the_request() -> None:
    assert why(RouteRequest(OFFER.name, Kind.CHAT, context_tokens=OFFER.context_tokens)) is None
    assert why(RouteRequest(OFFER.name, Kind.CHAT, context_tokens=OFFER.context_tokens + 1)) is Exclusion.CONTEXT
    assert why(RouteRequest(OFFER.name, Kind.CHAT, prompt_bytes=1_000_000)) is Exclusion.TOO_LARGE
    dear = (replace(OFFER, price_in_uusd=10, price_out_uusd=20),)
    paid = RouteRequest(OFFER.name, Kind.CHAT, free=False, price_in_uusd_max=10, price_out_uusd_max=20)
    assert why(paid, models=dear) is None
    assert why(replace(paid, price_in_uusd_max=9), models=dear) is Exclusion.PRICE_IN
    assert why(replace(paid, price_out_uusd_max=19), models=dear) is Exclusion.PRICE_OUT


def test_reasons_of_the_network() -> None:
    assert why(connected=False, has_address=True) is None
    assert why(connected=False, has_address=False) is Exclusion.UNREACHABLE
    assert why(connected=True, has_address=False) is None
    bound = RouteRequest(OFFER.name, Kind.CHAT, connected_only=True)
    assert why(bound, connected=False) is Exclusion.NOT_CONNECTED


def test_reasons_of_weights_and_features() -> None:
    same = RouteRequest(OFFER.name, Kind.CHAT, fingerprint=OFFER.fingerprint)
    assert why(same) is None
    assert why(replace(same, fingerprint=b"\x12" * 32)) is Exclusion.OTHER_WEIGHTS
    unknown = (replace(OFFER, fingerprint=bytes(32)),)
    assert why(replace(same, fingerprint=bytes(32)), models=unknown) is Exclusion.OTHER_WEIGHTS
    queues = RouteRequest(OFFER.name, Kind.CHAT, features=(1, 5))
    assert why(queues, features=(1,)) is Exclusion.LACKS_FEATURE
    assert why(queues, features=(5, 2, 1)) is None


def test_through_an_aggregator_it_need_not_be_reachable_from_here() -> None:
    through = RouteRequest(OFFER.name, Kind.CHAT, via=signing_key("aggregator").node)
    assert why(through, connected=False, has_address=False) is None


def test_the_specification_lists_the_reasons_with_their_words() -> None:
    text = (Path(__file__).parents[2] / "specs" / "01-wire.md").read_text("utf-8")
    section = text.split("### Reasons\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \| (.+) \|$", section, re.MULTILINE)
    assert [(int(number), name, words) for number, name, words in rows] == [
        (each.number, each.name, each.words) for each in Exclusion
    ]
    assert len({each.number for each in Exclusion}) == len(Exclusion)


def test_an_address_that_only_others_told_is_an_address() -> None:
    assert why(connected=False, has_address=True, addresses=()) is None


def test_explain_names_every_node_candidates_first_best_first() -> None:
    directory = market("a", "b")
    directory.add(record_of("busy", load=4, free_policy=FreePolicy.ALL), NOW_MS)
    directory.add(record_of("none", models=()), NOW_MS)
    directory.add(record_of("gone", availability=Availability.OFFLINE), NOW_MS)
    known = Standing(jobs=9, has_served=True, reliability=0.7)
    explained = explain(
        CHAT,
        directory,
        around(ourselves=node("a"), standing=lambda each, _: known if each == node("busy") else STRANGER),
        NOW_MS,
    )
    assert [(verdict.node, verdict.against) for verdict in explained] == [
        (node("busy"), None),
        (node("b"), None),
        (node("a"), Exclusion.OURSELVES),
        (node("gone"), Exclusion.OFFLINE),
        (node("none"), Exclusion.NO_MODEL),
    ]
    ranks = [verdict.rank for verdict in explained]
    assert ranks[0] is not None
    assert ranks[1] is not None
    assert ranks[0].score_s < ranks[1].score_s
    assert ranks[2:] == [None, None, None]


def test_choose_agrees_with_explain() -> None:
    """Whatever is chosen has no reason against it, and nobody is left when everybody has one."""
    directory = Directory()
    for number in range(40):
        directory.add(record_of(str(number), availability=list(Availability)[1 + number % 3]), NOW_MS)
    fitting = {signing_key(str(number)).node for number in range(0, 40, 3)}
    chosen = {candidate.node for seed in range(200) if (candidate := pick(directory, seed=seed)) is not None}
    assert chosen == fitting
    assert pick(directory, tried=fitting) is None


def test_one_that_fits_is_found_among_many_that_do_not() -> None:
    directory = Directory()
    for number in range(20 * SAMPLE):
        directory.add(record_of(str(number), availability=Availability.OFFLINE), NOW_MS)
    directory.add(record_of("the one"), NOW_MS)
    for seed in range(20):
        candidate = pick(directory, seed=seed)
        assert candidate is not None
        assert candidate.node == signing_key("the one").node


def test_the_least_loaded_is_preferred_and_the_full_are_only_last() -> None:
    directory = Directory()
    for name, load in (("idle", 0), ("busy", 4), ("full", 8)):
        directory.add(record_of(name, load=load), NOW_MS)
    tried: set[NodeId] = set()
    order = []
    while (candidate := pick(directory, tried=tried)) is not None:
        order.append(candidate.node)
        tried.add(candidate.node)
    assert order == [signing_key(name).node for name in ("idle", "busy", "full")]


def test_equals_share_the_jobs() -> None:
    directory = Directory()
    for name in "abcd":
        directory.add(record_of(name), NOW_MS)
    counts = Counter(candidate.node for seed in range(400) if (candidate := pick(directory, seed=seed)) is not None)
    assert len(counts) == 4
    assert min(counts.values()) > 60


def test_the_better_known_and_faster_is_preferred_and_the_others_are_told_why() -> None:
    directory = market("good", "slow", "bad", "full", "resting")
    known = {
        "good": Standing(jobs=20, has_served=True, reliability=0.8, tokens_per_s=50),
        "slow": Standing(jobs=20, has_served=True, reliability=0.8, tokens_per_s=5),
        "bad": Standing(jobs=20, has_served=True, reliability=0.3, tokens_per_s=50),
        "full": Standing(jobs=20, has_served=True, reliability=0.9, tokens_per_s=50, open_jobs=OFFER.concurrency),
        "resting": Standing(jobs=20, has_served=True, reliability=0.9, tokens_per_s=50, rest_s=3),
    }
    made = decision(directory, replace(CHAT, output_tokens=200), known=known)
    assert made.chosen is not None
    assert made.chosen.node == node("good")
    assert reasons(made) == {
        node("good"): None,
        node("slow"): Exclusion.OUTRANKED,
        node("bad"): Exclusion.OUTRANKED,
        node("full"): Exclusion.FULL,
        node("resting"): Exclusion.RESTING,
    }
    second = decision(directory, replace(CHAT, output_tokens=200), known=known, tried={node("good")})
    assert reasons(second)[node("good")] is Exclusion.TRIED
    # The full and the resting are chosen when nobody else is left.
    left = decision(directory, CHAT, known=known, tried={node("good"), node("slow"), node("bad"), node("full")})
    assert left.chosen is not None
    assert left.chosen.node == node("resting")


def test_newcomers_get_no_large_job_while_somebody_proven_is_there() -> None:
    directory = market("proven", "new")
    known = {"proven": Standing(jobs=20, has_served=True, reliability=0.1, tokens_per_s=1)}
    large = replace(CHAT, output_tokens=30_000)
    for seed in range(100):
        made = decision(directory, large, seed, known=known)
        assert made.chosen is not None
        assert made.chosen.node == node("proven")
        assert reasons(made)[node("new")] is Exclusion.NEWCOMER
    assert decision(market("new"), large).chosen is not None


def test_newcomers_get_a_share_of_the_small_jobs() -> None:
    names = [f"new {number}" for number in range(10)]
    directory = market("proven", *names)
    known = {"proven": Standing(jobs=20, has_served=True, reliability=0.9, first_token_s=0.1, tokens_per_s=100)}
    chosen: Counter[NodeId] = Counter()
    for seed in range(2000):
        made = decision(directory, replace(CHAT, output_tokens=100), seed, known=known)
        assert made.chosen is not None
        chosen[made.chosen.node] += 1
    assert 0.88 < chosen[node("proven")] / 2000 < 0.95
    assert all(chosen[node(name)] > 5 for name in names)


def test_one_that_may_be_better_than_the_best_gets_a_share_to_show_it() -> None:
    directory = market("best", "hope", "hopeless")
    known = {
        "best": Standing(jobs=200, has_served=True, reliability=0.95, tokens_per_s=60),
        "hope": Standing(jobs=4, has_served=True, reliability=0.5, promise=0.98, tokens_per_s=80),
        "hopeless": Standing(jobs=4, has_served=True, reliability=0.5, promise=0.98, tokens_per_s=30),
    }
    large = replace(CHAT, output_tokens=20_000)
    chosen: Counter[NodeId] = Counter()
    for seed in range(1200):
        made = decision(directory, large, seed, known=known)
        assert made.chosen is not None
        chosen[made.chosen.node] += 1
    assert 0.04 < chosen[node("hope")] / 1200 < 0.13
    assert chosen[node("hopeless")] == 0


def test_no_newcomer_is_tried_that_is_full() -> None:
    directory = market("proven")
    directory.add(record_of("new", load=8, free_policy=FreePolicy.ALL), NOW_MS)
    known = {"proven": Standing(jobs=20, has_served=True, reliability=0.9)}
    for seed in range(100):
        made = decision(directory, CHAT, seed, known=known)
        assert made.chosen is not None
        assert made.chosen.node == node("proven")


def test_who_served_us_is_found_among_many() -> None:
    directory = market(*(str(number) for number in range(30 * SAMPLE)), "friend")
    known = {"friend": Standing(jobs=20, has_served=True, reliability=0.9)}
    found = sum(
        made.chosen is not None and made.chosen.node == node("friend")
        for seed in range(100)
        if (made := decision(directory, seed=seed, known=known, favourites=[node("friend"), node("gone")]))
    )
    assert found > 75


def test_free_for_all_comes_before_free_for_those_the_owner_knows() -> None:
    directory = market("all")
    directory.add(record_of("known", free_policy=FreePolicy.KNOWN), NOW_MS)
    for seed in range(20):
        made = decision(directory, seed=seed)
        assert made.chosen is not None
        assert made.chosen.node == node("all")
        assert reasons(made)[node("known")] is Exclusion.MAY_REFUSE
    served = {"known": Standing(jobs=5, has_served=True, reliability=0.5)}
    made = decision(directory, seed=2, known=served)
    assert reasons(made) == {node("known"): None, node("all"): Exclusion.OUTRANKED}


def test_what_a_provider_told_us_of_its_load_outdates_its_record() -> None:
    directory = market("a", "b")
    directory.set_load(node("a"), 8, 4000)
    made = decision(directory)
    assert made.chosen is not None
    assert made.chosen.node == node("b")
    (full,) = [verdict.rank for verdict in made.verdicts if verdict.node == node("a")]
    assert full is not None
    assert (full.load, full.wait_s) == (8, 4.0)


def test_a_decision_about_nobody_tells_why() -> None:
    made = decision(market("a", availability=Availability.DRAINING))
    assert made.chosen is None
    assert reasons(made) == {node("a"): Exclusion.DRAINING}
    assert decision(Directory()).verdicts == ()


def test_the_price_limit_ranks_the_cheaper_of_equals_first() -> None:
    directory = Directory()
    for name, price in (("cheap", 10), ("dear", 90)):
        directory.add(record_of(name, models=(replace(OFFER, price_out_uusd=price),)), NOW_MS)
    paid = replace(CHAT, free=False, price_out_uusd_max=100, output_tokens=2000)
    for seed in range(10):
        made = decision(directory, paid, seed)
        assert made.chosen is not None
        assert made.chosen.node == node("cheap")


def test_without_a_named_model_any_fitting_one_serves() -> None:
    directory = Directory()
    embedder = replace(OFFER, name="embedder", kinds=(Kind.EMBEDDING,))
    directory.add(record_of("a", models=(embedder, OFFER)), NOW_MS)
    directory.add(record_of("b", models=(embedder,)), NOW_MS)
    candidate = pick(directory, RouteRequest(None, Kind.CHAT))
    assert candidate is not None
    assert (candidate.node, candidate.model) == (signing_key("a").node, OFFER.name)
    assert pick(Directory(), RouteRequest(None, Kind.CHAT)) is None


def test_listing_many_models_is_no_way_to_more_jobs_of_any_model() -> None:
    directory = Directory()
    many = tuple(replace(OFFER, name=f"m{number}") for number in range(32))
    for name in ("greedy", "a", "b", "c"):
        directory.add(record_of(name, models=many if name == "greedy" else (OFFER,)), NOW_MS)
    counts = Counter(
        candidate.node
        for seed in range(400)
        if (candidate := pick(directory, RouteRequest(None, Kind.CHAT), seed)) is not None
    )
    assert len(counts) == 4
    assert counts[node("greedy")] < 140


def test_model_for_takes_the_first_that_fits() -> None:
    entry = entry_of("a", models=(replace(OFFER, name="small", context_tokens=10), OFFER))
    assert model_for(entry, RouteRequest(None, Kind.CHAT)) == "small"
    assert model_for(entry, RouteRequest(None, Kind.CHAT, context_tokens=11)) == OFFER.name
    assert model_for(entry, RouteRequest("small", Kind.CHAT, context_tokens=11)) is None


# ---------------------------------------------------------------- what a provider says of its models


def saying(said: Said, *offers: ModelOffer, **changes: Any) -> dict[str, Any]:
    """The fields of a heartbeat that says this of its first model."""
    models = offers or (OFFER,)
    return {"models": models, "extensions": extensions_of(models, {models[0].name: said}), **changes}


def test_a_model_is_found_by_its_alias_and_named_as_its_provider_names_it() -> None:
    directory = market("a", "b", **saying(Said(aliases=("tiny",))))
    chosen = pick(directory, replace(CHAT, model="tiny"))
    assert chosen is not None
    assert chosen.model == OFFER.name
    assert pick(directory, replace(CHAT, model="little")) is None
    entry = entry_of("a", **saying(Said(aliases=("tiny",))))
    assert why(replace(CHAT, model="tiny"), **saying(Said(aliases=("tiny",)))) is None
    assert why(replace(CHAT, model="tiny"), **saying(Said(aliases=("other",)))) is Exclusion.NO_MODEL
    # What fits the alias must fit the job.
    assert why(replace(CHAT, model="tiny", fingerprint=b"\x22" * 32), **saying(Said(aliases=("tiny",)))) is (
        Exclusion.OTHER_WEIGHTS
    )
    assert model_for(entry, replace(CHAT, model="tiny", kind=Kind.EMBEDDING)) is None


def test_a_name_comes_before_an_alias() -> None:
    other = replace(OFFER, name="tiny", context_tokens=64)
    entry = entry_of("a", **saying(Said(aliases=("little",)), OFFER, other))
    assert model_for(entry, replace(CHAT, model="tiny")) == "tiny"
    assert model_for(entry, replace(CHAT, model="little")) == OFFER.name
    # A liar who makes a name of its own an alias of another model has no aliases at all.
    forged = encode_value(((0, ("tiny", "little")),))
    entry = entry_of("a", models=(OFFER, other), extensions=((EXTENSION_ALIASES, forged),))
    assert model_for(entry, replace(CHAT, model="tiny")) == "tiny"
    assert model_for(entry, replace(CHAT, model="little")) is None


def fast(directory: Directory, name: str, tokens_per_s: int) -> None:
    """A stranger that states how fast it is."""
    directory.add(record_of(name, free_policy=FreePolicy.ALL, **saying(Said(tokens_per_s=tokens_per_s))), NOW_MS)


def expected(made: Collection[Verdict]) -> dict[NodeId, float]:
    return {verdict.node: verdict.rank.standing.tokens_per_s for verdict in made if verdict.rank is not None}


def test_among_strangers_the_one_that_says_it_is_slow_is_left_out() -> None:
    directory = Directory()
    for name, tokens_per_s in (("slow", 1), ("middling", 24), ("fast", 56)):
        fast(directory, name, tokens_per_s)
    chosen = [decision(directory, replace(CHAT, output_tokens=100), seed).chosen for seed in range(60)]
    names = Counter(one.node for one in chosen if one is not None)
    assert set(names) == {node("middling"), node("fast")}
    # The faster one is believed no further than the one in the middle: they share the jobs.
    assert min(names.values()) > 15
    seen = explain(CHAT, directory, around(), NOW_MS)
    assert expected(seen) == {node("slow"): 1, node("middling"): 24, node("fast"): 24}


def test_what_was_measured_wins_over_what_is_said() -> None:
    directory = Directory()
    fast(directory, "liar", 40_960)
    fast(directory, "honest", 24)
    known = {"liar": Standing(jobs=30, has_served=True, reliability=0.9, promise=0.99, tokens_per_s=2.0)}
    known["honest"] = replace(known["liar"], tokens_per_s=20.0)
    made = decision(directory, replace(CHAT, output_tokens=100), known=known)
    assert made.chosen is not None
    assert made.chosen.node == node("honest")
    assert expected(made.verdicts) == {node("liar"): 2.0, node("honest"): 20.0}
