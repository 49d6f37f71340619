"""infernet/store.py: what was saved is there after a restart, and nothing is lost without a word."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infernet import store as stores
from infernet.store import PEERS_MAX, REACHED_COUNTS_MS, Store, StoreError
from protocol.envelope import open_record, sign_record
from protocol.ids import NodeId
from protocol.records import Heartbeat, Signed
from protocol.reputation import SavedExperience
from tests.helpers_records import NOW_MS, PROVIDER, heartbeat

ADDRESSES = ("/ip4/203.0.113.7/tcp/46337",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "node.sqlite3"


def learnt(sequence: int, *addresses: str) -> tuple[Heartbeat, Signed]:
    record = heartbeat(sequence=sequence, addresses=addresses)
    return record, sign_record(record, PROVIDER)


def stranger(number: int) -> tuple[Heartbeat, Signed]:
    """A record whose signature nobody looks at here."""
    return heartbeat(node=NodeId(number.to_bytes(32, "big"))), Signed(b"body", bytes(64))


def test_peers_and_values_survive_a_restart(path: Path) -> None:
    store = Store(path)
    store.save_peers([learnt(7, *ADDRESSES)], now_ms=50)
    store.put("counter", b"\x01\x00")
    store.close()
    store = Store(path)
    (peer,) = store.peers()
    assert (peer.node, peer.addresses, peer.seen_at_ms) == (PROVIDER.node, ADDRESSES, 50)
    assert open_record(peer.record, Heartbeat).sequence == 7
    assert store.get("counter") == b"\x01\x00"
    assert store.get("other") is None
    assert store.recovered is None
    store.close()


def test_the_newest_record_of_a_peer_wins(path: Path) -> None:
    store = Store(path)
    store.save_peers([learnt(7, "/ip4/203.0.113.7/tcp/1")], now_ms=1)
    store.save_peers([learnt(9, "/ip4/203.0.113.9/tcp/1"), learnt(8, "/ip4/203.0.113.8/tcp/1")], now_ms=2)
    store.save_peers([learnt(9, "/ip4/203.0.113.1/tcp/1")], now_ms=3)
    (peer,) = store.peers()
    assert peer.addresses == ("/ip4/203.0.113.9/tcp/1",)
    store.close()


def experience(provider: bytes, at_ms: int = 5, ok: float = 2.5) -> SavedExperience:
    return SavedExperience(NodeId(provider), "tiny-135m", at_ms, ok, 0.5, 1.0, 0.0, 0.25, 3.0, 40.5, 2.0)


def test_experience_survives_a_restart_and_the_newest_counts(path: Path) -> None:
    store = Store(path)
    one, other = experience(b"\x01" * 32), experience(b"\x02" * 32, at_ms=3)
    store.save_experience([one, other])
    store.save_experience([experience(b"\x01" * 32, at_ms=9, ok=4.0)])
    store.close()
    store = Store(path)
    assert store.experience() == [other, experience(b"\x01" * 32, at_ms=9, ok=4.0)]
    store.close()


def test_experience_is_bounded_and_the_last_made_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "EXPERIENCE_MAX", 2)
    store = Store(path)
    store.save_experience([experience(bytes([number]) * 32, at_ms=number) for number in (3, 1, 2)])
    assert [each.at_ms for each in store.experience()] == [2, 3]
    store.close()


def test_the_number_of_peers_is_bounded_and_the_last_met_stay(path: Path) -> None:
    store = Store(path)
    store.save_peers([stranger(number) for number in range(PEERS_MAX)], now_ms=1)
    store.save_peers([stranger(PEERS_MAX), stranger(PEERS_MAX + 1)], now_ms=2)
    peers = store.peers()
    assert len(peers) == PEERS_MAX
    assert {peer.node for peer in peers[:2]} == {stranger(PEERS_MAX)[0].node, stranger(PEERS_MAX + 1)[0].node}
    assert len(store.peers(limit=3)) == 3
    store.close()


def test_a_flood_of_strangers_does_not_push_out_who_was_reached(path: Path) -> None:
    store = Store(path)
    store.save_peers([learnt(7, "/ip4/203.0.113.1/tcp/1", "/ip4/203.0.113.2/tcp/1")], now_ms=NOW_MS)
    store.note_reached([(PROVIDER.node, "/ip4/203.0.113.2/tcp/1"), (stranger(5)[0].node, None)], NOW_MS)
    store.save_peers([stranger(number) for number in range(PEERS_MAX)], now_ms=NOW_MS + REACHED_COUNTS_MS - 1)
    first, *others = store.peers()
    assert (first.node, first.reached_at_ms) == (PROVIDER.node, NOW_MS)
    assert first.addresses == ("/ip4/203.0.113.2/tcp/1", "/ip4/203.0.113.1/tcp/1"), "where it was reached comes first"
    assert len(others) == PEERS_MAX - 1
    assert not any(peer.reached_at_ms for peer in others)
    # A while later what was good once is only one hint more.
    store.save_peers([stranger(number) for number in range(PEERS_MAX, 2 * PEERS_MAX)], NOW_MS + REACHED_COUNTS_MS + 1)
    assert PROVIDER.node not in [peer.node for peer in store.peers()]
    store.close()


def test_a_newer_record_keeps_the_address_at_which_a_peer_was_reached(path: Path) -> None:
    store = Store(path)
    store.save_peers([learnt(7, *ADDRESSES)], now_ms=1)
    store.note_reached([(PROVIDER.node, "/ip4/203.0.113.2/tcp/1")], 2)
    store.note_reached([(PROVIDER.node, None)], 3)
    store.save_peers([learnt(8, "/ip4/203.0.113.9/tcp/1")], now_ms=4)
    (peer,) = store.peers()
    assert peer.addresses == ("/ip4/203.0.113.2/tcp/1", "/ip4/203.0.113.9/tcp/1")
    assert (peer.seen_at_ms, peer.reached_at_ms) == (4, 3)
    store.close()


def test_a_store_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"{stores.MIGRATIONS[0]} PRAGMA user_version = 1;")
        database.execute("INSERT INTO peers VALUES (?, 7, 50, '[]', x'01', x'02')", (PROVIDER.node,))
        database.commit()
    store = Store(path)
    (peer,) = store.peers()
    assert (peer.node, peer.seen_at_ms, peer.reached_at_ms) == (PROVIDER.node, 50, 0)
    store.close()


def test_the_files_are_private(path: Path) -> None:
    store = Store(path)
    store.put("x", b"y")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(modes, 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()


def test_a_newer_schema_is_refused_with_advice_and_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match=r"newer infernet \(schema 99.*upgrade"):
        Store(path)
    assert path.exists()


def damage_header(path: Path) -> None:
    path.write_bytes(b"this was a database once\n" * 100)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, damage_middle])
def test_a_damaged_file_is_moved_aside_and_said_so(path: Path, damage: object) -> None:
    store = Store(path)
    store.save_peers([stranger(number) for number in range(200)], now_ms=1)
    store.close()
    assert callable(damage)
    damage(path)
    broken = path.read_bytes()
    store = Store(path)
    assert store.recovered is not None
    assert str(path) in store.recovered
    assert store.peers() == []
    (aside,) = path.parent.glob("node.sqlite3.damaged-*")
    assert str(aside) in store.recovered
    assert aside.read_bytes() == broken
    store.put("works", b"again")
    store.close()


def test_a_file_that_another_process_holds_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.setattr(stores, "BUSY_TIMEOUT_S", 0.01)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("INSERT INTO local VALUES ('a', x'00')")
    with pytest.raises(StoreError, match="locked"):
        Store(path)
    assert [file.name for file in path.parent.glob("*damaged*")] == []
    holder.close()


def test_a_place_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot use the store .* INFERNET_HOME"):
        Store(tmp_path / "file" / "node.sqlite3")


def test_threads_may_share_it(path: Path) -> None:
    store = Store(path)
    threads = [
        threading.Thread(target=lambda n=n: [store.put(f"{n}.{i}", bytes([n])) for i in range(20)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [store.get(f"{n}.{i}") for n in range(4) for i in range(20)] == [
        bytes([n]) for n in range(4) for _ in range(20)
    ]
    store.close()


def test_a_process_killed_while_writing_leaves_a_whole_file(path: Path) -> None:
    program = """
import sys
from pathlib import Path
from infernet.store import Store
store = Store(Path(sys.argv[1]))
number = 0
while True:
    store.put("number", str(number).encode())
    number += 1
    if number == 20:
        print("going", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
    store = Store(path)
    assert store.recovered is None
    value = store.get("number")
    assert value is not None
    assert int(value) >= 19
    store.close()
