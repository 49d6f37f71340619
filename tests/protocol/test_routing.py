"""A job goes to a provider that fits; every other node has a reason that can be shown."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.directory import Directory
from protocol.ids import NodeId
from protocol.records import Availability, FreePolicy, Kind, Role
from protocol.routing import SAMPLE, Candidate, Exclusion, RouteRequest, choose, exclusion, explain, model_for
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


def pick(directory: Directory, request: RouteRequest = CHAT, seed: int = 1, **options: Any) -> Candidate | None:
    settings = {"ourselves": NOBODY, "tried": (), "connected": lambda _: True, "has_address": lambda _: True}
    return choose(request, directory, NOW_MS, random.Random(seed), **(settings | options))


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


def test_explain_names_every_node_once_in_order() -> None:
    directory = Directory()
    for name in ("a", "b", "c"):
        directory.add(record_of(name, models=() if name == "c" else (OFFER,)), NOW_MS)
    a, b, c = (signing_key(name).node for name in ("a", "b", "c"))
    explained = explain(
        CHAT, directory, NOW_MS, ourselves=a, tried={b}, connected=lambda _: True, has_address=lambda _: True
    )
    assert dict(explained) == {a: Exclusion.OURSELVES, b: Exclusion.TRIED, c: Exclusion.NO_MODEL}
    assert [node for node, _ in explained] == sorted((a, b, c))


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


def test_without_a_named_model_any_fitting_one_serves() -> None:
    directory = Directory()
    embedder = replace(OFFER, name="embedder", kinds=(Kind.EMBEDDING,))
    directory.add(record_of("a", models=(embedder, OFFER)), NOW_MS)
    directory.add(record_of("b", models=(embedder,)), NOW_MS)
    candidate = pick(directory, RouteRequest(None, Kind.CHAT))
    assert candidate is not None
    assert (candidate.node, candidate.model) == (signing_key("a").node, OFFER.name)
    assert pick(Directory(), RouteRequest(None, Kind.CHAT)) is None


def test_model_for_takes_the_first_that_fits() -> None:
    entry = entry_of("a", models=(replace(OFFER, name="small", context_tokens=10), OFFER))
    assert model_for(entry, RouteRequest(None, Kind.CHAT)) == "small"
    assert model_for(entry, RouteRequest(None, Kind.CHAT, context_tokens=11)) == OFFER.name
    assert model_for(entry, RouteRequest("small", Kind.CHAT, context_tokens=11)) is None
