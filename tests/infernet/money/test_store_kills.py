"""M2 for the node: killed before any system call, its money store has what the node has acted on.

A mark that was told is there, and a provider loses at most the vouchers of one flush, never a better one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from infernet.money.store import MoneyStore
from protocol.envelope import open_record
from protocol.money_records import VoucherRecord
from tests.helpers_killed_money import PAID_LEASES, STEP_UUSD, TICKS, TICKS_LOST_MAX
from tests.helpers_kills import Killed, Killer, can_kill
from tests.helpers_money_store import BANK, voucher
from tests.helpers_records import NOW_MS

BEYOND_THE_END = 1_000_000_000
NIGHTLY_KILLS = 300
LEASES_EACH = 1000


@pytest.fixture(scope="module", autouse=True)
def needs_kills() -> None:
    if not can_kill():
        pytest.skip("processes cannot be followed here: ptrace and seccomp are needed, on x86_64 or aarch64")


@pytest.fixture(scope="module")
def provider() -> Iterator[Killer]:
    with Killer(target="tests.helpers_killed_money:be_paid") as killer:
        yield killer


@pytest.fixture(scope="module")
def asker() -> Iterator[Killer]:
    with Killer(target="tests.helpers_killed_money:work") as killer:
        yield killer


@pytest.fixture
def path() -> Iterator[Path]:
    """In memory where there is such a place, because a kill, unlike a power cut, leaves the kernel's pages alone."""
    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="kills-", dir=memory if memory.is_dir() else None))
    yield home / "money.sqlite3"
    shutil.rmtree(home)


def said(killed: Killed, *kinds: str) -> list[tuple[int, ...]]:
    """The numbers of the lines that begin so."""
    lines = [line.split() for line in killed.lines if line.startswith(kinds)]
    return [tuple(map(int, words)) for _, *words in lines]


def begin_anew(path: Path) -> None:
    for each in path.parent.iterdir():
        each.unlink()


# ---------------------------------------------------------------- what a provider was paid


def best_of(lines: list[tuple[int, ...]]) -> dict[int, int]:
    best = dict.fromkeys(range(1, PAID_LEASES + 1), 0)
    for _, lease, uusd in lines:
        best[lease] = max(best[lease], uusd)
    return best


def kept_vouchers(path: Path) -> dict[int, int]:
    """What the store pays on each lease; each voucher is whole, and what it says is what the rows add up to."""
    kept = dict.fromkeys(range(1, PAID_LEASES + 1), 0)
    store = MoneyStore(path)
    for event in store.restore_providers(BANK.node, NOW_MS):
        assert event.voucher is not None
        record = open_record(event.voucher, VoucherRecord)
        number = int.from_bytes(record.lease)
        assert event.voucher.body == voucher(record.paid_uusd, number).body
        kept[number] = record.paid_uusd
    assert store.totals().unclaimed_uusd == sum(kept.values())
    store.close()
    return kept


def look_at_vouchers(path: Path, killed: Killed, before: dict[int, int]) -> dict[int, int]:
    """Nothing is lost but what the last flush would have written. Returns what is kept."""
    put, flushed = said(killed, "put"), said(killed, "flushed")
    now = max((tick for tick, _, _ in put), default=0)
    safe = max([now - TICKS_LOST_MAX - 1, *(tick for tick, _, _ in flushed)])
    kept = kept_vouchers(path)
    least, most = best_of([line for line in put if line[0] <= safe]), best_of(put)
    for lease, uusd in kept.items():
        assert uusd >= before[lease], f"the best voucher of lease {lease} fell from {before[lease]} to {uusd}"
        assert uusd >= least[lease], f"lease {lease} keeps {uusd} of {least[lease]} that must be on disk at {now}"
        assert uusd <= max(most[lease], before[lease]), "a voucher that nobody has given"
    return kept


def kill_provider(killer: Killer, path: Path, seed: int, call: int) -> Killed:
    killed = killer.call([str(path), seed], call)
    look_at_vouchers(path, killed, best_of([]))
    begin_anew(path)
    return killed


@pytest.mark.slow
def test_a_provider_killed_at_any_system_call_loses_one_flush_at_most(provider: Killer, path: Path) -> None:
    whole = kill_provider(provider, path, 1, BEYOND_THE_END)
    assert not whole.was_killed
    assert len(said(whole, "put")) == 2 * TICKS
    killed = [kill_provider(provider, path, 1, call) for call in range(1, whole.calls, whole.calls // 20)]
    assert sum(each.was_killed for each in killed) >= 18
    assert any(0 < len(each.lines) < len(whole.lines) for each in killed)


@pytest.mark.slow
def test_the_best_voucher_never_falls_however_often_a_provider_is_killed(provider: Killer, path: Path) -> None:
    """Each run begins with lower vouchers, as a peer does that was told of none."""
    kept = best_of([])
    for number in range(10):
        killed = provider.call([str(path), number], 60 + 83 * number % 500)
        kept = look_at_vouchers(path, killed, kept)
    assert all(kept.values())


# ---------------------------------------------------------------- how far an asker may have signed


def look_at_marks(path: Path, told: dict[int, int], kills: int) -> None:
    """Each mark that was told is there, and at most one further for each kill, which was on its way."""
    store = MoneyStore(path)
    kept = {int.from_bytes(each.lease): each.mark_uusd for each in store.payer_leases()}
    store.close()
    for lease, uusd in told.items():
        assert kept.get(lease, -1) in (uusd, uusd + STEP_UUSD), f"lease {lease}: {uusd} told, {kept.get(lease)} kept"
    assert sum(kept[lease] != told.get(lease) for lease in kept) <= kills


def kill_asker(killer: Killer, path: Path, call: int, told: dict[int, int], number: int = 0) -> Killed:
    killed = killer.call([str(path), 1 + LEASES_EACH * number], call)
    assert killed.was_killed
    for lease, uusd in said(killed, "mark"):
        told[lease] = max(uusd, told.get(lease, 0))
    look_at_marks(path, told, number + 1)
    return killed


@pytest.mark.slow
def test_a_mark_that_was_told_is_there_wherever_the_asker_is_killed(asker: Killer, path: Path) -> None:
    lines = 0
    for call in range(1, 600, 30):
        lines += len(kill_asker(asker, path, call, {}).lines)
        begin_anew(path)
    assert lines > 50
    told: dict[int, int] = {}
    for number in range(8):
        kill_asker(asker, path, 30 + 67 * number, told, number)
    assert len(told) > 8


@pytest.mark.nightly
def test_provider_and_asker_killed_hundreds_of_times(provider: Killer, asker: Killer, path: Path) -> None:
    started_s = time.perf_counter()
    calls = kill_provider(provider, path, 2, BEYOND_THE_END).calls
    places = [1 + number * calls // (NIGHTLY_KILLS + 15) for number in range(NIGHTLY_KILLS + 15)]
    killed = sum(kill_provider(provider, path, 2, call).was_killed for call in places)
    for call in range(1, 2 * NIGHTLY_KILLS, 2):
        kill_asker(asker, path, call, {})
        begin_anew(path)
    told: dict[int, int] = {}
    for number in range(30):
        kill_asker(asker, path, 30 + 67 * number % 900, told, number)
    Console(width=120).print(
        f"provider killed {killed} times, asker {NIGHTLY_KILLS + 30} times, nothing lost but one flush of vouchers; "
        f"{time.perf_counter() - started_s:.0f} s"
    )
    assert killed >= NIGHTLY_KILLS
