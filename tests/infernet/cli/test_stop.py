"""infernet/cli/stop.py: it says that the node has ended when nothing of it is left, and what it tries until then."""

from __future__ import annotations

import os
import signal
import time

import pytest

from infernet.cli import stop
from infernet.host.lock import running_pid
from tests.helpers_cli import Home, invoke
from tests.helpers_dying_node import dying_node

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHUTDOWN_TIMEOUT_S", "HEALTHY_TIMEOUT_S"):
        monkeypatch.setattr(stop, name, 0.1)


@pytest.mark.parametrize("words", [[], ["--signal", "TERM"]])
def test_it_returns_when_the_process_is_gone_and_not_when_the_lock_is_free(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(stop, "SHUTDOWN_TIMEOUT_S", 20.0)
    monkeypatch.setattr(stop, "END_TIMEOUT_S", 20.0)
    with dying_node(home.config.pid_file, dies_for_s=0.4) as process:
        outcome = invoke(capsys, "stop", *words)
        assert (outcome.code, outcome.out) == (0, f"The node has ended (process {process.pid}).\n")
        assert process.poll() is not None


def test_one_that_dies_for_ever_is_signalled_and_killed_although_its_lock_is_free(home: Home, capsys: Capture) -> None:
    with dying_node(home.config.pid_file, dies_for_s=3600) as process:
        outcome = invoke(capsys, "stop", "--force", "--json")
        assert outcome.json["how"] == "killed"
        assert process.poll() == -signal.SIGKILL


def test_one_that_stands_still_is_told_of_and_what_is_tried(home: Home, capsys: Capture) -> None:
    with dying_node(home.config.pid_file, dies_for_s=0) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        began_s = time.monotonic()
        outcome = invoke(capsys, "stop", "--wait", "0.3")
        # Without --wait it would have had END_TIMEOUT_S.
        assert time.monotonic() - began_s < stop.END_TIMEOUT_S / 2
        first, *tried, last = outcome.err.splitlines()
        assert (outcome.code, outcome.out) == (1, "")
        assert first == f"the node (process {process.pid}) is suspended, so it neither answers nor ends"
        assert len(tried) == 2
        assert all("is there still: it gets a signal" in line for line in tried)
        assert f"does not end, for it is suspended (`kill -CONT {process.pid}`" in last
        assert running_pid(home.config.pid_file) == process.pid

        killed = invoke(capsys, "stop", "--force")
        assert killed.out == f"The node has been killed (process {process.pid}).\n"
        assert killed.err.splitlines()[1:] == [f"the node (process {process.pid}) is killed"]
        assert process.poll() == -signal.SIGKILL
