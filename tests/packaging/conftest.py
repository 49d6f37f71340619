"""The one-file program that tests of this folder use.

INFERNET_BINARY_UNDER_TEST names a finished one; without it, it is built, where `scripts/build_binary` has made the
environment for that before.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Read here, because tests run without variables of ours.
GIVEN = os.environ.get("INFERNET_BINARY_UNDER_TEST", "")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file."""
    if GIVEN:
        return (ROOT / GIVEN).absolute()
    if not (ROOT / ".venv-build" / "bin" / "pyinstaller").exists():
        pytest.skip("PyInstaller is not installed: run scripts/build_binary once, which makes .venv-build")
    target = tmp_path_factory.mktemp("binary") / "infernet"
    done = subprocess.run(
        [ROOT / "scripts" / "build_binary", "--output", target], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target
