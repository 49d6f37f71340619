"""scripts/_dev_network_detour.py: real TCP between namespaces meets delay, loss and a narrow line, and gets through."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from _dev_network_detour import Detour
from _dev_network_faults import BLACKHOLE, NONE, Faults
from _dev_network_namespaces import Internet, Place, run_in

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces, pytest.mark.slow]

PORT = 4000
DEADLINE_S = 20.0
SILENCE_S = 0.5


class Scene:
    """Somebody behind a router, an echo with a public address, and the line between them."""

    def __init__(self, internet: Internet) -> None:
        self._echo = internet.public("echo")
        self._router = internet.nat("router")
        self._inside = internet.behind("router", "inside")
        self._internet = internet
        self.faults = NONE

    def detour(self) -> Detour:
        for source, target in self._pairs():
            self._internet.send_by_detour(source, target)
        return Detour(self._internet.detour_device(), lambda *_: self.faults, random.Random(1))

    def _pairs(self) -> list[tuple[str, str]]:
        pair = (self._inside.seen_as, self._echo.host)
        return [pair, pair[::-1]]

    def straighten(self) -> None:
        for source, target in self._pairs():
            self._internet.send_directly(source, target)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listening = run_in(self._echo.holder, lambda: socket.create_server(("", PORT)))
        listening.setblocking(False)
        task_status.started()
        await trio.serve_listeners(_echo, [trio.SocketListener(trio.socket.from_stdlib_socket(listening))])

    async def connect(self) -> trio.SocketStream:
        connection = trio.socket.from_stdlib_socket(_socket_at(self._inside))
        await connection.connect((self._echo.host, PORT))
        return trio.SocketStream(connection)


def _socket_at(place: Place) -> socket.socket:
    made = run_in(place.holder, socket.socket)
    made.setblocking(False)
    return made


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Scene, Detour]]:
    """The scene for as long as the block lasts."""
    with Internet() as internet, trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            scene = Scene(internet)
            detour = scene.detour()
            await nursery.start(detour.run)
            await nursery.start(scene.serve)
            yield scene, detour
            nursery.cancel_scope.cancel()


async def exchange(stream: trio.SocketStream, data: bytes) -> float:
    """Send, wait for the echo, and say how many seconds that took."""
    started_s = trio.current_time()
    heard = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(heard) < len(data):
            heard += await stream.receive_some()
    assert bytes(heard) == data
    return trio.current_time() - started_s


async def test_packets_make_the_detour_and_arrive() -> None:
    async with scene() as (s, detour):
        stream = await s.connect()
        await exchange(stream, random.Random(2).randbytes(300_000))
        assert detour.passed > 100
        # One byte there and back, so that what answers the last of the many is through before the count.
        await exchange(stream, b"x")
        passed = detour.passed
        s.straighten()
        await exchange(stream, bytes(300_000))
        assert detour.passed - passed < 20, "later ones take the straight way"
        await stream.aclose()


async def test_delay_holds_for_the_handshake_too() -> None:
    async with scene() as (s, _):
        s.faults = Faults(delay_s=0.1, jitter_s=0.02)
        started_s = trio.current_time()
        stream = await s.connect()
        assert 0.2 <= trio.current_time() - started_s < 1
        assert 0.2 <= await exchange(stream, b"x") < 1
        await stream.aclose()


async def test_what_is_lost_is_sent_again_by_the_kernel() -> None:
    async with scene() as (s, detour):
        stream = await s.connect()
        s.faults = Faults(loss=0.05)
        await exchange(stream, random.Random(3).randbytes(200_000))
        assert detour.lost > 3
        await stream.aclose()


async def test_a_narrow_line_has_its_rate() -> None:
    async with scene() as (s, _):
        stream = await s.connect()
        s.faults = Faults(bytes_per_s=100_000)
        assert 0.9 <= await exchange(stream, bytes(100_000)) < 5
        await stream.aclose()


async def test_a_black_hole_swallows_without_a_word() -> None:
    async with scene() as (s, detour):
        stream = await s.connect()
        await exchange(stream, b"before")
        s.faults = BLACKHOLE
        await stream.send_all(b"lost")
        with trio.move_on_after(SILENCE_S) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        assert detour.lost >= 1
        s.faults = NONE
        assert await stream.receive_some() == b"lost", "TCP sends it again"
        await stream.aclose()
