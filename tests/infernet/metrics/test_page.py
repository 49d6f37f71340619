"""docs/metrics.md says what the table of metrics says."""

from __future__ import annotations

from pathlib import Path

from infernet.metrics.page import render
from infernet.metrics.table import METRICS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m infernet.metrics.page > docs/metrics.md"


def test_what_the_page_uses_exists() -> None:
    head = render().partition("## All of them")[0]
    shown = {metric.shown_name for metric in METRICS}
    for name in (
        "infernet_engine_state",
        "infernet_link_up",
        "infernet_jobs_total",
        "infernet_unclaimed_micro_usd",
        "infernet_output_tokens_total",
        "infernet_earned_micro_usd_total",
        "infernet_jobs_running",
        "infernet_jobs_waiting",
        "infernet_peers_connected",
    ):
        assert name in shown
    for named in ("infernet_engine_state{", "infernet_jobs_total{", "increase(infernet_earned_micro_usd_total"):
        assert named in head
