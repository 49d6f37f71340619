"""infernet/host/processes.py: the process of a node is that one, and none that has its number later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from infernet.host.lock import hold_lock
from infernet.host.processes import NodeProcess, work_done
from tests.helpers_dying_node import dying_node


def test_it_is_there_until_the_process_has_ended(tmp_path: Path) -> None:
    with dying_node(tmp_path / "pid", dies_for_s=3600) as process:
        node = NodeProcess(tmp_path / "pid", process.pid)
        assert not node.is_gone()
        assert not node.is_suspended()
        node.send(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert node.is_suspended()
        node.send(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert node.is_gone(), "what nobody has waited for is gone, too"
    assert node.is_gone()
    assert not node.is_suspended()
    node.send(signal.SIGKILL)


def test_who_has_the_number_and_not_the_lock_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        with hold_lock(tmp_path / "pid"):
            node = NodeProcess(tmp_path / "pid", stranger.pid)
            assert node.is_gone()
            node.send(signal.SIGKILL)
        assert stranger.poll() is None
        stranger.send_signal(signal.SIGTERM)
        assert stranger.wait(60) == -signal.SIGTERM


def test_what_is_seen_from_another_container_is_there_as_long_as_its_lock(tmp_path: Path) -> None:
    beyond = 2**22 + 7
    with hold_lock(tmp_path / "pid"):
        (tmp_path / "pid").write_text(f"{beyond}\n")
        node = NodeProcess(tmp_path / "pid", beyond)
        assert not node.is_gone()
        node.send(signal.SIGKILL)
    assert node.is_gone()


def test_what_a_process_has_done_grows_while_it_computes_and_stands_still_while_it_waits() -> None:
    works = "import sys, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", works], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        at_first = work_done(process.pid)
        process.stdout.readline()
        while (at_rest := work_done(process.pid)) != work_done(process.pid):
            pass
        assert at_first is not None
        assert at_rest is not None
        assert at_rest > at_first
    assert work_done(process.pid) is None
