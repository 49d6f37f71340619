"""One provider serves every test that does not kill it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers_cli import Home
from tests.helpers_end_to_end import NodeProcess, new_home, provider


@pytest.fixture(scope="session")
def shared_provider(starter_model_path: Path) -> Iterator[NodeProcess]:
    """A provider's process with the real model. Whoever uses it leaves it as it was: idle, and up."""
    with provider(starter_model_path) as node:
        yield node


@pytest.fixture
def empty_home(starter_model_path: Path) -> Iterator[Home]:
    """The home of somebody who has never run this before."""
    with new_home(starter_model_path) as home:
        yield home
