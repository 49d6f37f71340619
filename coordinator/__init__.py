"""The thin server: records signed heartbeats, keeps a link to every node, and serves the public chat.

Runs on asyncio (Quart, Hypercorn, aiosqlite). It stands on `protocol` and never imports `infernet`.
Reading order: app.py, then core/ (the routes and the link), then store/ (what is kept).
"""

__version__ = "0.1.0"
