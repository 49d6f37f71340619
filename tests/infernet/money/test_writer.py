"""infernet/money/writer.py: marks at once, vouchers together and soon, and nothing lost while the disk is full."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from infernet.money.store import DiskLost, MoneyStore, MoneyTotals, Rejected, Write
from infernet.money.writer import FLUSH_S, MoneyWriter
from infernet.store import StoreError
from protocol.effects import StoreClosing, StoreMark
from tests.helpers_money_store import BANK, CAP_UUSD, claimed, lease_of, mark, paid
from tests.helpers_records import NOW_MS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock()}


class Disk(MoneyStore):
    """The real store over a disk that can be full; it writes down its transactions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[list[Write]] = []
        self.fails: StoreError | None = None

    def apply(self, writes: Sequence[Write]) -> None:  # type: ignore[override]
        if self.fails is not None:
            raise self.fails
        super().apply(writes)
        self.batches.append(list(writes))


class Bench:
    """A writer over such a disk, and what it said."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.stored: list[StoreMark] = []
        self.changes: list[str] = []
        self.writer = MoneyWriter(disk, self.stored.append, lambda: self.changes.append(self.writer.trouble))

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass on the mock clock, while the writer's thread takes as long as it likes."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(seconds)
        await self.settle()

    async def settle(self) -> None:
        """Until the writer waits for news or for time, and no thread of its is at work."""
        while True:
            await wait_all_tasks_blocked()
            if not self.writer._writing.locked():
                return


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    disk = Disk(tmp_path / "money.sqlite3")
    made = Bench(disk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.writer.run)
        await made.settle()
        yield made
        nursery.cancel_scope.cancel()
    disk.close()


async def test_a_mark_is_on_disk_before_anybody_hears_that_it_is(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(mark(300))
        assert b.stored == []
        await b.settle()
        assert b.stored == [mark(300)]
        assert b.disk.restore_payers()[0].mark_uusd == 300


async def test_vouchers_wait_for_each_other_a_quarter_of_a_second_and_share_one_transaction(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(paid(10, 1))
        await b.pass_time(FLUSH_S / 2)
        b.writer.put(paid(20, 2))
        b.writer.put(paid(30, 1))
        await b.pass_time(FLUSH_S / 2 - 0.001)
        assert b.disk.batches == []
        await b.pass_time(0.002)
        assert b.disk.batches == [[paid(30, 1), paid(20, 2)]], "of each lease the newest alone"


async def test_a_mark_takes_along_what_waits(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(paid(10, 1))
        b.writer.put(mark(300, 2))
        await b.settle()
        assert b.disk.batches == [[paid(10, 1), mark(300, 2)]]


async def test_that_a_lease_is_given_up_comes_to_the_disk_at_once_and_after_its_voucher(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(StoreClosing(lease_of(1), 10))
        b.writer.put(paid(10, 1))
        await b.settle()
        assert b.disk.batches == [[paid(10, 1), StoreClosing(lease_of(1), 10)]]
        assert b.stored == [StoreClosing(lease_of(1), 10)], "and whoever waits for that hears of it"


async def test_a_full_disk_is_tried_again_and_told_and_nothing_that_was_given_is_lost(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.disk.fails = StoreError("the disk is full")
        b.writer.put(mark(300))
        b.writer.put(paid(10, 5))
        b.writer.put(StoreClosing(lease_of(5), 10))
        await b.settle()
        assert (b.stored, b.writer.trouble) == ([], "the disk is full")
        b.writer.put(paid(40, 5))
        b.writer.put(mark(700))
        await b.pass_time(1)
        await b.pass_time(2)
        assert b.stored == []
        b.disk.fails = None
        await b.pass_time(60)
        assert b.stored == [mark(700), StoreClosing(lease_of(5), 10)], "what was newer by then"
        assert b.disk.totals().unclaimed_uusd == 40
        assert [event.is_closing for event in b.disk.restore_providers(BANK.node, NOW_MS)] == [True]
        assert b.changes == ["the disk is full", ""]
        assert len(b.writer) == 0


async def test_a_disk_that_lost_a_write_is_told_until_the_restart(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.disk.fails = DiskLost("restart the node")
        b.writer.put(mark(300))
        for _ in range(3):
            await b.pass_time(60)
        assert (b.stored, b.changes) == ([], ["restart the node"])


async def test_a_row_that_cannot_be_keeps_no_other_from_the_disk_and_is_never_called_stored(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(mark(CAP_UUSD + 1, 1))
        b.writer.put(mark(300, 2))
        await b.settle()
        assert b.stored == [mark(300, 2)]
        assert (b.writer.trouble, len(b.writer)) == ("", 0)


async def test_what_was_earned_is_known_once_it_is_on_disk(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(paid(90))
        b.writer.put(claimed(60))
        assert b.writer.totals.earned_uusd == 0
        await b.pass_time(FLUSH_S)
        assert b.writer.totals == MoneyTotals(60, 60, 30, 1, 0)


async def test_flush_writes_what_would_have_waited(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.writer.put(paid(90))
        await b.writer.flush()
        assert b.disk.batches == [[paid(90)]]


def test_the_test_s_own_disk_fails_as_the_real_one_would() -> None:
    assert issubclass(Rejected, StoreError)
    assert issubclass(DiskLost, StoreError)
