"""Every judge can find somebody guilty."""

from __future__ import annotations

import dataclasses
from typing import Any

from msgspec.structs import replace

from protocol.codec import encode_message
from protocol.counting import JobCounts
from protocol.effects import HangUp, JobDone, JobFailed, JobResumed, JobText, Misbehaved, Note, RunEngine, Send, Served
from protocol.envelope import sign_record
from protocol.events import EngineFinished, EngineText, Refusal
from protocol.forwarding import ForwardStatistics
from protocol.ids import RunId, StreamId
from protocol.messages import JobAccept, JobOpen, Receipt
from protocol.peer import PeerStatistics
from protocol.records import Outcome
from protocol.sim.checkers import (
    AtMostOnce,
    Checker,
    CleanEnd,
    Crashed,
    Ending,
    EngineRuns,
    Fencing,
    OneEnding,
    Receipts,
    Seen,
    WholeAnswers,
)
from protocol.sim.engine import word
from tests.helpers_machines import chat
from tests.helpers_records import ASKER, PROVIDER, acceptance, order, receipt

ASK = chat(1)
JOB = ASK.job
OPEN = Send(StreamId(1), encode_message(JobOpen(sign_record(order(job=JOB), ASKER), b"x")))
ACCEPT = Send(StreamId(2), encode_message(JobAccept(sign_record(acceptance(job=JOB), PROVIDER))))
RUN = RunEngine(RunId(1), ASK.kind, "m", ASK.request, ASK.sampling, 1, 1)
RECEIPT = receipt(job=JOB, output_tokens=1)
PAID = Send(StreamId(2), encode_message(Receipt(sign_record(RECEIPT, PROVIDER))))
CLEAN = PeerStatistics(
    connections=1,
    streams=2,
    records=0,
    jobs_asked=0,
    jobs_running=0,
    jobs_waiting=0,
    zombie_chunks=0,
    bad_frames=0,
    queries=0,
    neighbours=1,
    forwards=ForwardStatistics(0, 0, 0, 0, 0),
    jobs=JobCounts(),
)


def judge(checker: Checker, *items: Any, ending: Ending | None = None) -> list[str]:
    """Show the asker's items as of machine 0 and the provider's as of machine 1."""
    interests = checker.interests()
    for item in items:
        is_provider = item in (ACCEPT, RUN, PAID) or isinstance(item, (EngineText, EngineFinished))
        node = PROVIDER.node if is_provider else ASKER.node
        if type(item) in interests:
            interests[type(item)](Seen(1.0, int(is_provider), node, 0, item))
    checker.finish(ending or Ending([CLEAN], 2, 0))
    return checker.violations


def test_one_order_one_run_is_innocent_and_a_second_run_or_acceptance_is_not() -> None:
    assert judge(AtMostOnce(), ASK, OPEN, RUN, ACCEPT) == []
    assert len(judge(AtMostOnce(), ASK, OPEN, RUN, RUN)) == 1
    assert len(judge(AtMostOnce(), ASK, OPEN, RUN, ACCEPT, ACCEPT)) == 1
    assert len(judge(AtMostOnce(), ASK, RUN)) == 1


def test_a_job_must_end_and_only_once_and_say_nothing_afterwards() -> None:
    failed, text = JobFailed(JOB, Refusal.BUSY, ""), JobText(JOB, "a", 1)
    assert judge(OneEnding(), ASK, text, failed) == []
    assert judge(OneEnding(), ASK, Crashed()) == []
    assert len(judge(OneEnding(), ASK)) == 1
    assert len(judge(OneEnding(), ASK, failed, failed)) == 1
    assert len(judge(OneEnding(), ASK, failed, text)) == 1
    assert len(judge(OneEnding(), ASK, JobDone(JOB, RECEIPT, ()), failed)) == 1


def test_a_run_must_end_and_only_once() -> None:
    finished = EngineFinished(RunId(1), Outcome.STOP, 1)
    assert judge(EngineRuns(), RUN, finished) == []
    assert len(judge(EngineRuns(), RUN)) == 1
    assert len(judge(EngineRuns(), RUN, finished, finished)) == 1


def test_a_receipt_must_be_the_providers_over_the_text_of_its_engine() -> None:
    text, finished = EngineText(RunId(1), "a", 1), EngineFinished(RunId(1), Outcome.STOP, 1)
    read, done = JobText(JOB, "a", 1), JobDone(JOB, RECEIPT, ())
    assert judge(Receipts(), ASK, RUN, text, read, finished, PAID, done) == []
    assert len(judge(Receipts(), ASK, RUN, text, read, finished, done)) == 1
    assert len(judge(Receipts(), ASK, RUN, text, finished, PAID, done)) == 1
    two = EngineFinished(RunId(1), Outcome.STOP, 2)
    assert len(judge(Receipts(), ASK, RUN, text, read, two, PAID, done)) == 1


def test_only_what_the_last_provider_wrote_must_be_over_its_receipt() -> None:
    text, finished = EngineText(RunId(1), "b", 1), EngineFinished(RunId(1), Outcome.STOP, 1)
    resumed = JobResumed(JOB, PROVIDER.node, 2, 3, 1, ASKER.node)
    answer = (JobText(JOB, "a", 1), resumed, JobText(JOB, "b", 2))
    assert judge(Receipts(), ASK, RUN, text, *answer, finished, PAID, JobDone(JOB, RECEIPT, ())) == []


def test_an_answer_must_be_whole_and_every_token_counted_once() -> None:
    one, two = JobText(JOB, word(1), 1), JobText(JOB, word(2), 2)
    resumed = JobResumed(JOB, PROVIDER.node, 2, 3, 1, ASKER.node)
    last = replace(RECEIPT, attempt=2)
    served = (Served(ASKER.node, 1, 3, 1), Served(PROVIDER.node, 2, 4, 1))
    assert judge(WholeAnswers(), one, resumed, two, JobDone(JOB, last, served)) == []
    assert len(judge(WholeAnswers(), one, resumed, JobText(JOB, word(3), 2))) == 1
    assert len(judge(WholeAnswers(), one, resumed, JobText(JOB, word(1), 2))) == 1
    assert len(judge(WholeAnswers(), one, replace(resumed, output_tokens_before=2))) == 1
    assert len(judge(WholeAnswers(), one, resumed, two, JobDone(JOB, last, served[1:]))) == 1
    assert len(judge(WholeAnswers(), one, resumed, two, JobDone(JOB, last, served[::-1]))) == 1


def test_orders_must_be_numbered_without_gaps() -> None:
    def opening(attempt: int) -> Send:
        signed = sign_record(order(job=JOB, attempt=attempt), ASKER)
        return Send(StreamId(1), encode_message(JobOpen(signed, b"x")))

    assert judge(Fencing(), opening(1), opening(2)) == []
    assert len(judge(Fencing(), opening(1), opening(1))) == 1
    assert len(judge(Fencing(), opening(2))) == 1


def test_what_is_left_over_is_found() -> None:
    assert judge(CleanEnd()) == []
    for name in ("jobs_asked", "jobs_running", "queries", "bad_frames"):
        dirty = dataclasses.replace(CLEAN, **{name: 1})
        assert len(judge(CleanEnd(), ending=Ending([dirty], 2, 0))) == 1
    assert len(judge(CleanEnd(), ending=Ending([dataclasses.replace(CLEAN, streams=3)], 3, 0))) == 1
    assert len(judge(CleanEnd(), ending=Ending([CLEAN], 1, 0))) == 1
    assert len(judge(CleanEnd(), ending=Ending([CLEAN], 2, 1))) == 1
    assert len(judge(CleanEnd(), Misbehaved(PROVIDER.node, "why not"))) == 1
    assert len(judge(CleanEnd(), Note("peer.misbehaved", PROVIDER.node, "why not"))) == 1
    assert judge(CleanEnd(), HangUp(PROVIDER.node, "it is of no more use"), Note("peer.fault")) == []
