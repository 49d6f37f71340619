"""infernet/confinement/profiles.py: an engine that was broken into reaches nothing, and one that was not works."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from infernet.confinement import landlock, profiles, seccomp
from infernet.confinement.contract import MEANINGS, Protection, describe

ROOT = Path(__file__).resolve().parents[3]
DOUBLE = Path(__file__).with_name("confined_double.py")
DEADLINE_S = 60.0

pytestmark = pytest.mark.skipif(
    landlock.abi() < 3 or not seccomp.is_available(), reason="needs a kernel with Landlock and seccomp filters"
)

NEEDED = ("read the model", "write within", "serve oneself", "start a thread", "draw random bytes", "load a module")
OF_FILES = (
    *("read what lies beside", "read the key", "list a folder", "write beside", "change what lies beside"),
    *("change the model", "remove what lies beside", "read another's command line"),
)
OF_CALLS = (
    *("change a mode", "make a link", "leave the folder", "connect to a port", "send a datagram", "send to a socket"),
    # Landlock knows the first of these from Linux 6.2 on, and the others from 6.12 on.
    *("empty what lies beside", "have the node signalled", "choose a signal"),
    *("connect to a socket", "start a program", "fork", "look into the node", "signal the node", "limit the node"),
    *("use a ring",),
)


@dataclass
class Told:
    """What the double has to tell."""

    attempts: dict[str, str]
    protections: dict[str, str]


@cache
def tried(profile: str) -> Told:
    """The attempts of a process under a profile."""
    with TemporaryDirectory(prefix="infernet-") as folder:
        forbidden, own, shelf = (Path(folder) / name for name in ("forbidden", "own", "shelf"))
        for each in (forbidden, own, shelf):
            each.mkdir()
        for name in ("secret", "identity.key", "spare"):
            (forbidden / name).write_bytes(b"secret")
        (shelf / "model.gguf").write_bytes(b"weights")
        (shelf / "other.gguf").write_bytes(b"weights")
        with (
            socket.create_server(("127.0.0.1", 0)) as port,
            socket.socket(socket.AF_UNIX) as other,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as watched,
        ):
            other.bind(str(forbidden / "socket"))
            other.listen()
            datagrams.bind(str(forbidden / "datagrams"))
            words = [str(shelf / "model.gguf"), str(own), str(forbidden), str(port.getsockname()[1])]
            done = subprocess.run(
                [sys.executable, "-P", str(DOUBLE), profile, *words],
                capture_output=True,
                check=False,
                timeout=DEADLINE_S,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "WATCHED": str(watched.pid)},
            )
            watched.kill()
    assert done.returncode == 0, done.stderr.decode()
    return Told(**json.loads(done.stdout))


@pytest.mark.parametrize("attempt", NEEDED)
def test_what_an_engine_needs_it_can_do(attempt: str) -> None:
    assert tried("engine").attempts[attempt] == "done"


@pytest.mark.parametrize("attempt", OF_FILES + OF_CALLS)
def test_what_an_intruder_wants_is_refused(attempt: str) -> None:
    assert tried("engine").attempts[attempt] in ("EACCES", "EPERM")
    # Otherwise this says nothing.
    assert tried("none").attempts[attempt] == "done"


def test_a_program_cannot_take_the_place_of_the_process() -> None:
    assert (tried("none").attempts["become a program"], tried("engine").attempts["become a program"]) == (
        "ENOENT",
        "EPERM",
    )


def test_what_is_on_is_told() -> None:
    assert tried("engine").protections == dict.fromkeys(MEANINGS, "on")


@pytest.mark.parametrize("attempt", OF_CALLS)
def test_without_landlock_the_calls_are_refused_all_the_same(attempt: str) -> None:
    assert tried("engine-without-landlock").attempts[attempt] in ("EACCES", "EPERM")


def test_what_a_kernel_lacks_is_told_with_its_name() -> None:
    told = tried("engine-without-landlock")
    assert told.attempts["read what lies beside"] == "done"
    assert told.protections == dict.fromkeys(MEANINGS, "on") | {
        "files": "this kernel lacks Landlock, which came with Linux 5.13"
    }
    told = tried("engine-without-seccomp")
    assert told.attempts["fork"] == "done"
    # Landlock knows ports of TCP, too.
    assert (told.attempts["connect to a port"], told.attempts["start a program"]) == ("EACCES", "EACCES")
    assert told.protections["network"] == told.protections["programs"] == "this kernel lacks seccomp filters"


@pytest.mark.parametrize("attempt", OF_FILES + OF_CALLS)
def test_the_dht_has_the_network_and_nothing_else(attempt: str) -> None:
    allowed = ("done",) if attempt in ("connect to a port", "send a datagram") else ("EACCES", "EPERM")
    assert tried("dht").attempts[attempt] in allowed


def test_the_parts_of_a_split_model_go_together_and_nothing_else_does(tmp_path: Path) -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00002-of-00003.gguf", "n-00002-of-00002.gguf"]
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in profiles._parts(tmp_path / names[0])} == set(names[:2])
    assert list(profiles._parts(tmp_path / "model.gguf")) == [tmp_path / "model.gguf"]


def test_a_home_is_no_folder_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "lib").mkdir(parents=True)
    asked = [str(tmp_path), str(tmp_path / "home"), str(tmp_path / "home" / "lib"), "/"]
    assert [str(grant.path) for grant in profiles._of_libraries(asked)] == [str(tmp_path / "home" / "lib")]


def test_what_lies_among_libraries_is_open_to_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    (tmp_path / "link").symlink_to(tmp_path / "environment")
    assert profiles.open_to_engines(tmp_path / "link" / "data" / "identity.key") == tmp_path / "environment"
    assert profiles.open_to_engines(tmp_path / "data" / "identity.key") is None


def test_people_read_what_is_off_and_why() -> None:
    on = Protection("limits", is_on=True)
    off = [Protection(name, is_on=False, why_not="it is old") for name in ("network", "programs")]
    assert describe([on, *off]) == "is not kept from network and programs (it is old)"
    assert describe([on]) == "; ".join(MEANINGS.values())


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    told = {each.name: each.why_not for each in profiles.available()}
    assert told["files"] == "darwin has nothing like Landlock, which came with Linux 5.13"
    assert told["limits"] == ""
