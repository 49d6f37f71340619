"""What going by way of others costs: an aggregator on the way, and an order that is handed on.

Real processes on loopback. The hop: the same questions go to the same provider directly and through an aggregator, in
turns (AB, BA, ...); the tests' paced engine of 20 tokens/s cannot hide a stall. The handoff: an order to a node that
runs nothing is refused at once without the asker's consent, and with it after another provider has held a slot; what
lies between is what the asker waits longer. `taken` is how long the order for that slot then takes to be acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import trio
from relay import HERE, PACE, STAGGER_S, Worker, WorkerEnded, compare, worker

STREAMS: Final = (1, 4, 16)
TOKENS: Final = 80
# Least ratio of rates, and most milliseconds added before the first token; most milliseconds that a handoff adds.
AIM_RATIO: Final = 0.97
AIM_FIRST_TOKEN_MS: Final = 10.0
AIM_HANDOFF_MS: Final = 500.0


@dataclass(frozen=True)
class Setup:
    """The three processes, connected."""

    provider: Worker
    aggregator: Worker
    asker: Worker

    def cpu_s(self) -> dict[str, float]:
        """The CPU time that each has used so far."""
        times = {}
        for name in ("provider", "aggregator", "asker"):
            used = psutil.Process(getattr(self, name).pid).cpu_times()
            times[name] = used.user + used.system
        return times


@asynccontextmanager
async def started() -> AsyncIterator[Setup]:
    """The processes, each connected to the others and knowing the provider."""
    with tempfile.TemporaryDirectory(prefix="infernet-bench-") as folder:
        async with contextlib.AsyncExitStack() as stack:

            async def start(part: str, *peers: Worker) -> Worker:
                known = [word for peer in peers for word in ("--peer", peer.ready["address"])]
                command = [str(HERE / "_forwarding_node.py"), part, "--home", str(Path(folder) / part), *known]
                return await stack.enter_async_context(worker(*command))

            provider = await start("provider")
            aggregator = await start("aggregator", provider)
            asker = await start("asker", aggregator, provider)
            for each in (aggregator, asker):
                await each.request({"do": "wait"})
            yield Setup(provider, aggregator, asker)


async def measure_hop(setup: Setup, streams: int, repeats: int, tokens: int, numbers: Iterator[int]) -> dict[str, Any]:
    """Ask both ways in turns, and compare."""
    runs: dict[str, list[dict[str, Any]]] = {"direct": [], "relayed": []}
    for turn in range(-1, repeats):
        for way in ("direct", "relayed") if turn % 2 else ("relayed", "direct"):
            request = {
                "do": "ask",
                "forwarded": way == "relayed",
                "streams": streams,
                "max_tokens": tokens,
                "stagger_s": STAGGER_S + 1 / PACE / streams,
                "number": next(numbers) * 1000,
            }
            before = setup.cpu_s()
            run = await setup.asker.request(request)
            after = setup.cpu_s()
            run["cpu_ms_per_token"] = {name: (after[name] - before[name]) / run["tokens"] * 1000 for name in after}
            # The first pair warms caches and connections up.
            if turn >= 0:
                runs[way].append(run)
    return {"streams": streams, **compare(runs), "runs": runs}


async def measure_handoff(setup: Setup, repeats: int) -> dict[str, Any]:
    """What a handoff adds to a refusal."""
    addresses = {name: getattr(setup, name).ready["address"] for name in ("aggregator", "provider")}
    return await setup.asker.request({"do": "hand on", **addresses, "repeats": repeats})


HEADER: Final = (
    "streams   direct  forwarded   ratio   first token  added   gap p95          CPU ms/token\n"
    "           tok/s      tok/s           direct ms      ms   direct/forwarded ms"
)


def hop_line(result: dict[str, Any]) -> str:
    """One result for people."""
    direct, relayed = result["direct"], result["relayed"]
    ratio, added_ms = result["ratio"], result["first_token_added_ms"]
    cpu = "  ".join(f"{name} {value:.2f}" for name, value in relayed["cpu_ms_per_token"].items())
    missed = [
        *(["ratio"] if ratio < AIM_RATIO else []),
        *(["first token"] if added_ms > AIM_FIRST_TOKEN_MS else []),
    ]
    return (
        f"{result['streams']:7} {direct['tokens_per_s']:8.2f} {relayed['tokens_per_s']:10.2f} {ratio:7.4f} "
        f"{direct['first_token_ms']:13.1f} {added_ms:6.1f} {direct['gap_p95_ms']:7.1f} / {relayed['gap_p95_ms']:<7.1f} "
        f"{cpu}" + (f"   MISSES THE AIM: {', '.join(missed)}" if missed else "")
    )


def handoff_line(result: dict[str, Any]) -> str:
    """The handoff for people."""
    missed = "   MISSES THE AIM" if result["added_p95_ms"] > AIM_HANDOFF_MS else ""
    return (
        f"handoff: refused after {result['refused_ms']:.1f} ms, with a slot held after {result['handed_on_ms']:.1f} "
        f"ms; adds {result['added_ms']:.1f} ms (p95 {result['added_p95_ms']:.1f}); the order for the slot is "
        f"acknowledged after {result['taken_ms']:.1f} ms{missed}"
    )


async def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; prints each line as it is known."""
    numbers = itertools.count(1)
    results: dict[str, Any] = {"hop": []}
    async with started() as setup:
        results["handoff"] = await measure_handoff(setup, arguments.handoffs)
        if not arguments.json:
            print(f"{handoff_line(results['handoff'])}\n\n{HEADER}", flush=True)
        for streams in arguments.streams:
            result = await measure_hop(setup, streams, arguments.repeats, arguments.tokens, numbers)
            results["hop"].append(result)
            if not arguments.json:
                print(hop_line(result), flush=True)
        results["forwarded"] = (await setup.aggregator.request({"do": "status"}))["jobs_forwarded"]
    results["ratio_median"] = statistics.median(result["ratio"] for result in results["hop"])
    return results


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench forwarding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", choices=STREAMS, default=list(STREAMS), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs per line (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--handoffs", type=int, default=30, help="orders handed on (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    return parser.parse_args(words)


def main() -> None:
    """Measure and report."""
    arguments = parse(sys.argv[1:])
    try:
        results = trio.run(bench, arguments)
    except WorkerEnded as error:
        sys.exit(f"forwarding: {error}")
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
