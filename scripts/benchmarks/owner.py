"""What the owner of a node waits for, and what a node takes that has nothing to do.

Commands from the process's start to its end, beside the interpreter's own; from `infernet start` until the node answers
`status`, until it serves its model, and until the first word of an answer; then the CPU and the memory of the node and
of its engine, over a minute without a job. Aims: `--help` below 150 ms, `status` below 300 ms, idle CPU below 1 %.

`--command PATH` measures another `infernet` than the one of this checkout, such as a built binary; `--idle-s` how long
nothing happens.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RUNS = 20
PATIENCE_S = 120.0
POLL_S = 0.02
MODELS = Path(__file__).resolve().parents[2] / ".cache" / "models"
QUESTION = "What is the capital of France?"
SETTINGS = ("--no-mdns", "--listen-hosts=127.0.0.1", "--p2p-port=0", "--free-for=all")


@dataclass(frozen=True)
class Owner:
    """A command line, and a home of its own."""

    command: str
    home: Path

    def run(self, *words: str) -> str:
        """Run a verb to its end; its output. Raises CalledProcessError."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERNET_")}
        environ |= {"INFERNET_HOME": str(self.home)}
        return subprocess.run(
            [self.command, *words], env=environ, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ).stdout

    def status(self) -> dict[str, Any] | None:
        """What the node says of itself; None while it says nothing."""
        with contextlib.suppress(subprocess.CalledProcessError):
            status: dict[str, Any] = json.loads(self.run("status", "--json"))
            return status if status.get("running", True) else None
        return None

    def times_ms(self, *words: str) -> list[float]:
        """Milliseconds of wall clock of each run."""
        return times_ms(lambda: self.run(*words))


def times_ms(run: Any) -> list[float]:
    """Milliseconds of wall clock of each run but the first, which fills caches."""
    taken = []
    for _ in range(RUNS + 1):
        started_s = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started_s) * 1000)
    return taken[1:]


@contextlib.contextmanager
def running_node(owner: Owner) -> Iterator[tuple[float, float]]:
    """A node with the starter model; seconds from its start until it answered, and until it served."""
    models = owner.home / "data" / "models"
    models.parent.mkdir(parents=True)
    models.symlink_to(MODELS)
    owner.run("init", "--yes", "--role=provider", *SETTINGS)
    started_s = time.perf_counter()
    owner.run("start")
    try:
        answers_s = time.perf_counter() - started_s
        while not (status := owner.status()) or not status["models"]:
            if time.perf_counter() - started_s > PATIENCE_S:
                raise SystemExit(f"the node served nothing within {PATIENCE_S:.0f} s: {status}")
            time.sleep(POLL_S)
        yield answers_s, time.perf_counter() - started_s
    finally:
        owner.run("stop")


def first_answer_s(owner: Owner, asker: Owner) -> tuple[float, float]:
    """Seconds until the first token that the asker's program tells of, and of its whole command."""
    (address, *_) = (owner.status() or {})["addresses"]
    asker.run("init", "--yes", "--role=client", "--no-advertise", "--no-mdns", "--allow-private")
    started_s = time.perf_counter()
    answer = json.loads(asker.run("chat", "--json", "--temperature=0", "--max-tokens=8", f"--peer={address}", QUESTION))
    return float(answer["first_token_s"]), time.perf_counter() - started_s


def idle(pid: int, seconds: float) -> Iterator[tuple[str, float, float]]:
    """Name, percent of one core and MiB of the node and of each process that it started, while nothing happens."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(seconds)
    names = ["node", *(process.cmdline()[-1] for process in processes[1:])]
    for process, name, used_s in zip(processes, names, before, strict=True):
        percent = (sum(process.cpu_times()[:2]) - used_s) / seconds * 100
        yield name, percent, process.memory_info().rss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench owner", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--command", default=str(Path(sys.executable).with_name("infernet")), help="what to measure")
    parser.add_argument("--idle-s", type=float, default=60.0, help="seconds without a job (default: 60)")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infernet-bench-") as folder:
        command = str(Path(wanted.command).absolute())
        owner, asker = Owner(command, Path(folder) / "owner"), Owner(command, Path(folder) / "asker")
        bare = times_ms(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
        show("python -c ''", bare, bare)
        for words in (("--help",), ("version",)):
            show(f"infernet {' '.join(words)}", owner.times_ms(*words), bare)
        with running_node(owner) as (answers_s, serves_s):
            show("infernet status", owner.times_ms("status"), bare)
            first_s, whole_s = first_answer_s(owner, asker)
            print(f"start: answers after {answers_s:.2f} s, serves its model after {serves_s:.2f} s")
            print(f"first answer: first token after {first_s:.2f} s, the whole command took {whole_s:.2f} s")
            pid = int((owner.status() or {})["pid"])
            for name, percent, mib in idle(pid, wanted.idle_s):
                print(f"idle for {wanted.idle_s:.0f} s: {name:16} {percent:5.2f} % of a core   {mib:6.1f} MiB")


def show(name: str, taken: list[float], bare: list[float]) -> None:
    """One line: median and fastest, and how often the interpreter alone would have started."""
    median, fastest = statistics.median(taken), min(taken)
    print(f"{name:20} median {median:6.1f} ms   fastest {fastest:6.1f} ms   ratio {fastest / min(bare):4.1f}")


if __name__ == "__main__":
    main()
