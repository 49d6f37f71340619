"""`infernet cluster-keeper`: what runs a program of llama.cpp for as long as its node lives. Hidden."""

from __future__ import annotations


def run(words: list[str]) -> int:
    """Run the program that is named."""
    from infernet.cluster.keeper import main

    return main(words)
