"""The thin server: records signed heartbeats, keeps a link to every node, and serves the public chat.

Runs on asyncio (Quart, Hypercorn, aiosqlite). It stands on `protocol` and never imports `infernet`.
Reading order: app.py, then core/ (the routes and the link), then store/ (what is kept).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    """The version of the installation, or a word for a source tree that is not installed."""
    try:
        return installed_version("infernet")
    except PackageNotFoundError:
        return "source"
