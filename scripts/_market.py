"""A whole market on one machine: the coordinator and a provider as processes of their own, and perhaps one question.

`scripts/up` runs this inside its environment. It knows nothing of the network: it starts the commands that a person
would start, waits until they say that they are ready, and sees to it that none of them outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _environment import Failure, clean_environ

HOST = "127.0.0.1"
COORDINATOR_READY_S = 30.0
# The engine may first have to read its model from a cold disk.
PROVIDER_READY_S = 120.0
SETTING_UP_S = 60.0
STATUS_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.2
# A node says goodbye to its peers and stops its engine; what has not ended by then is killed.
STOPPING_S = 10.0

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Arguments:
    """What the command line asked for."""

    ask: str | None
    port: int
    p2p_port: int
    home: Path
    json: bool


def parse(words: list[str]) -> Arguments:
    """Read the command line; leaves the process on `--help` and on what it cannot read."""
    parser = argparse.ArgumentParser(
        prog="scripts/up",
        description="Start a whole market on this machine: a coordinator, and a provider with a small real model.",
        epilog="The first run installs everything into .venv and fetches the model. Ctrl-C ends all of it.",
    )
    parser.add_argument(
        "--ask", metavar="QUESTION", help="ask this from a second node over libp2p, print the answer, end"
    )
    parser.add_argument("--port", type=port, default=8080, help="the coordinator's port (default: 8080)")
    parser.add_argument("--p2p-port", type=port, default=46337, help="the provider's libp2p port (default: 46337)")
    parser.add_argument(
        "--home", type=Path, default=default_home(), help="where keys and state lie (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parsed = parser.parse_args(words)
    if parsed.ask is not None and not parsed.ask.strip():
        parser.error("--ask needs a question")
    return Arguments(parsed.ask, parsed.port, parsed.p2p_port, parsed.home.expanduser().absolute(), parsed.json)


def port(word: str) -> int:
    """A TCP port from the command line."""
    number = int(word)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def default_home() -> Path:
    """Beside a real node's state, in a folder of its own, so that trying things out never touches that node."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "infernet" / "up"


def require_free(number: int, option: str, what: str, *hosts: str) -> None:
    """Raise `Failure` when another program listens on a port that we are about to use."""
    for host in hosts:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, number))
            except OSError as error:
                raise Failure(
                    f"{what} cannot use port {number} ({os.strerror(error.errno or 0).lower()}): "
                    f"stop the program that has it, or choose another with {option} {number + 1}"
                ) from None


@dataclass(frozen=True)
class Child:
    """One process of the market, in a session of its own, and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_running(self) -> None:
        """Raise `Failure` with its last words when it has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()
            raise Failure(f"the {self.name} ended: {lines[-1] if lines else 'it said nothing'} (log: {self.log})")

    def stop(self) -> None:
        """Ask it to end and wait; then kill what is left of it and of everything that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOPPING_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Market:
    """The commands of this checkout's environment, each with a home of its own below one folder."""

    home: Path
    bin: Path

    def environ(self, role: str) -> dict[str, str]:
        """The environment variables under which one of the programs runs."""
        inherited = {name: value for name, value in clean_environ().items() if not name.startswith("INFERNET_")}
        return inherited | {"INFERNET_HOME": str(self.home / role)}

    def run(self, role: str, *words: str, timeout_s: float) -> str:
        """Run `infernet` to its end and return its standard output. Raises `Failure` with its complaint."""
        command = [str(self.bin / "infernet"), *words]
        try:
            done = subprocess.run(
                command, env=self.environ(role), capture_output=True, text=True, check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"`infernet {words[0]}` did not end within {timeout_s:.0f} s") from None
        if done.returncode != 0:
            complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Failure(f"`infernet {words[0]}` failed: {complaint[-1] if complaint else done.returncode}")
        return done.stdout

    @contextlib.contextmanager
    def child(self, name: str, role: str, *command: str) -> Iterator[Child]:
        """Start a program for as long as the block lasts."""
        log = self.home / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(self.bin / command[0]), *command[1:]],
                env=self.environ(role),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches this command alone, which then ends the others in order.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        running = Child(name, process, log)
        try:
            yield running
        finally:
            running.stop()


def end_with_parent() -> None:
    """Let the kernel end this process when the command that started it is killed outright (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def ready_line(child: Child) -> dict[str, Any]:
    """The first line of a program's output, which it writes as JSON when it is ready."""
    deadline = time.monotonic() + COORDINATOR_READY_S
    while time.monotonic() < deadline:
        child.require_running()
        for line in child.log.read_text("utf-8", "replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                ready: dict[str, Any] = json.loads(line)
                return ready
        time.sleep(POLL_INTERVAL_S)
    raise Failure(f"the {child.name} was not ready within {COORDINATOR_READY_S:.0f} s (log: {child.log})")


def provider_address(market: Market, child: Child, p2p_port: int) -> str:
    """Wait until the provider serves, and return the multiaddr under which this machine reaches it."""
    deadline = time.monotonic() + PROVIDER_READY_S
    while time.monotonic() < deadline:
        child.require_running()
        with contextlib.suppress(Failure):
            status = json.loads(market.run("provider", "status", "--json", timeout_s=STATUS_TIMEOUT_S))
            for address in status["addresses"]:
                if str(address).startswith(f"/ip4/{HOST}/tcp/{p2p_port}/"):
                    return str(address)
        time.sleep(POLL_INTERVAL_S)
    raise Failure(f"the provider was not ready within {PROVIDER_READY_S:.0f} s (log: {child.log})")
