"""A market of real processes for tests: coordinator and nodes, started as people start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from infernet.config import places
from infernet.ipc import client as ipc
from protocol.ids import node_id_from_text
from tests.helpers_processes import wait_until

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / ".cache" / "models"


class Coordinator:
    """A coordinator process on a free port that it keeps when it is killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "coordinator", "--host", "127.0.0.1", "--port", str(self.port), "--json"]
        self.process = subprocess.Popen(
            [*command, "--home", str(self.home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.url: str = ready["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.key = node_id_from_text(ready["key"])

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def models(self) -> list[str]:
        """The models that live nodes serve, by the public list."""
        rows = httpx.get(f"{self.url}/api/models", timeout=10).json()["data"]
        return [row["name"] for row in rows]


class Provider:
    """A provider's process with the starter model, linked to a coordinator and with its own port closed."""

    def __init__(self, home: Path, coordinator: Coordinator, name: str = "test provider") -> None:
        self._home = home
        models = home / "data" / "models"
        models.parent.mkdir(parents=True)
        models.symlink_to(MODELS)
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), "INFERNET_HOME": str(home)}
        self._run("init", "--role", "provider", "--url", coordinator.url, "--name", name, "--yes")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infernet.cli", "start", "--foreground", "--no-p2p"],
            env=self._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: coordinator.models() or self.process.poll() is not None, "the provider serves")
        assert self.process.poll() is None, "the provider ended"

    def _run(self, *words: str) -> None:
        command = [sys.executable, "-m", "infernet.cli", *words]
        subprocess.run(command, env=self._environ, check=True, capture_output=True)

    @property
    def _socket(self) -> Path:
        return places({"INFERNET_HOME": str(self._home)}).socket_path

    def status(self) -> dict[str, Any]:
        """What `infernet status` would print."""
        status: dict[str, Any] = ipc.call(self._socket, "status")
        return status

    def is_linked(self) -> bool:
        """Whether it is up and has a link to the coordinator."""
        return ipc.is_alive(self._socket) and self.status()["coordinator"]["state"] == "connected"

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it as its owner does."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
