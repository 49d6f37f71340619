"""infernet/cli/tui.py: only on a terminal, and once beside a real node, from before its start to after its end."""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest

from infernet.cli import tui
from infernet.cli.__main__ import main
from infernet.tui.app import LiveView
from infernet.tui.feed import Feed
from infernet.tui.panels import Look
from tests.helpers_cli import DEADLINE_S, Home, invoke
from tests.helpers_tui import SMALL, screen_of

QUICK = ("--p2p-port", "0", "--engine", "none", "--listen-hosts", "127.0.0.1")


@pytest.mark.parametrize("words", [[], ["--refresh", "2"], ["--json"]])
def test_without_a_terminal_it_points_to_what_programs_can_read(
    home: Home, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    outcome = invoke(capsys, "tui", *words)
    assert outcome.code == 2
    assert "infernet status --json" in outcome.complaint
    assert len(outcome.err.splitlines()) == 1
    if "--json" in words:
        assert "needs a terminal" in outcome.json["error"]


@pytest.mark.parametrize("word", ["0.2", "61", "nan", "inf", "-1", "often", ""])
def test_how_often_is_bounded(home: Home, capsys: pytest.CaptureFixture[str], word: str) -> None:
    outcome = invoke(capsys, "tui", f"--refresh={word}")
    assert outcome.code == 2
    assert "0.25 to 60 seconds" in outcome.complaint


def test_without_its_library_it_says_which(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "textual":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(tui.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(tui.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    # What catches output is no terminal, so that the question is asked of the module's own streams.
    arguments = tui.argparse.Namespace(json=False, refresh=1.0)
    with pytest.raises(tui.Failure, match="pip install textual"):
        tui.run(arguments)


async def shows(view: LiveView, condition: Callable[[str], bool]) -> str:
    """Wait until the screen is as it should be."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition(screen := "\n".join(screen_of(view))):
            drawn = asyncio.Event()
            view.call_later(drawn.set)
            await drawn.wait()
            # Threads of the feed run in between.
            await asyncio.to_thread(time.sleep, 0.02)
    return screen


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_beside_a_real_node(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--yes", "--name", "watched [red]node[/]"]) == 0
    view = LiveView(Feed(home.config, 0.25, find=list), Look())
    async with view.run_test(size=SMALL) as pilot:
        await shows(view, lambda screen: "no node is running here: `infernet start`" in screen)
        started = await asyncio.to_thread(home.run, "start", "--json", *QUICK)
        assert started.code == 0, started.err
        try:
            screen = await shows(view, lambda screen: screen.startswith("watched [red]node[/]  provider"))
            assert "0 running, 0 waiting" in screen
            await shows(view, lambda screen: "node.started" in screen)
            await pilot.press("3")
            await shows(view, lambda screen: "no other node is known yet" in screen)
            await pilot.press("d")
            await shows(view, lambda screen: "Let the node finish" in screen)
            await pilot.press("y", "1")
            await shows(view, lambda screen: "not connected" in screen)
        finally:
            await asyncio.to_thread(home.run, "stop", "--force")
        await pilot.press("q")


@pytest.mark.slow
@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_real_terminal_it_draws_leaves_and_puts_everything_back(home: Home, no_colour: str) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = home.environment(TERM="xterm-256color", NO_COLOR=no_colour)
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(
        home.command("tui"), stdin=follower, stdout=follower, stderr=follower, env=environ, start_new_session=True
    )
    output = b""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while b"no node is running" not in output:
            assert time.monotonic() < deadline, output[-2000:]
            if select.select([leader], [], [], 0.5)[0]:
                output += os.read(leader, 65536)
        os.write(leader, b"q")
        while process.poll() is None:
            assert time.monotonic() < deadline, output[-2000:]
            if select.select([leader], [], [], 0.1)[0]:
                output += os.read(leader, 65536)
        while select.select([leader], [], [], 0)[0]:
            output += os.read(leader, 65536)
        assert process.returncode == 0
        # The other screen, and back from it; the keyboard as it was.
        assert output.count(b"\x1b[?1049h") == output.count(b"\x1b[?1049l") == 1
        assert termios.tcgetattr(follower)[3] == before[3]
        codes = {code for found in re.findall(rb"\x1b\[([0-9;]*)m", output) for code in found.split(b";")}
        has_colour = any(re.fullmatch(rb"3[0-8]|4[0-8]|9[0-7]|10[0-7]", code) for code in codes)
        assert has_colour is not bool(no_colour)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)
