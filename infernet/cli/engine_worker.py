"""`infernet engine-worker`: what the node starts to run a model in. Hidden; it speaks frames, not words."""

from __future__ import annotations


def run(_words: list[str]) -> int:
    """Serve the node on standard input and output until it is gone."""
    from infernet.engines.worker import main

    main()
