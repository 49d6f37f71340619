"""infernet/host/notify.py: what systemd is told, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from infernet.host.notify import Notifier

pytestmark = pytest.mark.anyio

PID = 4711


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


@contextmanager
def listening(address: str) -> Iterator[Callable[[], list[str]]]:
    """The manager's end; gives the datagrams that have come."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.setblocking(False)

        def come() -> list[str]:
            datagrams: list[str] = []
            while True:
                try:
                    datagrams.append(listener.recv(4096).decode())
                except BlockingIOError:
                    return datagrams

        yield come


def test_it_is_told_that_the_node_is_ready_and_that_it_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": path, "HOME": "/x"}
    notifier = Notifier.of(environ, PID)
    assert environ == {"HOME": "/x"}, "no child is to speak for us"
    with listening(path) as come:
        notifier.ready("provider one\nREADY=0\x1b")
        notifier.status("loading\tone")
        notifier.stopping()
        assert come() == [
            f"READY=1\nMAINPID={os.getpid()}\nSTATUS=provider one READY=0 ",
            "STATUS=loading one",
            "STOPPING=1\nSTATUS=ending",
        ]


def test_a_name_in_the_abstract_namespace() -> None:
    name = f"infernet-test-{os.getpid()}"
    with listening(f"\0{name}") as come:
        Notifier.of({"NOTIFY_SOCKET": f"@{name}"}, PID).stopping()
        assert len(come()) == 1


async def test_signs_of_life_come_twice_in_each_interval(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier.of({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(PID)}, PID)
    with listening(path) as come:
        with trio.move_on_after(90.5):
            await notifier.run()
        assert come() == ["WATCHDOG=1"] * 4


async def test_a_loop_that_stands_still_gives_no_sign(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier.of({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000"}, PID)
    with listening(path) as come:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.run)
            await trio.sleep(1)
            assert come() == ["WATCHDOG=1"]
            # Nothing of the loop runs while this does.
            for _ in range(100_000):
                pass
            assert come() == []
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative", "WATCHDOG_USEC": "60000000"},
        {"NOTIFY_SOCKET": "/" + "x" * 200, "WATCHDOG_USEC": "60000000"},
        {"NOTIFY_SOCKET": "/a\0b", "WATCHDOG_USEC": "60000000"},
        {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "-5"},
        {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "9" * 400},
        {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "60000000"},
    ],
)
async def test_where_nobody_waits_for_signs_there_are_none_and_nothing_fails(variables: dict[str, str]) -> None:
    notifier = Notifier.of(dict(variables), PID)
    notifier.ready("x")
    notifier.stopping()
    with trio.fail_after(1):
        await notifier.run()


async def test_a_manager_that_is_gone_or_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier.of({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}, PID)
    with trio.move_on_after(10):
        await notifier.run()
    with listening(path):
        for _ in range(5000):
            notifier.stopping()
