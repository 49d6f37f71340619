"""Each test of the command line has a home of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_cli import Home
from tests.helpers_log import logging_restored


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Commands that run within a test set up logging as if the process were theirs."""
    with logging_restored():
        yield


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A short path, so that its socket lies in it."""
    path = Path(tempfile.mkdtemp(prefix="infernet-"))
    monkeypatch.setenv("INFERNET_HOME", str(path))
    yield Home(path)
    shutil.rmtree(path, ignore_errors=True)
