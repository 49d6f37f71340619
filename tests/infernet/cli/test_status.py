"""How `infernet status` says in words whether this node is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infernet.cli.status import fields_of
from infernet.config import Config


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        (None, "unknown"),
        ({"reachability": "unknown", "advice": ""}, "unknown"),
        (
            {"reachability": "not_reached", "advice": "forward TCP port 46337"},
            "not reached: forward TCP port 46337",
        ),
        (
            {"reachability": "reached", "advice": "nothing to do", "relays_for_others": True},
            "reached: nothing to do; others are reached through it",
        ),
    ],
)
def test_reachability_in_words(reached: dict[str, Any] | None, words: str) -> None:
    nowhere = Path("/nonexistent")
    config = Config(config_dir=nowhere, state_dir=nowhere, data_dir=nowhere)
    assert dict(fields_of({"reached": reached}, config))["reached"] == words
