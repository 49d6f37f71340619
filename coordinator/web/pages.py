"""Serves the pages and their files. They hold no secret and no data: the scripts fetch what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Blueprint, Response

from coordinator.config import Config

FOLDER: Final = Path(__file__).parent


def pages(config: Config) -> Blueprint:
    """The routes."""
    blueprint = Blueprint("pages", __name__, static_folder="static", static_url_path="/static")
    market = (FOLDER / "market.html").read_bytes()
    chat = (FOLDER / "chat.html").read_text("utf-8")
    # The page keeps a conversation within what the coordinator takes, so it has to know how much that is.
    chat = chat.replace("{{prompt_bytes_max}}", str(config.chat_prompt_bytes_max))

    @blueprint.get("/")
    async def show_market() -> Response:
        return _page(market)

    @blueprint.get("/chat")
    async def show_chat() -> Response:
        return _page(chat.encode())

    return blueprint


def _page(html: bytes) -> Response:
    response = Response(html, content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    return response
