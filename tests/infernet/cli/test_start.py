"""infernet/cli/start.py: what is told of a node that has started."""

from __future__ import annotations

from typing import Any

from infernet.cli.start import set_for_nobody
from infernet.settings.models import ModelSettings
from tests.helpers_node import config_of_nobody


def test_settings_for_a_model_that_nobody_serves_are_told_and_none_for_one_that_is_not_up_yet() -> None:
    own = tuple(ModelSettings(name=name, slots=2) for name in ("Served", "loading", "spread-7b", "misspelt"))
    status: dict[str, Any] = {
        "models": ["served"],
        "engines": [{"engine": "llama", "models": ["served"]}, {"engine": "llama", "models": ["loading"]}],
        "cluster": {"worker": None, "head": {"model": "spread-7b"}},
    }
    config = config_of_nobody(model_settings=own)
    assert set_for_nobody(config, status) == ["misspelt"]
    assert set_for_nobody(config, {}) == ["Served", "loading", "spread-7b", "misspelt"]
    assert set_for_nobody(config, {"cluster": {"head": None}, "engines": None, "models": None})[-1] == "misspelt"
