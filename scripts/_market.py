"""A whole market on one machine: the coordinator and a provider as processes of their own, and perhaps one question.

`scripts/up` runs this inside its environment. It knows nothing of the network: it starts the commands that a person
would start, waits until they say that they are ready, and sees to it that none of them outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from _environment import Failure, clean_environ, run_main, step

HOST = "127.0.0.1"
COORDINATOR_READY_S = 30.0
# The engine may first have to read its model from a cold disk.
PROVIDER_READY_S = 120.0
SETTING_UP_S = 60.0
STATUS_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.2
# A node says goodbye to its peers and stops its engine; what has not ended by then is killed.
STOPPING_S = 10.0

BAR_CHARACTERS = 30
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
        status = self.process.poll()
        if status is not None and status < 0:
            raise Failure(f"the {self.name} was killed (signal {-status}); log: {self.log}")
        if status is not None:
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

    def make_node(self, role: str, *settings: str) -> None:
        """Have a node that is configured so; its key stays what it is."""
        self.run(role, "init", *settings, "--yes", timeout_s=SETTING_UP_S)

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
    """What a program says about itself, in one line of JSON, when it is ready."""
    deadline = time.monotonic() + COORDINATOR_READY_S
    while time.monotonic() < deadline:
        child.require_running()
        for line in child.log.read_text("utf-8", "replace").splitlines(keepends=True):
            if line.startswith('{"url"') and line.endswith("\n"):
                ready: dict[str, Any] = json.loads(line)
                return ready
        time.sleep(POLL_INTERVAL_S)
    raise Failure(f"the {child.name} was not ready within {COORDINATOR_READY_S:.0f} s (log: {child.log})")


def wait_until_serving(market: Market, coordinator: Child, provider: Child, show: Callable[[str], None]) -> str:
    """Wait until the provider has its model and its link, and return the multiaddr that this machine reaches it by."""
    deadline = time.monotonic() + PROVIDER_READY_S
    while time.monotonic() < deadline:
        coordinator.require_running()
        provider.require_running()
        try:
            status = json.loads(market.run("provider", "status", "--json", timeout_s=STATUS_TIMEOUT_S))
        except Failure:
            show("starting")  # it does not answer yet
        else:
            engine, link = status["engine"]["state"], status["coordinator"]["state"]
            show(f"engine {engine}, coordinator {link}")
            if engine == "ready" and link == "connected":
                return next(str(a) for a in status["addresses"] if str(a).startswith(f"/ip4/{HOST}/"))
        time.sleep(POLL_INTERVAL_S)
    raise Failure(f"the provider was not ready within {PROVIDER_READY_S:.0f} s (log: {provider.log})")


def fetch_model(store: Path) -> None:
    """Have the starter model in the provider's store; a file that is there is checked."""
    # Only the environment has it, and the command line is read without one.
    from infernet.engines.models import STARTER, ModelError
    from infernet.engines.starter import fetch_starter

    with step(f"Model {STARTER.name}") as show:
        try:
            fetch_starter(store, lambda done, total: show(progress_bar(done, total)))
        except ModelError as error:
            raise Failure(str(error)) from None


def progress_bar(done: int, total: int | None) -> str:
    """How much of a download has come, drawn as far as the total is known."""
    if not total:
        return f"{done / 1e6:.0f} MB"
    filled = BAR_CHARACTERS * min(done, total) // total
    return f"[{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}] {done / 1e6:.0f} of {total / 1e6:.0f} MB"


@contextlib.contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Keep other markets out of a home, whose logs and ports they would take for their own. Raises `Failure`."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"another scripts/up runs in {home}: end it, or give this one --home DIRECTORY and ports of its own"
            ) from None
        yield


@contextlib.contextmanager
def serving(arguments: Arguments, market: Market) -> Iterator[tuple[str, str, list[Child]]]:
    """Coordinator and provider for as long as the block lasts: the web address, the multiaddr, and the processes."""
    port, p2p_port = str(arguments.port), str(arguments.p2p_port)
    with contextlib.ExitStack() as stack:
        with step(f"Coordinator on {HOST}:{port}"):
            home = str(market.home / "coordinator")
            command = ("infernet-coordinator", "--host", HOST, "--port", port, "--home", home, "--json")
            coordinator = stack.enter_context(market.child("coordinator", "coordinator", *command))
            ready = ready_line(coordinator)
        with step(f"Provider on port {p2p_port}") as show:
            settings = ("--role", "provider", "--url", ready["url"], "--coordinator-key", ready["key"])
            market.make_node("provider", *settings, "--p2p-port", p2p_port, "--name", "up")
            provider = stack.enter_context(market.child("provider", "provider", "infernet", "start", "--foreground"))
            multiaddr = wait_until_serving(market, coordinator, provider, show)
        yield str(ready["url"]), multiaddr, [coordinator, provider]


def ask(arguments: Arguments, market: Market, multiaddr: str) -> int:
    """Ask from a node of its own, over libp2p; its output is this command's, and so is its exit status."""
    # The likeliest words, so that the same question gets the same answer: a model this small is easily led astray.
    command = [str(market.bin / "infernet"), "chat", "--peer", multiaddr, "--temperature", "0"]
    if arguments.json:
        command.append("--json")
    command += ["--", str(arguments.ask)]
    sys.stdout.flush()
    return subprocess.run(command, env=market.environ("asker"), check=False).returncode


def announce(arguments: Arguments, market: Market, url: str, multiaddr: str) -> None:
    """Say what is there now and what to do with it."""
    if arguments.json:
        print(
            json.dumps({"url": url, "chat": f"{url}/chat", "multiaddr": multiaddr, "home": str(market.home)}),
            flush=True,
        )
        return
    infernet = market.bin / "infernet"
    if infernet.is_relative_to(Path.cwd()):
        infernet = infernet.relative_to(Path.cwd())
    print(
        f"""
  Chat page     {url}/chat
  Node          {multiaddr}

  Ask it peer to peer:
    {infernet} chat --temperature 0 --peer {multiaddr} "What is the capital of France?"
  See what it is doing:
    INFERNET_HOME={market.home / "provider"} {infernet} status

  Logs are in {market.home}. Ctrl-C ends everything.""",
        flush=True,
    )


def watch(children: list[Child]) -> NoReturn:
    """Wait for the first of them to end, which none of them should. Raises `Failure` then."""
    while True:
        for child in children:
            child.require_running()
        time.sleep(POLL_INTERVAL_S)


class Stopped(BaseException):
    """Somebody asked this command to end."""


def end_on(number: int, _frame: FrameType | None) -> None:
    """Signal handler: leave through every `finally`, so that nothing is left running."""
    # From here on only the ending runs, and nobody interrupts that; it has a deadline of its own.
    for name in ENDING_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    raise Stopped(number)


def main() -> int:
    """Start everything; ask, or wait for Ctrl-C."""
    arguments = parse(sys.argv[1:])
    market = Market(arguments.home, Path(sys.executable).parent)
    for name in ENDING_SIGNALS:
        signal.signal(name, end_on)
    try:
        require_free(arguments.port, "--port", "the coordinator", HOST)
        require_free(arguments.p2p_port, "--p2p-port", "the provider", "0.0.0.0")
        make_home(market.home)
        fetch_model(market.home / "provider" / "data" / "models")
        with alone_in(market.home), serving(arguments, market) as (url, multiaddr, children):
            if arguments.ask is not None:
                return ask(arguments, market, multiaddr)
            announce(arguments, market, url, multiaddr)
            watch(children)
    except Stopped as stopped:
        (number,) = stopped.args
        print("\nEnded.", file=sys.stderr)
        # Asking for the market and then ending it is success; ending a question is not.
        return 0 if arguments.ask is None and number == signal.SIGINT else 128 + int(number)


def make_home(home: Path) -> None:
    """Have the folder of all state, this user's alone. Raises `Failure`."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / "provider.log"
        probe.open("ab").close()
    except OSError as error:
        raise Failure(f"cannot write to {home} ({error.strerror}): choose another folder with --home") from None


if __name__ == "__main__":
    sys.exit(run_main(main, "up"))
