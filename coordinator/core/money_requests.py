"""Who asks about money: a request signed with version 2, used up in the transaction of its effect; and what for."""

from __future__ import annotations

import sqlite3
from typing import TypeVar

from coordinator.core.auth import authenticate, use_once
from coordinator.core.core import Core
from coordinator.core.http import ApiError, BadRequest, read_body, read_json
from coordinator.core.intake import Mark
from coordinator.core.node_api import REGISTER_FIRST
from coordinator.payments.bounded_json import BadJson, decode_object
from coordinator.store import nodes
from protocol.envelope import AuthenticatedRequest

T = TypeVar("T")


async def authenticate_money(core: Core) -> AuthenticatedRequest:
    """Whose request this is, with version 2 only. Raises ApiError, also when the ledger is stopped."""
    authenticated = await authenticate(core)
    # SPEC 07: The coordinator MUST refuse requests about money whose envelope is not version 2.
    # SPEC 02: The coordinator MUST accept version 1 only for the routes that existing clients call:
    if authenticated.version != 2:
        text = "money takes X-Infernet-Auth version 2, which names the coordinator that it is for"
        raise ApiError(401, text, code="auth_version", server_time=core.wall_ms())
    core.settlement.check_running()
    return authenticated


async def authenticate_reader(core: Core) -> AuthenticatedRequest:
    """Whose request to read their own rows this is, which existing clients send with version 1. Raises as above."""
    authenticated = await authenticate(core)
    core.settlement.check_running()
    return authenticated


def mark_of(core: Core, authenticated: AuthenticatedRequest) -> Mark:
    """Uses the envelope up, in the transaction of its effect."""

    def mark(tx: sqlite3.Connection) -> None:
        # SPEC 02: The coordinator MUST NOT keep any state for a key that it does not know.
        if nodes.get(tx, authenticated.node) is None:
            raise ApiError(404, REGISTER_FIRST, code="not_registered")
        use_once(core, tx, authenticated)

    return mark


async def read_money_json(cls: type[T]) -> T:
    """As `read_json`, and strictly one meaning: no key twice, nothing nested deeply. Raises BadRequest, or ApiError."""
    value = await read_json(cls)
    body = await read_body()
    try:
        # SPEC 07: The coordinator MUST refuse a body about payments in which a key of an object stands twice.
        decode_object(body, len(body))
    except BadJson as error:
        raise BadRequest(f"the body does not fit: {error}") from None
    return value
