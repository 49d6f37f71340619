"""Homes in which all is well, a double of a coordinator, and running the doctor on them."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infernet import identity
from infernet.cli.__main__ import main
from infernet.config import save
from infernet.engines import models
from infernet.settings.table import BY_NAME
from protocol.constants import PROTOCOL_VERSION
from protocol.ids import NodeId
from tests.helpers_cli import Home, Outcome, invoke, invoke_beside
from tests.helpers_processes import free_port

# Everything but what asks the network or loads a model.
QUICK = ("--skip-network", "--skip-engine")
# It is one, as far as anybody looks who does not load it.
MODEL = b"GGUF" + bytes(range(256)) * 16
# The double's key.
KEY = NodeId(bytes.fromhex("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"))
# A node that does not run is something to know, in every test that runs none.
EXPECTED_WARNINGS = {"node.running"}


def make_well(home: Home, capsys: pytest.CaptureFixture[str], **settings: object) -> None:
    """A provider's home after `init`, with a model that was verified once and a port that is free."""
    assert main(["init", "--yes", "--p2p-port", str(free_port())]) == 0
    model = home.path / "model.gguf"
    model.write_bytes(MODEL)
    models.fingerprint(model)  # writes the marker, as the first start does
    put(home, model=str(model), **settings)
    capsys.readouterr()


def put(home: Home, **settings: object) -> None:
    """Change settings in the file."""
    values = {name: None if value is None else BY_NAME[name].read(value) for name, value in settings.items()}
    save(home.config.config_file, values, keep=True)


def link(home: Home, coordinator: FakeCoordinator, **settings: object) -> None:
    """Have a home's node use a coordinator."""
    put(home, coordinator_url=coordinator.url, coordinator_key=coordinator.key.hex(), **settings)


def node_of(home: Home) -> NodeId:
    """Who a home's node is."""
    return identity.load(home.config.key_file).node


@dataclass
class Report:
    """What the doctor said."""

    outcome: Outcome
    checks: dict[str, dict[str, Any]]

    @property
    def faults(self) -> dict[str, str]:
        """Id and status of everything that is not well, but for what is expected."""
        return {
            name: check["status"]
            for name, check in self.checks.items()
            if check["status"] in ("fail", "warn") and name not in EXPECTED_WARNINGS
        }

    def told(self, name: str) -> str:
        """What was found and what to do."""
        return f"{self.checks[name]['found']} -> {self.checks[name]['fix']}"


def read(outcome: Outcome) -> Report:
    """The report in what a command printed."""
    assert outcome.code in (0, 1), outcome.err
    report = Report(outcome, {check["id"]: check for check in outcome.json["checks"]})
    assert outcome.code == (0 if outcome.json["ok"] else 1)
    assert "Traceback" not in outcome.err
    return report


def examine(capsys: pytest.CaptureFixture[str], *words: str) -> Report:
    """Run the doctor in this process."""
    return read(invoke(capsys, "doctor", "--json", *(words or QUICK)))


async def examine_beside(capsys: pytest.CaptureFixture[str], *words: str) -> Report:
    """Run the doctor in a thread, while the test serves what it asks for."""
    return read(await invoke_beside(capsys, "doctor", "--json", *(words or QUICK)))


def examine_under(home: Home, *before: str) -> Report:
    """Run the doctor as a process, started by another command."""
    command = [*before, *home.command("doctor", "--json", *QUICK)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=home.environment())
    return read(Outcome(done.returncode, done.stdout, done.stderr, ("doctor",)))


# ---------------------------------------------------------------- a double of a coordinator


@dataclass
class FakeCoordinator:
    """Test double: tells what a coordinator tells anybody, as the test wants it. Signs nothing."""

    url: str = ""
    key: NodeId = KEY
    ahead_ms: int = 0
    protocol_version: int = PROTOCOL_VERSION
    ok: bool = True
    listed: list[dict[str, Any]] = field(default_factory=list)
    #: Answers everything with this instead.
    body: bytes | None = None
    #: Paths that are answered with an error, and which.
    errors: dict[str, int] = field(default_factory=dict)

    def answer(self, path: str) -> bytes:
        """The body for a path."""
        if self.body is not None:
            return self.body
        known: dict[str, dict[str, Any]] = {
            "/api/v1/coordinator": {
                "key": self.key.hex(),
                "protocol_version": self.protocol_version,
                "time_ms": time.time_ns() // 1_000_000 + self.ahead_ms,
            },
            "/api/health": {"ok": self.ok},
            "/api/peers": {"data": self.listed},
        }
        return json.dumps(known.get(path.partition("?")[0], {"error": "unknown"})).encode()


@contextmanager
def fake_coordinator() -> Iterator[FakeCoordinator]:
    """The double, served on this machine as long as the block lasts."""
    double = FakeCoordinator()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = double.answer(self.path)
            self.send_response(double.errors.get(self.path.partition("?")[0], 200))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent_listener() -> Iterator[int]:
    """A port on which somebody listens, and says nothing that a libp2p node would say."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def healthy_status(home: Home) -> dict[str, Any]:
    """What a running node says of itself when all is well: for a double of the node. It listens nowhere."""
    import infernet

    return {
        "version": infernet.__version__,
        "node_id": node_of(home).hex(),
        "name": "fake",
        "role": "provider",
        "addresses": [],
        "advertised_addresses": [],
        "reached": {"reachability": "reached", "advice": ""},
        "engine": {"state": "ready", "last_error": ""},
        "coordinator": None,
        "coordinator_url": None,
        "peers": 2,
        "money": None,
    }


def seal_in(path: Path) -> bytes:
    """The bytes of every file below a folder, by name: to see that nothing was changed."""
    found = [
        f"{each.relative_to(path)} {each.lstat().st_mode:o} {each.lstat().st_mtime_ns} {each.read_bytes().hex()}"
        if each.is_file()
        else f"{each.relative_to(path)} {each.lstat().st_mode:o} {each.lstat().st_mtime_ns}"
        for each in sorted(path.rglob("*"))
    ]
    return "\n".join(found).encode()
