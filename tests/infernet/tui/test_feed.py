"""infernet/tui/feed.py beside a double of the node: snapshots as they come, and every way in which there are none."""

from __future__ import annotations

import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from infernet.config import Config, places
from infernet.hardware.contract import Card
from infernet.tui.feed import Away, Feed, Gpus, LogLines, News, Snapshot, Told, as_row
from protocol.records import GpuVendor
from tests.helpers_cli import running
from tests.helpers_ipc import FakeNode
from tests.helpers_tui import line, snapshot

pytestmark = pytest.mark.anyio

DEADLINE_S = 30.0
CARD = Card(GpuVendor.NVIDIA, 0, "RTX\x1b[2J 4090", "nvml", slot="0000:01:00.0", uuid="GPU-0", utilisation_percent=7)


class Heard:
    """What a feed tells, to be waited for in a thread."""

    def __init__(self, feed: Feed) -> None:
        self._news: queue.Queue[News] = queue.Queue()
        self.seen: list[News] = []
        feed.start(self._news.put)

    async def until(self, condition: Callable[[News], bool]) -> News:
        """The next piece of news of which this is true."""
        with trio.fail_after(DEADLINE_S):
            while True:
                news = await trio.to_thread.run_sync(lambda: self._news.get(timeout=DEADLINE_S), abandon_on_cancel=True)
                self.seen.append(news)
                if condition(news):
                    return news


def is_away(words: str) -> Callable[[News], bool]:
    return lambda news: isinstance(news, Away) and words in news.why


def is_snapshot(news: News) -> bool:
    return isinstance(news, Snapshot)


@pytest.fixture
def config() -> Iterator[Config]:
    """A short path, so that the socket lies in it."""
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    yield places({"INFERNET_HOME": str(path)})
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def feed(config: Config) -> Iterator[Feed]:
    """One that finds no GPU."""
    feed = Feed(config, 0.25, find=list)
    yield feed
    feed.stop()


async def test_a_node_is_found_when_it_starts_lost_when_it_ends_and_found_again(config: Config, feed: Feed) -> None:
    heard = Heard(feed)
    await heard.until(is_away("infernet start"))
    node = FakeNode()
    node.live = snapshot()
    for _ in range(2):
        async with running(node, config):
            assert await heard.until(is_snapshot) == Snapshot(snapshot())
        await heard.until(lambda news: isinstance(news, Away))


async def test_to_refresh_asks_the_node_anew_at_once(config: Config) -> None:
    feed = Feed(config, 60.0, find=list)
    heard = Heard(feed)
    node = FakeNode()
    async with running(node, config):
        await heard.until(is_snapshot)
        node.live = {"status": {"name": "later"}}
        feed.refresh()
        # The next one would come in a minute.
        later = await heard.until(lambda news: isinstance(news, Snapshot) and bool(news.data["status"].get("name")))
        assert isinstance(later, Snapshot)
        feed.stop()


async def test_to_drain_tells_the_node_and_what_came_of_it(config: Config, feed: Feed) -> None:
    heard = Heard(feed)
    node = FakeNode()
    async with running(node, config):
        feed.drain()
        told = await heard.until(lambda news: isinstance(news, Told))
        assert isinstance(told, Told)
        assert "takes no new jobs" in told.text
    assert node.drained == [3600.0]
    feed.drain()
    failed = await heard.until(lambda news: isinstance(news, Told))
    assert isinstance(failed, Told)
    assert failed.text.startswith("not drained: no node is running")


async def test_a_node_that_is_older_is_not_waited_for_in_silence(config: Config, feed: Feed) -> None:
    config.socket_path.parent.mkdir(parents=True, mode=0o700)

    async def older(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b'{"ok": false, "error": "unknown-cmd: subscribe"}\n')

    async with trio.open_nursery() as nursery:
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listener.bind(str(config.socket_path))
        listener.listen(8)
        nursery.start_soon(trio.serve_listeners, older, [trio.SocketListener(listener)])
        await Heard(feed).until(is_away("older than this program"))
        feed.stop()
        nursery.cancel_scope.cancel()


async def test_the_log_is_told_from_its_last_lines_on_and_where_there_is_none_that_is_said(
    config: Config, feed: Feed
) -> None:
    heard = Heard(feed)
    none = await heard.until(lambda news: isinstance(news, LogLines))
    assert isinstance(none, LogLines)
    assert "there is no log" in none.trouble
    config.state_dir.mkdir(parents=True, exist_ok=True)
    config.log_file.write_text(line("info", "one") + "\n")
    first = await heard.until(lambda news: isinstance(news, LogLines) and bool(news.lines))
    assert first == LogLines([line("info", "one")])
    with config.log_file.open("a") as file:
        file.write(line("info", "two") + "\n")
    assert await heard.until(lambda news: isinstance(news, LogLines)) == LogLines([line("info", "two")])


async def test_gpus_are_told_without_what_names_the_very_card(config: Config) -> None:
    feed = Feed(config, 0.25, find=lambda: [CARD])
    told = await Heard(feed).until(lambda news: isinstance(news, Gpus))
    feed.stop()
    assert isinstance(told, Gpus)
    (row,) = told.rows
    assert (row.model, row.busy_percent, row.temperature_c) == ("RTX 4090", 7, None)
    assert "GPU-0" not in repr(told)
    assert "0000:01" not in repr(told)


async def test_what_breaks_in_a_thread_is_one_line_and_the_rest_goes_on(config: Config) -> None:
    def broken() -> list[Card]:
        raise ZeroDivisionError

    feed = Feed(config, 0.25, find=broken)
    heard = Heard(feed)
    told = await heard.until(lambda news: isinstance(news, Told))
    assert isinstance(told, Told)
    assert "ZeroDivisionError" in told.text
    async with running(FakeNode(), config):
        await heard.until(is_snapshot)
    feed.stop()


def test_a_card_in_trouble_says_which_and_why() -> None:
    row = as_row(Card(GpuVendor.AMD, 1, "Radeon", "pci", trouble="no driver"))
    assert (row.index, row.trouble) == (1, "Radeon: no driver")
