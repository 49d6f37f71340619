"""What streaming through the house costs: tokens/s and time to first token, each beside the engine asked directly.

Every figure is a pair: the same engine process is asked directly inside the provider's process, and through the
network from another process, in turns (AB, BA, ...). Paths: `p2p` is libp2p over loopback between two processes;
`sse` is node, coordinator and an HTTP client. Engines: the real model on one thread, and the tests' paced engine of
20 tokens/s, whose rate cannot hide a stall; `--pace` gives it another one. Questions of one run start a little apart,
so that their tokens do not come in step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import trio

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
MODEL_STORE: Final = ROOT / ".cache" / "models"
STREAMS: Final = {"real": (1, 4), "paced": (1, 16, 64)}
TOKENS: Final = {"real": 96, "paced": 80}
# Between the questions of one run; the fraction of a token's pace spreads the tokens of all streams over time.
STAGGER_S: Final = 1 / 40
PACE: Final = 20.0
PACE_MAX: Final = 1000.0
# path -> least ratio of rates, most milliseconds added before the first token
AIMS: Final = {"p2p": (0.97, 5.0), "sse": (0.95, 10.0)}
START_TIMEOUT_S: Final = 60.0
RUN_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 10.0
PROFILE_LINES: Final = 25


class WorkerEnded(Exception):
    """A process of the benchmark is gone; one line for people."""


class Worker:
    """A process of the benchmark that answers requests; `ready` is what it said when it had started."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffered = b""
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        return await self.answer(RUN_TIMEOUT_S)

    async def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next line that the process writes."""
        assert self._process.stdout is not None
        with trio.fail_after(timeout_s):
            while b"\n" not in self._buffered:
                data = await self._process.stdout.receive_some()
                if not data:
                    raise WorkerEnded("a process of the benchmark ended early: its words stand above")
                self._buffered += data
        line, self._buffered = self._buffered.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """Let it end: those of the benchmark do when their input closes, the coordinator on SIGTERM."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.CancelScope(shield=True), trio.move_on_after(STOP_TIMEOUT_S):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()


@asynccontextmanager
async def worker(*command: str, environ: dict[str, str] | None = None) -> AsyncIterator[Worker]:
    """Start a process for as long as the block lasts, and wait until it is ready."""
    process = await trio.lowlevel.open_process(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
    )
    started = Worker(process)
    try:
        started.ready = await started.answer(START_TIMEOUT_S)
        yield started
        await started.stop()
    finally:
        process.kill()


# ---------------------------------------------------------------- one set of processes


@dataclass(frozen=True)
class Setup:
    """A path and an engine, with its processes running."""

    path: str
    engine: str
    provider: Worker
    asker: Worker
    coordinator: Worker | None

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Every process that takes part, by what it does."""
        node = psutil.Process(self.provider.pid)
        yield "node", node
        for child in node.children():
            yield "engine", child
        yield "asker", psutil.Process(self.asker.pid)
        if self.coordinator is not None:
            yield "coordinator", psutil.Process(self.coordinator.pid)

    def cpu_s(self) -> dict[str, float]:
        """The CPU time that each has used so far."""
        times = {name: process.cpu_times() for name, process in self.processes()}
        return {name: time.user + time.system for name, time in times.items()}


@asynccontextmanager
async def started(path: str, engine: str, streams: int, pace: float, profiles: Path | None) -> AsyncIterator[Setup]:
    """The processes of one path and engine, linked and ready."""
    with tempfile.TemporaryDirectory(prefix="infernet-bench-") as folder:
        home = Path(folder)
        async with contextlib.AsyncExitStack() as stack:
            coordinator = None
            provide = [str(HERE / "_relay_provider.py"), "--engine", engine, "--home", str(home / "node")]
            provide += ["--pace", str(pace)]
            ask = [str(HERE / "_relay_asker.py"), "--home", str(home / "asker"), "--streams", str(streams)]
            if path == "sse":
                coordinator = await stack.enter_async_context(_coordinator(home / "coordinator", profiles))
                provide += [
                    "--coordinator-url",
                    coordinator.ready["url"],
                    "--coordinator-key",
                    coordinator.ready["key"],
                ]
                ask += ["--url", coordinator.ready["url"]]
            provider = await stack.enter_async_context(worker(*provide, *_profile(profiles, "node")))
            if coordinator is None:
                ask += ["--address", provider.ready["address"]]
            else:
                await _linked(provider)
            asker = await stack.enter_async_context(worker(*ask, *_profile(profiles, "asker")))
            yield Setup(path, engine, provider, asker, coordinator)


def _profile(profiles: Path | None, name: str) -> list[str]:
    return ["--profile", str(profiles / name)] if profiles is not None else []


@asynccontextmanager
async def _coordinator(home: Path, profiles: Path | None) -> AsyncIterator[Worker]:
    command = ["-m", "coordinator", "--home", str(home), "--port", "0", "--json", "--log-level", "error"]
    if profiles is not None:
        command = ["-m", "cProfile", "-o", str(profiles / "coordinator"), *command]
    async with worker(*command) as process:
        yield process
        process.terminate()


async def _linked(provider: Worker) -> None:
    """Wait until the node's link to the coordinator stands."""
    with trio.fail_after(START_TIMEOUT_S):
        while True:
            status = await provider.request({"do": "status"})
            if status["coordinator"]["state"] == "connected":
                return
            await trio.sleep(0.05)


# ---------------------------------------------------------------- measuring


async def measure(setup: Setup, streams: int, arguments: argparse.Namespace, numbers: Iterator[int]) -> dict[str, Any]:
    """Ask both ways in turns, and compare."""
    runs: dict[str, list[dict[str, Any]]] = {"direct": [], "relayed": []}
    workers = {"direct": setup.provider, "relayed": setup.asker}
    for turn in range(-1, arguments.repeats):
        order = ("direct", "relayed") if turn % 2 else ("relayed", "direct")
        for way in order:
            request = {
                "do": "ask",
                "streams": streams,
                "max_tokens": arguments.tokens or TOKENS[setup.engine],
                "stagger_s": STAGGER_S + 1 / arguments.pace / streams,
                "number": next(numbers) * 1000,
            }
            before = setup.cpu_s()
            run = await workers[way].request(request)
            after = setup.cpu_s()
            run["cpu_ms_per_token"] = {name: (after[name] - before[name]) / run["tokens"] * 1000 for name in after}
            # The first pair warms caches and connections up.
            if turn >= 0:
                runs[way].append(run)
    return {"path": setup.path, "engine": setup.engine, "streams": streams, **compare(runs), "runs": runs}


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The medians of both ways, and what lies between them: the median over the pairs, not over their medians."""
    pairs = list(zip(runs["direct"], runs["relayed"], strict=True))
    return {
        "direct": _medians(runs["direct"]),
        "relayed": _medians(runs["relayed"]),
        "ratio": statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in pairs),
        "first_token_added_ms": statistics.median(b["first_token_ms"] - a["first_token_ms"] for a, b in pairs),
    }


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    plain = ("tokens", "tokens_per_s", "first_token_ms", "gap_p95_ms")
    medians: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in plain}
    processes = runs[0]["cpu_ms_per_token"]
    medians["cpu_ms_per_token"] = {
        name: statistics.median(run["cpu_ms_per_token"][name] for run in runs) for name in processes
    }
    return medians


# ---------------------------------------------------------------- reporting


HEADER: Final = (
    "path  engine streams   direct  relayed   ratio   first token  added   gap p95      CPU ms/token\n"
    "                        tok/s    tok/s           direct ms      ms   direct/relayed ms"
)


def line(result: dict[str, Any]) -> str:
    """One result for people."""
    direct, relayed = result["direct"], result["relayed"]
    least, most_ms = AIMS[result["path"]]
    ratio, added_ms = result["ratio"], result["first_token_added_ms"]
    cpu = "  ".join(f"{name} {value:.2f}" for name, value in relayed["cpu_ms_per_token"].items())
    missed = [*(["ratio"] if ratio < least else []), *(["first token"] if added_ms > most_ms else [])]
    return (
        f"{result['path']:5} {result['engine']:6} {result['streams']:7} {direct['tokens_per_s']:8.2f} "
        f"{relayed['tokens_per_s']:8.2f} {ratio:7.4f} {direct['first_token_ms']:13.1f} {added_ms:6.1f} "
        f"{direct['gap_p95_ms']:7.1f} / {relayed['gap_p95_ms']:<7.1f} {cpu}"
        + (f"   MISSES THE AIM: {', '.join(missed)}" if missed else "")
    )


def print_profiles(setup: str, folder: Path) -> None:
    """The functions in which each process spent most; on standard error, beside the JSON or the table."""
    print(f"\nProfile of {setup} (the profiler slows everything; the figures above include it)", file=sys.stderr)
    for file in sorted(folder.iterdir()):
        text = io.StringIO()
        pstats.Stats(str(file), stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
        print(f"\n=== {file.name}\n{text.getvalue().strip()}", file=sys.stderr)


async def bench(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that was asked for; prints each line as it is known."""
    results = []
    numbers = itertools.count(1)
    with contextlib.ExitStack() as stack:
        profiles = None
        if arguments.profile:
            profiles = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infernet-profile-")))
        for path, engine in itertools.product(arguments.path, arguments.engine):
            counts = [count for count in STREAMS[engine] if count in arguments.streams]
            if not counts:
                continue
            async with started(path, engine, max(counts), arguments.pace, profiles) as setup:
                for count in counts:
                    result = await measure(setup, count, arguments, numbers)
                    results.append(result)
                    if not arguments.json:
                        print(line(result), flush=True)
            if profiles is not None:
                print_profiles(f"{path}, {engine}", profiles)
    return results


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", choices=AIMS, nargs="+", default=list(AIMS), help="which ways (default: all)")
    parser.add_argument("--engine", choices=STREAMS, nargs="+", default=list(STREAMS), help="(default: both)")
    every = sorted({count for counts in STREAMS.values() for count in counts})
    parser.add_argument(
        "--streams", type=int, choices=every, nargs="+", default=every, help="real: 1 4, paced: 1 16 64 (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs per line (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens per answer (default: 96 real, 80 paced)")
    parser.add_argument(
        "--pace", type=_pace, default=PACE, help=f"tokens/s of the paced engine, to {PACE_MAX:g} (default: {PACE:g})"
    )
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    parser.add_argument("--profile", action="store_true", help="print where each process spends its time")
    return parser.parse_args(words)


def _pace(word: str) -> float:
    pace = float(word)
    if not 1 <= pace <= PACE_MAX:
        raise argparse.ArgumentTypeError(f"it is a number from 1 to {PACE_MAX:g}")
    return pace


def fetch_model() -> None:
    """Have the model where the provider of the benchmark looks for it; leaves the process when that fails."""
    if any(MODEL_STORE.glob("*.gguf")):
        return
    command = [sys.executable, "-m", "infernet.engines.models", "fetch", "--store", str(MODEL_STORE)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit(1)


def main() -> None:
    """Measure and report."""
    arguments = parse(sys.argv[1:])
    if "real" in arguments.engine:
        fetch_model()
    if not arguments.json:
        print(HEADER, flush=True)
    try:
        results = trio.run(bench, arguments)
    except WorkerEnded as error:
        sys.exit(f"relay: {error}")
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
