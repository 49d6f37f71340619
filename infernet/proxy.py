"""The SOCKS5 proxy of a node that has one: everything that leaves the machine goes through it, or does not leave.

Names are looked up by the proxy and never by us. A proxy that does not answer is an error and no reason to go another
way. What belongs to this machine, as an engine's server on a loopback address, is not asked by way of the proxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Never

import trio

from infernet.config import Config, ConfigError
from infernet.host.files import FilesError, read_secret
from infernet.own_addresses import is_loopback_url
from infernet.settings.readers import split_proxy

if TYPE_CHECKING:
    import httpx
    from socksio.socks5 import SOCKS5Connection

# The proxy is near by; what it has to build to the other end, as a circuit of Tor, is not.
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
_PART_BYTES_MAX: Final = 255
_LOGIN_BYTES_MAX: Final = 2 * _PART_BYTES_MAX + 1
_NAME_BYTES_MAX: Final = 255
# What stands before the address in an answer, and how long addresses are by their type. A name says how long it is.
_HEAD_BYTES: Final = 4
_ADDRESS_BYTES: Final = {1: 4, 4: 16}
_NAME_TYPE: Final = 3
_PORT_BYTES: Final = 2

# RFC 1928, 6.
_WORDS: Final = {
    1: "it could not connect",
    2: "it does not allow that",
    3: "no way leads there",
    4: "there is no such host, or no way to it",
    5: "the connection was refused",
    6: "nothing answered in time",
    7: "it does not connect to anything",
    8: "it does not take that kind of address",
}


class ProxyError(OSError):
    """Nothing came of a connection through the proxy; one line for people."""


class ProxyDown(ProxyError):
    """The proxy itself is of no use: nobody answers, or something that is no SOCKS5 proxy, or it wants a login."""


class ProxyRefused(ProxyError):
    """The proxy answered, and leads not where it was asked to."""


@dataclass(frozen=True)
class Proxy:
    """Where it is, an IP address and a port, and what it wants to be told."""

    host: str
    port: int
    user: bytes = b""
    password: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def for_httpx(self) -> httpx.Proxy:
        """The same for httpx, which has the proxy look names up, too."""
        import httpx

        login = (self.user.decode(), self.password.decode()) if self.user else None
        return httpx.Proxy(f"socks5h://{self}", auth=login)

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """Connect to a name or an IP address by way of the proxy. Raises ProxyError."""
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                stream = await trio.open_tcp_stream(self.host, self.port)
        except (OSError, trio.TooSlowError):
            raise ProxyDown(
                f"the proxy at {self} does not answer, and nothing is sent around it: is it running, and --proxy right?"
            ) from None
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S), self._told():
                await self._ask(await self._greet(stream), stream, host, port)
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)
            raise ProxyRefused(f"the proxy at {self} did not connect within {ANSWER_TIMEOUT_S:g} s") from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def greet(self) -> None:
        """See whether a SOCKS5 proxy answers that lets us in, and hang up. Raises ProxyError."""
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                async with await trio.open_tcp_stream(self.host, self.port) as stream:
                    with self._told():
                        await self._greet(stream)
        except ProxyError:
            raise
        except (OSError, trio.TooSlowError):
            raise ProxyDown(f"the proxy at {self} does not answer") from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What a stranger may do wrong in this conversation becomes one line."""
        from socksio.exceptions import ProtocolError

        try:
            yield
        # What it sends may also be no text, or no address, where the library expects one.
        except (ProtocolError, ValueError):
            self._no_proxy()
        except (trio.BrokenResourceError, EOFError):
            raise ProxyDown(f"the proxy at {self} hung up in the middle: is it a SOCKS5 proxy?") from None

    def _no_proxy(self) -> Never:
        raise ProxyDown(f"what answers at {self} is no SOCKS5 proxy: correct --proxy") from None

    async def _greet(self, stream: trio.SocketStream) -> SOCKS5Connection:
        """Agree on how we prove who we are, and do so."""
        # Only those who have a proxy pay for the library.
        from socksio import socks5

        wanted = socks5.SOCKS5AuthMethod.USERNAME_PASSWORD if self.user else socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED
        connection = socks5.SOCKS5Connection()
        connection.send(socks5.SOCKS5AuthMethodsRequest([wanted]))
        await stream.send_all(connection.data_to_send())
        answer = await _exactly(stream, 2)
        if answer[0] != 5:
            self._no_proxy()
        if answer[1:] != wanted:
            says = "refuses our login" if self.user else "wants a user name and a password: see --proxy-login-file"
            raise ProxyDown(f"the proxy at {self} {says}")
        connection.receive_data(answer)
        if self.user:
            connection.send(socks5.SOCKS5UsernamePasswordRequest(self.user, self.password))
            await stream.send_all(connection.data_to_send())
            reply = connection.receive_data(await _exactly(stream, 2))
            if not (isinstance(reply, socks5.SOCKS5UsernamePasswordReply) and reply.success):
                raise ProxyDown(f"the proxy at {self} does not take the user name and password of --proxy-login-file")
        return connection

    async def _ask(self, connection: SOCKS5Connection, stream: trio.SocketStream, host: str, port: int) -> None:
        """Have it connect. Reads not one byte of what comes after its answer."""
        from socksio import socks5

        name = host.encode("ascii")
        if not 0 < len(name) <= _NAME_BYTES_MAX:
            raise ProxyRefused("that is no host name")
        connection.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port)))
        await stream.send_all(connection.data_to_send())
        head = await _exactly(stream, _HEAD_BYTES)
        if head[0] != 5:
            self._no_proxy()
        if head[1] != 0:
            # What it says of an address then is nothing that anybody needs; Tor has codes of its own, too.
            raise ProxyRefused(f"through the proxy: {_WORDS.get(head[1], f'code {head[1]}')}")
        rest = b""
        if head[3] == _NAME_TYPE:
            rest = await _exactly(stream, 1)
            size = rest[0]
        elif head[3] in _ADDRESS_BYTES:
            size = _ADDRESS_BYTES[head[3]]
        else:
            self._no_proxy()
        await _exactly(stream, size + _PORT_BYTES)


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    """So many bytes. Raises EOFError when the stream ends before, or trio.BrokenResourceError."""
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


# ---------------------------------------------------------------- which one


def open_proxy(config: Config) -> Proxy | None:
    """The proxy that is set, with what it wants to be told. Raises ConfigError."""
    if config.proxy is None:
        return None
    host, port = split_proxy(config.proxy)
    if config.proxy_login_file is None:
        return Proxy(host, port)
    path = Path(config.proxy_login_file).expanduser()
    user, separator, password = _read_login(path).partition(b":")
    sizes = (len(user), len(password))
    if not separator or not all(0 < size <= _PART_BYTES_MAX for size in sizes):
        raise ConfigError(f"{path} does not hold a login for the proxy: it must be one line, USER:PASSWORD")
    return Proxy(host, port, user, password)


def proxy_for(config: Config, url: str) -> Proxy | None:
    """The proxy by way of which this URL is asked; None where there is none, or it leads to this machine itself.

    Raises ConfigError.
    """
    return None if is_loopback_url(url) else open_proxy(config)


def _read_login(path: Path) -> bytes:
    try:
        line = read_secret(path, "login file", "--proxy-login-file", _LOGIN_BYTES_MAX)
    except FilesError as error:
        raise ConfigError(str(error)) from None
    if not line.isascii() or not line.decode("ascii").isprintable():
        raise ConfigError(f"{path} does not hold a login for the proxy: it must be one line of printable ASCII")
    return line
