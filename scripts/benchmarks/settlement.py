"""How many claims a second the coordinator settles on disk, and how long one waits, beside what the disk alone allows.

A claim carries two signatures, the provider's and the payer's; both are checked, the ledger's rows are written with
`synchronous=FULL` and appended to the journal, and one acknowledgement is signed for all claims of one provider that
came together. The figures beside it come from the same run: a bare loop that inserts as many bytes into one table in
groups of the same size, a bare commit of one row, and how many claims the checks alone would allow on all cores, if
nothing else took any time. Then the same through a running coordinator, whose providers, in another process, share its
cores: over their links, and over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _figures import quantile

from coordinator import log
from coordinator.config import Config
from coordinator.core.core import wall_clock_ms
from coordinator.core.intake import BATCH_CLAIMS_MAX
from coordinator.core.settlement import Settlement
from coordinator.identity import load_or_create_key
from coordinator.store.db import PRAGMAS, Database, open_database
from coordinator.store.journal import Journal, JournalFollower
from coordinator.store.ledger_check import check_file
from protocol.codec import encode_value
from protocol.envelope import SigningKey, sign_record, verify
from protocol.ids import JobId, LeaseId, NodeId
from protocol.ledger import Deposit, Entry, OpenLease
from protocol.link import split_claims
from protocol.money_records import ClaimRecord, VoucherRecord
from protocol.records import Signed

HERE: Final = Path(__file__).resolve().parent
LEASES: Final = 500
PROVIDERS: Final = 50
CAP_UUSD: Final = 10**9
ENTRY_BYTES: Final = 500
SIGNATURES: Final = 2_000
UNDER_WAY: Final = 4096
WARM_UP: Final = 2_000
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True)
class Figures:
    """What one run gave."""

    claims: int
    claims_per_s: float
    single_claims_per_s: float
    bare_rows_per_s: float
    #: Of the two before: how much of what the disk allows is left after signatures and rules.
    ratio: float
    cpu_us_per_claim: float
    #: Two verified: microseconds of one core. One is made for all claims of a frame.
    signatures_us_per_claim: float
    signatures_allow_per_s: float
    rate_per_s: int
    wait_p50_ms: float
    wait_p99_ms: float
    bare_commit_p99_ms: float
    entries_checked: int
    check_s: float
    link_claims_per_s: float = 0.0
    http_claims_per_s: float = 0.0


class Market:
    """Leases with a lot of money in them, and claims on them that each say something new."""

    def __init__(self, rng: random.Random) -> None:
        self._providers = [SigningKey(rng.randbytes(32), rng.randbytes) for _ in range(PROVIDERS)]
        self._payers = [SigningKey(rng.randbytes(32), rng.randbytes) for _ in range(LEASES)]
        self._leases = [LeaseId(rng.randbytes(32)) for _ in range(LEASES)]
        self._number = 0

    async def open(self, database: Database, settlement: Settlement) -> None:
        """Lock the money."""
        now_ms, client = wall_clock_ms(), self._providers[0].node

        def write(tx: sqlite3.Connection) -> None:
            with settlement.ledger.begin(tx) as ledger:
                ledger.command(Deposit("bench", client, "BTC", 1, LEASES * CAP_UUSD, 0), now_ms)
                for number, (lease, payer) in enumerate(zip(self._leases, self._payers, strict=True)):
                    provider = self._providers[number % PROVIDERS].node
                    command = OpenLease(
                        lease=lease,
                        client=client,
                        day=None,
                        payer=payer.node,
                        provider=provider,
                        relay=None,
                        relay_bps=0,
                        fee_bps=100,
                        cap_uusd=CAP_UUSD,
                        serve_until_ms=now_ms + HOUR_MS,
                        claim_by_ms=now_ms + 2 * HOUR_MS,
                        request=Signed(b"bench", bytes(64)),
                    )
                    assert isinstance(ledger.command(command, now_ms), Entry)

        await database.write(write)

    def claims(self, count: int) -> list[tuple[SigningKey, Signed]]:
        """So many claims, and who sends each; of one lease in order."""
        return [self._claim() for _ in range(count)]

    def _claim(self) -> tuple[SigningKey, Signed]:
        self._number += 1
        at = self._number % LEASES
        provider, payer, lease = self._providers[at % PROVIDERS], self._payers[at], self._leases[at]
        voucher = sign_record(
            VoucherRecord(
                *(1, lease, payer.node, self._number, 100 * self._number, JobId(bytes(16)), 1, 8, 64, bytes(32), ())
            ),
            payer,
        )
        return provider, sign_record(
            ClaimRecord(1, provider.node, lease, voucher, None, 0, wall_clock_ms(), ()), provider
        )


async def one_by_one(settlement: Settlement, claims: list[tuple[SigningKey, Signed]]) -> float:
    """All at once, each by itself: seconds."""
    started_s = time.perf_counter()
    waiting = asyncio.Semaphore(UNDER_WAY)

    async def send(provider: SigningKey, signed: Signed) -> None:
        async with waiting:
            assert isinstance(await settlement.claim(provider.node, signed), Signed)

    await asyncio.gather(*(send(provider, signed) for provider, signed in claims))
    return time.perf_counter() - started_s


async def in_frames(settlement: Settlement, claims: list[tuple[SigningKey, Signed]]) -> float:
    """All at once, those of each provider in the frames in which a link brings them: seconds."""
    by_provider: dict[SigningKey, list[Signed]] = {}
    for provider, signed in claims:
        by_provider.setdefault(provider, []).append(signed)
    started_s = time.perf_counter()

    async def send(provider: SigningKey, signed: list[Signed]) -> None:
        for frame in split_claims(signed):
            outcomes = await settlement.claim_many(provider.node, frame)
            assert all(isinstance(outcome, Signed) for outcome in outcomes)

    await asyncio.gather(*(send(provider, signed) for provider, signed in by_provider.items()))
    return time.perf_counter() - started_s


async def steady(settlement: Settlement, claims: list[tuple[SigningKey, Signed]], rate_per_s: int) -> list[float]:
    """One every so often, whether or not those before are done: how long each waited, in milliseconds."""
    loop = asyncio.get_running_loop()
    waits_ms: list[float] = []

    async def one(provider: SigningKey, signed: Signed, due_s: float) -> None:
        await settlement.claim(provider.node, signed)
        waits_ms.append(1000 * (loop.time() - due_s))

    begun_s = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, (provider, signed) in enumerate(claims):
            due_s = begun_s + number / rate_per_s
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            group.create_task(one(provider, signed, due_s))
    return waits_ms


def bare(folder: Path, run: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run something on a database with the same settings and one table."""
    with closing(sqlite3.connect(folder / "bare.sqlite3", isolation_level=None)) as connection:
        for name, wanted, _ in PRAGMAS:
            connection.execute(f"PRAGMA {name} = {wanted}")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, body BLOB) STRICT")
        return run(connection)


def bare_groups(connection: sqlite3.Connection, rows: int) -> float:
    """Rows a second, in groups as large as ours can be."""
    body, started_s = bytes(ENTRY_BYTES), time.perf_counter()
    for start in range(0, rows, BATCH_CLAIMS_MAX):
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(min(BATCH_CLAIMS_MAX, rows - start)):
            connection.execute("INSERT INTO rows (body) VALUES (?)", (body,))
        connection.execute("COMMIT")
    return rows / (time.perf_counter() - started_s)


def bare_commits(connection: sqlite3.Connection, commits: int) -> list[float]:
    """How long commits of one row take, in milliseconds."""
    times_ms = []
    for _ in range(commits):
        started_s = time.perf_counter()
        connection.execute("INSERT INTO rows (body) VALUES (?)", (bytes(ENTRY_BYTES),))
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms


def seconds_of_signatures(rng: random.Random) -> float:
    """What the signatures of a claim cost one core: the provider's and the payer's verified."""
    key, body = SigningKey(rng.randbytes(32), rng.randbytes), rng.randbytes(200)
    signature = key.sign("bench", body)
    started_s = time.process_time()
    for _ in range(SIGNATURES):
        verify(key.node, "bench", body, signature)
        verify(key.node, "bench", body, signature)
    return (time.process_time() - started_s) / SIGNATURES


def write_claims(path: Path, claims: list[tuple[SigningKey, Signed]]) -> None:
    """For the providers' process: each one's key, and what it claims."""
    rows: dict[SigningKey, list[str]] = {}
    for provider, signed in claims:
        rows.setdefault(provider, []).append(encode_value(signed).hex())
    path.write_text(
        json.dumps([{"secret": key.secret_bytes().hex(), "claims": claims} for key, claims in rows.items()]), "utf-8"
    )


def send(url: str, key: NodeId, path: Path, *words: str) -> float:
    """Have the providers claim what the file says: seconds from when all were connected."""
    command = [sys.executable, str(HERE / "_settlement_providers.py"), url, key.hex(), str(path), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as providers:
        assert providers.stdin is not None
        assert providers.stdout is not None
        if providers.stdout.readline() == "ready\n":
            providers.stdin.write("\n")
            providers.stdin.flush()
        seconds = providers.stdout.readline()
    if providers.returncode:
        raise SystemExit("the providers could not claim; the reason stands above")
    return float(seconds)


async def prepare(home: Path, path: Path, claims: int, http_claims: int, rng: random.Random) -> NodeId:
    """Fill the ledger of a coordinator that does not run yet, and write what is claimed of it; returns its key."""
    key, database = load_or_create_key(home), open_database(home)
    settlement = Settlement(Config(home=str(home)), key, database, wall_clock_ms, lambda _node, _wish: None)
    market = Market(rng)
    await market.open(database, settlement)
    write_claims(path.with_suffix(".link"), market.claims(claims))
    write_claims(path.with_suffix(".http"), market.claims(http_claims))
    settlement.close()
    await database.close()
    return key.node


def served(folder: Path, claims: int, seed: int) -> tuple[float, float]:
    """Claims a second of a running coordinator, over links and over HTTP."""
    home, path, http_claims = folder / "served", folder / "claims", max(PROVIDERS, claims // 10)
    home.mkdir(mode=0o700)
    key = asyncio.run(prepare(home, path, claims, http_claims, random.Random(seed)))
    command = [
        sys.executable,
        "-m",
        "coordinator",
        "--port",
        "0",
        "--json",
        "--log-level",
        "error",
        "--home",
        str(home),
    ]
    with subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        try:
            url = json.loads(coordinator.stdout.readline())["url"]
            link_s = send(url, key, path.with_suffix(".link"))
            http_s = send(url, key, path.with_suffix(".http"), "--http")
        finally:
            coordinator.terminate()
    return claims / link_s, http_claims / http_s


async def measure(folder: Path, claims: int, rate_per_s: int, seconds: int, seed: int) -> Figures:
    """Burst and steady run on one ledger, the bare figures before and after, and the ledger's check at the end."""
    rng = random.Random(seed)
    key = SigningKey(rng.randbytes(32), rng.randbytes)
    before = bare(folder, lambda connection: bare_groups(connection, claims))
    database = open_database(folder)
    settlement = Settlement(Config(home=str(folder)), key, database, wall_clock_ms, lambda _node, _wish: None)
    journal = Journal(folder / "ledger.journal")
    database.follower = JournalFollower(journal, settlement.stop_because, settlement.pause_because)
    market = Market(rng)
    await market.open(database, settlement)
    # The first full batches start what checks them.
    await in_frames(settlement, market.claims(WARM_UP))
    together, single, more = market.claims(claims), market.claims(claims), market.claims(rate_per_s * seconds)
    cpu_s = time.process_time()
    took_s = await in_frames(settlement, together)
    cpu_s = time.process_time() - cpu_s
    single_s = await one_by_one(settlement, single)
    waits_ms = await steady(settlement, more, rate_per_s)
    settlement.close()
    await database.close()
    after = bare(folder, lambda connection: bare_groups(connection, claims))
    commits_ms = bare(folder, lambda connection: bare_commits(connection, 200))
    started_s = time.perf_counter()
    head = check_file(database.path)
    per_s, bare_per_s = claims / took_s, (before + after) / 2
    signatures_s = seconds_of_signatures(rng)
    return Figures(
        claims=claims,
        claims_per_s=per_s,
        single_claims_per_s=claims / single_s,
        bare_rows_per_s=bare_per_s,
        ratio=per_s / bare_per_s,
        cpu_us_per_claim=cpu_s / claims * 1e6,
        signatures_us_per_claim=signatures_s * 1e6,
        signatures_allow_per_s=len(os.sched_getaffinity(0)) / signatures_s,
        rate_per_s=rate_per_s,
        wait_p50_ms=quantile(waits_ms, 0.5),
        wait_p99_ms=quantile(waits_ms, 0.99),
        bare_commit_p99_ms=quantile(commits_ms, 0.99),
        entries_checked=head.entry,
        check_s=time.perf_counter() - started_s,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench settlement", description=__doc__)
    parser.add_argument("--claims", type=int, default=20_000, help="how many at once (default 20000)")
    parser.add_argument("--rate", type=int, default=1_000, help="claims a second of the steady run (default 1000)")
    parser.add_argument("--seconds", type=int, default=10, help="length of the steady run (default 10)")
    parser.add_argument("--folder", help="where the database is made: the disk that is measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    words = parser.parse_args()
    log.configure("error")
    folder = Path(tempfile.mkdtemp(prefix="settlement-", dir=words.folder))
    try:
        figures = asyncio.run(measure(folder, words.claims, words.rate, words.seconds, words.seed))
        link_per_s, http_per_s = served(folder, words.claims, words.seed)
        figures = replace(figures, link_claims_per_s=link_per_s, http_claims_per_s=http_per_s)
    finally:
        shutil.rmtree(folder)
    if words.json:
        print(json.dumps(asdict(figures), indent=2))
        return
    print(
        f"{figures.claims} claims in frames: {figures.claims_per_s:.0f}/s, {figures.cpu_us_per_claim:.0f} us of CPU "
        f"each besides the checks; one by one: {figures.single_claims_per_s:.0f}/s\n"
        f"bare rows {figures.bare_rows_per_s:.0f}/s: ratio {figures.ratio:.3f}\n"
        f"checks alone: {figures.signatures_us_per_claim:.0f} us of CPU each, "
        f"{figures.signatures_allow_per_s:.0f}/s on all cores: ratio "
        f"{figures.claims_per_s / figures.signatures_allow_per_s:.2f}\n"
        f"through a running coordinator: {figures.link_claims_per_s:.0f}/s over links, "
        f"{figures.http_claims_per_s:.0f}/s over HTTP\n"
        f"at {figures.rate_per_s}/s: p50 {figures.wait_p50_ms:.1f} ms, p99 {figures.wait_p99_ms:.1f} ms; "
        f"bare commit p99 {figures.bare_commit_p99_ms:.1f} ms: ratio "
        f"{figures.wait_p99_ms / figures.bare_commit_p99_ms:.1f}\n"
        f"check of {figures.entries_checked} entries: {figures.check_s:.1f} s"
    )


if __name__ == "__main__":
    main()
