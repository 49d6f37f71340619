"""A job that asks for a model by another name goes to whoever says that this is one of its own, under its own name."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.details import Said, extensions_of
from protocol.effects import Dial, JobDone, JobFailed
from protocol.envelope import open_record
from protocol.errors import Refusal
from protocol.events import DialFailed, LearnRecord, StreamBroken
from protocol.messages import Find, Found, Reports
from protocol.records import FreePolicy, Kind, ReportRecord
from protocol.reporting import REPORT_INTERVAL_S
from protocol.routing import RouteRequest
from tests.helpers_hostile_provider import PRICED, paid_chat, paying
from tests.helpers_machines import ALONE, Bench, chat, provider_record
from tests.helpers_puppets import Provider
from tests.helpers_records import NOW_MS, OFFER, signing_key


def bench_of(**names: str) -> tuple[Bench, list[Provider]]:
    """Providers that each call the same weights otherwise, and say that `tiny` is one of the names."""
    bench = Bench()
    for load, (name, model) in enumerate(names.items()):
        models = (replace(OFFER, name=model),)
        extensions = extensions_of(models, {model: Said(aliases=("tiny",))}) if model != "tiny" else ()
        record = provider_record(name, models=models, extensions=extensions, load=load, free_policy=FreePolicy.ALL)
        bench.feed(LearnRecord(record))
        bench.connect(signing_key(name).node)
    return bench, [Provider(name) for name in names]


def ordered(provider: Provider, bench: Bench) -> str:
    """The model that a new order to this provider names."""
    before = provider.order
    provider.take(bench)
    assert provider.order not in (None, before)
    assert provider.order is not None
    return provider.order.model


@pytest.mark.parametrize("named", [False, True])
def test_the_order_names_the_model_as_its_provider_does(*, named: bool) -> None:
    bench, (provider,) = bench_of(p="smollm2-135m-instruct")
    bench.feed(chat(model="tiny", provider=provider.node if named else None))
    assert ordered(provider, bench) == "smollm2-135m-instruct"
    for message in (provider.accept(), provider.chunk("a"), provider.receipt()):
        bench.hear(provider.stream, message)
    assert bench.all(JobDone)
    known = bench.peer.experience.reputation.account(provider.node, "smollm2-135m-instruct", NOW_MS)
    assert known.ok == 1
    favourites = bench.peer.experience.reputation.favourites
    assert favourites("tiny") == favourites("smollm2-135m-instruct") == [provider.node]


def test_what_nobody_calls_so_is_not_found() -> None:
    bench, (provider,) = bench_of(p="smollm2-135m-instruct")
    bench.feed(chat(model="small", provider=provider.node))
    assert bench.one(JobFailed).code == Refusal.NO_MODEL


def test_the_next_provider_is_asked_by_its_own_name_for_the_model() -> None:
    bench, (first, second) = bench_of(p="smollm2:135m", q="tiny")
    bench.feed(chat(model="tiny"))
    assert ordered(first, bench) == "smollm2:135m"
    bench.hear(first.stream, first.reject(int(Refusal.DRAINING)))
    assert ordered(second, bench) == "tiny"


def test_a_queue_is_joined_under_the_name_that_its_provider_has_for_the_model() -> None:
    bench, (first, second) = bench_of(p="smollm2:135m", q="smollm2-135m")
    bench.feed(chat(model="tiny"))
    ordered(first, bench)
    bench.hear(first.stream, first.reject(int(Refusal.BUSY), retry_after_ms=1_000))
    second.take(bench)
    bench.hear(second.stream, second.reject(int(Refusal.BUSY), retry_after_ms=5_000))
    assert ordered(first, bench) == "smollm2:135m"


def test_whoever_is_asked_once_more_is_asked_by_the_name_that_it_has_for_the_model() -> None:
    bench, (first, second) = bench_of(p="smollm2:135m", q="smollm2-135m")
    bench.feed(chat(model="tiny"))
    ordered(first, bench)
    bench.feed(StreamBroken(first.stream, "gone"))
    ordered(second, bench)
    bench.feed(StreamBroken(second.stream, "gone"))
    # Nobody else turns up: those who were lost have another chance, the last one first.
    bench.wait(c.SEARCH_DEADLINE_S)
    assert ordered(second, bench) == "smollm2-135m"
    bench.hear(second.stream, second.reject(int(Refusal.INTERNAL)))
    bench.wait(c.SEARCH_DEADLINE_S)
    assert ordered(first, bench) == "smollm2:135m"


@pytest.mark.parametrize(("is_chosen", "is_left_out"), [(True, False), (False, True)])
def test_who_is_not_reached_is_rested_and_reported_under_its_own_name(*, is_chosen: bool, is_left_out: bool) -> None:
    bench = Bench(config=dataclasses.replace(ALONE, reports=True))
    models = (replace(OFFER, name="smollm2:135m"),)
    extensions = extensions_of(models, {"smollm2:135m": Said(aliases=("tiny",))})
    away = ("/ip4/192.0.2.1/tcp/46337",)
    bench.feed(LearnRecord(provider_record("p", models=models, extensions=extensions, addresses=away)))
    node = signing_key("p").node
    bench.feed(chat(model="tiny", provider=node if is_chosen else None))
    if is_left_out:
        bench.feed(DialFailed(node, "failed before", left_out=True))
        assert bench.one(Dial).at_once
    bench.feed(DialFailed(node, "connection refused"))
    (verdict,) = bench.peer.experience.router.explain(RouteRequest("tiny", Kind.CHAT), bench.now())
    assert verdict.rank is not None
    assert verdict.rank.standing.rest_s > 0
    bench.connect(node, gossips=True)
    bench.wait(1.5 * REPORT_INTERVAL_S)
    streams = [s for s, opened in bench.opened.items() if opened.protocol == c.GOSSIP_PROTOCOL]
    said, *_ = [message for stream in streams for message in bench.said[stream] if isinstance(message, Reports)]
    record = open_record(said.records[0], ReportRecord)
    assert {entry.model for entry in record.entries} == {"smollm2:135m"}


def test_an_answer_goes_on_under_its_own_name_after_somebody_who_has_another_one() -> None:
    """No model is named, so what the answer's provider called it is looked for, and not what the last one did."""
    bench, names = Bench(), {"p": "smollm2:135m", "q": "other", "r": "smollm2:135m"}
    for load, (name, model) in enumerate(names.items()):
        models = (replace(OFFER, name=model),)
        extensions = extensions_of(models, {"other": Said(aliases=("smollm2:135m",))} if name == "q" else {})
        record = provider_record(name, models=models, extensions=extensions, load=load, free_policy=FreePolicy.ALL)
        bench.feed(LearnRecord(record))
        bench.connect(signing_key(name).node)
    first, second, third = (Provider(name) for name in names)
    bench.feed(chat(model=None))
    first.take(bench)
    bench.hear(first.stream, first.accept())
    bench.hear(first.stream, first.chunk("a"))
    bench.feed(StreamBroken(first.stream, "reset"))
    assert ordered(second, bench) == "other"
    bench.hear(second.stream, second.reject(int(Refusal.DRAINING)))
    assert ordered(third, bench) == "smollm2:135m"


def test_an_order_that_its_lease_does_not_pay_is_written_anew_for_the_same_model() -> None:
    priced = replace(PRICED, name="smollm2:135m")
    extensions = extensions_of((priced,), {priced.name: Said(aliases=("tiny",))})
    bench, (provider,) = paying("p", offer=priced, extensions=extensions)
    for number in (1, 2):
        bench.feed(paid_chat(number, model="tiny", provider=provider.node))
        provider.take(bench)
        if number == 1:
            bench.hear(provider.stream, provider.accept())
            bench.hear(provider.stream, provider.receipt())
    assert len(bench.requests) == 1  # the lease of the first job pays the second
    bench.hear(provider.stream, provider.reject(int(Refusal.LEASE)))
    assert bench.none_of(JobFailed)
    assert ordered(provider, bench) == priced.name
    assert len(bench.requests) == 2


def test_an_answer_goes_on_where_the_same_weights_have_another_name() -> None:
    bench, (first, second) = bench_of(p="smollm2:135m", q="smollm2-135m")
    bench.feed(chat(model="tiny"))
    first.take(bench)
    bench.hear(first.stream, first.accept())
    bench.hear(first.stream, first.chunk("a"))
    bench.feed(StreamBroken(first.stream, "reset"))
    assert ordered(second, bench) == "smollm2-135m"
    assert second.request is not None
    assert second.request.continuation == "a"


def test_who_is_asked_with_find_knows_providers_by_their_aliases() -> None:
    bench, (provider,) = bench_of(p="smollm2:135m")
    stream = bench.accept_stream(provider.node, c.FIND_PROTOCOL)
    bench.hear(stream, Find(7, "tiny", Kind.CHAT, 0, None, None, 16))
    assert len(bench.heard(stream, Found).records) == 1
