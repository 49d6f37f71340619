"""`infernet hardware-worker`: what asks a driver's library for its cards. Hidden; it prints cards, not words."""

from __future__ import annotations


def run(words: list[str]) -> int:
    """Ask the library that is named."""
    from infernet.hardware.worker import main

    return main(words)
