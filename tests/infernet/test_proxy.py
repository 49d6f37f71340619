"""infernet/proxy.py: it speaks SOCKS5, lets the proxy look names up, and never goes around it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infernet import proxy as module
from infernet.config import ConfigError
from infernet.proxy import Proxy, ProxyDown, ProxyError, ProxyRefused, open_proxy, proxy_for
from tests.helpers_node import config_of_nobody
from tests.helpers_socks import SocksDouble, nothing_goes_around, socks_double

pytestmark = pytest.mark.anyio
LOGIN = (b"somebody", b"s3cret")


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
def double() -> Iterator[SocksDouble]:
    with socks_double() as double:
        yield double


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that says a greeting at once, and then everything that it hears."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello ")
        async for data in stream:
            await stream.send_all(bytes(data))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(5):
        while len(data) < count:
            data += await stream.receive_some(count - len(data))
    return data


async def test_a_name_is_for_the_proxy_to_look_up(double: SocksDouble) -> None:
    async with echo() as port:
        double.names["node.example", 46337] = ("127.0.0.1", port)
        with nothing_goes_around(("127.0.0.1", double.port)):
            async with await double.proxy.connect("node.example", 46337) as stream:
                await stream.send_all(b"echo")
                assert await read(stream, 10) == b"hello echo", "not a byte of what came first is lost"
    assert (double.asked, double.kinds) == ([("node.example", 46337)], ["name"])


async def test_an_address_is_told_as_one(double: SocksDouble) -> None:
    async with echo() as port, await double.proxy.connect("127.0.0.1", port) as stream:
        assert await read(stream, 6) == b"hello "
    assert (double.asked, double.kinds) == ([("127.0.0.1", port)], ["ip"])


async def test_the_guard_sees_what_goes_around(double: SocksDouble) -> None:
    async with echo() as port:
        with pytest.raises(AssertionError, match="connected to"), nothing_goes_around(("127.0.0.1", double.port)):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    with pytest.raises(AssertionError, match="looked 'localhost' up"), nothing_goes_around():
        socket.getaddrinfo("localhost", 1)
    packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with packets, pytest.raises(AssertionError, match="sent a packet"), nothing_goes_around():
        packets.sendto(b"x", ("127.0.0.1", 9))


async def test_a_login_is_told_to_a_proxy_that_wants_one() -> None:
    with socks_double(login=LOGIN) as double:
        async with echo() as port, await double.proxy.connect("127.0.0.1", port) as stream:
            assert await read(stream, 6) == b"hello "
        with pytest.raises(ProxyDown, match="wants a user name and a password: see --proxy-login-file"):
            await Proxy("127.0.0.1", double.port).connect("127.0.0.1", port)
        with pytest.raises(ProxyDown, match="does not take the user name and password"):
            await Proxy("127.0.0.1", double.port, b"somebody", b"wrong").connect("127.0.0.1", port)
    assert "s3cret" not in repr(double.proxy) + str(double.proxy)


async def test_a_proxy_that_is_down_is_named_and_nothing_else_tried() -> None:
    with socks_double() as double:
        pass
    with nothing_goes_around(("127.0.0.1", double.port)):
        with pytest.raises(ProxyDown, match="does not answer, and nothing is sent around it"):
            await double.proxy.connect("127.0.0.1", 9)
        with pytest.raises(ProxyDown, match="does not answer"):
            await double.proxy.greet()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "it could not connect"),
        (2, "it does not allow that"),
        (3, "no way leads there"),
        (4, "there is no such host"),
        (5, "the connection was refused"),
        (6, "nothing answered in time"),
        (0xF0, "code 240"),
    ],
)
async def test_a_refusal_says_why(double: SocksDouble, code: int, words: str) -> None:
    double.answers = bytes([5, code, 0, 1]) + bytes(6)
    with pytest.raises(ProxyRefused, match=words):
        await double.proxy.connect("node.example", 46337)


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x04\x5a", b"SSH-2.0-x\r\n"])
async def test_what_is_no_proxy_is_named(says: bytes) -> None:
    with socks_double(says=says) as double:
        for attempt in (double.proxy.greet(), double.proxy.connect("node.example", 1)):
            with pytest.raises(ProxyDown, match=r"is no SOCKS5 proxy|hung up in the middle"):
                await attempt


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x05\x00" + rest))
def test_any_bytes_end_in_one_kind_of_error_or_a_stream(data: bytes) -> None:
    async def ask(double: SocksDouble) -> None:
        for login in ((), LOGIN):
            proxy = Proxy("127.0.0.1", double.port, *login)
            with trio.fail_after(5):
                with suppress(ProxyError):
                    await (await proxy.connect("node.example", 1)).aclose()

    with socks_double(says=data) as says, socks_double(answers=data) as answers:
        trio.run(ask, says)
        trio.run(ask, answers)


async def test_a_proxy_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = Proxy("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(ProxyRefused, match="did not connect within"):
            await proxy.connect("node.example", 1)


@pytest.mark.parametrize("host", ["", "x" * 256])
async def test_what_is_no_name_is_not_asked_for(double: SocksDouble, host: str) -> None:
    with pytest.raises(ProxyRefused, match="no host name"):
        await double.proxy.connect(host, 1)
    assert double.asked == []


# ---------------------------------------------------------------- which one


def test_the_login_comes_from_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "login"
    path.write_bytes(b"somebody:pass:word\n")
    path.chmod(0o600)
    config = config_of_nobody(proxy="socks5h://[::1]:9050", proxy_login_file=str(path))
    proxy = open_proxy(config)
    assert proxy == Proxy("::1", 9050, b"somebody", b"pass:word")
    assert str(proxy) == "[::1]:9050"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others: run `chmod 600"):
        open_proxy(config)


@pytest.mark.parametrize("content", [b"", b"somebody", b":x", b"x:", b"a:\xff", b"a" * 256 + b":b", b"a:b\nc:d"])
def test_what_is_no_login_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "login"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="must be one line"):
        open_proxy(config_of_nobody(proxy="socks5h://127.0.0.1:9050", proxy_login_file=str(path)))


def test_a_login_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="is no file"):
            open_proxy(config_of_nobody(proxy="socks5h://127.0.0.1:9050", proxy_login_file=str(path)))


@pytest.mark.parametrize(
    ("url", "by_proxy"),
    [
        ("http://127.0.0.1:8080", False),
        ("http://localhost:8080", False),
        ("http://[::1]:8080", False),
        ("http://192.168.1.5:8080", True),
        ("https://coordinator.example", True),
        ("http://localhost.example", True),
    ],
)
def test_this_machine_is_asked_directly_and_nobody_else(url: str, by_proxy: bool) -> None:
    config = config_of_nobody(proxy="socks5h://127.0.0.1:9050")
    assert (proxy_for(config, url) is not None) is by_proxy
    assert proxy_for(config_of_nobody(), url) is None
