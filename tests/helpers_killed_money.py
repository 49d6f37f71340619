"""A process that pays and is paid through the real money store, and says what it acted on; made to be killed.

    python -m tests.helpers_killed_money PATH FIRST_LEASE

Each line of its output is `mark LEASE UUSD`, written when the peer would be told that the mark is on disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from infernet.money_store import MoneyStore
from infernet.money_writer import MoneyWriter
from protocol.effects import StoreMark
from tests.helpers_money_store import CAP_UUSD, claimed, mark, paid

_said = trio.Event()


def _say(stored: StoreMark) -> None:
    os.write(1, f"mark {int.from_bytes(stored.lease)} {stored.mark_uusd}\n".encode())
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
            for step in range(10, CAP_UUSD, CAP_UUSD // 8):
                writer.put(paid(step, number))
                writer.put(claimed(step // 2, number))
                writer.put(mark(step, number, step - 5))
                await _next()
            number += 1


def work(path: str, first_lease: int) -> None:
    """Pay and be paid until killed."""
    trio.run(_work, Path(path), first_lease)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
