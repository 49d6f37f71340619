"""infernet/cli/remove.py: a node goes for good, and no money with it unless that was said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio

from infernet.cli import remove, service
from infernet.config import save
from infernet.coordinators import FILE_NAME, former, remember
from infernet.host.files import make_private_directory
from infernet.host.lock import running_pid
from infernet.host.service_units import home_mark
from infernet.money.store import MoneyStore
from tests.helpers_cli import Home, Outcome, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_money_server import BANK, MoneyServer, Refusal, money_server
from tests.helpers_money_store import claimed, paid
from tests.helpers_records import signing_key
from tests.helpers_systemd import FakeSystemd, fake_systemd

pytestmark = pytest.mark.anyio
Capture = pytest.CaptureFixture[str]

NOTHING = {"available_uusd": 0, "locked_uusd": 0, "payout_pending_uusd": 0}


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    """No test asks the real service manager of whoever runs it."""
    fake = fake_systemd(tmp_path)
    monkeypatch.setattr(service.sys, "platform", "linux")
    monkeypatch.setenv("PATH", f"{fake.programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(fake.config_home))
    return fake


@pytest.fixture
def ready(home: Home, capsys: Capture) -> Home:
    """A home after init, with something in each folder."""
    assert invoke(capsys, "init", "--yes").code == 0
    for file in (home.config.state_dir / "daemon.log.1", home.config.models_dir / "some.gguf.origin"):
        make_private_directory(file.parent)
        file.write_text("x")
    return home


@asynccontextmanager
async def coordinator(home: Home, wallet: Any = NOTHING) -> AsyncIterator[MoneyServer]:
    async with money_server(answers={"node/wallet": wallet, "node/remove": {"deleted": True}}) as server:
        save(home.config.config_file, {"coordinator_url": server.url, "coordinator_key": BANK.node}, keep=True)
        yield server


def folders(home: Home) -> list[str]:
    """What is left of a node."""
    return sorted(path.name for path in home.path.iterdir()) if home.path.exists() else []


ALL = ["config", "data", "state"]


def test_a_node_without_money_goes_for_good(ready: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "remove", "--yes")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("Removed ") == 3
    assert not ready.path.exists()
    again = invoke(capsys, "remove", "--yes")
    assert (again.code, again.out) == (0, "There is nothing of a node here.\n")


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--keep-config"], ["config"]),
        (["--keep-models"], ["data"]),
        (["--keep-config", "--keep-models"], ["config", "data"]),
    ],
)
def test_what_is_to_be_kept_stays(ready: Home, capsys: Capture, words: list[str], left: list[str]) -> None:
    key = ready.config.key_file.read_bytes()
    shown = invoke(capsys, "remove", "--yes", "--json", *words).json
    assert folders(ready) == left
    assert [Path(folder).name for folder in shown["removed"]] == [
        n for n in ("state", "data", "config") if n not in left
    ]
    if "config" in left:
        assert ready.config.key_file.read_bytes() == key


@pytest.mark.parametrize("name", ["config/nginx.conf", "state/notes", "data/holidays/1.jpg", "data/models/bert.bin"])
def test_where_a_folder_holds_what_no_node_has_written_nothing_goes(ready: Home, capsys: Capture, name: str) -> None:
    """INFERNET_HOME may be a folder in which somebody keeps a folder `data` of their own."""
    theirs = ready.path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("x")
    outcome = invoke(capsys, "remove", "--yes")
    assert (outcome.code, outcome.out) == (1, "")
    assert str(theirs.parent if "holidays" in name else theirs) in outcome.err
    assert folders(ready) == ALL
    assert ready.config.key_file.exists()
    theirs.unlink()
    if "holidays" in name:
        theirs.parent.rmdir()
    assert invoke(capsys, "remove", "--yes").code == 0


def test_everything_that_nodes_write_is_known(ready: Home, capsys: Capture) -> None:
    config = ready.config
    for path in (
        config.config_file.with_name(".config.toml.0a1b2c3d"),
        config.config_file.with_name("config.toml.old"),
        config.key_file.with_name("identity.key.0123456789abcdef"),
        config.pid_file,
        config.log_file.with_name("daemon.log.3"),
        config.store_file.with_name("node.sqlite3-wal"),
        config.store_file.with_name("node.sqlite3.damaged-20260101-000000-7"),
        config.money_file.with_name("money.sqlite3-shm"),
        config.models_dir / "some.gguf.verified",
        config.state_dir / "verified" / "0123456789abcdef0123456789abcdef",
        config.models_dir / ".some.gguf.part.note",
        config.models_dir / ".some.whl.part",
        config.models_dir / ".some.whl.part.note",
        config.models_dir / ".tiny.gguf.unpacked",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    remember(config.config_dir, "http://127.0.0.1:9", BANK.node)
    outcome = invoke(capsys, "remove", "--yes", "--abandon-money", "--keep-remote")
    assert (outcome.code, outcome.err) == (0, "")
    assert not ready.path.exists()


def test_a_key_that_was_being_written_is_overwritten_too(ready: Home, capsys: Capture) -> None:
    secret = ready.config.key_file.read_bytes()
    draft = ready.config.key_file.with_name(".identity.key.0a1b2c3d")
    draft.write_bytes(secret)
    seen = ready.path / "another-name"
    os.link(draft, seen)
    assert invoke(capsys, "remove", "--yes").code == 0
    assert seen.read_bytes() == bytes(len(secret))


def test_files_of_somebody_else_in_the_home_stay(ready: Home, capsys: Capture) -> None:
    (ready.path / "mine").write_text("x")
    assert invoke(capsys, "remove", "--yes").code == 0
    assert folders(ready) == ["mine"]


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("", 2), ("y\n", 0)])
def test_it_asks_and_only_a_yes_is_one(ready: Home, answer: str, code: int) -> None:
    outcome = ready.run("remove", stdin=answer, XDG_CONFIG_HOME=str(ready.path / "none"))
    assert outcome.code == code
    assert "This is removed:" in outcome.err
    assert str(ready.config.state_dir) in outcome.err
    assert "Without a copy nobody ever is this node again" in outcome.err
    assert (folders(ready) == ALL) == (code != 0)


def test_an_input_that_ends_is_no_yes(ready: Home) -> None:
    before = folders(ready)
    outcome = ready.run("remove", stdin="")
    assert outcome.code == 2
    assert outcome.complaint == "infernet: the input ended before an answer came: give --yes"
    assert folders(ready) == before


# ---------------------------------------------------------------- the coordinator


async def test_the_coordinator_forgets_it_before_its_key_goes(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready) as server:
        outcome = await invoke_beside(capsys, "remove", "--yes")
        assert outcome.code == 0, outcome.err
        assert [asked.target.rpartition("/")[2] for asked in server.asked] == ["wallet", "remove"]
        assert server.asked[-1].fields == {"role": "provider"}
    assert "has forgotten this node" in outcome.out
    assert folders(ready) == []


async def test_its_entry_can_be_kept(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready) as server:
        assert (await invoke_beside(capsys, "remove", "--yes", "--keep-remote")).code == 0
        assert server.to("/remove") == []


async def test_where_the_coordinator_does_not_forget_it_nothing_is_removed(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready) as server:
        server.answers["node/remove"] = Refusal(500, "out of order")
        outcome = await invoke_beside(capsys, "remove", "--yes")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "out of order" in outcome.err
    assert "--keep-remote" in outcome.err
    assert folders(ready) == ALL


# ---------------------------------------------------------------- money


async def refused(capsys: Capture, *words: str) -> Outcome:
    outcome = await invoke_beside(capsys, "remove", "--yes", *words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "MONEY WOULD BE LOST" in outcome.err
    assert "--abandon-money" in outcome.err
    return outcome


@pytest.mark.parametrize(
    ("wallet", "words"),
    [
        ({"available_uusd": 5_000_000}, "$5.00 available"),
        ({"locked_uusd": 250}, "$0.00025 locked in leases"),
        ({"payout_pending_uusd": 1}, "$0.000001 on its way out"),
        ({"available_uusd": -1}, "does not say in numbers"),
        ({"available_uusd": "lots"}, "does not say in numbers"),
        ({"available_uusd": 10**400}, "does not say in numbers"),
    ],
)
async def test_what_the_coordinator_holds_is_not_lost_by_mistake(
    ready: Home, capsys: Capture, wallet: dict[str, Any], words: str
) -> None:
    async with coordinator(ready, NOTHING | wallet) as server:
        outcome = await refused(capsys)
        assert words in outcome.err
        assert server.to("/remove") == []
        assert folders(ready) == ALL
        given_up = await invoke_beside(capsys, "remove", "--yes", "--abandon-money")
    assert given_up.code == 0
    assert words in given_up.out.partition("Given up: ")[2]
    assert folders(ready) == []


async def test_with_the_key_kept_the_coordinators_money_is_not_lost(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready, NOTHING | {"available_uusd": 5_000_000}):
        assert (await invoke_beside(capsys, "remove", "--yes", "--keep-config", "--keep-remote")).code == 0
    assert folders(ready) == ["config"]


@pytest.mark.parametrize(
    "words",
    [
        ["login", "--url", "none"],
        ["login", "--url", "http://127.0.0.1:9", "--coordinator-key", BANK.node.hex()],
        ["config", "set", "--url", "http://127.0.0.1:9"],
        ["config", "set", "--coordinator-key", signing_key("other").node.hex()],
        ["init", "--yes", "--force"],
    ],
)
async def test_what_a_coordinator_of_before_holds_is_not_lost_by_mistake(
    ready: Home, capsys: Capture, words: list[str]
) -> None:
    async with coordinator(ready, NOTHING | {"available_uusd": 5_000_000}) as server:
        assert (await invoke_beside(capsys, "wallet")).code == 0
        replaced = await invoke_beside(capsys, *words)
        assert replaced.code == 0, replaced.err
        assert f"this key may have money at {server.url}" in replaced.err
        save(ready.config.config_file, {"coordinator_url": None, "coordinator_key": None}, keep=True)
        wallet = await invoke_beside(capsys, "wallet")
        assert (wallet.code, f"this key may have money at {server.url}" in wallet.complaint) == (1, True)
        outcome = await refused(capsys)
        assert f"$5.00 available (`infernet payout request AMOUNT`) at {server.url}" in outcome.err
        assert folders(ready) == ALL
        server.answers["node/wallet"] = NOTHING
        assert (await invoke_beside(capsys, "remove", "--yes")).code == 0
        assert len(server.to("/remove")) == 1
    assert folders(ready) == []


async def test_one_that_has_never_answered_this_key_holds_nothing(ready: Home, capsys: Capture) -> None:
    for url in ("http://127.0.0.1:9", "none"):
        words = [] if url == "none" else ["--coordinator-key", BANK.node.hex()]
        replaced = await invoke_beside(capsys, "login", "--url", url, *words)
        assert (replaced.code, replaced.err) == (0, "")
        assert url == "none" or (await invoke_beside(capsys, "wallet")).code == 1
    assert former(ready.config.config_dir) == ()
    assert (await invoke_beside(capsys, "remove", "--yes")).code == 0


async def test_each_coordinator_of_before_is_asked_and_told(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready) as first:
        assert (await invoke_beside(capsys, "wallet")).code == 0
        async with coordinator(ready) as second:
            assert [one.url for one in former(ready.config.config_dir)] == [first.url]
            assert (await invoke_beside(capsys, "remove", "--yes")).code == 0
            for server in (first, second):
                ends = [asked.target.rpartition("/")[2] for asked in server.asked]
                assert ends[-2:] == ["wallet", "remove"]


async def test_one_that_is_gone_for_good_can_be_left_out(ready: Home, capsys: Capture) -> None:
    gone = "http://127.0.0.1:9"
    remember(ready.config.config_dir, gone, BANK.node)
    async with coordinator(ready) as server:
        assert gone in (await refused(capsys)).err
        assert server.to("/remove") == []
        assert (await invoke_beside(capsys, "remove", "--yes", "--leave-out", gone)).code == 0
        assert len(server.to("/remove")) == 1
    assert folders(ready) == []


async def test_looking_for_money_enters_this_key_nowhere(ready: Home, capsys: Capture) -> None:
    async with coordinator(ready) as server:
        server.is_registered = False
        remember(ready.config.config_dir, server.url, signing_key("another").node)
        kept = await invoke_beside(capsys, "remove", "--yes")
        assert kept.code == 1, "the other one does not answer with the key that it had"
        (ready.config.config_dir / FILE_NAME).unlink()
        outcome = await invoke_beside(capsys, "remove", "--yes", "--json")
        assert (outcome.code, outcome.json["deregistered"], outcome.json["lost_is_known"]) == (0, False, True)
        assert not server.is_registered
        assert server.to("/register") == []
    assert folders(ready) == []


@pytest.mark.parametrize("damage", [b"[", b'[{"url": 1}]', b'[{"url": "http://x", "key": "zz"}]'])
async def test_where_it_is_not_known_which_coordinators_there_were_something_may_be_lost(
    ready: Home, capsys: Capture, damage: bytes
) -> None:
    (ready.config.config_dir / FILE_NAME).write_bytes(damage)
    outcome = await refused(capsys, "--json")
    assert "does not list coordinators" in outcome.err
    assert outcome.json["lost_is_known"] is False
    assert (await invoke_beside(capsys, "remove", "--yes", "--abandon-money")).code == 0


async def test_an_older_key_may_own_something(ready: Home, capsys: Capture, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("07" * 32)
    assert invoke(capsys, "init", "--yes", "--force", "--nostr-privkey", f"@{secret}").code == 0
    outcome = await refused(capsys)
    assert "an older key lies at" in outcome.err
    assert folders(ready) == ALL


@pytest.mark.parametrize("words", [[], ["--keep-config"]])
async def test_vouchers_that_were_not_redeemed_are_not_lost_by_mistake(
    ready: Home, capsys: Capture, words: list[str]
) -> None:
    with closing(MoneyStore(ready.config.money_file)) as store:
        store.apply([paid(90), claimed(40)])
    outcome = await refused(capsys, *words, "--json")
    assert "$0.00005 in vouchers" in outcome.err
    assert (outcome.json["lost_uusd"], outcome.json["lost_is_known"]) == (50, True)
    assert folders(ready) == ALL


async def test_a_coordinator_that_cannot_be_asked_may_hold_something(ready: Home, capsys: Capture) -> None:
    save(ready.config.config_file, {"coordinator_url": "http://127.0.0.1:9", "coordinator_key": BANK.node}, keep=True)
    outcome = await refused(capsys, "--json")
    assert "does not say what it holds" in outcome.err
    assert outcome.json["lost_is_known"] is False
    assert (await invoke_beside(capsys, "remove", "--yes", "--abandon-money")).code == 1, "it cannot be told either"
    assert folders(ready) == ALL
    assert (await invoke_beside(capsys, "remove", "--yes", "--abandon-money", "--keep-remote")).code == 0
    assert folders(ready) == []


@pytest.mark.parametrize("spoilt", ["config.toml", "identity.key", "money.sqlite3"])
async def test_what_cannot_be_read_may_be_worth_something_and_goes_when_that_is_said(
    ready: Home, capsys: Capture, spoilt: str
) -> None:
    folder = ready.config.state_dir if spoilt.startswith("money") else ready.config.config_dir
    (folder / spoilt).write_text("= nonsense [")
    (folder / spoilt).chmod(0o600)
    await refused(capsys)
    assert folders(ready) == ALL
    assert (await invoke_beside(capsys, "remove", "--yes", "--abandon-money")).code == 0
    assert folders(ready) == []


# ---------------------------------------------------------------- a node that runs, or is a service


async def test_a_node_that_runs_is_ended_first(ready: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()
    ended = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def end(config: Any, pid: int, wait_s: float, *, force: bool, quiet: bool) -> str:
        assert (pid, force) == (os.getpid(), False)
        trio.from_thread.run_sync(ended.set, trio_token=token)
        while running_pid(config.pid_file) is not None:
            trio.from_thread.run(trio.lowlevel.checkpoint, trio_token=token)
        return "asked"

    monkeypatch.setattr(remove, "end_node", end)
    outcome: list[Outcome] = []

    async def ask() -> None:
        outcome.append(await invoke_beside(capsys, "remove", "--yes", "--json"))

    async with trio.open_nursery() as nursery, running(node, ready.config):
        nursery.start_soon(ask)
        await ended.wait()
    assert outcome[0].code == 0, outcome[0].err
    assert outcome[0].json["stopped"] == os.getpid()
    assert folders(ready) == []


async def test_vouchers_of_the_last_jobs_are_seen_after_the_end(
    ready: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = [4711, 4711, 4711, None]
    monkeypatch.setattr(remove, "running_pid", lambda _: pids.pop(0) if pids else None)

    def end(*_: Any, **__: Any) -> str:
        with closing(MoneyStore(ready.config.money_file)) as store:
            store.apply([paid(90)])
        return "asked"

    monkeypatch.setattr(remove, "end_node", end)
    outcome = await refused(capsys)
    assert "$0.00009 in vouchers" in outcome.err
    assert folders(ready) == ALL


def test_its_service_goes_with_it(ready: Home, fake: FakeSystemd, capsys: Capture) -> None:
    assert invoke(capsys, "service", "install").code == 0
    shown = invoke(capsys, "remove", "--yes", "--json").json
    assert shown["service"] == str(fake.unit)
    assert not fake.unit.exists()
    assert "disable --now infernet.service" in fake.calls()


@pytest.mark.parametrize("whose", ["another home", "somebody else"])
def test_another_service_stays(ready: Home, fake: FakeSystemd, capsys: Capture, whose: str) -> None:
    assert invoke(capsys, "service", "install").code == 0
    text = fake.unit.read_text()
    ours = home_mark(ready.config.state_dir)
    old, new = (ours, home_mark(Path("/srv/other"))) if whose == "another home" else ("ritten by", "ritten for")
    fake.unit.write_text(text.replace(old, new))
    assert invoke(capsys, "remove", "--yes").code == 0
    assert fake.unit.exists()
    assert folders(ready) == []


def test_a_folder_that_leads_elsewhere_is_not_followed(ready: Home, capsys: Capture, tmp_path: Path) -> None:
    ready.config.data_dir.rename(tmp_path / "models")
    ready.config.data_dir.symlink_to(tmp_path / "models")
    outcome = invoke(capsys, "remove", "--yes")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "leads elsewhere" in outcome.err
    assert (tmp_path / "models" / "models" / "some.gguf.origin").exists()
    assert folders(ready) == ALL


# ---------------------------------------------------------------- the unpacked program


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process taken for a packaged program; gives the folder that it runs from, with a program in it."""
    folder = tmp_path / "cache" / "program-1-abc"
    folder.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", folder / "infernet")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(folder / "infernet"))
    return folder


def test_a_node_that_is_dying_is_waited_for_so_that_its_program_goes(
    ready: Home, capsys: Capture, program: Path
) -> None:
    with subprocess.Popen([program / "infernet", "0.3"]):
        outcome = invoke(capsys, "remove", "--yes")
    assert f"Removed {program}.\n" in outcome.out
    assert not program.exists()


def test_a_program_that_another_process_runs_from_stays_and_that_is_said(
    ready: Home, capsys: Capture, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remove, "_LOCK_TIMEOUT_S", 0.0)
    with subprocess.Popen([program / "infernet", "60"]) as other:
        outcome = invoke(capsys, "remove", "--yes", "--json")
        assert outcome.json["left"] == [str(program)]
        assert invoke(capsys, "init", "--yes").code == 0
        told = invoke(capsys, "remove", "--yes").out
        other.kill()
    assert f"Left {program}: process {other.pid} runs from it." in told
    assert program.exists()
