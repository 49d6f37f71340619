"""What a node says of its models, in a few words: form of the weights, engine, and how fast it claims to write."""

from __future__ import annotations

from typing import Any


def in_words(said: dict[str, Any] | None) -> str:
    """Of one model, as the node showed it with `--json`; empty where nothing is said, or by an older program."""
    if not said:
        return ""
    speed = f"{said['tokens_per_s']} tokens/s" if said.get("tokens_per_s") else None
    return ", ".join(str(word) for word in (said.get("quantisation"), said.get("engine"), speed) if word)


def all_in_words(said: dict[str, Any] | None, models: list[str]) -> str:
    """Of several models, each by its name; of an only one without."""
    words = {name: in_words(one) for name, one in (said or {}).items()}
    told = {name: text for name, text in words.items() if text}
    return "; ".join(text if len(models) == 1 else f"{name}: {text}" for name, text in told.items())
