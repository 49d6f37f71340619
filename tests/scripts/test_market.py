"""scripts/_market.py: what it starts, it ends; what is in the way, it explains."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import _market
from _environment import Failure
from _market import Market, parse, require_free
from tests.helpers_processes import is_running, wait_until

DEADLINE_S = 20.0

# Ignores the request to end, and has a child of its own that does too. Writes both process ids.
STUBBORN = """#!/bin/sh
trap '' TERM
sh -c 'trap "" TERM; echo $$; while :; do sleep 1; done' &
echo $$
wait
"""


@pytest.fixture
def market(tmp_path: Path) -> Market:
    """A market whose commands are whatever a test writes into its folder of programs."""
    (tmp_path / "bin").mkdir()
    return Market(home=tmp_path, bin=tmp_path / "bin")


def write_program(market: Market, name: str, text: str) -> None:
    """Put a program into the market's folder."""
    (market.bin / name).write_text(text)
    (market.bin / name).chmod(0o755)


def numbers_in(log: Path, count: int) -> list[int]:
    """Wait for so many lines of output, each a number."""
    wait_until(lambda: len(log.read_text().split()) >= count, f"{count} lines in {log.name}")
    return [int(word) for word in log.read_text().split()]


def test_a_child_that_will_not_end_is_killed_with_all_that_it_started(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_market, "STOPPING_S", 0.2)
    write_program(market, "stubborn", STUBBORN)
    with market.child("provider", "provider", "stubborn") as child:
        family = numbers_in(child.log, 2)
        assert all(is_running(process_id) for process_id in family)
    wait_until(lambda: not any(is_running(process_id) for process_id in family), "both end")


def test_children_end_when_their_parent_is_killed_outright(market: Market) -> None:
    write_program(market, "patient", "#!/bin/sh\necho $$\nexec sleep 600\n")
    folder = str(Path(_market.__file__).parent)
    parent = [
        f"import sys, pathlib, time; sys.path.insert(0, {folder!r})",
        "import _market",
        f"market = _market.Market(pathlib.Path({str(market.home)!r}), pathlib.Path({str(market.bin)!r}))",
        "with market.child('provider', 'provider', 'patient'): time.sleep(600)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(parent)]) as process:
        log = market.home / "provider.log"
        wait_until(log.exists, "the log")
        (child,) = numbers_in(log, 1)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child), "the child ends")


def test_a_child_that_ends_by_itself_is_quoted(market: Market) -> None:
    write_program(market, "failing", "#!/bin/sh\necho starting\necho 'the model is missing: fetch it' >&2\nexit 3\n")
    with market.child("provider", "provider", "failing") as child:
        child.process.wait(DEADLINE_S)
        with pytest.raises(
            Failure, match=r"the provider ended: the model is missing: fetch it \(log: .*provider.log\)"
        ):
            child.require_running()


def test_each_program_has_a_home_of_its_own_and_nothing_of_the_users_node(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_HOME", "the user's")
    monkeypatch.setenv("INFERNET_URL", "the user's")
    write_program(market, "infernet", "#!/bin/sh\nenv | grep ^INFERNET_\n")
    assert market.run("asker", "version", timeout_s=DEADLINE_S) == f"INFERNET_HOME={market.home}/asker\n"


def test_a_failing_command_is_told_with_its_own_words(market: Market) -> None:
    write_program(market, "infernet", "#!/bin/sh\necho 'first line' >&2\necho 'this went wrong: do that' >&2\nexit 2\n")
    with pytest.raises(Failure, match="`infernet init` failed: this went wrong: do that"):
        market.run("asker", "init", timeout_s=DEADLINE_S)


def test_a_silent_command_has_a_deadline(market: Market) -> None:
    write_program(market, "infernet", "#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(Failure, match="did not end within"):
        market.run("asker", "status", timeout_s=0.1)


def test_a_taken_port_is_explained_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(Failure, match=rf"port {number} .*in use.*--port {number + 1}"):
            require_free(number, "--port", "the coordinator", "127.0.0.1")
    require_free(number, "--port", "the coordinator", "127.0.0.1")


@pytest.mark.parametrize("words", [["--port", "0"], ["--p2p-port", "65536"], ["--port", "x"], ["--ask", " "], ["what"]])
def test_a_command_line_that_means_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert "usage: scripts/up" in capsys.readouterr().err


def test_a_command_line_is_read(tmp_path: Path) -> None:
    arguments = parse(["--ask", "Why?", "--port", "8081", "--p2p-port", "46338", "--home", str(tmp_path), "--json"])
    assert arguments == _market.Arguments("Why?", 8081, 46338, tmp_path, True)


def test_a_child_that_was_killed_is_said_to_have_been(market: Market) -> None:
    write_program(market, "sleeper", "#!/bin/sh\nexec sleep 60\n")
    with market.child("sleeper", "sleeper", "sleeper") as child:
        child.process.kill()
        wait_until(lambda: child.process.poll() is not None, "it is dead")
        with pytest.raises(Failure, match=r"the sleeper was killed \(signal 9\)"):
            child.require_running()


def test_two_markets_do_not_share_a_home(tmp_path: Path) -> None:
    with _market.alone_in(tmp_path), pytest.raises(Failure, match="--home"), _market.alone_in(tmp_path):
        pass
    with _market.alone_in(tmp_path):
        pass
