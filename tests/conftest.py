"""What every test stands on: one event loop per folder, seeded properties, a home that is nobody's, honest skips."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
# scripts/ too: its helpers import each other by their plain names, as they do when a command runs.
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# `scripts/test` puts the starter model here; the tests never download.
MODEL_STORE = ROOT / ".cache" / "models"

# Deterministic by default: the same examples on every machine. The nightly run looks for new ones.
settings.register_profile("default", derandomize=True, database=None, max_examples=60, deadline=None, print_blob=True)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--nightly` and what belongs to it."""
    parser.addoption("--nightly", action="store_true", help="run the long tests too, and far more property examples")
    parser.addoption("--chaos-minutes", type=float, default=30, help="with --nightly: how long the storm lasts")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how hard property tests look."""
    settings.load_profile("nightly" if config.getoption("--nightly") else "default")


def starter_model() -> Path | None:
    """The starter model's file, when it has been fetched."""
    return next(iter(sorted(MODEL_STORE.glob("*.gguf"))), None)


def chromium() -> str | None:
    """The path of a Chromium that is installed on this machine."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def namespaces() -> bool:
    """Whether this user may make network namespaces."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in ("ip", "unshare", "nsenter"))


def llama_server_with_rpc() -> str | None:
    """The llama-server with RPC, and ggml-rpc-server beside it, that whoever runs the tests has named."""
    path = os.environ.get("LLAMA_SERVER_WITH_RPC", "")
    return path if os.access(path, os.X_OK) else None


def exllama() -> bool:
    """Whether ExLlamaV2 and what it imports are installed; no GPU is needed for its tests."""
    return all(find_spec(name) is not None for name in ("torch", "exllamav2", "tokenizers"))


# marker -> what it needs, and what to say when that is missing
NEEDS: dict[str, tuple[Callable[[], object], str]] = {
    "model": (starter_model, "the starter model is not in .cache/models: run ./scripts/test, which fetches it"),
    "browser": (chromium, "no Chromium: apt-get install chromium"),
    "namespaces": (namespaces, "network namespaces need root and iproute2"),
    "rpc": (
        llama_server_with_rpc,
        "no llama.cpp with RPC: build it with -DGGML_RPC=ON, and set LLAMA_SERVER_WITH_RPC to its llama-server",
    ),
    "exllama": (exllama, "torch and exllamav2 are not installed: CONTRIBUTING.md says how to have them"),
    "interop": (lambda: shutil.which("node") and shutil.which("npm"), "no node or no npm: apt-get install nodejs npm"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what was not asked for or cannot run here."""
    reasons = {marker: reason for marker, (available, reason) in NEEDS.items() if not available()}
    if not config.getoption("--nightly"):
        reasons["nightly"] = "only with --nightly"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The node and the protocol's drivers run on trio; tests/coordinator says asyncio."""
    return "trio"


@pytest.fixture(scope="session", autouse=True)
def nobodys_home() -> Iterator[None]:
    """Keep every test, and every process that a test starts, away from the configuration of whoever runs them."""
    before = dict(os.environ)
    # Short, because sockets live below it and their paths may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="infernet-"))
    for name in [name for name in os.environ if name.startswith("INFERNET_")]:
        del os.environ[name]
    for kind in ("CONFIG", "STATE", "DATA"):
        os.environ[f"XDG_{kind}_HOME"] = str(home / kind.lower())
    # Nodes of different tests, and whatever runs in this network, must not find each other.
    os.environ["INFERNET_MDNS"] = "off"
    yield
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def starter_model_path() -> Path:
    """The starter model's file, for tests marked `model`."""
    path = starter_model()
    assert path is not None, "mark this test with `model`"
    return path


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser to drive, for tests marked `browser`."""
    path = chromium()
    assert path is not None, "mark this test with `browser`"
    return path
