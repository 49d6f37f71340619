"""`/api/v1/node/*`: register, heartbeat, me, remove; each signed by the node's key, each used once.

Bodies are JSON as existing clients send it, or, for register and heartbeat, the node's own signed heartbeat record
in MessagePack, which is what our nodes send. A key that is not registered leaves no trace, except by registering.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from coordinator.core import heartbeats, specs
from coordinator.core.auth import authenticate, use_once
from coordinator.core.core import Core
from coordinator.core.http import ApiError, BadRequest, json_response, read_body, read_json
from coordinator.core.limits import client_of
from coordinator.core.views import own_row
from coordinator.store import nodes
from protocol import codec
from protocol.envelope import AuthenticatedRequest
from protocol.errors import RemoteProtocolError
from protocol.records import Heartbeat, Signed

RECORD_TYPES: Final = ("application/vnd.infernet.heartbeat", "application/msgpack", "application/x-msgpack")
REGISTER_FIRST: Final = "this key is not registered in this role; register first"

RoleWord = Literal["provider", "aggregator", "client"]
# Other programs call a client that is there "active".
StatusWord = Literal["available", "offline", "active"]
Port = Annotated[int, Meta(ge=1, le=65535)]


class HeartbeatBody(Struct):
    """A heartbeat in JSON."""

    role: RoleWord
    status: StatusWord = "available"
    address: str | None = None
    port: Port | None = None
    specs: Any = None


class RegisterBody(HeartbeatBody, kw_only=True):
    """A registration in JSON."""

    node_id: str
    name: str = ""
    gpu_model: Any = None


class RoleBody(Struct):
    """All that `me` and `remove` say."""

    role: RoleWord


def node_api(core: Core) -> Blueprint:
    """The routes."""
    api = Blueprint("node_api", __name__, url_prefix="/api/v1/node")

    @api.post("/register")
    async def register() -> Response:
        authenticated = await authenticate(core)
        async with core.database.reader() as reader:
            if await nodes.select_one(reader, authenticated.node) is None:
                core.registrations.take(client_of(request, core.config))
        if request.mimetype in RECORD_TYPES:
            row = await _register_with_record(core, authenticated)
        else:
            row = await _register_with_json(core, authenticated, await read_json(RegisterBody))
        return json_response({"data": {"id": row.node.hex(), "node_id": row.node_id}})

    @api.post("/heartbeat")
    async def heartbeat() -> Response:
        authenticated = await authenticate(core)
        if request.mimetype in RECORD_TYPES:
            row = await _heartbeat_with_record(core, authenticated)
        else:
            row = await _heartbeat_with_json(core, authenticated, await read_json(HeartbeatBody))
        return json_response({"data": {"id": row.node.hex()}})

    @api.post("/me")
    async def me() -> Response:
        authenticated = await authenticate(core)
        body = await read_json(RoleBody)

        def read(tx: sqlite3.Connection) -> nodes.Node | None:
            row = nodes.get(tx, authenticated.node)
            if row is None or row.role != body.role:
                return None
            use_once(core, tx, authenticated)
            return row

        row = await core.database.write(read)
        return json_response({"data": {"row": own_row(row) if row is not None else None}})

    @api.post("/remove")
    async def remove() -> Response:
        authenticated = await authenticate(core)
        body = await read_json(RoleBody)

        def delete(tx: sqlite3.Connection) -> bool:
            row = nodes.get(tx, authenticated.node)
            if row is None or row.role != body.role:
                return False
            use_once(core, tx, authenticated)
            return nodes.delete(tx, authenticated.node)

        if await core.database.write(delete):
            core.links.drop(authenticated.node, "this node has removed itself")
            return json_response({"data": {"deleted": True, "id": authenticated.node.hex()}})
        return json_response({"data": {"deleted": False}})

    return api


# ---------------------------------------------------------------- our nodes: the signed record


async def _read_record(core: Core, authenticated: AuthenticatedRequest) -> tuple[Heartbeat, Signed]:
    try:
        record = codec.decode_struct(await read_body(), Signed, codec.CONTROL_LIMITS)
        return heartbeats.check_heartbeat(record, authenticated.node, core.wall_ms()), record
    except RemoteProtocolError as error:
        raise BadRequest(f"the heartbeat record does not hold: {error}") from None


async def _register_with_record(core: Core, authenticated: AuthenticatedRequest) -> nodes.Node:
    heartbeat, record = await _read_record(core, authenticated)

    def register(tx: sqlite3.Connection) -> nodes.Node:
        use_once(core, tx, authenticated)
        return heartbeats.register_from_heartbeat(tx, heartbeat, record, core.wall_ms())

    try:
        row = await core.database.write(register)
    except heartbeats.NodeIdTaken:
        raise _taken() from None
    core.learn(row.node, record)
    return row


async def _heartbeat_with_record(core: Core, authenticated: AuthenticatedRequest) -> nodes.Node:
    heartbeat, record = await _read_record(core, authenticated)

    def take(tx: sqlite3.Connection) -> nodes.Node:
        row = heartbeats.record_heartbeat(tx, heartbeat, record, core.wall_ms())
        use_once(core, tx, authenticated)
        return row

    try:
        row = await core.database.write(take)
    except heartbeats.NotRegistered:
        raise ApiError(404, REGISTER_FIRST) from None
    core.learn(row.node, record)
    return row


# ---------------------------------------------------------------- other programs: JSON


async def _register_with_json(core: Core, authenticated: AuthenticatedRequest, body: RegisterBody) -> nodes.Node:
    if not specs.is_node_id(body.node_id):
        raise BadRequest("node_id takes 1 to 64 letters, digits and _ . : - and starts with a letter or digit")
    _check_address(body)
    kept = specs.sanitise(body.specs)
    if not kept.gpus and isinstance(body.gpu_model, str):
        kept = _with_gpu(kept, body.gpu_model)
    now_ms = core.wall_ms()

    def register(tx: sqlite3.Connection) -> nodes.Node:
        use_once(core, tx, authenticated)
        if not heartbeats.is_free_for(tx, body.node_id, authenticated.node):
            raise _taken()
        # The signed record stays: it says what it says until it expires or a newer one comes.
        before = nodes.get(tx, authenticated.node)
        row = nodes.Node(
            node=authenticated.node,
            role=body.role,
            node_id=body.node_id,
            name=specs.clean_name(body.name),
            status=_status(body),
            address=body.address,
            port=body.port,
            specs=specs.stored(kept),
            record=before.record if before is not None else None,
            record_sequence=before.record_sequence if before is not None else None,
            record_expires_ms=before.record_expires_ms if before is not None else None,
            created_ms=now_ms,
            last_seen_ms=now_ms,
        )
        nodes.put(tx, row)
        return row

    return await core.database.write(register)


async def _heartbeat_with_json(core: Core, authenticated: AuthenticatedRequest, body: HeartbeatBody) -> nodes.Node:
    _check_address(body)

    def take(tx: sqlite3.Connection) -> nodes.Node:
        row = nodes.get(tx, authenticated.node)
        if row is None or row.role != body.role:
            raise ApiError(404, REGISTER_FIRST)
        use_once(core, tx, authenticated)
        # What a heartbeat leaves out stays as it was; an address left out is one that is not advertised any more.
        row = dataclasses.replace(
            row,
            status=_status(body),
            address=body.address,
            port=body.port,
            specs=specs.stored(specs.sanitise(body.specs)) if body.specs is not None else row.specs,
            last_seen_ms=core.wall_ms(),
        )
        nodes.put(tx, row)
        return row

    return await core.database.write(take)


def _with_gpu(kept: specs.Specs, gpu_model: str) -> specs.Specs:
    """One GPU, of which only the product name is known."""
    gpus = specs.sanitise({"gpus": [{"model": gpu_model}]}).gpus
    return msgspec.structs.replace(kept, gpus=gpus, gpu_count=kept.gpu_count or 1)


def _status(body: HeartbeatBody) -> str:
    return "offline" if body.status == "offline" else "available"


def _check_address(body: HeartbeatBody) -> None:
    if body.address is not None and not specs.is_address(body.address):
        raise BadRequest("address takes an IP address or a host name; leave it out to advertise none")


def _taken() -> ApiError:
    return ApiError(403, "node_id registered to a different pubkey")
