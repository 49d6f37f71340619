"""A bad line between two hosts in namespaces: their packets make a detour through this process.

The namespace in the middle of the Internet sends the packets of chosen pairs to a TUN device, which is this process.
It keeps each for a while, loses some, and puts the others back, to be routed on as if nothing had been. So it is the
kernels' own TCP that meets loss and delay, and what is between them (address translation, relays) with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import math
import os
import random
import socket
import struct
from collections.abc import Callable
from typing import Final

import trio

from _dev_network_faults import Faults

DEVICE: Final = "detour"
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
PACKET_BYTES_MAX: Final = 65536
IP_HEADER_BYTES: Final = 20
# Of one pair and direction; what comes beyond is lost, as in any router.
QUEUE_BYTES_MAX: Final = 1024 * 1024

#: The faults of packets from one address to another.
FaultsOf = Callable[[str, str], Faults]


def open_device() -> int:
    """Make the TUN device of the namespace that this thread is in, and open it. Raises OSError."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    except BaseException:
        os.close(device)
        raise
    return device


class Detour:
    """The process's end of the device."""

    def __init__(self, device: int, faults_of: FaultsOf, rng: random.Random) -> None:
        self._device = device
        self._faults_of = faults_of
        self._rng = rng
        self._under_way: list[tuple[float, int, tuple[str, str], bytes]] = []
        self._numbers = itertools.count()
        self._wake = trio.Event()
        # Per direction: when the last packet arrives, so that none overtakes it, and how much waits.
        self._last_s: dict[tuple[str, str], float] = {}
        self._waiting_bytes: dict[tuple[str, str], int] = {}
        self.lost = 0
        self.passed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then the device is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._put_back)
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(self._device)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            self._take(os.read(self._device, PACKET_BYTES_MAX))
        finally:
            os.close(self._device)

    def _take(self, packet: bytes) -> None:
        if len(packet) < IP_HEADER_BYTES or packet[0] >> 4 != 4:
            return
        pair = (socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]))
        faults = self._faults_of(*pair)
        waiting = self._waiting_bytes.get(pair, 0) + len(packet)
        if faults.is_blackhole or self._rng.random() < faults.loss or waiting > QUEUE_BYTES_MAX:
            self.lost += 1
            return
        at_s = trio.current_time() + faults.delay_s + faults.jitter_s * self._rng.random()
        at_s = max(at_s, self._last_s.get(pair, -math.inf) + len(packet) / faults.bytes_per_s)
        self._last_s[pair], self._waiting_bytes[pair] = at_s, waiting
        heapq.heappush(self._under_way, (at_s, next(self._numbers), pair, packet))
        self._wake.set()

    async def _put_back(self) -> None:
        while True:
            self._wake = trio.Event()
            at_s = self._under_way[0][0] if self._under_way else math.inf
            with trio.move_on_at(at_s):
                await self._wake.wait()
            while self._under_way and self._under_way[0][0] <= trio.current_time():
                _, _, pair, packet = heapq.heappop(self._under_way)
                self._waiting_bytes[pair] -= len(packet)
                self.passed += 1
                with contextlib.suppress(BlockingIOError):
                    os.write(self._device, packet)
