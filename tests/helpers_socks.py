"""A double of a SOCKS5 proxy that writes down what it was asked, and a guard against whatever goes around a proxy.

The double runs in threads of its own, so that the guard can tell its connections from those of the code under test.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from infernet.proxy import Proxy

# Threads whose name begins so belong to the world outside of the node under test.
OUTSIDE = "outside-"


@dataclass
class SocksDouble:
    """The proxy. `names` says what is behind a name and port; other names do not exist."""

    names: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    login: tuple[bytes, bytes] | None = None
    #: Sent instead of an answer to a request, and the connection closed.
    answers: bytes | None = None
    #: Sent instead of anything, and the connection closed.
    says: bytes | None = None
    #: (host as it was asked for, port)
    asked: list[tuple[str, int]] = field(default_factory=list)
    #: What kind of address each request had: "name" or "ip".
    kinds: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"socks5h://127.0.0.1:{self.port}"

    @property
    def proxy(self) -> Proxy:
        return Proxy("127.0.0.1", self.port, *(self.login or ()))


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        double: SocksDouble = self.server.double  # type: ignore[attr-defined]
        with contextlib.suppress(OSError, EOFError):
            self._serve(double, self.request)

    def _serve(self, double: SocksDouble, client: socket.socket) -> None:
        if double.says is not None:
            client.sendall(double.says)
            return
        version, count = _exactly(client, 2)
        methods = _exactly(client, count)
        assert version == 5
        wanted = 2 if double.login else 0
        if wanted not in methods:
            client.sendall(b"\x05\xff")
            return
        client.sendall(bytes([5, wanted]))
        if double.login:
            _, size = _exactly(client, 2)
            user = _exactly(client, size)
            password = _exactly(client, _exactly(client, 1)[0])
            client.sendall(b"\x01\x00" if (user, password) == double.login else b"\x01\x01")
            if (user, password) != double.login:
                return
        _, command, _, kind = _exactly(client, 4)
        assert command == 1
        if kind == 3:
            host = _exactly(client, _exactly(client, 1)[0]).decode("ascii")
        else:
            host = str(ipaddress.ip_address(_exactly(client, {1: 4, 4: 16}[kind])))
        port = int.from_bytes(_exactly(client, 2), "big")
        double.asked.append((host, port))
        double.kinds.append("name" if kind == 3 else "ip")
        if double.answers is not None:
            client.sendall(double.answers)
            return
        target = double.names.get((host, port), (host, port) if kind != 3 else None)
        if target is None:
            client.sendall(b"\x05\x04\x00\x01" + bytes(6))
            return
        try:
            server = socket.create_connection(target, timeout=10)
        except OSError:
            client.sendall(b"\x05\x05\x00\x01" + bytes(6))
            return
        with server:
            # The address of an answer may be of any kind.
            client.sendall(b"\x05\x00\x00\x03\x05proxy" + bytes(2))
            _splice(client, server)


def _exactly(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _splice(one: socket.socket, other: socket.socket) -> None:
    back = threading.Thread(target=_copy, args=(other, one), name=f"{OUTSIDE}splice", daemon=True)
    back.start()
    _copy(one, other)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    source.settimeout(None)
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def process_request(self, request: Any, client_address: Any) -> None:
        threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name=f"{OUTSIDE}socks", daemon=True
        ).start()


@contextmanager
def socks_double(**options: Any) -> Iterator[SocksDouble]:
    """A proxy that runs as long as the block lasts."""
    double = SocksDouble(**options)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.double = double  # type: ignore[attr-defined]
        double.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name=f"{OUTSIDE}accept")
        thread.start()
        try:
            yield double
        finally:
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------- the guard

_watching: list[list[str]] = []
_allowed: list[set[tuple[str, int]]] = []
_installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or threading.current_thread().name.startswith(OUTSIDE):
        return
    if event == "socket.connect":
        sock, address = arguments
        if sock.family in (socket.AF_INET, socket.AF_INET6) and tuple(address[:2]) not in _allowed[-1]:
            _watching[-1].append(f"connected to {address}")
    elif event in ("socket.sendto", "socket.sendmsg"):
        sock = arguments[0]
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type & socket.SOCK_DGRAM:
            _watching[-1].append(f"sent a packet to {arguments[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
        text = host.decode() if isinstance(host, bytes) else host
        try:
            ipaddress.ip_address(text or "0.0.0.0")
        except ValueError:
            _watching[-1].append(f"looked {text!r} up")


@contextmanager
def nothing_goes_around(*allowed: tuple[str, int]) -> Iterator[None]:
    """Fails when this process connects, sends a packet or looks a name up elsewhere than at these places."""
    global _installed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    seen: list[str] = []
    _watching.append(seen)
    _allowed.append(set(allowed))
    try:
        yield
    finally:
        _watching.pop()
        _allowed.pop()
    assert not seen, f"around the proxy: {seen}"
