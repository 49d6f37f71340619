"""Each test of the doctor has a home of its own, in which all is well."""

from __future__ import annotations

import pytest

from tests.helpers_cli import Home
from tests.helpers_doctor import make_well
from tests.infernet.cli.conftest import home, restored

__all__ = ["home", "restored"]


@pytest.fixture
def well(home: Home, capsys: pytest.CaptureFixture[str]) -> Home:
    """A home in which all is well."""
    make_well(home, capsys)
    return home
