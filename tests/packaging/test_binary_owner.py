"""A new owner's whole way with the one-file program, from `init` to `remove`, and nothing is left of it.

The owner has an empty home, no INFERNET_HOME, no Python and no terminal but where the test gives one; where the tests
run as root, it is a user whom no table knows. The coordinator and the asker are other processes, of the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from _dev_network_money import Bank, bank
from tests.helpers_cli import Home
from tests.helpers_processes import free_port, processes_below, wait_until

DEADLINE_S = 180.0
# Nobody's, on any machine that runs tests as root.
NOBODY = 47_011
# All that the program needs of a system.
PROGRAMS = ("sh", "tail", "gzip", "tar", "mkdir", "mktemp", "rm", "mv", "sha256sum")
QUESTION = "What is the capital of France?"
PRICE_UUSD = 20_000
# Programs of the same machine are asked for money, too, for the asker is one.
OWN_WORDS = ("--price-job", "0.02", "--free-for", "nobody", "--listen-hosts", "127.0.0.1")

pytestmark = [pytest.mark.nightly, pytest.mark.model]


class Owner:
    """A user with a home that was never used, and the file."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.user = NOBODY if os.geteuid() == 0 else None
        self.home, self.run_time, self.temporary = folder / "home", folder / "run", folder / "tmp"
        folder.chmod(0o755)
        for own in (self.home, self.run_time, self.temporary):
            own.mkdir(mode=0o700)
            if self.user is not None:
                os.chown(own, self.user, self.user)
        programs = folder / "programs"
        programs.mkdir()
        programs.chmod(0o755)
        for name in PROGRAMS:
            (programs / name).symlink_to(shutil.which(name) or name)
        self.program = programs / "infernet"
        # Copied, for the folder that it was built in may be closed to others.
        shutil.copyfile(binary, self.program)
        self.program.chmod(0o755)
        self.environ = {
            "PATH": str(programs),
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.run_time),
            "TMPDIR": str(self.temporary),
            "INFERNET_MDNS": "off",
        }

    def process(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """A verb, started as this user and away from the terminal of whoever runs the tests."""
        as_user = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": ()}
        return subprocess.Popen(
            [self.program, *words],
            env=self.environ,
            cwd=self.home,
            text=True,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | as_user | more,
        )

    def ends(self, *words: str, code: int = 0, **more: Any) -> tuple[str, str]:
        """Run a verb to its end, which must be this one; gives what it printed and what it said beside that."""
        with self.process(*words, **more) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, f"{words}: {out}\n{err}"
        assert "Traceback" not in out + err
        return out, err

    def json(self, *words: str, code: int = 0) -> Any:
        """What a verb prints with --json."""
        return json.loads(self.ends(*words, "--json", code=code)[0])

    def take_model(self, model: Path) -> None:
        """Put a model where `infernet model pull` would."""
        store = self.home
        for name in (".local", "share", "infernet", "models"):
            store /= name
            store.mkdir(mode=0o700, exist_ok=True)
            self.owns(store)
        shutil.copyfile(model, store / model.name)
        self.owns(store / model.name)

    def owns(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, self.user, self.user)

    def files(self) -> list[Path]:
        """Everything but folders, below all that is this user's."""
        below = [path for top in (self.home, self.run_time, self.temporary) for path in top.rglob("*")]
        return sorted(path for path in below if path.is_symlink() or not path.is_dir())

    def elsewhere(self) -> list[Path]:
        """What this user owns in places where everybody may write; only known of one whom no one else is."""
        if self.user is None:
            return []
        found = []
        for top in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            for path in top.glob("*"):
                with contextlib.suppress(FileNotFoundError):  # others come and go
                    if path.lstat().st_uid == self.user:
                        found.append(path)
        return found


@pytest.fixture
def owner(binary: Path) -> Iterator[Owner]:
    folder = Path(tempfile.mkdtemp(prefix="infernet-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        owner = Owner(folder, binary)
        yield owner
        # What a test that failed has left running.
        if processes_below(owner.home):
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                owner.ends("stop", "--force")


@pytest.fixture
def folder() -> Iterator[Path]:
    """For whoever is no owner; its path is short, so that sockets can lie below it."""
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def on_a_terminal(owner: Owner, *words: str, answers: dict[str, str]) -> str:
    """Run a verb on a terminal and type an answer to each question, as it comes; gives what was on the screen."""
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    owner.owns(Path(name))
    screen, left, deadline = "", dict(answers), time.monotonic() + DEADLINE_S
    with owner.process(*words, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while True:
            assert time.monotonic() < deadline, screen
            readable, _, _ = select.select([ours], [], [], 1.0)
            if not readable:
                continue
            try:
                data = os.read(ours, 4096)
            except OSError:
                data = b""
            if not data:
                break  # the last who had the terminal open has gone
            screen += data.decode()
            for question in [question for question in left if question in screen]:
                os.write(ours, f"{left.pop(question)}\n".encode())
        assert process.wait(DEADLINE_S) == 0, screen
    os.close(ours)
    assert not left, screen
    return screen


def asker_with_money(bank: Bank, owner: Owner, folder: Path) -> Home:
    """Somebody else, with a deposit; the owner's own arrives with it."""
    asker = Home(folder / "asker")
    words = ("--yes", "--role", "client", "--url", bank.url, "--coordinator-key", bank.key)
    assert asker.run("init", *words).code == 0
    assert asker.run("wallet", "deposit", "5", "USDC", "--network", "base").code == 0
    owner.ends("wallet", "deposit", "1", "USDC", "--network", "base")
    httpx.post(f"{bank.gateway}/control/arrive", json={}, trust_env=False).raise_for_status()
    wait_until(lambda: asker.run("wallet", "--json").json["available_uusd"], "the asker's money arrives")
    wait_until(lambda: owner.json("wallet")["available_uusd"], "the owner's money arrives")
    return asker


def test_without_an_answer_init_fails_and_writes_nothing(owner: Owner) -> None:
    """Nobody answers: there is no terminal, and the input has ended."""
    owner.ends("version")  # unpacks the program
    before = owner.files()
    _, said = owner.ends("init", code=2)
    assert "--role" in said
    assert "--yes" in said
    assert owner.files() == before
    with owner.process("init", stdin=subprocess.PIPE) as process:
        # The input ends in the middle of the questions.
        _, said = process.communicate("provider\n", timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "--url" in said
    assert owner.files() == before


def test_from_init_to_remove(owner: Owner, starter_model_path: Path, folder: Path) -> None:
    port = str(free_port())
    with bank(folder / "bank") as money:
        coordinator = ("--url", money.url, "--coordinator-key", money.key)
        screen = on_a_terminal(
            owner,
            *("init", *coordinator, "--p2p-port", port),
            answers={"What should this node do": "provider", "Name that others see": "mine", "Address under": ""},
        )
        assert "This node is mine (provider)." in screen
        key = (owner.home / ".config" / "infernet" / "identity.key").read_bytes()
        # Again, without a terminal and without a question: the answers change, the key stays.
        again = owner.json("init", "--yes", *OWN_WORDS)
        assert again["name"] == "mine"
        assert (owner.home / ".config" / "infernet" / "identity.key").read_bytes() == key
        owner.take_model(starter_model_path)

        owner.ends("start", "--threads", "1")
        wait_until(lambda: owner.json("status")["coordinator"]["state"] == "connected", "the node has its link")
        status = owner.json("status")
        assert status["models"] == ["smollm2-135m-instruct"]
        [address] = status["addresses"]

        asker = asker_with_money(money, owner, folder)
        with asker.started("--listen-hosts", "127.0.0.1", "--p2p-port", "0"):
            said = asker.run("chat", "--peer", address, "--pay", "0.05", "--temperature", "0", QUESTION)
        assert said.code == 0, said.err
        assert "Paris" in said.out
        wait_until(lambda: owner.json("wallet")["earned_uusd"] >= PRICE_UUSD, "what was earned is redeemed")

        assert [(row["direction"], row["amount_usd"]) for row in owner.json("payments")["rows"]] == [
            ("inbound", "1.00")
        ]
        assert owner.json("stats")["jobs"]["completed"] == 1
        assert "libp2p: 0.8.1" in owner.ends("report")[0]
        found = {check["id"]: check["status"] for check in owner.json("doctor")["checks"]}
        assert "fail" not in found.values(), found
        owner.ends("stop")
        assert owner.json("status", code=1)["running"] is False

        held = owner.files()
        lost = owner.json("remove", "--yes", code=1)
        assert "MONEY WOULD BE LOST" in lost["error"]
        assert lost["lost_uusd"] >= PRICE_UUSD
        assert owner.files() == held
        removed = owner.json("remove", "--yes", "--abandon-money")
        assert removed["deregistered"]
    wait_until(lambda: not processes_below(owner.home), "nothing of it runs")
    assert owner.files() == []
    assert owner.elsewhere() == []


def test_a_node_without_money_goes_with_yes_alone(owner: Owner) -> None:
    owner.ends("init", "--yes", "--role", "client", "--no-p2p")
    owner.ends("start")
    owner.ends("remove", "--yes")
    wait_until(lambda: not processes_below(owner.home), "nothing of it runs")
    assert owner.files() == []
    assert owner.elsewhere() == []
