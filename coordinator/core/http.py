"""HTTP manners of the core: typed JSON in, JSON out, and every refusal as `{"error": ...}`.

ApiError                 a refusal with its status
├── BadRequest           400: what is wrong with the input
└── Unauthenticated      401: always the same words, and the server's time
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
import structlog
from quart import Quart, Response, request
from werkzeug.exceptions import HTTPException

from coordinator.store.db import StoreBusy, StoreClosed, StoreFailed

T = TypeVar("T")
RETRY_AFTER_S: Final = 5

# What stands for the words of the library, which are written for pages.
_WORDS: Final = {
    400: "bad request",
    404: "there is nothing at this path",
    405: "this path does not take this method",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "this path takes another content type",
}

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "bad_method",
    408: "timed_out",
    413: "too_large",
    415: "bad_type",
}

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """A refusal. `fields` go into the body beside `error`."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.fields = fields


class BadRequest(ApiError):
    """The input is wrong; the message says how, without repeating it."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, code="bad_request")


class Unauthenticated(ApiError):
    """The signature, the time or the nonce does not hold. One answer for all, so that it tells nothing apart."""

    def __init__(self, server_time_ms: int, headers: Mapping[str, str]) -> None:
        super().__init__(
            401,
            "not authenticated: the signature, the time or the nonce of this request does not hold",
            headers=headers,
            code="unauthenticated",
            server_time=server_time_ms,
        )


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer. `value` is built by us and encodes."""
    response = Response(msgspec.json.encode(value), status, content_type="application/json")
    response.headers.update(dict(headers or {}))
    return response


async def read_body() -> bytes:
    """The body as it came. Raises 408 or 413 as HTTPException."""
    body = await request.get_data(as_text=False)
    assert isinstance(body, bytes)
    return body


async def read_json(cls: type[T]) -> T:
    """The body as this type, which says whether it may have other keys. Raises BadRequest, or ApiError 415."""
    # SPEC 07: The coordinator MUST require `Content-Type: application/json` for JSON bodies:
    if request.mimetype != "application/json":
        # Also what keeps other sites' forms out: a browser asks before it sends this type elsewhere.
        raise ApiError(415, "send JSON with Content-Type: application/json", code="bad_type")
    # SPEC 07: The coordinator MUST ignore keys of a JSON object that it does not know.
    body = await read_body()
    try:
        return msgspec.json.decode(body, type=cls)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body does not fit: {_without_input(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("the body is not JSON") from None


def _without_input(message: str) -> str:
    """What the decoder says is wrong, and where, without what was sent: that may be long, and anything."""
    for words in ("Invalid enum value", "Object contains unknown field"):
        if message.startswith(words):
            _, at, where = message.rpartition(" - at ")
            return f"{words}{at}{where}" if at else words
    return message


def install_error_handlers(app: Quart) -> None:
    """Answer every failure in JSON; input never causes a 5xx, and no answer quotes an internal message."""

    @app.errorhandler(ApiError)
    async def refuse(error: ApiError) -> Response:
        return json_response({"error": error.message, **error.fields}, error.status, error.headers)

    @app.errorhandler(HTTPException)
    async def refuse_in_json(error: HTTPException) -> Response:
        status = error.code or 500
        headers = {}
        if methods := getattr(error, "valid_methods", None):
            headers["Allow"] = ", ".join(sorted(methods))
        if location := getattr(error, "new_url", None):
            headers["Location"] = location
        words, code = _WORDS.get(status, error.name.lower()), _CODES.get(status, "refused")
        return json_response({"error": words, "code": code}, status, headers)

    @app.errorhandler(StoreBusy)
    @app.errorhandler(StoreClosed)
    @app.errorhandler(StoreFailed)
    @app.errorhandler(sqlite3.Error)
    async def unavailable(error: Exception) -> Response:
        log.error("store_unavailable", exc_info=error)
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        text = "the store is not available; try again soon"
        return json_response({"error": text, "code": "store_unavailable"}, 503, headers)

    @app.errorhandler(Exception)
    async def fail(error: Exception) -> Response:
        log.error("unexpected", exc_info=error)
        return json_response({"error": "internal error; it has been logged", "code": "internal"}, 500)
