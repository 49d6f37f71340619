"""The figures of a run."""

from __future__ import annotations

from protocol.effects import JobFailed, JobText
from protocol.errors import Refusal
from protocol.events import Ask
from protocol.ids import JobId, NodeId
from protocol.jobs import default_sampling
from protocol.records import JobRequest, Kind
from protocol.sim.checkers import Seen
from protocol.sim.summary import Summary

JOB = JobId(bytes(16))
ASK = Ask(JOB, Kind.COMPLETION, JobRequest(prompt="x"), default_sampling(1), 4)


def tell(summary: Summary, at_s: float, item: object) -> None:
    summary.interests()[type(item)](Seen(at_s, 0, NodeId(bytes(32)), 0, item))


def test_the_first_text_is_timed_from_the_question_and_only_once() -> None:
    summary = Summary()
    tell(summary, 1.0, ASK)
    tell(summary, 1.5, JobText(JOB, "a", 1))
    tell(summary, 9.0, JobText(JOB, "b", 2))
    assert summary.jobs_asked == 1
    assert summary.first_text_s == [0.5]


def test_failures_are_counted_by_their_reason() -> None:
    summary = Summary()
    tell(summary, 1.0, ASK)
    tell(summary, 2.0, JobFailed(JOB, Refusal.PEER_LOST, "gone"))
    assert summary.jobs_failed == {"peer_lost": 1}
    assert summary.jobs_done == 0
