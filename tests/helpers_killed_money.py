"""Processes that pay and are paid through the real money store, and say what they acted on; made to be killed.

    python -m tests.helpers_killed_money PATH FIRST_LEASE

pays and is paid. Each line of its output is `mark LEASE UUSD`, written when the peer would be told that the mark is on
disk. `be_paid` is the provider alone, on a clock of its own.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from infernet.money.store import MoneyStore
from infernet.money.writer import MoneyWriter
from protocol.effects import StoreMark
from tests.helpers_money_store import CAP_UUSD, claimed, mark, paid

STEP_UUSD: Final = CAP_UUSD // 8
PAID_LEASES: Final = 5
TICKS: Final = 60
TICK_S: Final = 0.05
FLUSH_EVERY: Final = 17
#: specs/06: a quarter of a second of vouchers may be lost. What is older waited for one flush, and that is over.
TICKS_LOST_MAX: Final = round(0.25 / TICK_S)

_said = trio.Event()


def _write_line(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _say(stored: StoreMark) -> None:
    _write_line(f"mark {int.from_bytes(stored.lease)} {stored.mark_uusd}")
    _said.set()


async def _next() -> None:
    global _said
    await _said.wait()
    _said = trio.Event()


async def _work(path: Path, number: int) -> None:
    store = MoneyStore(path)
    writer = MoneyWriter(store, _say, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        while True:
            for step in range(10, CAP_UUSD, STEP_UUSD):
                writer.put(paid(step, number))
                writer.put(claimed(step // 2, number))
                writer.put(mark(step, number, step - 5))
                await _next()
            number += 1


def work(path: str, first_lease: int) -> None:
    """Pay and be paid until killed."""
    trio.run(_work, Path(path), first_lease)


async def _be_paid(path: Path, seed: int, clock: MockClock) -> None:
    rng = random.Random(seed)
    best = dict.fromkeys(range(1, PAID_LEASES + 1), 0)
    store = MoneyStore(path)
    writer = MoneyWriter(store, lambda _mark: None, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for tick in range(TICKS):
            for lease in rng.sample(range(1, PAID_LEASES + 1), 2):
                best[lease] += rng.randrange(1, CAP_UUSD // TICKS)
                _write_line(f"put {tick} {lease} {best[lease]}")
                writer.put(paid(best[lease], lease))
            if tick % FLUSH_EVERY == FLUSH_EVERY - 1:
                await writer.flush()
                _write_line(f"flushed {tick} 0 0")
            clock.jump(TICK_S)
            await _until_written(writer)
        nursery.cancel_scope.cancel()
    await writer.flush()
    _write_line(f"flushed {TICKS} 0 0")
    store.close()


async def _until_written(writer: MoneyWriter) -> None:
    """The clock stands still while the disk is at work."""
    await wait_all_tasks_blocked()
    while writer.unwritten > len(writer):
        await wait_all_tasks_blocked(0.0005)


def be_paid(path: str, seed: int) -> None:
    """Take vouchers, two a tick, and put them on disk as a provider does.

    Its lines are `put TICK LEASE UUSD`, before a voucher is given to the writer, and `flushed TICK 0 0`, when the
    writer has said that all of it is on disk.
    """
    clock = MockClock()
    trio.run(_be_paid, Path(path), seed, clock, clock=clock)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
