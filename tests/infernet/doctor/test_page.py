"""docs/troubleshooting.md says what the table of checks says."""

from __future__ import annotations

from pathlib import Path

from infernet.doctor.page import render

PAGE = Path(__file__).resolve().parents[3] / "docs" / "troubleshooting.md"


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m infernet.doctor.page > docs/troubleshooting.md"
