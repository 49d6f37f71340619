"""The Quart application: routes, manners, limits. Pages are added when they are there; the core needs none of them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from quart import Quart, Request, Response, g, request
from quart.asgi import ASGIWebsocketConnection
from quart.typing import ResponseTypes

from coordinator.config import Config
from coordinator.core.admin_api import admin_api
from coordinator.core.chat_api import chat_api
from coordinator.core.core import Core, wall_clock_ms
from coordinator.core.http import RETRY_AFTER_S, install_error_handlers, json_response
from coordinator.core.link_api import link_api
from coordinator.core.node_api import node_api
from coordinator.core.payments_api import payments_api
from coordinator.core.payouts_api import payouts_api
from coordinator.core.public_api import public_api
from coordinator.core.settlement_api import settlement_api
from coordinator.store.db import Database
from protocol.envelope import SigningKey

BODY_TIMEOUT_S: Final = 15
# From the request to the beginning of its answer; only a disk that stands still takes longer than a slow body.
HANDLER_TIMEOUT_S: Final = 30.0
RESPONSE_TIMEOUT_S: Final = 30
# JSON may escape each byte of a prompt as six; the rest is room for everything around it.
BODY_BYTES_MIN: Final = 64 * 1024
# Messages of one link that were received and not yet handled; beyond that its TCP connection waits.
LINK_MESSAGES_WAITING_MAX: Final = 16

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

log = structlog.get_logger(__name__)


class _BoundedWebsocket(ASGIWebsocketConnection):
    """Quart's own queue of received messages has no bound."""

    def __init__(self, app: Quart, scope: Any) -> None:
        super().__init__(app, scope)
        self.queue = asyncio.Queue(LINK_MESSAGES_WAITING_MAX)


class CoordinatorApp(Quart):
    """The application; `core` is what runs behind it."""

    asgi_websocket_class = _BoundedWebsocket

    def __init__(self, core: Core) -> None:
        super().__init__("coordinator", static_folder=None, template_folder=None)
        self.url_map.merge_slashes = False  # a path with two slashes is another path, not a redirect
        self.core = core
        self._requests = 0

    async def handle_request(self, request: Request) -> ResponseTypes:
        """Answer within a deadline; what streams has begun by then."""
        try:
            async with asyncio.timeout(HANDLER_TIMEOUT_S):
                return await super().handle_request(request)
        except TimeoutError:
            log.warning("request_timed_out", method=request.method[:16])
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return json_response({"error": "this took too long; try again soon"}, 503, headers)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Turn away what the framework would stumble over, and more requests than this process is to hold."""
        if scope["type"] not in ("http", "websocket"):
            await super().__call__(scope, receive, send)
        elif not scope["path"].startswith("/"):
            await _refuse(scope["type"], send, 400, b'{"error":"the request target is no path"}')
        elif scope["type"] == "websocket":
            await super().__call__(scope, receive, send)  # links have a bound of their own
        elif self._requests >= self.core.config.requests_at_once:
            await _refuse("http", send, 503, b'{"error":"too many requests at once; try again soon"}')
        else:
            self._requests += 1
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._requests -= 1


async def _refuse(kind: str, send: Send, status: int, body: bytes) -> None:
    prefix = "http.response" if kind == "http" else "websocket.http.response"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})


def create_app(
    config: Config,
    key: SigningKey,
    database: Database,
    *,
    wall_ms: Callable[[], int] = wall_clock_ms,
    with_web: bool | None = None,
) -> CoordinatorApp:
    """Build the application. It owns the core, not the database, which is closed after it by who opened it.

    `with_web` overrides the configuration: None serves the pages if they are configured and installed.
    """
    core = Core(config, key, database, wall_ms=wall_ms)
    app = CoordinatorApp(core)
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_BYTES_MIN + 6 * config.chat_prompt_bytes_max,
        BODY_TIMEOUT=BODY_TIMEOUT_S,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_S,
    )
    for routes in (
        *(node_api, public_api, link_api, chat_api),
        *(settlement_api, payments_api, payouts_api, admin_api),
    ):
        app.register_blueprint(routes(core))
    install_error_handlers(app)
    _install_manners(app)
    if config.web if with_web is None else with_web:
        _add_pages(app)
    app.before_serving(core.start)
    app.after_serving(core.stop)
    return app


def _add_pages(app: CoordinatorApp) -> None:
    # Not imported at the top: the folder may have been left out.
    try:
        module = importlib.import_module("coordinator.web.pages")
    except ModuleNotFoundError as error:
        if error.name not in ("coordinator.web", "coordinator.web.pages"):
            raise
        log.info("no_pages", reason="coordinator/web is not installed; the API works without it")
        return
    app.register_blueprint(module.pages(app.core.config))


def _install_manners(app: CoordinatorApp) -> None:
    @app.before_request
    async def start_clock() -> None:
        g.started_s = app.core.monotonic_s()

    @app.after_request
    async def finish(response: Response) -> Response:
        _set_missing(response, SECURITY_HEADERS)
        if request.path.startswith("/api/"):
            _set_missing(response, {"Cache-Control": "no-store"})
        # The route, not the path: paths hold job ids, and those open answers; queries hold anything.
        route = request.url_rule.rule if request.url_rule is not None else None
        took_ms = round(1000 * (app.core.monotonic_s() - g.started_s), 1)
        log.info("request", method=request.method[:16], route=route, status=response.status_code, ms=took_ms)
        return response


def _set_missing(response: Response, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        response.headers.setdefault(name, value)
