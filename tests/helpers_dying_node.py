"""A process that holds a node's lock, answers on no socket, and is seconds in dying: what `stop` has to bear with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers_cli import ROOT

_SCRIPT = """
import signal, sys, time
from pathlib import Path
from infernet.host.lock import hold_lock

with hold_lock(Path(sys.argv[1])):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("up", flush=True)
    signal.sigwait([signal.SIGTERM])
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def dying_node(pid_file: Path, dies_for_s: float) -> Iterator[subprocess.Popen[str]]:
    """A node that ends on SIGTERM, and is still there for a while after it gave its lock back."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", _SCRIPT, str(pid_file), str(dies_for_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()
