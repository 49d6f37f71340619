"""From a configuration to a serving process: home, key, store, socket, signals, and back down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import hypercorn.asyncio
import hypercorn.config
import structlog

from coordinator import hypercorn_cures
from coordinator.app import CoordinatorApp, create_app
from coordinator.config import Config, ConfigRefused
from coordinator.identity import KeyRefused, load_key, load_or_create_key
from coordinator.store.db import DATABASE_NAME, StoreRefused, open_database
from protocol.ids import NodeId
from protocol.link import LINK_MESSAGE_BYTES_MAX

BACKLOG: Final = 512
GRACEFUL_TIMEOUT_S: Final = 3.0
# Also how long a client may take for its request line and headers.
KEEP_ALIVE_S: Final = 15.0
HEADER_BYTES_MAX: Final = 16 * 1024
FILES_OF_OUR_OWN: Final = 64

log = structlog.get_logger(__name__)

OnReady = Callable[[str, NodeId], None]


class CannotStart(Exception):
    """The server cannot start; the message is one line: what happened, why, what to do."""


class Broken(Exception):
    """The server had to end and may be started again; the message is one line: what happened, what to do."""


def prepare_home(home: Path) -> None:
    """Make the directory, for its owner only. Raises CannotStart."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"cannot make the directory {home}: {error.strerror}; choose another --home") from None
    if not os.access(home, os.W_OK | os.X_OK):
        raise CannotStart(f"cannot write to {home}; choose another --home, or change its owner")


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises CannotStart when the address is taken or not ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotStart(f"cannot listen on {host}: {error}; give --host an address of this machine") from None
    family, kind, number, _, address = found[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # now, not later: two processes may have bound the same free address
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise CannotStart(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_file_limit(wanted: int) -> None:
    """Let this process hold as many connections as it is configured for, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if limit > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        log.warning("file_limit", limit=limit, wanted=wanted, hint="raise it with ulimit -n, or lower links_at_once")


async def run(config: Config, on_ready: OnReady) -> None:
    """Serve until SIGINT or SIGTERM, then go down in order. Raises CannotStart, or Broken when the disk failed."""
    home = config.home_path
    prepare_home(home)
    raise_file_limit(config.links_at_once + config.requests_at_once + FILES_OF_OUR_OWN)
    try:
        # The key comes first: a database without one is of a coordinator whose key was lost, and not of a first start.
        key = load_key(home) if (home / DATABASE_NAME).exists() else load_or_create_key(home)
        database = open_database(home)
    except (StoreRefused, KeyRefused) as error:
        raise CannotStart(str(error)) from None
    try:
        with closing(bind(config.host, config.port)) as listener:
            try:
                app = create_app(config, key, database)
            except ConfigRefused as error:
                raise CannotStart(str(error)) from None
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            database.failed.add_done_callback(lambda _: loop.call_soon_threadsafe(stop.set))
            url = url_of(listener)

            async def ready() -> None:
                log.info("serving", url=url, key=key.node.hex())
                on_ready(url, key.node)

            app.before_serving(ready)
            await serve(app, listener, stop)
    finally:
        await database.close()
    if database.failed.done():
        raise Broken(f"the disk failed under {home}: see the log; look after the disk, then start again")


async def serve(app: CoordinatorApp, listener: socket.socket, stop: asyncio.Event) -> None:
    """Run the HTTP server on a bound socket until `stop` is set; jobs, links and readers are told first."""
    hypercorn_cures.apply()
    settings = hypercorn.config.Config()
    # Hypercorn owns a descriptor of its own, so that ours can be closed whatever happens.
    settings.bind = [f"fd://{os.dup(listener.fileno())}"]
    # Not to be left out: what goes wrong inside Hypercorn is told here or nowhere.
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.include_server_header = False
    settings.graceful_timeout = GRACEFUL_TIMEOUT_S
    settings.keep_alive_timeout = KEEP_ALIVE_S
    settings.h11_max_incomplete_size = HEADER_BYTES_MAX
    settings.websocket_max_message_size = LINK_MESSAGE_BYTES_MAX
    settings.backlog = BACKLOG

    async def shutdown() -> None:
        await stop.wait()
        await app.core.stop()

    await hypercorn.asyncio.serve(app, settings, shutdown_trigger=shutdown)
