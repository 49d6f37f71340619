"""`infernet dht-worker`: what the node starts for `--dht`. Hidden; it speaks frames, not words."""

from __future__ import annotations


def run(_words: list[str]) -> int:
    """Serve the node on standard input and output until it is gone."""
    from infernet.discovery.dht_worker import main

    main()
