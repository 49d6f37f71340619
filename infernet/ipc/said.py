"""What a node says of its models beside what they cost, as `--json` shows it. Foreign text is not cleaned."""

from __future__ import annotations

from typing import Any

from protocol.details import Said, all_said
from protocol.records import EngineKind, Heartbeat


def what_is_said(heartbeat: Heartbeat) -> dict[str, dict[str, Any]]:
    """By the names of those models of which something is said."""
    return {name: _plain(one) for name, one in all_said(heartbeat).items()}


def _plain(one: Said) -> dict[str, Any]:
    return {
        "quantisation": one.quantisation or None,
        "engine": one.engine.name.lower() if one.engine is not EngineKind.UNKNOWN else None,
        "prompt_tokens_per_s": one.prompt_tokens_per_s or None,
        "tokens_per_s": one.tokens_per_s or None,
        "aliases": list(one.aliases),
    }
