"""Each test of a report has a home of its own."""

from __future__ import annotations

from tests.infernet.cli.conftest import home, restored

__all__ = ["home", "restored"]
