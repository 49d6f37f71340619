"""What the owner of a node waits for, and what a node takes that has nothing to do.

Commands from the process's start to its end, beside the interpreter's own; from `infernet start` until the node answers
`status`, until it serves its model, and until it has accepted the first job, which another program of this machine
asks for as soon as it serves; then the CPU and the memory of the node and of its engine, over a minute without a job.
Aims: `--help` below 150 ms, `status` below 300 ms, idle CPU below 1 %.

`--command PATH` measures another `infernet` than the one of this checkout, such as a built binary; `--idle-s` how long
nothing happens; `--runs` how often each command is timed; `--starts` how often the node is started anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from infernet.config import places
from infernet.ipc import client as ipc

PATIENCE_S = 120.0
POLL_S = 0.02
MODELS = Path(__file__).resolve().parents[2] / ".cache" / "models"
QUESTION = "What is the capital of France?"
SETTINGS = ("--no-mdns", "--listen-hosts=127.0.0.1", "--p2p-port=0", "--free-for=all")
BARE = "python -c ''"


@dataclass(frozen=True)
class Owner:
    """A command line, and a home of its own."""

    command: str
    home: Path

    def process(self, *words: str) -> subprocess.Popen[str]:
        """A verb as a process; what it prints is there to be read."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERNET_")}
        environ |= {"INFERNET_HOME": str(self.home)}
        return subprocess.Popen(
            [self.command, *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> str:
        """Run a verb to its end; its output. Raises CalledProcessError."""
        with self.process(*words) as process:
            out, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        return out

    def status(self) -> dict[str, Any] | None:
        """What the node says of itself over its socket, which costs less than a command; None while it says nothing."""
        with contextlib.suppress(ipc.IpcError):
            status: dict[str, Any] = ipc.call(places({"INFERNET_HOME": str(self.home)}).socket_path, "status")
            return status
        return None


def times_ms(run: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of wall clock of each run but the first, which fills caches."""
    taken = []
    for _ in range(runs + 1):
        started_s = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started_s) * 1000)
    return taken[1:]


@dataclass
class Started:
    """A node that was started, and when."""

    owner: Owner
    started_s: float

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> float:
        """Seconds from the start of the node until its status is so. Ends this program where it never is."""
        while not ((status := self.owner.status()) and condition(status)):
            if time.perf_counter() - self.started_s > PATIENCE_S:
                raise SystemExit(f"the node {what} not within {PATIENCE_S:.0f} s: {status}")
            time.sleep(POLL_S)
        return time.perf_counter() - self.started_s


@contextlib.contextmanager
def running_node(owner: Owner) -> Iterator[Started]:
    """A node with the starter model."""
    models = owner.home / "data" / "models"
    models.parent.mkdir(parents=True)
    models.symlink_to(MODELS)
    owner.run("init", "--yes", "--role=provider", *SETTINGS)
    started = Started(owner, time.perf_counter())
    try:
        owner.run("start")
        yield started
    finally:
        owner.run("stop")


def one_start(command: str, home: Path, idle_s: float, runs: int) -> dict[str, Any]:
    """Start a node, have it asked, and leave it alone."""
    owner, asker = Owner(command, home / "owner"), Owner(command, home / "asker")
    asker.run("init", "--yes", "--role=client", "--no-advertise", "--no-mdns", "--allow-private")
    with running_node(owner) as node:
        answers_s = node.until(lambda _: True, "answers")
        serves_s = node.until(lambda status: status["models"], "serves its model")
        words = ("chat", "--json", "--temperature=0", "--max-tokens=8", f"--peer={_address(owner)}", QUESTION)
        with asker.process(*words) as asking:
            accepted_s = node.until(lambda status: status["counts"]["jobs"]["taken"], "accepts a job")
            answer = json.loads(asking.communicate(timeout=PATIENCE_S)[0])
        status_ms = times_ms(lambda: owner.run("status"), runs) if runs else []
        pid = int((owner.status() or {})["pid"])
        return {
            "answers_s": answers_s,
            "serves_s": serves_s,
            "first_job_s": accepted_s,
            "first_token_s": float(answer["first_token_s"]),
            "status_ms": status_ms,
            "idle": list(idle(pid, idle_s)),
        }


def _address(owner: Owner) -> str:
    (address, *_) = (owner.status() or {})["addresses"]
    return str(address)


def idle(pid: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Name, percent of one core and MiB of the node and of each process that it started, while nothing happens."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(seconds)
    names = ["node", *("engine" for _ in processes[1:])]
    for process, name, used_s in zip(processes, names, before, strict=True):
        percent = (sum(process.cpu_times()[:2]) - used_s) / seconds * 100
        yield {"process": name, "cpu_percent": percent, "rss_mib": process.memory_info().rss / 2**20}


def measure(command: str, runs: int, starts: int, idle_s: float) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="infernet-bench-") as folder:
        first = Owner(command, Path(folder) / "commands")
        commands = {BARE: times_ms(lambda: subprocess.run([sys.executable, "-c", ""], check=True), runs)}
        for words in (("--help",), ("version",)):
            commands[f"infernet {' '.join(words)}"] = times_ms(partial(first.run, *words), runs)
        # The first one also asks for the status, again and again.
        nodes = [one_start(command, Path(folder) / str(at), idle_s, runs * (at == 0)) for at in range(starts)]
    commands["infernet status"] = nodes[0]["status_ms"]
    return {"commands_ms": commands, "starts": nodes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench owner", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--command", default=str(Path(sys.executable).with_name("infernet")), help="what to measure")
    parser.add_argument("--idle-s", type=float, default=60.0, help="seconds without a job (default: 60)")
    parser.add_argument("--runs", type=int, default=20, help="of each command (default: 20)")
    parser.add_argument("--starts", type=int, default=3, help="of the node, each in a new home (default: 3)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    wanted = parser.parse_args()
    found = measure(str(Path(wanted.command).absolute()), wanted.runs, wanted.starts, wanted.idle_s)
    if wanted.json:
        print(json.dumps(found, indent=2))
    else:
        show(found, wanted.idle_s)


def show(found: dict[str, Any], idle_s: float) -> None:
    """For people: of each figure the least, the median and the most."""
    bare = min(found["commands_ms"][BARE])
    for name, taken in found["commands_ms"].items():
        print(f"{name:36} {_spread(taken, 'ms')}   fastest is {min(taken) / bare:.1f} times a bare interpreter's")
    starts = found["starts"]
    for name, key in (("answers", "answers_s"), ("serves its model", "serves_s"), ("first job", "first_job_s")):
        print(f"{'infernet start, until: ' + name:36} {_spread([start[key] for start in starts], 's', 2)}")
    print(
        f"{'first token of that job, for its asker':36} {_spread([start['first_token_s'] for start in starts], 's', 2)}"
    )
    for at, first in enumerate(starts[0]["idle"]):
        same = [start["idle"][at] for start in starts]
        name = f"{first['process']}, {idle_s:.0f} s without a job"
        print(f"{name:36} {_spread([each['cpu_percent'] for each in same], '% of a core', 2)}")
        print(f"{'':36} {_spread([each['rss_mib'] for each in same], 'MiB')}")


def _spread(values: list[float], unit: str, digits: int = 0) -> str:
    least, middle, most = min(values), statistics.median(values), max(values)
    return f"{middle:8.{digits}f} {unit} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
