"""scripts/_dev_network_faults.py: what each fault does to real sockets, and to nobody else's."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from _dev_network_faults import (
    ANYBODY,
    BLACKHOLE,
    CUT,
    NONE,
    FaultProxy,
    Faults,
    SocketOwners,
    Weather,
    parse_faults,
)

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
DEADLINE_S = 10.0
# Long enough to notice that something does not come, on a busy machine too.
SILENCE_S = 0.3


class Echo:
    """A server that sends everything back, and says how its connections ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.heard = bytearray()
        self.port = 0
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, which only what is heard can change."""
        while not condition():
            await self._news.wait()

    async def until_ended(self, *expected: str) -> None:
        """Wait until its connections have ended so."""
        await self.until(lambda: self.ends == list(expected))

    async def until_heard(self, data: bytes) -> None:
        """Wait until it has heard exactly this."""
        await self.until(lambda: self.heard == data)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                self.heard += data
                self._tell()
                await stream.send_all(data)
            self.ends.append("closed")
        except trio.BrokenResourceError:
            self.ends.append("reset")
        self._tell()


class Scene:
    """An echo, a proxy in front of it, and the weather between `asker` and `echo`."""

    def __init__(self) -> None:
        self.weather = Weather()
        self.echo = Echo()
        self.port = 0
        self.source = "asker"
        #: How often nobody is found where `source` is.
        self.unfound = 0

    def owner_of(self, *_: object) -> str | None:
        self.unfound -= 1
        return self.source if self.unfound < 0 else None

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(HOST, self.port)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """The scene for as long as the block lasts, which is not long."""
    scene = Scene()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.echo.serve)
            address = (HOST, scene.echo.port)
            proxy = FaultProxy(scene.weather, "echo", address, scene.owner_of, random.Random(1))
            scene.port = await nursery.start(proxy.serve, HOST, 0)
            yield scene
            nursery.cancel_scope.cancel()


async def exchange(stream: trio.SocketStream, data: bytes) -> float:
    """Send, wait for the echo, and say how many seconds that took."""
    started_s = trio.current_time()
    await stream.send_all(data)
    heard = b""
    while len(heard) < len(data):
        piece = await stream.receive_some()
        assert piece, "the connection ended"
        heard += piece
    assert heard == data
    return trio.current_time() - started_s


async def is_silent(stream: trio.SocketStream) -> bool:
    """Whether neither data nor an end comes."""
    with trio.move_on_after(SILENCE_S):
        await stream.receive_some()
        return False
    return True


async def ends(stream: trio.SocketStream) -> str:
    """How a connection ends."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return "reset"
    return "closed"


async def test_fair_weather_passes_everything_and_the_end() -> None:
    data = random.Random(2).randbytes(3_000_000)
    async with scene() as s, await s.connect() as stream:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            heard = b"".join([bytes(piece) async for piece in stream])
        assert heard == data
        await s.echo.until_ended("closed")


async def test_delay_is_added_in_each_direction() -> None:
    async with scene() as s:
        s.weather.set("asker", "echo", Faults(delay_s=0.1))
        async with await s.connect() as stream:
            assert 0.1 <= await exchange(stream, b"first") < 1
            s.weather.set("echo", "asker", Faults(delay_s=0.1))
            assert 0.2 <= await exchange(stream, b"second") < 1


async def test_delay_does_not_narrow_the_path() -> None:
    async with scene() as s:
        s.weather.set("asker", "echo", Faults(delay_s=0.2))
        async with await s.connect() as stream:
            # 30 pieces, one after the other, would take six seconds.
            for _ in range(30):
                await stream.send_all(b"x")
                await trio.sleep(0.01)
            started_s = trio.current_time()
            await s.echo.until_heard(b"x" * 30)
            assert trio.current_time() - started_s < 1


async def test_jitter_and_loss_delay_and_keep_the_order() -> None:
    async with scene() as s:
        s.weather.set("asker", "echo", Faults(jitter_s=0.05, loss=0.5))
        data = bytes(range(200))
        async with await s.connect() as stream:
            started_s = trio.current_time()
            for byte in data:
                await stream.send_all(bytes([byte]))
            await s.echo.until_heard(data)
            assert trio.current_time() - started_s >= 0.2, "something was lost, and sent again"


async def test_a_narrow_path_has_its_rate() -> None:
    async with scene() as s:
        s.weather.set("asker", "echo", Faults(bytes_per_s=100_000))
        async with await s.connect() as stream:
            assert 0.45 <= await exchange(stream, bytes(50_000)) < 3


async def test_a_dribble_comes_byte_by_byte() -> None:
    async with scene() as s:
        s.weather.set("asker", "echo", Faults(dribble_s=0.01))
        async with await s.connect() as stream:
            assert await exchange(stream, bytes(20)) >= 0.19


async def test_nothing_crosses_a_black_hole_not_even_an_end_and_all_goes_on_after_it() -> None:
    async with scene() as s, await s.connect() as stream:
        await exchange(stream, b"before")
        s.weather.set_both("asker", "echo", BLACKHOLE)
        await stream.send_all(b"lost?")
        assert await is_silent(stream)
        async with await s.connect() as late:
            # A connection is accepted, as by a host that hangs, and nothing answers.
            await late.send_all(b"hello?")
            assert await is_silent(late)
            assert bytes(s.echo.heard) == b"before"
            s.weather.clear()
            assert await exchange(late, b"") == pytest.approx(0, abs=1)
            assert await late.receive_some() == b"hello?"
        assert await stream.receive_some() == b"lost?"
        await stream.send_eof()
        await s.echo.until_ended("closed", "closed")


async def test_an_end_that_falls_into_a_black_hole_arrives_when_that_is_over() -> None:
    async with scene() as s:
        stream = await s.connect()
        await exchange(stream, b"before")
        s.weather.set_both("asker", "echo", BLACKHOLE)
        await stream.aclose()
        with trio.move_on_after(SILENCE_S):
            await s.echo.until_ended("closed")
        assert not s.echo.ends
        s.weather.clear()
        await s.echo.until_ended("closed")


async def test_half_open_one_direction_lives() -> None:
    async with scene() as s, await s.connect() as stream:
        await exchange(stream, b"before")
        s.weather.set("echo", "asker", BLACKHOLE)
        await stream.send_all(b"there")
        await s.echo.until_heard(b"beforethere")
        assert await is_silent(stream)


async def test_a_cut_resets_both_ends_and_refuses_new_ones() -> None:
    async with scene() as s, await s.connect() as stream:
        await exchange(stream, b"before")
        s.weather.set_both("asker", "echo", CUT)
        assert await ends(stream) == "reset"
        await s.echo.until_ended("reset")
        async with await s.connect() as late:
            assert await ends(late) == "reset"
        s.weather.clear()
        async with await s.connect() as again:
            await exchange(again, b"after")


async def test_a_reset_of_one_end_is_one_for_the_other() -> None:
    async with scene() as s:
        stream = await s.connect()
        await exchange(stream, b"before")
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        await s.echo.until_ended("reset")


async def test_nobody_listening_looks_like_it() -> None:
    weather = Weather()
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=HOST)
        free = listener.socket.getsockname()[:2]
        await listener.aclose()
        proxy = FaultProxy(weather, "echo", free, lambda *_: None, random.Random(1))
        port = await nursery.start(proxy.serve, HOST, 0)
        async with await trio.open_tcp_stream(HOST, port) as stream:
            assert await ends(stream) == "reset"
        nursery.cancel_scope.cancel()


async def test_weather_is_local() -> None:
    async with scene() as s:
        s.weather.set_both("asker", "echo", BLACKHOLE)
        s.source = "somebody"
        async with await s.connect() as stream:
            await exchange(stream, b"not concerned")


async def test_somebody_who_is_not_found_at_the_first_look_has_his_faults_all_the_same() -> None:
    async with scene() as s:
        s.weather.set_both("asker", "echo", CUT)
        s.unfound = 2
        async with await s.connect() as stream:
            assert await ends(stream) == "reset"
        assert s.unfound < 0


def test_faults_of_a_pair_come_before_those_for_anybody() -> None:
    weather = Weather()
    weather.set(ANYBODY, "b", CUT)
    weather.set("a", "b", BLACKHOLE)
    assert weather.of("a", "b") == BLACKHOLE
    assert weather.of("c", "b") == CUT
    assert weather.of("b", "c") == NONE
    weather.set("a", "b", NONE)
    assert weather.of("a", "b") == CUT


def test_a_partition_is_between_groups_and_not_inside() -> None:
    weather = Weather()
    weather.partition([["a", "b"], ["c"], ["d"]])
    assert weather.of("a", "b") == NONE
    for one, other in (("a", "c"), ("b", "d"), ("d", "c")):
        assert weather.of(one, other) == weather.of(other, one) == BLACKHOLE
    weather.clear()
    assert weather.of("a", "c") == NONE


async def test_a_connection_is_known_by_the_process_that_made_it() -> None:
    program = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        port = listener.socket.getsockname()[1]
        command = [sys.executable, "-c", program, str(port)]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE)
        try:
            stream = await listener.accept()
            host, from_port = stream.socket.getpeername()
            owners = SocketOwners(lambda: {1_000_000_000: "nobody", process.pid: "somebody"})
            assert owners(host, from_port) == "somebody"
            assert SocketOwners(dict)(host, from_port) is None
            assert owners(host, port) is None
            await stream.aclose()
        finally:
            process.kill()
            await process.wait()


def test_a_file_that_is_closed_meanwhile_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as near, listener.accept()[0]:
            host, port = near.getsockname()
            readlink, tries = os.readlink, itertools.count()

            def closing(path: str) -> str:
                if next(tries) < 3:
                    raise FileNotFoundError(path)
                return readlink(path)

            monkeypatch.setattr(os, "readlink", closing)
            assert SocketOwners(lambda: {os.getpid(): "ourselves"})(host, port) == "ourselves"
            assert next(tries) > 3


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("delay=0.2,jitter=0.05", Faults(delay_s=0.2, jitter_s=0.05)),
        ("loss=0.1,rate=5000,dribble=0.01", Faults(loss=0.1, bytes_per_s=5000, dribble_s=0.01)),
        ("blackhole", BLACKHOLE),
        ("cut", CUT),
    ],
)
def test_faults_are_read(text: str, faults: Faults) -> None:
    assert parse_faults(text) == faults


@pytest.mark.parametrize(
    "text", ["", "delay", "delay=", "delay=-1", "delay=nan", "rate=0", "loss=2", "cut=1", "rain=1"]
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none of|share"):
        parse_faults(text)
