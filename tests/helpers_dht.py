"""Real DHT processes, as a node starts them, and a double of one that does what a script says."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from infernet.discovery.dht_frames import Begin, Begun, Command, Found, Pong, Report
from infernet.discovery.dht_process import DhtProcess, open_dht_process, worker_command
from infernet.discovery.dht_records import encode_heartbeat
from protocol.envelope import SigningKey, sign_record
from protocol.ids import peer_id
from tests.helpers_records import heartbeat

# The library alone takes seconds to load on a busy machine.
PATIENCE_S: Final = 90.0


class Worker:
    """A DHT process, and what it has said."""

    def __init__(self, process: DhtProcess) -> None:
        self.process = process
        self.reports: list[Report] = []
        self.is_gone = False

    @property
    def addresses(self) -> tuple[str, ...]:
        return next(report.addresses for report in self.reports if isinstance(report, Begun))

    def found(self) -> list[Found]:
        return [report for report in self.reports if isinstance(report, Found)]

    def pongs(self) -> list[Pong]:
        return [report for report in self.reports if isinstance(report, Pong)]

    def post(self, command: Command) -> None:
        self.process.post(command)

    async def listen(self) -> None:
        while (reports := await self.process.receive()) is not None:
            self.reports += reports
        self.is_gone = True


async def run_worker(begin: Begin, *, task_status: trio.TaskStatus[Worker]) -> None:
    """Run a DHT process until cancelled; started when it has said how its beginning went."""
    async with open_dht_process(worker_command()) as process, trio.open_nursery() as nursery:
        worker = Worker(process)
        nursery.start_soon(worker.listen)
        worker.post(begin)
        await until(lambda: worker.reports or worker.is_gone)
        task_status.started(worker)


async def until(condition: object, within_s: float = PATIENCE_S) -> None:
    """Look again and again until a condition holds."""
    assert callable(condition)
    with trio.fail_after(within_s):
        while True:
            if condition():
                return
            await trio.sleep(0.02)


@asynccontextmanager
async def workers(count: int) -> AsyncIterator[list[Worker]]:
    """DHT processes on loopback that begin with the first one of them."""
    async with trio.open_nursery() as nursery:
        running: list[Worker] = [await nursery.start(run_worker, begin())]

        async def start() -> None:
            running.append(await nursery.start(run_worker, begin(*running[0].addresses)))

        async with trio.open_nursery() as starting:
            for _ in range(count - 1):
                starting.start_soon(start)
        yield running
        nursery.cancel_scope.cancel()


def begin(*peers: str, port: int = 0, announced: bool = True, allow_private: bool = True) -> Begin:
    """Take part on loopback, beginning with these peers."""
    return Begin(("127.0.0.1",), port, ("127.0.0.1",) if announced else (), peers, allow_private)


def published(key: SigningKey) -> tuple[str, bytes]:
    """Where a node is, and its heartbeat as it lies in the DHT."""
    address = f"/ip4/127.0.0.1/tcp/46337/p2p/{peer_id(key.node)}"
    now_ms = time.time_ns() // 1_000_000
    record = heartbeat(
        node=key.node, sequence=now_ms, issued_at_ms=now_ms, expires_at_ms=now_ms + 600_000, addresses=(address,)
    )
    return address, encode_heartbeat(sign_record(record, key))


def scripted(script: str) -> list[str]:
    """The command of a double of the DHT process: `frames` are the commands as they come, `say` sends a report."""
    prelude = """
import os, sys
from infernet.discovery.dht_frames import *
from infernet.discovery.dht_frames import FrameCutter, encode, read_command
def say(*reports):
    for report in reports:
        os.write(1, encode(report))
def commands():
    cutter = FrameCutter()
    while data := os.read(0, 65536):
        yield from map(read_command, cutter.feed(data))
"""
    return [sys.executable, "-P", "-c", prelude + script]
