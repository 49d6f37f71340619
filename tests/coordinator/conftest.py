"""The coordinator runs on asyncio, so its tests do."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of every test in this folder."""
    return "asyncio"
