"""What is sent is recognised by its type, and what is no message by nothing."""

from __future__ import annotations

from protocol.codec import encode_message
from protocol.envelope import sign_record
from protocol.messages import Cancel, JobAccept, JobOpen
from protocol.sim.reading import sent
from tests.helpers_records import ASKER, JOB, order

OPEN = encode_message(JobOpen(sign_record(order(), ASKER), b"x"))


def test_a_message_is_recognised_by_its_type() -> None:
    message = sent(OPEN, JobOpen)
    assert message is not None
    assert message.sealed == b"x"
    assert sent(OPEN, JobAccept) is None


def test_only_the_first_message_counts() -> None:
    both = encode_message(Cancel(JOB, 1, 65)) + OPEN
    assert sent(both, Cancel) == Cancel(JOB, 1, 65)
    assert sent(both, JobOpen) is None


def test_what_is_no_message_is_nothing() -> None:
    assert sent(b"", JobOpen) is None
    assert sent(OPEN[:-1], JobOpen) is None
    assert sent(b"\0\0\0\x03\x92\x40\xc1", JobOpen) is None
