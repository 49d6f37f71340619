"""protocol/counting.py: every order that was taken is running or has ended in one way."""

from __future__ import annotations

import pytest
from msgspec import structs

from protocol import constants as c
from protocol.counting import JobCounting, JobCounts
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted, EngineText, StreamBroken
from protocol.ids import RunId
from protocol.messages import Cancel
from protocol.records import Outcome
from tests.helpers_machines import Bench
from tests.helpers_puppets import job_stream, order_for

RUN = RunId(1)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.provide()
    return bench


def ends_of(counts: JobCounts) -> int:
    return counts.completed + counts.cancelled + counts.failed + counts.unpaid


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        (Outcome.STOP, "completed"),
        (Outcome.LENGTH, "completed"),
        (Outcome.CANCELLED, "cancelled"),
        (Outcome.FAILED, "failed"),
        (Outcome.UNPAID, "unpaid"),
        (Outcome.UNKNOWN, "failed"),
    ],
)
def test_each_outcome_is_one_of_four_ends(outcome: Outcome, field: str) -> None:
    counting = JobCounting()
    counting.took()
    counting.ended(outcome, 3, 5)
    counts = counting.snapshot()
    assert counts == structs.replace(JobCounts(taken=1, prompt_tokens=3, output_tokens=5), **{field: 1})
    assert ends_of(counts) == 1


def test_a_job_that_goes_well_counts_what_was_sent(bench: Bench) -> None:
    bench.hear(job_stream(bench), *order_for(bench).messages)
    assert bench.peer.statistics().jobs == JobCounts(taken=1)
    bench.feed(EngineStarted(RUN, 17), EngineText(RUN, "a", 1), EngineText(RUN, "b", 2))
    bench.feed(EngineFinished(RUN, Outcome.STOP, 2))
    assert bench.peer.statistics().jobs == JobCounts(taken=1, completed=1, prompt_tokens=17, output_tokens=2)


def test_one_that_the_engine_does_not_want_has_failed_and_is_not_refused_as_well(bench: Bench) -> None:
    bench.hear(job_stream(bench), *order_for(bench).messages)
    bench.feed(EngineFailed(RUN, Refusal.BAD_REQUEST, "no"))
    assert bench.peer.statistics().jobs == JobCounts(taken=1, failed=1)


@pytest.mark.parametrize("is_lost", [False, True])
def test_one_whose_asker_does_not_want_it_any_more_is_not_completed(bench: Bench, is_lost: bool) -> None:
    stream, wanted = job_stream(bench), order_for(bench)
    bench.hear(stream, *wanted.messages)
    bench.feed(EngineStarted(RUN, 17))
    if is_lost:
        bench.feed(StreamBroken(stream, "gone"))
    else:
        bench.hear(stream, Cancel(wanted.record.job, 1, int(Refusal.CANCELLED)))
    bench.feed(EngineFinished(RUN, Outcome.CANCELLED, 0))
    counts = bench.peer.statistics().jobs
    assert (counts.taken, counts.completed, ends_of(counts)) == (1, 0, 1)


def test_one_whose_prompt_never_comes_is_refused(bench: Bench) -> None:
    stream, wanted = job_stream(bench), order_for(bench)
    opening = structs.replace(wanted.messages[0], sealed=b"")
    bench.hear(stream, opening)
    bench.wait(c.PARTS_DEADLINE_S)
    assert bench.peer.statistics().jobs == JobCounts(refused=1)


def test_one_for_a_model_that_is_not_served_is_refused(bench: Bench) -> None:
    bench.hear(job_stream(bench), *order_for(bench, model="another").messages)
    assert bench.peer.statistics().jobs == JobCounts(refused=1)
