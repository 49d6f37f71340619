"""Streams of a node to itself: in order, bounded, and ended on both sides as any stream is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from infernet.carriers.loopback import Loopback
from infernet.carriers.outbox import OUTBOX_BYTES_MAX
from protocol import events as e
from protocol.constants import JOB_PROTOCOL
from protocol.effects import FinishStream, OpenStream, ResetStream, Send
from protocol.ids import StreamId
from tests.infernet.carriers.test_transport import RecordingDriver

pytestmark = pytest.mark.anyio
NEAR, FAR = StreamId(1), StreamId(2)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[RecordingDriver, Loopback]]:
    """A stream that a node has just opened to itself: `NEAR` is the end that opened it, `FAR` the other one."""
    driver = RecordingDriver()
    loopback = Loopback(driver)
    async with trio.open_nursery() as nursery:
        await nursery.start(loopback.run)
        assert driver.loopback is loopback
        loopback.perform(OpenStream(NEAR, driver.peer.node, JOB_PROTOCOL))
        yield driver, loopback
        nursery.cancel_scope.cancel()


def is_over(driver: RecordingDriver, loopback: Loopback) -> bool:
    return driver.open_streams == 0 == loopback.streams


async def test_both_ends_hear_the_other_and_part_when_both_are_done() -> None:
    async with opened() as (driver, loopback):
        for number in range(100):
            loopback.perform(Send(NEAR, bytes([number])))
        loopback.perform(FinishStream(NEAR))
        await trio.testing.wait_all_tasks_blocked()
        assert driver.posted[0] == e.StreamOpened(FAR, driver.peer.node, JOB_PROTOCOL)
        assert b"".join(event.data for event in driver.of(e.BytesReceived)) == bytes(range(100))  # type: ignore[attr-defined]
        assert driver.posted[-1] == e.StreamFinished(FAR)
        assert not is_over(driver, loopback)
        driver.posted.clear()
        loopback.perform(Send(FAR, b"answer"))
        loopback.perform(FinishStream(FAR))
        await trio.testing.wait_all_tasks_blocked()
        assert driver.posted == [e.BytesReceived(NEAR, b"answer"), e.StreamFinished(NEAR)]
        assert is_over(driver, loopback)


@pytest.mark.parametrize(("who", "other"), [(NEAR, FAR), (FAR, NEAR)])
async def test_what_was_said_before_a_reset_is_heard_before_it(who: StreamId, other: StreamId) -> None:
    async with opened() as (driver, loopback):
        loopback.perform(Send(who, b"last words"))
        loopback.perform(ResetStream(who, "enough"))
        await trio.testing.wait_all_tasks_blocked()
        first, last = driver.posted[-2:]
        assert first == e.BytesReceived(other, b"last words")
        assert isinstance(last, e.StreamBroken)
        assert last.stream == other
        assert is_over(driver, loopback)
        loopback.perform(Send(other, b"too late"))
        loopback.perform(FinishStream(other))
        await trio.testing.wait_all_tasks_blocked()
        assert driver.posted[-1] is last


async def test_what_is_not_taken_in_time_overflows() -> None:
    async with opened() as (driver, loopback):
        for _ in range(3):
            loopback.perform(Send(NEAR, bytes(OUTBOX_BYTES_MAX // 2)))
        assert driver.of(e.OutboxFull) == [e.OutboxFull(NEAR)]
        loopback.perform(ResetStream(NEAR, "the reader is too slow"))
        await trio.testing.wait_all_tasks_blocked()
        assert driver.of(e.BytesReceived) == []
        assert is_over(driver, loopback)
