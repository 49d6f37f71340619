"""M2 for the ledger: killed before any system call, it has every claim that it acknowledged, once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.store import ledger_check
from coordinator.store.db import DATABASE_NAME, open_writer
from coordinator.store.ledger import read_head
from protocol.accounts import cut_uusd
from protocol.ledger import FEE, available
from tests.helpers_journaled_ledger import JOURNAL, check_journal
from tests.helpers_killed_ledger import ENTRIES, FEE_BPS, LEASES, ROUNDS, lease_id, paid_uusd
from tests.helpers_killed_store import TOGETHER
from tests.helpers_kills import Killed, Killer, can_kill
from tests.helpers_ledger import PROVIDER
from tests.helpers_ledger_workload import LedgerWorkload
from tests.helpers_power_cuts import inspect

STEP_ROUNDS = 8
# A step has at most so many commands.
COMMANDS_MAX = 4
BEYOND_THE_END = 1_000_000_000
NIGHTLY_KILLS = 300
SHARES = 3
PAID_UUSD = [paid_uusd(number) for number in range(1, ROUNDS + 1)]


@pytest.fixture(scope="module", autouse=True)
def needs_kills() -> None:
    if not can_kill():
        pytest.skip("processes cannot be followed here: ptrace and seccomp are needed, on x86_64 or aarch64")


@pytest.fixture(scope="module")
def writing() -> Iterator[Killer]:
    with Killer(target="tests.helpers_killed_ledger:write_until_killed") as killer:
        yield killer


@pytest.fixture(scope="module")
def claiming() -> Iterator[Killer]:
    with Killer(target="tests.helpers_killed_ledger:claim_until_killed") as killer:
        yield killer


@pytest.fixture
def home() -> Iterator[Path]:
    """In memory where there is such a place, because a kill, unlike a power cut, leaves the kernel's pages alone."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="kills-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def opened(home: Path) -> closing[sqlite3.Connection]:
    return closing(open_writer(home / DATABASE_NAME))


def said(killed: Killed) -> list[Any]:
    """What was acknowledged; the log goes to the same place."""
    lines = [json.loads(line) for line in killed.lines if line.startswith("[")]
    assert not any(line[0] == "broken" for line in lines), lines
    return lines


def empty(home: Path) -> None:
    for path in home.iterdir():
        path.unlink()


# ---------------------------------------------------------------- any transaction of the ledger


def look_at_steps(home: Path, acknowledged: list[Any]) -> None:
    """Everything acknowledged, in database and journal; beyond it, at most what was on its way."""
    last = max((each[1] for each in acknowledged), default=0)
    with opened(home) as connection:
        inspect(connection, LedgerWorkload(), acknowledged)
        assert read_head(connection).entry <= max(last, 3) + COMMANDS_MAX * TOGETHER
        check_journal(home / JOURNAL, connection, last)


def kill_while_writing(killer: Killer, home: Path, seed: int, call: int) -> Killed:
    killed = killer.call([str(home), seed, STEP_ROUNDS], call)
    look_at_steps(home, said(killed))
    empty(home)
    return killed


@pytest.mark.slow
def test_a_ledger_killed_at_any_system_call_has_what_it_acknowledged(writing: Killer, home: Path) -> None:
    whole = kill_while_writing(writing, home, 1, BEYOND_THE_END)
    assert not whole.was_killed
    assert len(whole.lines) > 2 * STEP_ROUNDS
    killed = [kill_while_writing(writing, home, 1, call) for call in range(1, whole.calls, whole.calls // 20)]
    assert sum(each.was_killed for each in killed) >= 18
    assert any(0 < len(said(each)) < len(said(whole)) for each in killed)


@pytest.mark.slow
def test_a_ledger_is_killed_again_and_again_and_goes_on(writing: Killer, home: Path) -> None:
    """The same home each time, with other steps: recoveries of ledger and journal are killed, too."""
    acknowledged: list[Any] = []
    for number in range(12):
        killed = writing.call([str(home), number, STEP_ROUNDS, 1 + 1000 * number], 40 + 67 * number % 400)
        acknowledged += said(killed)
        look_at_steps(home, acknowledged)
    assert len(acknowledged) > 20


# ---------------------------------------------------------------- claims


def look_at_claims(home: Path, acknowledged: list[Any]) -> int:
    """Every claim that was acknowledged, as it was acknowledged. Returns how many entries there are."""
    with opened(home) as connection:
        head = ledger_check.check(connection)
        entries = dict(connection.execute("SELECT number, head FROM entries").fetchall())
        claimed = dict(connection.execute("SELECT lease, claimed_uusd FROM leases").fetchall())
        best = dict.fromkeys(range(LEASES), 0)
        for lease, uusd, entry, entry_head in acknowledged:
            assert entries.get(entry, b"").hex() == entry_head, "an entry that was acknowledged is another one, or gone"
            best[lease] = max(best[lease], uusd)
        for lease, uusd in best.items():
            found = claimed.get(lease_id(lease), 0)
            assert found >= uusd, f"{uusd} were acknowledged on lease {lease}, and {found} are there"
            assert found <= min((more for more in PAID_UUSD if more > uusd), default=uusd), "one more, on its way"
        check_journal(home / JOURNAL, connection, max((each[2] for each in acknowledged), default=0))
    return head.entry


def look_at_the_end(home: Path) -> None:
    """Each claim was settled once, however often it came."""
    with opened(home) as connection:
        balances = dict(connection.execute("SELECT name, balance FROM accounts").fetchall())
        total, fee = paid_uusd(ROUNDS), cut_uusd(paid_uusd(ROUNDS), FEE_BPS)
        assert balances[available(PROVIDER.node)] == LEASES * (total - fee)
        assert balances[FEE] == LEASES * fee
        assert read_head(connection).entry == ENTRIES


def kill_while_claiming(killer: Killer, home: Path, calls: list[int]) -> list[Killed]:
    """Kill the same coordinator at each of these calls; the provider claims everything anew each time, until all is
    settled.
    """
    killed: list[Killed] = []
    acknowledged: list[Any] = []
    for call in [*calls, BEYOND_THE_END]:
        killed.append(killer.call([str(home)], call))
        acknowledged += said(killed[-1])
        look_at_claims(home, acknowledged)
    assert not killed[-1].was_killed
    look_at_the_end(home)
    empty(home)
    return killed


@pytest.mark.slow
def test_claims_are_settled_once_wherever_the_coordinator_is_killed(claiming: Killer, home: Path) -> None:
    (whole,) = kill_while_claiming(claiming, home, [])
    assert len(said(whole)) == 2 * LEASES * ROUNDS
    killed: list[Killed] = []
    for call in range(1, whole.calls, whole.calls // 12):
        killed += kill_while_claiming(claiming, home, [call, call // 2 + 20])[:-1]
    assert sum(each.was_killed for each in killed) >= 20
    assert any(0 < len(said(each)) < len(said(whole)) for each in killed)


@pytest.mark.nightly
@pytest.mark.parametrize("share", range(SHARES))
def test_ledger_and_intake_killed_hundreds_of_times(writing: Killer, claiming: Killer, home: Path, share: int) -> None:
    wanted = NIGHTLY_KILLS // SHARES
    started_s = time.perf_counter()
    calls = kill_while_writing(writing, home, share, BEYOND_THE_END).calls
    places = [1 + number * calls // (wanted + 5) for number in range(wanted + 5)]
    written = [kill_while_writing(writing, home, share, call).was_killed for call in places]
    calls = kill_while_claiming(claiming, home, [])[0].calls
    places = [1 + share + number * calls // (wanted + 20) for number in range(wanted + 20)]
    claimed = [
        each.was_killed
        for first, second in zip(places[::2], reversed(places[1::2]), strict=True)
        for each in kill_while_claiming(claiming, home, [first, second])
    ]
    Console(width=120).print(
        f"share {share}: ledger killed {sum(written)} times, intake {sum(claimed)} times, nothing lost or doubled; "
        f"{time.perf_counter() - started_s:.0f} s"
    )
    assert sum(written) >= wanted
    assert sum(claimed) >= wanted
