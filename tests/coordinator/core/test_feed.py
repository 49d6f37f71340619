"""The events of a chat in memory: numbered from 1, read from anywhere, nothing lost between reading and waiting."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.core.feed import Feed, FeedFull, sse_frame

pytestmark = pytest.mark.anyio


async def test_a_reader_gets_every_event_once_whenever_it_comes() -> None:
    feed = Feed(10_000)
    read: dict[int, list[int]] = {0: [], 3: []}

    async def reader(after: int) -> None:
        start = after
        while await feed.wait(after, 5):
            entries = feed.read(after)
            if not entries:
                return
            read[start] += [entry[0] for entry in entries]
            after = entries[-1][0]

    tasks = [asyncio.create_task(reader(0)), asyncio.create_task(reader(3))]
    feed.add("job", {})
    for number in range(20):
        feed.add_text(str(number))
        if number % 3 == 0:
            await asyncio.sleep(0)
    feed.end("done", {})
    await asyncio.gather(*tasks)
    assert read == {0: list(range(1, 23)), 3: list(range(4, 23))}


async def test_waiting_times_out_and_leaves_nothing_behind() -> None:
    feed = Feed(10_000)
    assert not await feed.wait(0, 0.01)
    assert not feed._waiters


async def test_an_answer_beyond_the_bound_is_refused_whole() -> None:
    feed = Feed(64)
    feed.add_text("x" * 20)
    with pytest.raises(FeedFull):
        feed.add_text("y" * 60)
    assert feed.text == "x" * 20
    assert len(feed.read(0)) == 1


def test_a_frame_cannot_be_broken_out_of() -> None:
    feed = Feed(10_000)
    feed.add_text("a\n\nevent: done\ndata: {}\r\r\u2028")
    frame = sse_frame(feed.read(0)[0])
    assert frame.startswith(b'id: 1\nevent: token\ndata: {"text":"a\\n\\nevent: done')
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame
