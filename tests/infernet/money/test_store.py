"""infernet/money/store.py: what was acknowledged is there, whatever happens to the process or its disk."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from infernet.money import store as stores
from infernet.money.store import DiskLost, MoneyStore, MoneyTotals, Rejected
from infernet.store import StoreError
from protocol.book import Book
from protocol.effects import StoreClosing
from protocol.envelope import open_record
from protocol.ledger import Claim, Deposit, Entry, OpenLease, available
from protocol.money_records import VoucherRecord
from tests.helpers_money_store import BANK, CAP_UUSD, claimed, lease, lease_of, mark, paid, request_of, voucher
from tests.helpers_records import ASKER, NOW_MS, PROVIDER


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "money.sqlite3"


def reopened(store: MoneyStore) -> MoneyStore:
    store.close()
    return MoneyStore(store.path)


# ---------------------------------------------------------------- what is kept


def test_a_lease_of_ours_is_there_after_a_restart_with_its_mark_and_its_last_voucher(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([mark(300)])
    store.apply([mark(700, paid_uusd=250)])
    store = reopened(store)
    (event,) = store.restore_payers()
    assert (event.request, event.mark_uusd, event.signed) == (request_of(1), 700, lease())
    assert event.voucher == voucher(250)
    store.apply([mark(250)])
    (event,) = store.restore_payers()
    assert (event.mark_uusd, event.voucher) == (250, voucher(250)), "a mark without a voucher forgets none"
    store.close()


def test_a_lease_given_to_us_is_there_after_a_restart_with_what_it_pays_and_what_was_redeemed(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([paid(90), claimed(40)])
    store = reopened(store)
    (event,) = store.restore_providers(BANK.node, NOW_MS)
    assert (event.signed, event.voucher, event.claimed_uusd) == (lease(), voucher(90), 40)
    assert store.totals() == MoneyTotals(40, 40, 50, 1, 0)
    assert store.restore_providers(PROVIDER.node, NOW_MS) == [], "another coordinator is not asked for it"
    store.close()


def test_a_lower_voucher_never_replaces_a_higher_one(path: Path) -> None:
    store = MoneyStore(path)
    for amount in (50, 90, 20):
        store.apply([paid(amount)])
    assert store.restore_providers(BANK.node, NOW_MS)[0].voucher == voucher(90)
    store.close()


@given(amounts=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=12))
def test_in_whatever_order_states_come_the_best_of_each_stays(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[tuple[int, int]]
) -> None:
    store = MoneyStore(tmp_path_factory.mktemp("money") / "money.sqlite3")
    for paid_uusd, claimed_uusd in amounts:
        store.apply([paid(paid_uusd), claimed(claimed_uusd)])
    (event,) = store.restore_providers(BANK.node, NOW_MS)
    best = max(paid_uusd for paid_uusd, _ in amounts)
    assert event.claimed_uusd == max(claimed_uusd for _, claimed_uusd in amounts)
    assert (open_record(event.voucher, VoucherRecord).paid_uusd if event.voucher else 0) == best
    store.close()


def test_earned_is_what_was_acknowledged_less_the_cuts(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([paid(999, 1, fee_bps=250), claimed(999), paid(500, 2), claimed(500, 2, is_closed=True)])
    assert store.totals() == MoneyTotals(999 - 24 + 500, 1499, 0, 0, 0)
    store.close()


def test_earned_follows_the_ledger_through_many_claims_and_never_falls(path: Path) -> None:
    """The relay's part is what the ledger gives it, and not a second sum of our own."""
    store, book = MoneyStore(path), Book()
    book.command(Deposit("one", ASKER.node, "USDC", 50_000, 50_000, 0), NOW_MS)
    lock = OpenLease(
        *(lease_of(1), ASKER.node, None, ASKER.payer(request_of(1)).node, PROVIDER.node, BANK.node, 3_333, 777, 50_000),
        *(NOW_MS + 1, NOW_MS + 2, lease(1)),
    )
    assert isinstance(book.command(lock, NOW_MS), Entry)
    store.apply([paid(50_000, 1, relay=BANK.node, relay_bps=3_333, fee_bps=777)])
    for total_uusd in (1, 2, 3, 14, 14, 15, 999, 1_000, 777, 49_999, 50_000, 50_000):
        book.command(Claim(lease_of(1), PROVIDER.node, total_uusd, 0, voucher(total_uusd)), NOW_MS)
        acknowledged_uusd = book.leases[lease_of(1)].claimed_uusd
        store.apply([claimed(acknowledged_uusd)])
        assert store.totals().earned_uusd == book.balance(available(PROVIDER.node)), total_uusd
    store.apply([claimed(70)])
    assert store.totals().earned_uusd == book.balance(available(PROVIDER.node)), "a smaller figure takes nothing away"
    store.close()


def test_a_closed_lease_is_taken_up_as_such_and_what_it_did_not_pay_is_told(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([paid(90), claimed(60, is_closed=True)])
    store = reopened(store)
    (event,) = store.restore_providers(BANK.node, NOW_MS)
    assert event.is_closed, "it is remembered for as long as somebody could order under it"
    assert store.restore_providers(BANK.node, NOW_MS + 90_000_000) == []
    assert store.totals() == MoneyTotals(60, 60, 0, 0, 30)
    store.close()


def test_what_was_given_up_and_not_answered_is_redeemed_however_late_the_restart(path: Path) -> None:
    """A node may be down for longer than a lease could be ordered under, or its coordinator away for as long."""
    store = MoneyStore(path)
    store.apply([paid(90), StoreClosing(lease_of(1), 10), StoreClosing(lease_of(2), 10)])
    store = reopened(store)
    (event,) = store.restore_providers(BANK.node, NOW_MS + 90_000_000)
    assert (event.is_closing, event.is_closed, event.claimed_uusd) == (True, False, 0)
    assert store.totals() == MoneyTotals(0, 0, 90, 1, 0)
    store.close()


def test_more_acknowledged_than_was_locked_counts_as_what_was_locked(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([paid(90), claimed(CAP_UUSD + 1)])
    assert store.totals().claimed_uusd == CAP_UUSD
    store.close()


def test_a_lease_that_is_closing_is_not_used_again(path: Path) -> None:
    store = MoneyStore(path)
    store.apply([mark(300, 1), mark(300, 2)])
    store.note_closing(lease_of(1))
    assert [event.request for event in reopened(store).restore_payers()] == [request_of(2)]


def test_what_is_long_over_is_forgotten_and_its_sums_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CLOSED_KEPT", 2)
    store = MoneyStore(path)
    for number in range(1, 6):
        store.apply([paid(100, number, fee_bps=1000), claimed(80, number, is_closed=number < 5), mark(9, number)])
    before = store.totals()
    store.forget_old(NOW_MS + 90_000_000)
    assert store.totals() == before == MoneyTotals(5 * 72, 400, 20, 1, 80)
    assert len(store.restore_payers()) == 5
    store.forget_old(NOW_MS + 90_000_001 + stores.PAYER_KEPT_MS)
    assert store.restore_payers() == []
    assert reopened(store).totals() == before
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM provider_leases").fetchone() == (3,)
    database.close()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "write",
    [mark(CAP_UUSD + 1), mark(-1), replace(paid(1), paid_uusd=-1), paid(CAP_UUSD + 1)],
    ids=["mark over the cap", "negative mark", "negative voucher", "voucher over the cap"],
)
def test_a_row_that_cannot_be_is_rejected_and_nothing_of_its_transaction_stays(path: Path, write: object) -> None:
    store = MoneyStore(path)
    with pytest.raises(Rejected):
        store.apply([paid(10, 7), write])  # type: ignore[list-item]
    assert store.totals() == MoneyTotals(0, 0, 0, 0, 0)
    store.apply([paid(10, 7)])
    assert store.totals().unclaimed_uusd == 10
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE provider_leases SET paid_uusd = 10",
        "UPDATE provider_leases SET claimed_uusd = 10, earned_uusd = 0",
        "UPDATE provider_leases SET is_closed = 0",
        "UPDATE provider_leases SET paid_uusd = 60.5",
        "UPDATE provider_leases SET paid_uusd = 'many'",
        "UPDATE provider_leases SET voucher_body = NULL",
        "UPDATE provider_leases SET earned_uusd = claimed_uusd + 1",
    ],
)
def test_the_file_itself_holds_no_nonsense(path: Path, statement: str) -> None:
    store = MoneyStore(path)
    store.apply([paid(50), claimed(40, is_closed=True)])
    store.close()
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(statement)
    database.close()


# ---------------------------------------------------------------- the file


def test_it_is_durable_at_every_commit_and_its_owner_s_alone(path: Path) -> None:
    store = MoneyStore(path)
    database = store._database
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()


@pytest.mark.parametrize("how", ["garbage", "torn"])
def test_a_damaged_file_is_refused_in_one_line_and_left_where_it_is(path: Path, how: str) -> None:
    store = MoneyStore(path)
    store.apply([paid(50, number) for number in range(1, 200)])
    store.close()
    damaged = bytearray(path.read_bytes())
    if how == "garbage":
        damaged[:] = random.Random(1).randbytes(len(damaged))
    else:
        damaged[4096 * 3 : 4096 * 6] = bytes(4096 * 3)
    path.write_bytes(damaged)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="is damaged") as raised:
            MoneyStore(path, read_only=read_only)
        assert "\n" not in str(raised.value)
        assert "move it away yourself" in str(raised.value)
    assert path.read_bytes() == damaged
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name] == []


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    MoneyStore(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer infernet"):
        MoneyStore(path)


def test_it_is_read_beside_a_writer_and_not_written(tmp_path: Path) -> None:
    # Signs that mean something in an address of SQLite.
    path = tmp_path / "why?mode=ro#100%41"
    writer = MoneyStore(path)
    writer.apply([paid(50)])
    reader = MoneyStore(path, read_only=True)
    assert reader.totals().unclaimed_uusd == 50
    with pytest.raises(StoreError):
        reader.apply([paid(60)])
    reader.close()
    writer.close()


def test_a_full_file_loses_nothing_that_was_acknowledged_and_goes_on_when_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PAGES_MAX", 40)
    store = MoneyStore(path)
    acknowledged = 0

    def fill() -> None:
        nonlocal acknowledged
        for number in range(1, 1000):
            store.apply([paid(50, number), mark(300, number)])
            acknowledged = number

    with pytest.raises(StoreError, match="cannot be written now: database or disk is full"):
        fill()
    assert acknowledged > 5
    assert store.totals().unclaimed_uusd == 50 * acknowledged
    store._database.execute("PRAGMA max_page_count = 4000")
    store.apply([paid(50, 1000)])
    store = reopened(store)
    assert store.totals().unclaimed_uusd == 50 * (acknowledged + 1)
    assert len(store.restore_payers()) == acknowledged
    store.close()


class LostSync(sqlite3.OperationalError):
    sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC


def test_after_a_lost_sync_nothing_is_written_any_more(path: Path) -> None:
    """A second fsync would succeed and keep nothing (Rebello et al., Can Applications Recover from fsync Failures?)."""
    store = MoneyStore(path)

    class LosesOne:
        def __init__(self, database: sqlite3.Connection) -> None:
            self._database = database

        def __getattr__(self, name: str) -> object:
            return getattr(self._database, name)

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "COMMIT":
                raise LostSync
            return self._database.execute(statement, *values)

    database = store._database
    store._database = LosesOne(database)  # type: ignore[assignment]
    with pytest.raises(DiskLost, match="restart the node"):
        store.apply([paid(50)])
    store._database = database
    with pytest.raises(DiskLost):
        store.apply([paid(50)])
    store.close()
    assert MoneyStore(path).totals().unclaimed_uusd == 0


def test_the_log_of_a_killed_process_is_written_again_before_it_is_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fsync may have failed: what the kernel shows of it need not be on disk."""
    _run_until(path, 1, 3)
    log_file = path.with_name(f"{path.name}-wal")
    before = log_file.read_bytes()
    assert before
    monkeypatch.setattr(stores, "LOG_PIECE_BYTES", 1000)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    stores.write_again(log_file)
    assert (log_file.read_bytes(), synced) == (before, [log_file.stat().st_ino])
    inode = log_file.stat().st_ino
    MoneyStore(path).close()
    assert inode in synced[1:]


# ---------------------------------------------------------------- kill -9


def _run_until(path: Path, first_lease: int, lines: int) -> list[tuple[int, int]]:
    """Let the process work until it has said so many lines, kill it, and give what it said."""
    command = [sys.executable, "-m", "tests.helpers_killed_money", str(path), str(first_lease)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    words = [line.split() for line in said if line.endswith("\n")]
    return [(int(number), int(uusd)) for _, number, uusd in words]


@pytest.mark.slow
def test_what_was_acted_on_is_there_after_each_of_many_kills(path: Path) -> None:
    marks: dict[int, int] = {}
    for round_, lines in enumerate((1, 2, 3, 7, 20, 45, 80)):
        said = _run_until(path, 1 + 1000 * round_, lines)
        assert len(said) >= lines
        marks |= {number: max(uusd, marks.get(number, 0)) for number, uusd in said}
        store = MoneyStore(path)
        kept = {int.from_bytes(each.lease): each.mark_uusd for each in store.payer_leases()}
        assert all(kept[number] >= uusd for number, uusd in marks.items()), "a mark was acted on and is not there"
        assert len(store.restore_providers(BANK.node, NOW_MS)) == len(kept)
        store.close()
