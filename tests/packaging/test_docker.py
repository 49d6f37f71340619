"""Dockerfile and what its container runs. No container was built: the file is read, and its entrypoint run as it is.

The entrypoint runs with the environment that Docker gives it, an empty home, and, where this user may make a user
namespace, as the user that the Dockerfile names.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from infernet.config import places
from infernet.ipc import client as ipc
from infernet.settings.table import SETTINGS
from protocol.constants import P2P_PORT
from tests.helpers_market import Coordinator
from tests.helpers_processes import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each on one line, without comments."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [
        (word, rest.strip()) for line in joined.splitlines() if line.strip() for word, _, rest in [line.partition(" ")]
    ]


def last(word: str) -> str:
    """What the last instruction of this name says."""
    return next(rest for name, rest in reversed(instructions()) if name == word)


def user() -> int:
    """The user that the container runs as."""
    return int(last("USER"))


def test_it_runs_as_nobody_in_particular_and_opens_the_port_of_the_protocol() -> None:
    assert user() > 1000
    assert last("EXPOSE") == f"{P2P_PORT}/tcp"
    assert json.loads(last("ENTRYPOINT")) == ["/usr/local/bin/infernet-container"]


def test_nothing_is_installed_that_no_lock_names() -> None:
    installs = [
        part for word, rest in instructions() if word == "RUN" for part in rest.split("&&") if "pip install" in part
    ]
    assert len(installs) == 3
    for command in installs:
        assert "--no-deps" in command
        assert "--require-hashes" in command or "--no-index" in command


def test_no_secret_is_asked_for_or_kept() -> None:
    named = " ".join(rest for word, rest in instructions() if word in ("ENV", "ARG"))
    assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", named, re.IGNORECASE)


def test_base_images_have_a_version() -> None:
    default = next(rest for word, rest in instructions() if word == "ARG").partition("=")[2]
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", default)
    assert {rest.split()[0] for word, rest in instructions() if word == "FROM"} == {"${PYTHON}"}


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == name or source.startswith(f"{name}/") for name in let_in), source


def test_the_old_names_of_its_variables_are_those_of_settings() -> None:
    script = (ROOT / "packaging" / "docker" / "entrypoint").read_text("utf-8")
    known = {name for setting in SETTINGS for name in setting.variables} | {"INFERNET_HOME"}
    assert set(re.findall(r"INFERNET_[A-Z_]+", script)) <= known


# ---------------------------------------------------------------- running it


@cache
def as_that_user() -> tuple[str, ...]:
    """Words before a command that make it run as the container's user; none where that cannot be had here."""
    words = ("unshare", "--user", f"--map-user={user()}", f"--map-group={user()}", "--")
    if shutil.which("unshare") is None:
        return ()
    done = subprocess.run([*words, "id", "-u"], check=False, capture_output=True, text=True)
    return words if done.stdout.strip() == str(user()) else ()


class Container:
    """What a container would be, without the container: an empty home, its own variables, `infernet` on the PATH."""

    def __init__(self, home: Path, **environ: str) -> None:
        programs = home / "bin"
        programs.mkdir()
        program = programs / "infernet"
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m infernet.cli "$@"\n')
        program.chmod(0o755)
        self.home = home / "volume"
        self.home.mkdir()
        self.environ = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(self.home),
            "INFERNET_HOME": str(self.home),
            "INFERNET_MDNS": "off",
            "INFERNET_LISTEN_HOSTS": "127.0.0.1",
            "INFERNET_P2P_PORT": str(free_port()),
            "INFERNET_THREADS": "1",
            **environ,
        }
        self.log = home / "log"

    def _command(self, *words: str) -> list[str]:
        return [*as_that_user(), str(ROOT / "packaging" / "docker" / "entrypoint"), *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As `docker run IMAGE WORDS`, to its end."""
        return subprocess.run(
            self._command(*words), env=self.environ, check=False, capture_output=True, text=True, timeout=DEADLINE_S
        )

    def start(self) -> subprocess.Popen[bytes]:
        """As `docker run IMAGE`; gives its first process once the node is up."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self._command(), env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        socket = places({"INFERNET_HOME": str(self.home)}).socket_path
        wait_until(lambda: process.poll() is not None or ipc.is_alive(socket), "the node is up")
        assert process.poll() is None, self.log.read_text()
        return process


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A folder with a path so short that a socket can lie below it."""
    home = Path(tempfile.mkdtemp(prefix="infernet-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_words_are_a_verb(short_home: Path) -> None:
    container = Container(short_home)
    done = container.run("version", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "protocol_version" in json.loads(done.stdout)
    assert container.run("status").returncode == 1
    assert list(container.home.iterdir()) == []


def test_a_coordinator_that_is_not_there_is_one_line_and_leaves_nothing(short_home: Path) -> None:
    container = Container(short_home, INFERNET_CONTROL_PLANE_URL=f"http://127.0.0.1:{free_port()}")
    done = container.run()
    assert done.returncode == 1
    assert "nothing was written: start it or correct --url" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(container.home.rglob("identity.key")) == []


def test_a_key_that_was_given_is_not_asked_for(short_home: Path) -> None:
    """The coordinator is not there, and its key is known: the container gets as far as it can without a model."""
    key = "02" * 32
    url = f"http://127.0.0.1:{free_port()}"
    container = Container(short_home, INFERNET_COORDINATOR_URL=url, INFERNET_COORDINATOR_KEY=key, INFERNET_MODEL="none")
    done = container.run()
    assert done.returncode == 1
    assert "none" in done.stderr.strip().splitlines()[-1]
    settings = (container.home / "config" / "config.toml").read_text()
    assert (url in settings, key in settings) == (True, True)


@pytest.mark.model
@pytest.mark.slow
def test_two_variables_make_a_node_that_stays_the_same(short_home: Path, starter_model_path: Path) -> None:
    coordinator = Coordinator(short_home / "coordinator")
    try:
        container = Container(
            short_home, INFERNET_CONTROL_PLANE_URL=coordinator.url, INFERNET_NODE_NAME="from the old name"
        )
        (container.home / "data").mkdir()
        (container.home / "data" / "models").symlink_to(starter_model_path.parent)
        process = container.start()
        health = json.loads(re.sub(r"^.* CMD ", "", last("HEALTHCHECK")))
        assert health[0] == "infernet"

        def is_serving() -> bool:
            return json.loads(container.run(*health[1:]).stdout)["models"] == ["smollm2-135m-instruct"]

        checked = container.run(*health[1:])
        assert checked.returncode == 0, checked.stderr
        first = json.loads(checked.stdout)
        assert (first["name"], first["role"]) == ("from the old name", "provider")
        wait_until(is_serving, "the node serves its model")
        wait_until(coordinator.models, "the coordinator lists the model")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert container.run(*health[1:]).returncode == 1
    finally:
        coordinator.close()
    # The coordinator is away: what was trusted once is not asked for again.
    process = container.start()
    again = json.loads(container.run("status", "--json").stdout)
    assert again["npub"] == first["npub"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
