"""The one-file program itself, used as somebody does who has nothing else: no Python, no settings, an empty home."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import _binary
import infernet
from tests.helpers_processes import free_port, processes_below, wait_until

DEADLINE_S = 180.0
# All that it needs of a system.
PROGRAMS = ("sh", "tail", "gzip", "tar", "mkdir", "mktemp", "rm", "mv", "sha256sum")

pytestmark = pytest.mark.nightly


class Machine:
    """A machine with the file, and hardly anything beside it."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.home = folder / "home"
        self.programs = folder / "programs"
        self.home.mkdir()
        self.programs.mkdir()
        for name in PROGRAMS:
            (self.programs / name).symlink_to(shutil.which(name) or name)
        (self.programs / "infernet").symlink_to(binary)
        self.environ = {"PATH": str(self.programs), "INFERNET_HOME": str(self.home), "INFERNET_MDNS": "off"}

    def run(self, *words: str, code: int = 0) -> str:
        """Run a verb to its end and give what it printed; it must end with this exit code."""
        done = subprocess.run(
            [self.programs / "infernet", *words],
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == code, f"{words}: {done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def machine(binary: Path) -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="infernet-"))
    try:
        yield Machine(folder, binary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_it_says_its_version_and_unpacks_for_this_user_alone(machine: Machine) -> None:
    assert json.loads(machine.run("version", "--json"))["version"] == infernet.__version__ == _binary.version()
    cache = machine.home / "cache"
    assert cache.stat().st_mode & 0o077 == 0
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["program"]


def test_each_verb_has_its_help(machine: Machine) -> None:
    from infernet.cli.__main__ import VERBS

    for verb in VERBS:
        assert machine.run(verb, "--help").startswith(f"usage: infernet {verb} ")


def test_it_names_its_file_and_not_what_is_unpacked(machine: Machine) -> None:
    file = str(machine.programs / "infernet")
    assert f"ExecStart={file} start --foreground" in machine.run("service", "unit", "--system")
    upgrade = json.loads(machine.run("upgrade", "--json"))
    assert upgrade["installed"] == "binary"
    assert file in upgrade["steps"][0]


def test_completion_and_hardware_work_without_a_python(machine: Machine) -> None:
    assert "complete" in machine.run("completion", "bash")
    assert "gpus" in json.loads(machine.run("gpu", "--json"))


@pytest.mark.model
def test_a_real_answer(machine: Machine, starter_model_path: Path) -> None:
    store = machine.home / "data" / "models"
    store.parent.mkdir()
    store.symlink_to(starter_model_path.parent)
    machine.run("init", "--yes", "--role", "provider", "--p2p-port", str(free_port()))
    checks = json.loads(machine.run("doctor", "--json"))["checks"]
    found = {check["id"]: check["status"] for check in checks}
    assert "fail" not in found.values(), checks
    assert (found["libs.libp2p"], found["engine.answers"]) == ("ok", "ok")
    machine.run("start", "--listen-hosts", "127.0.0.1", "--threads", "1", "--dht")
    try:
        assert json.loads(machine.run("status", "--json"))["models"] == ["smollm2-135m-instruct"]
        said = machine.run("chat", "What is the capital of France?", "--temperature", "0")
        assert "Paris" in said
        report = machine.run("report")
        assert "libp2p: 0.8.1" in report
        assert "not installed" not in report
    finally:
        machine.run("stop")
    wait_until(lambda: not processes_below(machine.home), "nothing is left of it")
