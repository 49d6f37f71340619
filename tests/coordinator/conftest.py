"""The coordinator runs on asyncio, so its tests do. A served coordinator is a real one: Hypercorn on 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers_coordinator import Served, WallClock, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of every test in this folder."""
    return "asyncio"


@pytest.fixture
def clock() -> WallClock:
    """The wall clock that the served coordinator reads."""
    return WallClock()


@pytest.fixture
async def served(tmp_path: Path, clock: WallClock) -> AsyncIterator[Served]:
    """A coordinator that serves on 127.0.0.1, with its clock in the test's hand."""
    async with serving(tmp_path, clock) as served:
        yield served
