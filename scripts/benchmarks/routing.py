"""How long a routing decision takes among many providers, beside the same decision by looking at all of them.

Two sizes of market, one model. In each, decisions by `Router.choose` (a sample, what is known of it, a report of the
decision) take turns with full scans by `Router.explain` (every node), so that both see the same machine. A tenth of the
providers has done jobs for the asker; some are offline or full. Both clocks are given: the thread's own, and the
wall's, which on a busy machine also counts what others did.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from msgspec.structs import replace

from protocol import codec
from protocol.directory import Directory, HeartbeatReader
from protocol.envelope import SigningKey
from protocol.events import Ask, Now
from protocol.experience import Experience
from protocol.ids import JobId, NodeId
from protocol.jobs import default_sampling
from protocol.records import (
    Availability,
    ChatMessage,
    FreePolicy,
    Heartbeat,
    JobRequest,
    Kind,
    ModelOffer,
    Role,
    Signed,
)
from protocol.routing import RouteRequest

SIZES: Final = (2_000, 20_000)
DECISIONS: Final = 2_000
SCANS: Final = 10
NOW_MS: Final = 1_795_000_000_000
MODEL: Final = "tiny-135m"
OFFER: Final = ModelOffer(MODEL, b"\x11" * 32, (Kind.CHAT,), 4096, 4, 0, 0, 0)
REQUEST: Final = RouteRequest(MODEL, Kind.CHAT, context_tokens=512, prompt_bytes=2096, output_tokens=512)
HEARTBEAT: Final = Heartbeat(
    version=1,
    node=NodeId(bytes(32)),
    sequence=1,
    issued_at_ms=NOW_MS,
    expires_at_ms=NOW_MS + 1_800_000,
    role=Role.PROVIDER,
    availability=Availability.AVAILABLE,
    name="bench",
    agent="infernet/bench",
    addresses=("/ip4/192.0.2.1/tcp/46337",),
    gpus=(),
    models=(OFFER,),
    load=0,
    free_policy=FreePolicy.ALL,
    sealing_key=b"\x22" * 32,
    sealed_bytes_max=262_144,
    features=(1, 5),
    coordinators=(),
    extensions=(),
)


@dataclass(frozen=True)
class Figures:
    """What one size of market gave. Times in microseconds."""

    providers: int
    decisions: int
    cpu_p50_us: float
    cpu_p99_us: float
    wall_p50_us: float
    wall_p99_us: float
    scans: int
    scan_cpu_p50_us: float
    #: Of the medians on the thread's clock: how many times as long a full scan takes.
    ratio: float


class Trusted(HeartbeatReader):
    """Checks no signature: 20,000 of them are not what is measured here."""

    def verify(self, entry: object) -> None:
        """Believe it."""


def market(size: int, rng: random.Random) -> Experience:
    """An asker with some experience that knows so many providers."""
    directory = Directory(records_max=size, rng=rng, reader=Trusted())
    nodes = [NodeId(rng.randbytes(32)) for _ in range(size)]
    for node in nodes:
        beat = replace(
            HEARTBEAT,
            node=node,
            load=rng.randrange(9),
            availability=rng.choices((Availability.AVAILABLE, Availability.OFFLINE), (9, 1))[0],
        )
        directory.add(Signed(codec.encode_record(beat), bytes(64)), NOW_MS)
    connected = frozenset(rng.sample(nodes, min(64, size)))
    experience = Experience(
        SigningKey(rng.randbytes(32), rng.randbytes),
        directory,
        rng,
        connected=lambda: connected,
        is_connected=connected.__contains__,
        has_address=lambda _: True,
        spread=lambda *_args, **_kwargs: [],
        reports=True,
    )
    for node in rng.sample(nodes, size // 10):
        for _ in range(rng.randrange(1, 30)):
            experience.reputation.job_done(node, MODEL, NOW_MS)
        experience.reputation.measured(
            node, MODEL, NOW_MS, first_token_s=rng.uniform(0.1, 2), tokens_per_s=rng.uniform(5, 100)
        )
    return experience


def ask(number: int) -> Ask:
    """A job; its prompt is long enough to have a beginning worth remembering."""
    request = JobRequest(messages=(ChatMessage("user", f"{number} " + "word " * 400),))
    return Ask(JobId(number.to_bytes(16, "big")), Kind.CHAT, request, default_sampling(number), 512, MODEL)


def measure(size: int, decisions: int, scans: int, seed: int) -> Figures:
    """Decisions and full scans by turns."""
    router = market(size, random.Random(seed)).router
    cpu_us: list[float] = []
    wall_us: list[float] = []
    scan_us: list[float] = []
    every = max(1, decisions // scans)
    gc.collect()
    for number in range(decisions):
        job, now = ask(number), Now(1000 + number / 100, NOW_MS + number * 10)
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        candidate = router.choose(job, REQUEST, (), now)
        cpu_us.append((time.thread_time() - cpu_s) * 1e6)
        wall_us.append((time.perf_counter() - wall_s) * 1e6)
        assert candidate is not None
        router.forget(job.job)
        if number % every == 0:
            cpu_s = time.thread_time()
            router.explain(REQUEST, now)
            scan_us.append((time.thread_time() - cpu_s) * 1e6)
    scan_p50_us, cpu_p50_us = statistics.median(scan_us), statistics.median(cpu_us)
    return Figures(
        providers=size,
        decisions=decisions,
        cpu_p50_us=cpu_p50_us,
        cpu_p99_us=_p99(cpu_us),
        wall_p50_us=statistics.median(wall_us),
        wall_p99_us=_p99(wall_us),
        scans=len(scan_us),
        scan_cpu_p50_us=scan_p50_us,
        ratio=scan_p50_us / cpu_p50_us,
    )


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench routing", description=__doc__)
    parser.add_argument("--providers", type=int, nargs="+", default=list(SIZES), help="sizes of the market")
    parser.add_argument("--decisions", type=int, default=DECISIONS)
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    words = parser.parse_args()
    figures = [measure(size, words.decisions, words.scans, words.seed) for size in words.providers]
    if words.json:
        print(json.dumps([asdict(each) for each in figures], indent=2))
        return
    print(f"{'providers':>9}  {'decision, CPU':>24}  {'decision, wall':>24}  {'full scan, CPU':>16}  ratio")
    for each in figures:
        cpu = f"p50 {each.cpu_p50_us:.0f}, p99 {each.cpu_p99_us:.0f} us"
        wall = f"p50 {each.wall_p50_us:.0f}, p99 {each.wall_p99_us:.0f} us"
        scan = f"{each.scan_cpu_p50_us / 1000:.1f} ms"
        print(f"{each.providers:9}  {cpu:>24}  {wall:>24}  {scan:>16}  {each.ratio:5.0f}")


if __name__ == "__main__":
    main()
