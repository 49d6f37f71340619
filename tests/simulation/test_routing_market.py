"""One asker in a market of good, slow, broken and lying providers: whom its jobs go to when it learns from each.

Time is virtual and providers are figures, not peers: what is simulated is the loop from decision to experience.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from protocol.directory import Directory
from protocol.errors import Refusal
from protocol.events import Now
from protocol.ids import NodeId
from protocol.records import FreePolicy, Kind, Signed
from protocol.reputation import Reputation
from protocol.router import Router
from protocol.routing import RouteRequest
from tests.helpers_machines import chat, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

REQUEST = RouteRequest(OFFER.name, Kind.CHAT, context_tokens=200, prompt_bytes=1072, output_tokens=200)
RECEIPT = Signed(b"receipt", bytes(64))
JOBS = 3000


@dataclass(frozen=True)
class Nature:
    """What a provider is really like, and the load it claims."""

    tokens_per_s: float
    failure_share: float = 0.0
    load: int = 0


@dataclass(frozen=True)
class Outcome:
    """Where the jobs went and how long they took, retries included."""

    first_choice: Counter[str]
    done: Counter[str]
    mean_s: float
    failed_attempts: int


def run(
    natures: dict[str, Nature],
    jobs: int = JOBS,
    *,
    learns: bool = True,
    seed: int = 1,
    turns_bad: tuple[str, int] = ("", 0),
) -> Outcome:
    """So many jobs one after the other, each retried until somebody does it; one may fail always from some job on."""
    rng = random.Random(seed)
    directory = Directory(rng=rng)
    names: dict[NodeId, str] = {}
    for name, nature in natures.items():
        fields = {"free_policy": FreePolicy.ALL, "expires_at_ms": NOW_MS + 1_800_000, "load": nature.load}
        directory.add(record_of(name, **fields), NOW_MS)
        names[signing_key(name).node] = name
    router = _router(directory, rng)
    at_s, spent_s, failed = 1000.0, 0.0, 0
    first_choice: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for number in range(jobs):
        if not learns:
            router = _router(directory, rng)
        ask, tried = chat(number), set[NodeId]()
        started_s = at_s
        while True:
            candidate = router.choose(ask, REQUEST, tried, Now(at_s, NOW_MS))
            assert candidate is not None
            name = names[candidate.node]
            nature = natures[name]
            if not tried:
                first_choice[name] += 1
            router.ordered(ask, candidate.node, candidate.model, Now(at_s, NOW_MS))
            router.accepted(ask.job)
            at_s += 0.3
            router.heard(ask.job, 1, Now(at_s, NOW_MS))
            at_s += 199 / nature.tokens_per_s
            if rng.random() < nature.failure_share or (name == turns_bad[0] and number >= turns_bad[1]):
                failed += 1
                router.failed(ask.job, candidate.node, candidate.model, Refusal.ENGINE_FAILED, Now(at_s, NOW_MS))
                tried.add(candidate.node)
                continue
            router.heard(ask.job, 200, Now(at_s, NOW_MS))
            router.done(ask.job, RECEIPT, Now(at_s, NOW_MS))
            done[name] += 1
            break
        router.forget(ask.job)
        spent_s += at_s - started_s
    return Outcome(first_choice, done, spent_s / jobs, failed)


def _router(directory: Directory, rng: random.Random) -> Router:
    ourselves = signing_key("ours").node
    return Router(
        ourselves, directory, Reputation(ourselves), rng, connected=lambda _: True, has_address=lambda _: True
    )


def market() -> dict[str, Nature]:
    """Sixty providers: most are ordinary, some fast, some broken; some of the broken claim to be idle, most are not."""
    natures = {f"ordinary {n}": Nature(20 + n, load=1 + n % 4) for n in range(30)}
    natures |= {f"fast {n}": Nature(90 + n, load=1 + n % 4) for n in range(6)}
    natures |= {f"slow {n}": Nature(2 + n, load=n % 3) for n in range(12)}
    natures |= {f"broken {n}": Nature(60, failure_share=0.6, load=0) for n in range(12)}
    return natures


@pytest.mark.slow
def test_jobs_go_where_they_are_done_well_and_everybody_gets_a_chance() -> None:
    natures = market()
    learnt = run(natures)
    share = {
        kind: sum(count for name, count in learnt.first_choice.items() if name.startswith(kind)) / JOBS
        for kind in ("fast", "ordinary", "slow", "broken")
    }
    assert share["fast"] > 0.6
    assert share["broken"] < 0.06
    assert share["slow"] < 0.06
    # Nobody is starved: each had its chance.
    assert all(learnt.first_choice[name] + learnt.done[name] >= 1 for name in natures)
    # Against whoever believes what providers say, and learns nothing.
    naive = run(natures, 600, learns=False)
    assert learnt.mean_s < naive.mean_s / 4
    assert learnt.failed_attempts / JOBS < 0.25 * naive.failed_attempts / 600


@pytest.mark.slow
def test_a_provider_that_turns_bad_is_left_soon() -> None:
    """Its past does not carry it: after some failures the jobs go elsewhere."""
    three = {"best": Nature(80), "second": Nature(60), "third": Nature(50)}
    turned = run(three, 600, turns_bad=("best", 500))
    assert turned.first_choice["best"] > 300
    assert turned.failed_attempts < 20


@pytest.mark.slow
def test_whoever_was_good_first_is_not_preferred_for_ever() -> None:
    """The best of three is found in every run, whoever had the first jobs."""
    three = {"best": Nature(80), "second": Nature(60), "third": Nature(50)}
    for seed in range(6):
        assert run(three, 600, seed=seed).first_choice.most_common(1)[0][0] == "best"


@pytest.mark.slow
def test_claiming_to_be_idle_wins_little_from_whoever_measures() -> None:
    natures = {f"honest {n}": Nature(50, load=4) for n in range(8)} | {"liar": Nature(10, load=0)}
    outcome = run(natures, 1000)
    assert outcome.first_choice["liar"] < 50
