"""Whose request this is: `X-Infernet-Auth`, version 1 or 2, and its single use.

The signature, the audience and the time are checked here, before anything is looked up; that a request is used once
is decided in the transaction of its effect (`use_once`).
"""

from __future__ import annotations

import sqlite3

from quart import request, websocket

from coordinator.core.core import Core
from coordinator.core.http import Unauthenticated, read_body
from coordinator.core.limits import client_of, too_many
from coordinator.store import replay
from protocol.envelope import AUTH_HEADER, AuthenticatedRequest, verify_request
from protocol.errors import RemoteProtocolError
from protocol.link import SERVER_TIME_HEADER, encode_server_time


async def authenticate(core: Core) -> AuthenticatedRequest:
    """Check the signature of the current HTTP request. Raises Unauthenticated, or ApiError 429."""
    core.node_requests.take(client_of(request, core.config))
    body = await read_body()
    headers = request.headers.getlist(AUTH_HEADER)
    return _verify(core, headers, request.method, _target(request.scope), body)


def authenticate_link(core: Core) -> tuple[AuthenticatedRequest, str]:
    """Check the signature of the current WebSocket upgrade; also returns the header.

    Raises Unauthenticated, or ApiError 429.
    """
    core.node_requests.take(client_of(websocket, core.config))
    headers = websocket.headers.getlist(AUTH_HEADER)
    authenticated = _verify(core, headers, "GET", _target(websocket.scope), b"")
    # SPEC 07: The coordinator MUST refuse a link whose upgrade request is not signed with version 2.
    if authenticated.version != 2:
        raise unauthenticated(core, headers[0])
    return authenticated, headers[0]


def _verify(core: Core, headers: list[str], method: str, target: str, body: bytes) -> AuthenticatedRequest:
    if len(headers) != 1:
        raise unauthenticated(core, "")
    try:
        return verify_request(headers[0], core.key.node, method, target, body, core.wall_ms())
    except RemoteProtocolError:
        raise unauthenticated(core, headers[0]) from None


def _target(scope: object) -> str:
    """Path and query exactly as they were sent: that is what was signed."""
    assert isinstance(scope, dict)
    query: bytes = scope["query_string"]
    raw: bytes = scope["raw_path"]
    return (raw + b"?" + query if query else raw).decode("latin-1")


def unauthenticated(core: Core, header: str) -> Unauthenticated:
    """The one answer to all that does not hold. It tells the time, signed and bound to the request that was made."""
    now_ms = core.wall_ms()
    headers = {SERVER_TIME_HEADER: encode_server_time(core.key, header, now_ms)} if header else {}
    return Unauthenticated(now_ms, headers)


def use_once(core: Core, tx: sqlite3.Connection, authenticated: AuthenticatedRequest) -> None:
    """Mark the request as used, in the transaction of its effect. Raises Unauthenticated, or ApiError 429."""
    try:
        replay.use(tx, authenticated, core.wall_ms())
    except replay.Replayed:
        raise unauthenticated(core, "") from None
    except replay.TooManyRequests:
        raise too_many("too many requests with this key; slow down", 60) from None
