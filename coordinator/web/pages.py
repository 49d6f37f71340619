"""Serves the pages and their files, from memory: there are few, and no path of a request reaches the file system.

They hold no secret and no data; the scripts fetch what they show.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quart import Blueprint, Response, request

from coordinator.config import Config
from coordinator.core.http import ApiError

FOLDER: Final = Path(__file__).parent
CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    etag: str


def pages(config: Config) -> Blueprint:
    """The routes."""
    blueprint = Blueprint("pages", __name__)
    # The chat keeps a conversation within what the coordinator takes, so the page has to know how much that is.
    values = {"{{prompt_bytes_max}}": str(config.chat_prompt_bytes_max)}
    market = _load(FOLDER / "market.html", values)
    chat = _load(FOLDER / "chat.html", values)
    static = {path.name: _load(path, {}) for path in (FOLDER / "static").iterdir() if path.suffix in CONTENT_TYPES}

    @blueprint.get("/")
    async def show_market() -> Response:
        return _answer(market)

    @blueprint.get("/chat")
    async def show_chat() -> Response:
        return _answer(chat)

    @blueprint.get("/static/<name>")
    async def show_file(name: str) -> Response:
        if name not in static:
            raise ApiError(404, "there is nothing at this path")
        return _answer(static[name])

    return blueprint


def _load(path: Path, values: dict[str, str]) -> _File:
    text = path.read_text("utf-8")
    for mark, value in values.items():
        text = text.replace(mark, value)
    content = text.encode()
    return _File(content, CONTENT_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(file: _File) -> Response:
    # Asked again each time, answered with nothing when nothing changed: an upgrade is seen at once.
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}
    if file.etag in request.headers.get("If-None-Match", ""):
        return Response(b"", 304, headers)
    return Response(file.content, 200, headers, content_type=file.content_type)
