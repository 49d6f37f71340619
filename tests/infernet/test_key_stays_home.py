"""The secret key of a running node is in no argument, variable, log or file but its own, and not in its engine."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infernet import identity
from tests.helpers_cli import Home
from tests.infernet.cli.conftest import home as home

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.name != "posix" or not Path("/proc/self/mem").exists(), reason="reads /proc"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root may look into a node"),
]

REGION_BYTES_MAX = 64 * 1024 * 1024


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process has written into memory, region by region; mapped files are not looked at."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text("ascii").splitlines():
            place, rights, _, _, inode, *_ = line.split()
            start, end = (int(word, 16) for word in place.split("-"))
            if rights.startswith("rw") and inode == "0" and end - start <= REGION_BYTES_MAX:
                memory.seek(start)
                try:
                    yield memory.read(end - start)
                except OSError:
                    continue  # a guard page, or a region that has gone meanwhile


def test_nothing_but_the_node_itself_has_the_key(home: Home, starter_model_path: Path) -> None:
    assert home.run("init", "--yes").code == 0
    key = identity.load(home.config.key_file)
    forms = (key.secret_bytes(), key.secret_bytes().hex().encode(), key.secret_bytes().hex().upper().encode())
    words = ["--p2p-port", "0", "--listen-hosts", "127.0.0.1", "--no-mdns", "--model", str(starter_model_path)]
    with home.started(*words, "--log-level", "debug") as status:
        node = psutil.Process(status["pid"])
        engines = node.children(recursive=True)
        assert engines
        for process in (node, *engines):
            place = Path(f"/proc/{process.pid}")
            shown = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            assert not any(form in shown for form in forms)
        # To show that the search finds what is there.
        assert any(forms[0] in region or forms[1] in region for region in memory_of(node.pid))
        for engine in engines:
            assert not any(form in region for region in memory_of(engine.pid) for form in forms)
            assert engine.rlimit(resource.RLIMIT_CORE) == (0, 0)
        assert home.run("status").code == 0
    written = [path for path in home.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in written if any(form in path.read_bytes() for form in forms)] == [home.config.key_file]
