"""Whatever lies where a node's files should be, and whatever answers in its place: a finding, and never a mistake."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from infernet.config import load, places
from infernet.diagnostics import bundle
from infernet.doctor import configuration, files, key, model, node, ports, stores
from infernet.doctor.contract import Situation
from infernet.doctor.examination import Result, examine
from infernet.doctor.table import CHECKS
from infernet.ipc import client as ipc
from protocol.ids import NodeId

LOCAL = {
    check.id
    for family in (configuration, key, files, node, stores, model, ports)
    for check in family.CHECKS
    if check.part == "local"
}
FILES = (
    "config/config.toml",
    "config/identity.key",
    "state/daemon.pid",
    "state/daemon.log",
    "state/crash.log",
    "state/node.sqlite3",
    "state/money.sqlite3",
    "state/money.sqlite3-wal",
    "data/models/smollm2-135m-instruct-q4_1.gguf",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
STATUS = st.dictionaries(
    st.sampled_from(
        [
            *("version", "role", "coordinator_url", "node_id", "peers", "addresses", "advertised_addresses", "reached"),
            *("engine", "coordinator", "money", "transport", "discovered", "uptime_s", "models"),
        ]
    ),
    JSON | st.fixed_dictionaries({"state": JSON, "last_error": JSON, "trouble": JSON, "reachability": JSON}),
)


@contextmanager
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run(situation: Situation) -> list[Result]:
    return trio.run(examine, [check for check in CHECKS if check.id in LOCAL], situation, ())


def assert_sound(results: list[Result]) -> None:
    for result in results:
        assert "itself broke" not in result.finding.found, (result.check.id, result.finding)
        assert (result.finding.fix != "") == (result.finding.status in ("warn", "fail")), result
        # What is no character yet is shown as it came: a newer Unicode may have made one of it.
        shown = [character for character in result.finding.found if unicodedata.category(character) != "Cn"]
        assert "".join(shown).isprintable()


@given(
    st.dictionaries(st.sampled_from(FILES), st.binary(max_size=200) | st.sampled_from([b"SQLite format 3\0", b"GGUF"]))
)
@example({"config/config.toml": b"schema_version = 9\n"})
@example({"config/config.toml": b"a = " + b"[" * 3000})
def test_whatever_bytes_are_in_the_files(contents: dict[str, bytes]) -> None:
    with home() as path:
        for name, data in contents.items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_bytes(data)
            file.chmod(0o600)
        environ = {"INFERNET_HOME": str(path)}
        assert_sound(run(Situation(environ)))
        bundle.gather((), environ)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["folder", "loop", "dangling"])
def test_whatever_stands_in_a_files_place(name: str, kind: str) -> None:
    with home() as path:
        file = path / name
        file.parent.mkdir(parents=True, mode=0o700)
        if kind == "folder":
            file.mkdir()
        else:
            os.symlink(file.name if kind == "loop" else "missing", file)
        environ = {"INFERNET_HOME": str(path)}
        assert_sound(run(Situation(environ)))
        bundle.gather((), environ)


@given(STATUS)
@example({"uptime_s": math.nan})
@example({"uptime_s": math.inf, "peers": True, "models": {}})
def test_whatever_the_running_node_says_of_itself(status: dict[str, Any]) -> None:
    environ = {"INFERNET_HOME": "/nonexistent/home", "INFERNET_COORDINATOR_URL": "http://127.0.0.1:9"}
    loaded = load(environ=environ | {"INFERNET_COORDINATOR_KEY": "ab" * 32})
    names = {"node.version", "node.settings", "node.heartbeat", "node.peers", "port.reached", "money.store"}
    situation = Situation(environ, places=places(environ), loaded=loaded, node=NodeId(bytes(32)), pid=7, status=status)

    async def look() -> None:
        for check in CHECKS:
            if check.id in names:
                finding = await check.examine(situation)
                assert finding.found

    trio.run(look)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ipc, "call", lambda *_arguments, **_options: status)
        json.dumps(bundle.gather((), environ))
