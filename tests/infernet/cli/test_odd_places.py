"""What stands in a place where something else was meant to be is told in one line, and nothing waits for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from protocol.ids import peer_id
from tests.helpers_cli import DEADLINE_S, Home, invoke
from tests.helpers_processes import free_port
from tests.helpers_records import PROVIDER

LOCAL = ("--listen-hosts", "127.0.0.1", "--p2p-port", "0")


@pytest.fixture
def made(home: Home) -> Home:
    assert home.run("init", "--yes").code == 0
    return home


def test_a_pipe_as_a_model_does_not_hang_the_start(made: Home) -> None:
    pipe = made.path / "model.gguf"
    os.mkfifo(pipe)
    outcome = made.run("start", "--model", str(pipe), *LOCAL)
    assert (outcome.code, outcome.complaint.startswith(f"infernet: the model {pipe} is not a file: ")) == (1, True)


def test_a_pipe_or_a_folder_as_the_configuration_does_not_hang_either(
    made: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made.config.config_file
    path.unlink()
    os.mkfifo(path)
    assert invoke(capsys, "config", "show").complaint == f"infernet: {path} is not a file: move it away"
    path.unlink()
    path.mkdir()
    outcome = invoke(capsys, "config", "set", "--slots", "2")
    assert (outcome.code, outcome.complaint) == (1, f"infernet: {path} is not a file: move it away")


def test_a_folder_where_the_socket_is_to_be_is_told(made: Home) -> None:
    path = made.config.socket_path
    path.mkdir(parents=True)
    outcome = made.run("start", "--engine", "none", *LOCAL)
    assert outcome.code == 1
    assert f"{path} is in the way of the node's socket (is a directory): move it away" in outcome.complaint


def test_an_address_that_this_machine_lacks_is_told_with_what_to_give(made: Home) -> None:
    outcome = made.run("start", "--engine", "none", "--listen-hosts", "203.0.113.7")
    assert outcome.code == 1
    assert outcome.complaint == (
        "infernet: cannot listen on 203.0.113.7 (cannot assign requested address): give addresses that this machine "
        "has (--listen-hosts), or 0.0.0.0 and :: for all of them"
    )


@pytest.mark.parametrize(
    "words", [("config", "show"), ("version", "--json"), ("--help",), ("version",), ("init", "--help")], ids=" ".join
)
def test_an_output_that_is_full_is_told_and_is_no_crash(home: Home, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            home.command(*words),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=DEADLINE_S,
            env=home.environment(),
        )
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line == "infernet: cannot write the output (no space left on device): make room where it goes"


def test_who_asks_one_peer_is_not_told_of_others(made: Home, capsys: pytest.CaptureFixture[str]) -> None:
    peer = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{peer_id(PROVIDER.node)}"
    outcome = invoke(capsys, "chat", "--peer", peer, "why")
    assert outcome.code == 1
    assert outcome.complaint.endswith("; check that a node runs there, and that address, port and firewall let you in")


@pytest.mark.parametrize("words", [("config", "set"), ("init", "--yes")], ids=" ".join)
def test_one_model_takes_the_place_of_several(made: Home, words: tuple[str, ...]) -> None:
    assert made.run("config", "set", "--models", "a,b").code == 0
    assert made.run(*words, "--model", "c").code == 0
    settings = made.run("config", "show", "--json").json["settings"]
    assert (settings["model"]["value"], settings["models"]["value"]) == ("c", [])
    assert made.run(*words, "--model", "c", "--models", "a,b").code == 0
    assert made.run("config", "show", "--json").json["settings"]["models"]["value"] == ["a", "b"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_lies_where_the_log_belongs_is_told(made: Home, make: Callable[[str], None]) -> None:
    path = made.config.log_file
    path.parent.mkdir(mode=0o700, exist_ok=True)
    make(str(path))
    outcome = made.run("start", "--engine", "none", "--no-p2p")
    assert outcome.code == 1
    assert f"cannot use {path} (" in outcome.complaint


def test_a_pipe_where_the_lock_belongs_is_not_waited_for(made: Home) -> None:
    made.config.pid_file.parent.mkdir(mode=0o700, exist_ok=True)
    os.mkfifo(made.config.pid_file)
    assert made.run("status").complaint.endswith("no node is running here: run `infernet start`")
