"""Backup, restore and check: the same head, the same money, and no half of anything."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.__main__ import main
from coordinator.identity import KEY_NAME
from coordinator.store.db import DATABASE_NAME
from protocol.envelope import open_record
from protocol.ledger import Claim, Entry, available
from protocol.money_records import LeaseRecord
from tests.helpers_coordinator import WallClock, serving
from tests.helpers_money import Market, balance, read_signed, sign_voucher

pytestmark = pytest.mark.anyio


def head_of(text: str) -> str:
    return text.rstrip().rpartition(" ")[2]


async def test_a_backup_and_the_journal_give_back_all_that_was_acknowledged(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    home, copy, new = tmp_path / "home", tmp_path / "copy", tmp_path / "new"
    home.mkdir()
    async with serving(home, clock) as served:
        market = await Market.opened(served)
        first = await market.lease()
        await market.claim(first, 10)
        assert main(["backup", str(copy), "--home", str(home)]) == 0
        # All that comes now is in the journal alone.
        request = market.request()
        second = open_record(read_signed(await market.ask_for(request)), LeaseRecord)
        await market.claim(first, 30, is_final=1)
        await market.claim(second.lease, 7)
        capsys.readouterr()
        assert main(["check", "--home", str(home)]) == 0
        head = head_of(capsys.readouterr().out)
    assert sorted(os.listdir(tmp_path)) == ["copy", "home"]
    new.mkdir(mode=0o700)
    (new / KEY_NAME).write_bytes((home / KEY_NAME).read_bytes())
    (new / KEY_NAME).chmod(0o600)
    journal = home / "ledger.journal"
    assert main(["restore", str(copy), "--journal", str(journal), "--home", str(new)]) == 0
    assert head_of(capsys.readouterr().out) == head
    (new / "ledger.journal").write_bytes(journal.read_bytes())
    async with serving(new, clock) as served:
        market = market.moved(served)
        assert served.app.core.settlement.stopped_because is None
        assert await balance(served, available(market.provider.key.node)) == 37
        # The same words again, for whoever has lost the reply; only the signature is a new one.
        again = open_record(read_signed(await market.ask_for(request)), LeaseRecord)
        assert again == second
        assert (await market.claim(second.lease, 9)).claimed_uusd == 9


@pytest.mark.parametrize("name", ["100%41", "why?mode=rw", "no.1#2"])
async def test_a_folder_may_have_any_name(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    home, copy, new = tmp_path / name, tmp_path / f"copy of {name}", tmp_path / f"new {name}"
    for folder in (home, new):
        folder.mkdir(mode=0o700)
    async with serving(home, clock) as served:
        market = await Market.opened(served)
        assert (await market.client.post("wallet", {})).json()["data"]["available_uusd"] == 1_000_000
        assert served.app.core.settlement.stopped_because is None
        await served.app.core.settlement_upkeep.check()
        assert served.app.core.settlement.stopped_because is None
        for words in (["check"], ["backup", str(copy)]):
            assert main([*words, "--home", str(home)]) == 0, capsys.readouterr().err
    (new / KEY_NAME).write_bytes((home / KEY_NAME).read_bytes())
    (new / KEY_NAME).chmod(0o600)
    assert main(["restore", str(copy), "--home", str(new)]) == 0
    assert sorted(os.listdir(tmp_path)) == sorted([name, copy.name, new.name])


async def test_an_old_backup_beside_a_newer_journal_moves_no_money(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        assert main(["backup", str(copy), "--home", str(tmp_path)]) == 0
        await market.lease()
    (tmp_path / DATABASE_NAME).unlink()
    assert main(["restore", str(copy), "--home", str(tmp_path)]) == 0
    async with serving(tmp_path, clock) as served:
        reason = served.app.core.settlement.stopped_because
        assert reason is not None
        assert "restore" in reason
        assert (await served.http.get("/api/health")).status_code == 200


async def test_what_cannot_be_done_is_one_line_and_leaves_everything_as_it_was(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    home, copy, empty = tmp_path / "home", tmp_path / "copy", tmp_path / "empty"
    home.mkdir()
    async with serving(home, clock) as served:
        await Market.opened(served)
        assert main(["backup", str(copy), "--home", str(home)]) == 0
        running = ["restore", str(copy), "--home", str(home)]
        before = (home / DATABASE_NAME).read_bytes()
        cases = {
            "another coordinator already runs": running,
            "there is no database": ["backup", str(tmp_path / "x"), "--home", str(empty)],
            "a file that is not there yet": ["backup", str(copy), "--home", str(home)],
            "needs the name of a file": ["backup", "", "--home", str(home)],
            "put coordinator.key": ["restore", str(copy), "--home", str(empty)],
            "no database in": ["check", "--home", str(empty)],
        }
        for text, words in cases.items():
            capsys.readouterr()
            assert main(words) == 1
            captured = capsys.readouterr()
            assert text in captured.err
            assert (captured.out, len(captured.err.splitlines())) == ("", 1)
        assert (home / DATABASE_NAME).read_bytes() == before
    capsys.readouterr()
    assert main(running) == 1
    assert "not there yet" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


async def test_a_journal_that_does_not_follow_restores_nothing(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    home, other, copy = tmp_path / "home", tmp_path / "other", tmp_path / "copy"
    for each in (home, other):
        each.mkdir()
        async with serving(each, clock) as served:
            await Market.opened(served)
    assert main(["backup", str(copy), "--home", str(home)]) == 0
    (home / DATABASE_NAME).unlink()
    assert main(["restore", str(copy), "--journal", str(other / "ledger.journal"), "--home", str(home)]) == 1
    assert "is not that of the backup" in capsys.readouterr().err
    assert not (home / DATABASE_NAME).exists()


async def test_a_restore_tells_of_what_it_could_not_read_of_the_journal(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, journal = tmp_path / "copy", tmp_path / "ledger.journal"
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        assert main(["backup", str(copy), "--home", str(tmp_path)]) == 0
        lease = await market.lease()
        end = journal.stat().st_size
        await market.claim(lease, 10)
        await market.claim(lease, 20)
    whole = journal.read_bytes()
    damaged = whole[: end + 9] + bytes([whole[end + 9] ^ 1]) + whole[end + 10 :]
    journal.write_bytes(damaged)
    (tmp_path / DATABASE_NAME).unlink()
    capsys.readouterr()
    assert main(["restore", str(copy), "--journal", str(journal), "--home", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    for words in (f"{len(whole) - end} bytes", f"from byte {end} on", "after entry 2"):
        assert words in captured.err
    assert captured.out.startswith("restored: 2 entries")
    assert journal.read_bytes() == damaged
    # Nobody goes on without what may be in it before somebody has decided so.
    for _ in range(2):
        async with serving(tmp_path, clock) as served:
            reason = served.app.core.settlement.stopped_because
            assert reason is not None
            assert "move it away" in reason
        assert journal.read_bytes() == damaged
    journal.rename(tmp_path / "damaged.journal")
    async with serving(tmp_path, clock) as served:
        assert served.app.core.settlement.stopped_because is None
    assert journal.read_bytes() == whole[:end]


async def test_check_says_where_the_ledger_differs(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection:
        connection.execute("UPDATE accounts SET balance = balance + 1 WHERE name LIKE 'available:%'")
        connection.commit()
    assert main(["check", "--home", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "infernet-coordinator: the ledger does not agree with itself: the balance of "
        f"{available(market.client.key.node)} is not the sum of its postings\n"
    )
    assert main(["backup", str(tmp_path / "copy"), "--home", str(tmp_path)]) == 1
    assert not (tmp_path / "copy").exists()


async def test_check_finds_a_claim_that_no_payer_has_signed(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        lease = await market.lease()
        await market.claim(lease, 10)
        assert main(["check", "--signatures", "--home", str(tmp_path)]) == 0
        core, provider = served.app.core, market.provider.key
        invented = Claim(lease, provider.node, 50, 0, sign_voucher(provider, lease, 50))
        verdict = await core.database.write(lambda tx: core.settlement.ledger.command(tx, invented, clock()))
        assert isinstance(verdict, Entry)
        assert main(["check", "--home", str(tmp_path)]) == 0
        capsys.readouterr()
        assert main(["check", "--signatures", "--home", str(tmp_path)]) == 1
    assert "is not what was signed: the voucher is not signed by the payer" in capsys.readouterr().err


async def test_a_log_that_another_database_has_left_is_not_written_over_the_new_one(
    tmp_path: Path, clock: WallClock, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, left = tmp_path / "copy", tmp_path / f"{DATABASE_NAME}-wal"
    async with serving(tmp_path, clock) as served:
        await Market.opened(served)
        log = left.read_bytes()
    assert main(["backup", str(copy), "--home", str(tmp_path)]) == 0
    (tmp_path / DATABASE_NAME).unlink()
    left.write_bytes(log)
    assert main(["restore", str(copy), "--home", str(tmp_path)]) == 1
    assert "left of another database" in capsys.readouterr().err
    left.unlink()
    # One of a restore that was killed is nobody's, and goes.
    (tmp_path / f"{DATABASE_NAME}.draft-wal").write_bytes(log)
    assert main(["restore", str(copy), "--home", str(tmp_path)]) == 0
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith(DATABASE_NAME)) == [DATABASE_NAME]
