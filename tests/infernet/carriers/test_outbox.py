"""Queues of streams: bounded each and together, and who is dropped first."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from infernet.carriers.outbox import OUTBOX_BYTES_MAX, Outbox, Outboxes
from protocol.ids import StreamId

pytestmark = pytest.mark.anyio
A, B, C = StreamId(1), StreamId(2), StreamId(3)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


async def test_what_is_queued_is_taken_as_one_piece_and_counted_until_it_is_sent() -> None:
    boxes = Outboxes()
    box = boxes.open(A)
    assert boxes.put(A, b"one ") == boxes.put(A, b"two") == []
    assert await box.take() == b"one two"
    assert boxes.held_bytes == 7
    boxes.sent(box, 7)
    assert boxes.held_bytes == 0


async def test_a_stream_that_is_over_takes_nothing() -> None:
    boxes = Outboxes()
    boxes.open(A)
    boxes.put(A, bytes(10))
    boxes.close(A)
    boxes.close(A)
    assert boxes.put(A, bytes(10)) == []
    assert (len(boxes), boxes.held_bytes) == (0, 0)


async def test_one_queue_overflows_once_and_holds_nothing_afterwards() -> None:
    boxes = Outboxes()
    box = boxes.open(A)
    assert boxes.put(A, bytes(OUTBOX_BYTES_MAX)) == []
    assert boxes.put(A, b"x") == [A]
    assert boxes.put(A, b"x") == []
    assert (box.overflowed, boxes.held_bytes) == (True, 0)
    box.end(reset=False)
    assert not box.is_reset(), "an end after a gap would look like a clean one"
    box.end(reset=True)
    assert box.is_reset()


async def test_what_was_taken_before_an_overflow_counts_no_more() -> None:
    boxes = Outboxes()
    box = boxes.open(A)
    boxes.put(A, bytes(1000))
    taken = await box.take()
    boxes.put(A, bytes(OUTBOX_BYTES_MAX))
    assert boxes.held_bytes == 0
    boxes.sent(box, len(taken))
    assert boxes.held_bytes == 0


async def test_when_all_together_hold_too_much_the_one_that_stands_still_for_longest_is_dropped() -> None:
    boxes = Outboxes(limit_bytes=1000)
    stalled, moving, idle = boxes.open(A), boxes.open(B), boxes.open(C)
    await trio.sleep(600)
    boxes.put(B, bytes(900))
    await trio.sleep(1)
    boxes.put(A, bytes(50))
    await trio.sleep(10)
    boxes.sent(moving, len((await moving.take())[:500]))
    assert boxes.put(C, bytes(700)) == [A, B], "one was not enough"
    assert (stalled.overflowed, idle.overflowed, boxes.held_bytes) == (True, False, 700)


async def test_an_old_stream_that_begins_to_say_something_does_not_stand_still() -> None:
    boxes = Outboxes(limit_bytes=1000)
    boxes.open(A)
    await trio.sleep(3600)
    boxes.open(B)
    boxes.put(B, bytes(600))
    await trio.sleep(1)
    assert boxes.put(A, bytes(600)) == [B]


async def test_a_finish_and_a_reset_wake_whoever_waits() -> None:
    box = Outbox()
    heard: list[str] = []

    async def taker() -> None:
        assert await box.take() == b"data"
        assert await box.take() == b""
        heard.append("end")

    async def watcher() -> None:
        await box.wait_for_reset()
        heard.append("reset")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(taker)
            nursery.start_soon(watcher)
            await trio.testing.wait_all_tasks_blocked()
            box.put(b"data")
            await trio.testing.wait_all_tasks_blocked()
            box.end(reset=False)
            await trio.testing.wait_all_tasks_blocked()
            box.end(reset=True)
    assert heard == ["end", "reset"]


async def test_the_sum_is_always_right_and_bounded() -> None:
    rng = random.Random(1)
    boxes = Outboxes(limit_bytes=5000)
    open_: dict[StreamId, Outbox] = {}
    for step in range(3000):
        stream = StreamId(rng.randrange(20))
        if stream not in open_:
            open_[stream] = boxes.open(stream)
        elif rng.random() < 0.1:
            boxes.close(stream)
            del open_[stream]
        elif rng.random() < 0.3 and open_[stream].held_bytes and not open_[stream].overflowed:
            boxes.sent(open_[stream], len(await open_[stream].take()))
        else:
            boxes.put(stream, bytes(rng.randrange(800)))
        assert boxes.held_bytes == sum(box.held_bytes for box in open_.values()) <= 5000, step
