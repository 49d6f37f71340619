"""`/api/v1/link`: a registered node opens its WebSocket, proves its key, and gets the coordinator's signed hello."""

from __future__ import annotations

import sqlite3
from typing import Final

from quart import Blueprint, Response, websocket
from quart.globals import websocket_ctx

from coordinator.core.auth import authenticate_link, use_once
from coordinator.core.core import Core
from coordinator.core.heartbeats import NotRegistered
from coordinator.core.http import RETRY_AFTER_S, ApiError, json_response
from coordinator.core.node_api import REGISTER_FIRST
from coordinator.store import nodes
from protocol.link import LINK_PATH, encode_hello

_COMPRESSION: Final = "Sec-WebSocket-Extensions"


class _QuartChannel:
    """The current WebSocket of Quart, as a link needs it."""

    def __init__(self) -> None:
        # The object itself: its proxy looks it up anew at every use, and a link uses it at every token.
        self._websocket = websocket_ctx.websocket

    async def receive(self) -> bytes | str:
        message = await self._websocket.receive()
        # Quart hands over an empty binary message as None.
        return message if isinstance(message, bytes | str) else b""

    async def send(self, data: bytes) -> None:
        await self._websocket.send(data)

    async def close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)


def link_api(core: Core) -> Blueprint:
    """The route."""
    api = Blueprint("link_api", __name__)

    @api.websocket(LINK_PATH)
    async def link() -> Response | None:
        try:
            row, header = await _admit(core)
        except ApiError as error:
            return json_response({"error": error.message, **error.fields}, error.status, error.headers)
        await websocket.accept()
        await websocket.send(encode_hello(core.key, row.node, header, core.wall_ms()))
        is_current = row.record_expires_ms is not None and row.record_expires_ms > core.wall_ms()
        await core.links.serve(row.node, row.node_id, row.record if is_current else None, _QuartChannel())
        return None

    return api


async def _admit(core: Core) -> tuple[nodes.Node, str]:
    """Check everything before the upgrade. Raises ApiError."""
    authenticated, header = authenticate_link(core)
    if _COMPRESSION in websocket.headers:
        # What is sealed does not compress, and a small compressed frame can hold a very large one.
        raise ApiError(400, "a link takes no WebSocket extensions")
    if core.is_stopping or (len(core.links) >= core.config.links_at_once and authenticated.node not in core.links):
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        raise ApiError(503, "no more links can be opened here now; try again soon", headers=retry)

    def admit(tx: sqlite3.Connection) -> nodes.Node:
        row = nodes.get(tx, authenticated.node)
        if row is None:
            raise NotRegistered
        use_once(core, tx, authenticated)
        return row

    try:
        return await core.database.write(admit), header
    except NotRegistered:
        raise ApiError(404, REGISTER_FIRST) from None
