"""A flood from many addresses of loopback, in a process of its own: what an attacker with a small botnet would do.

    python -m tests.helpers_flood ADDRESS --half-open 5000 --stalled 500 --streams 1000

says in lines of JSON what it has got done, and goes on until its standard input ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import trio

from infernet.transport import multistream
from infernet.transport import yamux_frames as frames
from infernet.transport.addresses import TcpAddress, parse_tcp
from infernet.transport.channel import ChannelBroken
from infernet.transport.libp2p_library import IDENTIFY_PROTOCOL, PING_PROTOCOL, HandshakeFailed, Identity
from infernet.transport.noise_channel import NoiseChannel, secure_outbound
from infernet.transport.yamux_frames import header
from protocol import constants as c
from protocol.codec import encode_message
from protocol.ids import NodeId
from protocol.messages import Find
from protocol.records import Kind
from tests.helpers_transport import ROOT, secret

# A half-open connection that the node closes is opened again. They come from many hosts of a few providers.
HALF_OPEN_HOSTS: Final = 250
HALF_OPEN_NETWORKS: Final = 25
REOPEN_S: Final = 0.5
# Those who stop reading come from as many networks as the node's limits ask for.
STALLED_PER_HOST: Final = 8
SHAKING_MAX: Final = 16
REPORT_S: Final = 0.1
GENEROUS_CREDIT: Final = 2**28


class Flood:
    """What has been got done so far."""

    def __init__(self, address: TcpAddress, node: NodeId) -> None:
        self._address = address
        self._node = node
        self._shaking = trio.CapacityLimiter(SHAKING_MAX)
        self._seeds = itertools.count(1000)
        self.opened = 0
        self.open = 0
        self.stalled = 0
        self.stalling = 0
        self.streams_sent = 0
        self.refused = 0

    def report(self) -> dict[str, int]:
        """Counts, for the test that waits for them."""
        return {
            "opened": self.opened,
            "open": self.open,
            "stalled": self.stalled,
            "stalling": self.stalling,
            "streams_sent": self.streams_sent,
            "refused": self.refused,
        }

    async def _connect(self, source: str) -> trio.SocketStream:
        socket = trio.socket.socket()
        try:
            # So small that it is the node that holds what is not read, and not the kernel for it.
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await socket.bind((source, 0))
            await socket.connect((self._address.host, self._address.port))
        except BaseException:
            socket.close()
            raise
        return trio.SocketStream(socket)

    async def half_open(self, source: str) -> None:
        """Connect and say nothing; again and again."""
        while True:
            with suppress(OSError):
                async with await self._connect(source) as stream:
                    self.opened += 1
                    self.open += 1
                    try:
                        await stream.receive_some(1)
                    finally:
                        self.open -= 1
            await trio.sleep(REOPEN_S)

    @asynccontextmanager
    async def _proven(self, source: str) -> AsyncIterator[NoiseChannel]:
        async with self._shaking:
            stream = await self._connect(source)
            try:
                channel = await secure_outbound(stream, Identity(secret(next(self._seeds))), self._node)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        async with stream:
            yield channel

    async def stall(self, source: str) -> None:
        """Ask for as much as one may, grant any credit, and never read again."""
        while True:
            with suppress(OSError, ChannelBroken, HandshakeFailed):
                async with self._proven(source) as channel:
                    await self._ask_for_much(channel)
                    self.stalled += 1
                    self.stalling += 1
                    try:
                        # It notices its end only by what it cannot send.
                        while True:
                            await trio.sleep(1)
                            await channel.send(header(frames.PING, frames.ACK, 0, 0))
                    finally:
                        self.stalling -= 1
            self.refused += 1
            await trio.sleep(1)

    async def _ask_for_much(self, channel: NoiseChannel) -> None:
        find = encode_message(Find(7, None, Kind.CHAT, 0, None, None, c.FIND_RESULTS_MAX))
        echo = bytes(128 * 1024)
        for number in range(12):
            protocol, data = [(c.FIND_PROTOCOL, find), (PING_PROTOCOL, echo), (IDENTIFY_PROTOCOL, b"")][number % 3]
            said = multistream.proposal(protocol) + data
            stream_id = 2 * number + 1
            with trio.move_on_after(2):
                await channel.send(header(frames.WINDOW_UPDATE, frames.SYN, stream_id, GENEROUS_CREDIT))
                await channel.send(header(frames.DATA, 0, stream_id, len(said)) + said)

    async def open_streams(self, source: str, count: int) -> None:
        """One peer that opens far too many streams, all of them useful at first sight."""
        while True:
            with suppress(OSError, ChannelBroken, HandshakeFailed):
                async with self._proven(source) as channel, trio.open_nursery() as nursery:
                    nursery.start_soon(self._swallow, channel)
                    for number in range(count):
                        said = multistream.proposal(c.JOB_PROTOCOL)
                        await channel.send(header(frames.DATA, frames.SYN, 2 * number + 1, len(said)) + said)
                        self.streams_sent += 1
                    await trio.sleep(2)
                    nursery.cancel_scope.cancel()
            await trio.sleep(1)

    async def _swallow(self, channel: NoiseChannel) -> None:
        with suppress(ChannelBroken):
            while await channel.receive():
                pass


async def _report(flood: Flood) -> None:
    while True:
        sys.stdout.write(json.dumps(flood.report()) + "\n")
        sys.stdout.flush()
        await trio.sleep(REPORT_S)


async def _end_with_input(scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
    scope.cancel()


async def attack(arguments: argparse.Namespace) -> None:
    """Flood until standard input ends."""
    # Elsewhere it would have a machine of its own; what is measured here is not its work.
    os.nice(5)
    address = parse_tcp(arguments.address)
    assert address.peer is not None
    flood = Flood(address, address.peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_input, nursery.cancel_scope)
        nursery.start_soon(_report, flood)
        hosts = min(HALF_OPEN_HOSTS, max(1, arguments.half_open // 20))
        sources = [f"127.50.{host % HALF_OPEN_NETWORKS}.{1 + host // HALF_OPEN_NETWORKS}" for host in range(hosts)]
        if arguments.streams:
            nursery.start_soon(flood.open_streams, "127.200.1.1", arguments.streams)
        for number in range(arguments.stalled):
            host = number % max(1, arguments.stalled // STALLED_PER_HOST)
            nursery.start_soon(flood.stall, f"127.{100 + host // 200}.{host % 200}.1")
        for number in range(arguments.half_open):
            nursery.start_soon(flood.half_open, sources[number % hosts])
            if number % 50 == 0:
                await trio.sleep(0.01)


@contextmanager
def flooding(address: str, **sizes: int) -> Iterator[Attacker]:
    """An attacker's process for as long as the block lasts."""
    words = [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers_flood", address, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    attacker = Attacker(process)
    try:
        yield attacker
    finally:
        attacker.stop()


class Attacker:
    """The process, as the test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.said: dict[str, Any] = {}

    async def listen(self) -> None:
        """Keep `said` up to date until cancelled or the process ends."""
        assert self._process.stdout is not None
        with self._process.stdout as said:
            while line := await trio.to_thread.run_sync(said.readline, abandon_on_cancel=True):
                self.said = json.loads(line)

    def stop(self) -> None:
        """End it, as when a firewall shuts it out."""
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()


def main() -> None:
    """Read the command line and flood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--half-open", type=int, default=0)
    parser.add_argument("--stalled", type=int, default=0)
    parser.add_argument("--streams", type=int, default=0)
    trio.run(attack, parser.parse_args())


if __name__ == "__main__":
    main()
