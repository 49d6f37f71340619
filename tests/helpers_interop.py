"""js-libp2p for the tests that meet it: installed from the lock once, its scripts copied beside it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
HERE: Final = ROOT / "tests" / "interop"
CACHE: Final = ROOT / ".cache"
INSTALL_TIMEOUT_S: Final = 120
# What npm calls a machine without a network, or a registry that is not there.
OFFLINE: Final = re.compile(r"code (EAI_AGAIN|ECONNREFUSED|ECONNRESET|EHOSTUNREACH|ENETUNREACH|ENOTFOUND|ETIMEDOUT)")


def js_command(script: str) -> list[str]:
    """The command that runs a script of tests/interop, installed when this checkout has not done so yet; may skip."""
    sources = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    home = CACHE / f"interop-{digest}"
    with _alone():
        if not home.exists():
            _install(sources, home)
        for path in HERE.glob("*.mjs"):
            copy = home / path.name
            if not copy.exists() or copy.read_bytes() != path.read_bytes():
                shutil.copy(path, copy)
    return ["node", "--import", (home / "promise.mjs").as_uri(), str(home / script)]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let the processes of one test run in one after the other, so that the second finds what the first installed."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "interop.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(sources: list[Path], home: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix="interop-draft-", dir=CACHE))
    try:
        for source in sources:
            shutil.copy(source, draft)
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(npm, cwd=draft, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if OFFLINE.search(done.stderr):
            pytest.skip("npm reaches no registry, and js-libp2p has not been installed before")
        assert done.returncode == 0, done.stderr
        draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
