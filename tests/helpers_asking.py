"""For tests of the asker's side: a bench with providers that do what a test tells them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from protocol.effects import JobText
from protocol.events import LearnRecord
from protocol.records import Kind
from tests.helpers_machines import Bench, chat, provider_record
from tests.helpers_puppets import Provider
from tests.helpers_records import OFFER, signing_key

EMBEDDER = replace(OFFER, kinds=(Kind.EMBEDDING,))


def bench_with(*names: str, connected: bool = True, **changes: Any) -> tuple[Bench, list[Provider]]:
    """A bench that knows these providers, in the order in which it will try them."""
    bench = Bench()
    for load, name in enumerate(names):
        bench.feed(LearnRecord(provider_record(name, **({"load": load} | changes))))
        if connected:
            bench.connect(signing_key(name).node)
    return bench, [Provider(name) for name in names]


def running(*, fingerprint: bytes = OFFER.fingerprint, **changes: Any) -> tuple[Bench, Provider]:
    """A job whose first chunk has arrived from `p`; `q` offers the same."""
    bench, (provider, *_) = bench_with("p", "q", models=(replace(OFFER, fingerprint=fingerprint),))
    bench.feed(chat(**changes))
    provider.take(bench)
    bench.hear(provider.stream, provider.accept())
    bench.hear(provider.stream, provider.chunk("a"))
    assert bench.one(JobText).text == "a"
    return bench, provider


def is_at_rest(bench: Bench) -> bool:
    statistics = bench.peer.statistics()
    return statistics.jobs_asked == statistics.queries == 0
