"""A bad network between processes of one machine: a TCP proxy that delays, stalls, throttles, dribbles, loses or cuts.

A proxy listens in front of one node. Who connects is known by the process that owns the other end, so that each pair
of nodes, and each direction, can have faults of its own; they can change at any moment, for connections that stand
too. What a kernel does below TCP (a lost packet, a path that is gone) is shown as what TCP makes of it: a pause.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

# Bytes under way in one direction of one connection: what a long fat path holds.
BUFFER_BYTES_MAX: Final = 1024 * 1024
PIECE_BYTES: Final = 16 * 1024
# What TCP waits at least before it sends a lost packet again (RFC 6298 says a second, Linux does this).
RETRANSMISSION_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 10.0
# How often, and how long after each other, somebody is looked for who is not found at first.
OWNER_LOOKS: Final = 4
OWNER_LOOK_S: Final = 0.01

ANYBODY: Final = "*"


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes of one direction.

    delay_s, jitter_s: every piece arrives so much later; jitter is drawn anew for each, and never changes their order.
    loss: the chance of a piece to be lost at first; all that follows waits for it.
    bytes_per_s: no more than this.
    dribble_s: one byte at a time, with this pause after each; None: as it comes.
    is_blackhole: nothing arrives, nothing is refused, nothing closes; when it ends, all goes on.
    is_cut: connections are reset and new ones refused.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = math.inf
    dribble_s: float | None = None
    is_blackhole: bool = False
    is_cut: bool = False


NONE: Final = Faults()
BLACKHOLE: Final = Faults(is_blackhole=True)
CUT: Final = Faults(is_cut=True)


class Weather:
    """The faults of every direction between two names; `*` stands for everybody without faults of its own."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], Faults] = {}
        self._changed = trio.Event()

    def set(self, source: str, target: str, faults: Faults) -> None:
        """The faults of what `source` sends to `target`."""
        if faults == NONE:
            self._faults.pop((source, target), None)
        else:
            self._faults[source, target] = faults
        self._changed.set()
        self._changed = trio.Event()

    def set_both(self, one: str, other: str, faults: Faults) -> None:
        """The same faults in both directions."""
        self.set(one, other, faults)
        self.set(other, one, faults)

    def partition(self, groups: Iterable[Sequence[str]], faults: Faults = BLACKHOLE) -> None:
        """Put faults between every two nodes of different groups."""
        groups = [tuple(group) for group in groups]
        for index, group in enumerate(groups):
            for others in groups[index + 1 :]:
                for one in group:
                    for other in others:
                        self.set_both(one, other, faults)

    def clear(self) -> None:
        """Fair weather everywhere."""
        self._faults.clear()
        self._changed.set()
        self._changed = trio.Event()

    def of(self, source: str, target: str) -> Faults:
        """The faults of one direction now."""
        for pair in ((source, target), (source, ANYBODY), (ANYBODY, target)):
            if pair in self._faults:
                return self._faults[pair]
        return NONE

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the faults holds."""
        while not condition():
            await self._changed.wait()


class SocketOwners:
    """Which of some processes a connection on this machine comes from (Linux).

    Nodes keep their open files from other users' eyes, so this needs root.
    """

    def __init__(self, names: Callable[[], Mapping[int, str]]) -> None:
        """`names` gives the processes of the moment, by their ids."""
        self._names = names

    def __call__(self, host: str, port: int) -> str | None:
        """The name of the process that connected from this address; None when it is none of ours, or gone."""
        inode = _inode_of(host, port)
        if inode is None:
            return None
        link = f"socket:[{inode}]"
        return next((name for process, name in self._names().items() if link in _open_files(process)), None)


def _open_files(process: int) -> Iterator[str]:
    """What a process has open; nothing when it has ended."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{process}/fd") as entries:
        for entry in entries:
            # One that is closed meanwhile is no reason to miss the others.
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)


def _inode_of(host: str, port: int) -> str | None:
    """The inode of the socket that is bound to an IPv4 address; 0 is none."""
    bound = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == bound and fields[9] != "0":
            return fields[9]
    return None


class FaultProxy:
    """Passes connections on to one node, as well as the weather allows."""

    def __init__(
        self,
        weather: Weather,
        target: str,
        address: tuple[str, int],
        owner_of: Callable[[str, int], str | None],
        rng: random.Random,
    ) -> None:
        """`target` is the node's name, `address` where it listens; `owner_of` names who connects."""
        self._weather = weather
        self._target = target
        self._address = address
        self._owner_of = owner_of
        self._rng = rng
        self.connections = 0
        self.bytes_passed = 0

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; `started()` gives the port. Raises OSError when it cannot."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._accept, listeners)

    async def _accept(self, near: trio.SocketStream) -> None:
        try:
            host, port = near.socket.getpeername()[:2]
        except OSError:
            return  # gone before anybody looked
        source = await self._source(host, port)
        there = _Direction(self._weather, source, self._target, self._rng)
        back = _Direction(self._weather, self._target, source, self._rng)
        self.connections += 1
        far: trio.SocketStream | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_reset_on_cut, there, back, nursery.cancel_scope)
                far = await self._connect(there, back)
                if far is not None:
                    async with trio.open_nursery() as pumps:
                        pumps.start_soon(there.pump, near, far, pumps.cancel_scope)
                        pumps.start_soon(back.pump, far, near, pumps.cancel_scope)
                nursery.cancel_scope.cancel()
        finally:
            self.connections -= 1
            self.bytes_passed += there.bytes_passed + back.bytes_passed
            for stream, is_whole in ((near, back.ended_well), (far, there.ended_well)):
                if stream is not None:
                    _close(stream, reset=not is_whole)

    async def _source(self, host: str, port: int) -> str:
        """Who connects from this address; empty for a stranger, to whom no fault applies but those of everybody."""
        for _ in range(OWNER_LOOKS):
            if (name := self._owner_of(host, port)) is not None:
                return name
            # The kernel's table of connections changes while it is read: an entry can be missed.
            await trio.sleep(OWNER_LOOK_S)
        return ""

    async def _connect(self, there: _Direction, back: _Direction) -> trio.SocketStream | None:
        """Reach the node: one round trip later, and not at all through a hole; None when it does not listen."""
        await there.open()
        await back.open()
        await trio.sleep(there.latency_s() + back.latency_s())
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                return await trio.open_tcp_stream(*self._address)
        except (OSError, trio.TooSlowError):
            return None


async def _reset_on_cut(there: _Direction, back: _Direction, scope: trio.CancelScope) -> None:
    await there.weather.until(lambda: there.faults.is_cut or back.faults.is_cut)
    scope.cancel()


def _close(stream: trio.SocketStream, *, reset: bool) -> None:
    if reset:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


class _Direction:
    """One direction of one connection: a reader, what is under way, and a writer."""

    def __init__(self, weather: Weather, source: str, target: str, rng: random.Random) -> None:
        self.weather = weather
        self._source = source
        self._target = target
        self._rng = rng
        # (when it arrives, what); nothing is the end, None a reset.
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._size_bytes = 0
        self._moved = trio.Event()
        self.ended_well = False
        self.bytes_passed = 0

    @property
    def faults(self) -> Faults:
        return self.weather.of(self._source, self._target)

    def latency_s(self) -> float:
        """How long a piece that leaves now is under way."""
        faults = self.faults
        lost = RETRANSMISSION_S if self._rng.random() < faults.loss else 0.0
        return faults.delay_s + faults.jitter_s * self._rng.random() + lost

    async def open(self) -> None:
        """Wait while there is a hole."""
        await self.weather.until(lambda: not self.faults.is_blackhole)

    async def pump(self, source: trio.SocketStream, sink: trio.SocketStream, connection: trio.CancelScope) -> None:
        """Pass on to the end. When the source breaks, and that has arrived, the whole connection is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, source)
            await self._write(sink, connection)
            nursery.cancel_scope.cancel()

    async def _read(self, source: trio.SocketStream) -> None:
        while True:
            await self.open()
            data: bytes | None = None
            with contextlib.suppress(trio.BrokenResourceError):
                data = bytes(await source.receive_some(PIECE_BYTES))
            self._under_way.append((trio.current_time() + self.latency_s(), data))
            self._size_bytes += len(data or b"")
            self._move()
            if not data:
                return
            while self._size_bytes > BUFFER_BYTES_MAX:
                await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _write(self, sink: trio.SocketStream, connection: trio.CancelScope) -> None:
        try:
            while True:
                while not self._under_way:
                    await self._moved.wait()
                due_s, data = self._under_way.popleft()
                await trio.sleep_until(due_s)
                await self.open()
                if data is None:
                    connection.cancel()
                    return
                if not data:
                    await sink.send_eof()
                    self.ended_well = True
                    return
                await self._send(sink, data)
                self._size_bytes -= len(data)
                self.bytes_passed += len(data)
                self._move()
        except trio.BrokenResourceError:
            return  # its reader tells the other side

    async def _send(self, sink: trio.SocketStream, data: bytes) -> None:
        faults = self.faults
        if faults.dribble_s is None and faults.bytes_per_s == math.inf:
            await sink.send_all(data)
            return
        step = 1 if faults.dribble_s is not None else max(1, int(min(len(data), faults.bytes_per_s / 50)))
        for start in range(0, len(data), step):
            await self.open()
            faults = self.faults
            await sink.send_all(data[start : start + step])
            await trio.sleep((faults.dribble_s or 0.0) + step / faults.bytes_per_s)


_AMOUNTS: Final = {
    "delay": "delay_s",
    "jitter": "jitter_s",
    "loss": "loss",
    "rate": "bytes_per_s",
    "dribble": "dribble_s",
}
_SWITCHES: Final = {"blackhole": "is_blackhole", "cut": "is_cut"}


def parse_faults(text: str) -> Faults:
    """Read `delay=0.2,jitter=0.05,loss=0.02,rate=20000,dribble=0.01`, `blackhole` or `cut`. Raises ValueError."""
    values: dict[str, Any] = {}
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if name in _SWITCHES and not equals:
            values[_SWITCHES[name]] = True
        elif name in _AMOUNTS and _is_amount(value):
            values[_AMOUNTS[name]] = float(value)
        else:
            amounts = ", ".join(f"{amount}=NUMBER" for amount in _AMOUNTS)
            raise ValueError(f"{word!r} is none of {amounts}, {', '.join(_SWITCHES)}")
    faults = Faults(**values)
    if faults.loss > 1 or faults.bytes_per_s < 1:
        raise ValueError("loss is a share from 0 to 1, rate at least 1 byte/s")
    return faults


def _is_amount(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False
