"""A node behind a SOCKS proxy: it asks, is asked and keeps its link through it, and nothing of it goes another way."""

from __future__ import annotations

import ast
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from infernet.assembly import client_node, run_node
from infernet.being_reached import BeingReached
from infernet.config import Config, load
from infernet.engines.contract import Engine
from infernet.node import Node
from infernet.own_addresses import uses_local_network
from infernet.transport.addresses import TcpAddress
from infernet.transport.dial_back import dial_back
from infernet.transport.dial_guard import AddressRefused, DialGuard
from infernet.transport.libp2p_library import Identity
from protocol.effects import JobAccepted, JobDone, JobFailed, ReachabilityLearnt
from protocol.ids import peer_id
from protocol.records import Reachability, Role
from tests.helpers_engine import PacedEngine
from tests.helpers_market import Coordinator
from tests.helpers_node import config_of_nobody, key_of, question
from tests.helpers_socks import OUTSIDE, SocksDouble, nothing_goes_around, socks_double
from tests.helpers_transport import identity, secret

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PACKAGE = Path(__file__).resolve().parents[2] / "infernet"
PORT = 46_337


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
def double() -> Iterator[SocksDouble]:
    with socks_double() as double:
        yield double


def config_at(home: Path, **changes: object) -> Config:
    fields = {"name": "test", "free_for": "all", "p2p_port": 0, **changes}
    folders = {name: home / name for name in ("config_dir", "state_dir", "data_dir")}
    return Config(**folders, **fields)  # type: ignore[arg-type]


@contextmanager
def provider_elsewhere(home: Path) -> Iterator[int]:
    """A provider that listens on loopback, in a thread that the guard takes for another machine; gives its port."""
    config = config_at(home, listen_hosts=("127.0.0.1",), role=Role.PROVIDER, mdns=False, allow_private=True)
    is_up = threading.Event()
    ports: list[int] = []
    stops: list[tuple[trio.lowlevel.TrioToken, Node]] = []

    async def engine_of(_config: Config) -> Engine:
        await trio.lowlevel.checkpoint()
        return PacedEngine(tokens_per_s=500)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            node: Node = await nursery.start(_run, config, key_of(1), engine_of)
            ports.append(int(node.addresses()[0].split("/")[4]))
            stops.append((trio.lowlevel.current_trio_token(), node))
            is_up.set()

    thread = threading.Thread(target=trio.run, args=(serve,), name=f"{OUTSIDE}provider")
    thread.start()
    assert is_up.wait(30)
    try:
        yield ports[0]
    finally:
        token, node = stops[0]
        token.run_sync_soon(node.stop)
        thread.join()


async def _run(config: Config, key: object, engine_of: object, *, task_status: trio.TaskStatus[Node]) -> None:
    await run_node(config, key, engine_of=engine_of, task_status=task_status)  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another process brings about."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - nothing tells when
            await trio.sleep(0.02)


async def events_of(node: Node) -> list[object]:
    with trio.fail_after(60):
        async with node.ask(question(max_tokens=10, timeout_s=30, provider=key_of(1).node)) as events:
            return [event async for event in events]


# ---------------------------------------------------------------- peers


async def test_a_question_and_its_answer_go_through_the_proxy(tmp_path: Path, double: SocksDouble) -> None:
    with provider_elsewhere(tmp_path) as port:
        double.names["provider.example", PORT] = ("127.0.0.1", port)
        address = f"/dns/provider.example/tcp/{PORT}/p2p/{peer_id(key_of(1).node)}"
        with nothing_goes_around(("127.0.0.1", double.port)):
            async with client_node(config_of_nobody(proxy=double.url), key_of(2), peers=[address]) as node:
                events = await events_of(node)
                [peer] = [each for each in node.peers() if not each["ourselves"]]
    assert isinstance(events[0], JobAccepted)
    assert isinstance(events[-1], JobDone)
    assert events[-1].receipt.output_tokens == 10
    assert double.asked == [("provider.example", PORT)], "one connection, and the name was the proxy's to look up"
    assert peer["connected"]


async def test_without_its_proxy_it_asks_nobody(tmp_path: Path) -> None:
    with socks_double() as double:
        pass
    with provider_elsewhere(tmp_path) as port:
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id(key_of(1).node)}"
        with nothing_goes_around(("127.0.0.1", double.port)):
            async with client_node(config_of_nobody(proxy=double.url), key_of(2), peers=[address]) as node:
                events = await events_of(node)
    assert isinstance(events[-1], JobFailed)
    assert "the proxy at 127.0.0.1" in events[-1].text
    assert "does not answer, and nothing is sent around it" in events[-1].text


def guard(double: SocksDouble, **changes: object) -> DialGuard:
    return DialGuard(**{"allow_private": False, "proxy": double.proxy.connect, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("intranet.example", PORT, "a name that strangers tell"),
        ("localhost", PORT, "a name that strangers tell"),
        ("10.0.0.7", PORT, "no address of the Internet"),
        ("127.0.0.1", PORT, "no address of the Internet"),
        ("::ffff:192.168.1.1", PORT, "no address of the Internet"),
        ("8.8.8.8", 25, "nodes do not listen on port 25"),
        ("expyuzz4wqqyqhjn.onion", 80, "nodes do not listen on port 80"),
    ],
)
async def test_strangers_open_no_door_in_the_proxy_s_network(
    double: SocksDouble, host: str, port: int, words: str
) -> None:
    with nothing_goes_around(), pytest.raises(AddressRefused, match=words):
        await guard(double).connect(TcpAddress(host, port, None))
    assert double.asked == []


async def test_what_the_owner_gave_and_onion_services_are_asked_for(double: SocksDouble) -> None:
    dials = guard(double)
    dials.permit(f"/dns/intranet.example/tcp/80/p2p/{peer_id(identity(1))}")
    with nothing_goes_around(("127.0.0.1", double.port)):
        for host, port in (("intranet.example", 80), ("expyuzz4wqqyqhjn.onion", PORT)):
            with pytest.raises(OSError, match="no such host"):
                await dials.connect(TcpAddress(host, port, None))
    assert double.asked == [("intranet.example", 80), ("expyuzz4wqqyqhjn.onion", PORT)]


async def test_an_onion_service_is_never_looked_up() -> None:
    dials = DialGuard(allow_private=True)
    with nothing_goes_around(), pytest.raises(AddressRefused, match="through Tor alone"):
        await dials.connect(TcpAddress("expyuzz4wqqyqhjn.ONION.", PORT, None))


async def test_of_a_peer_that_the_proxy_does_not_reach_nothing_is_told(double: SocksDouble) -> None:
    dials = guard(double, allow_private=True)
    told = await dial_back(Identity(secret(1)), dials, identity(2), "/ip4/127.0.0.1/tcp/1025")
    assert told == (Reachability.NOT_TRIED, "this node dials through a proxy, and that did not lead there")


# ---------------------------------------------------------------- the coordinator


async def test_the_link_goes_through_the_proxy_and_nothing_else_leaves(tmp_path: Path, double: SocksDouble) -> None:
    coordinator = Coordinator(tmp_path / "coordinator")
    try:
        port = int(coordinator.url.rpartition(":")[2])
        double.names["coordinator.example", port] = ("127.0.0.1", port)
        config = config_at(
            tmp_path / "node",
            role=Role.PROVIDER,
            coordinator_url=f"http://coordinator.example:{port}",
            coordinator_key=coordinator.key,
            proxy=double.url,
            listen_hosts=(),
            mdns=True,
            dht=True,
        )

        async def engine_of(_config: Config) -> Engine:
            await trio.lowlevel.checkpoint()
            return PacedEngine()

        with nothing_goes_around(("127.0.0.1", double.port)):
            async with trio.open_nursery() as nursery:
                node: Node = await nursery.start(_run, config, key_of(3), engine_of)
                # To register, for the link, and for its list of peers.
                await until(lambda: node.status()["coordinator"]["state"] == "connected" and len(double.asked) >= 3)
                status = node.status()
                node.stop()
        assert set(double.asked) == {("coordinator.example", port)}
        assert (status["addresses"], status["advertised_addresses"]) == ([], [])
        assert set(status["discovered"]) == {"saved", "coordinator"}, "neither mDNS nor the DHT"
        assert status["dht"] is None
        assert "through a proxy" in status["reached"]["advice"]
    finally:
        coordinator.close()


async def test_without_its_proxy_it_says_so_and_keeps_trying(tmp_path: Path) -> None:
    with socks_double() as double:
        pass
    config = config_of_nobody(
        role=Role.PROVIDER,
        coordinator_url="http://coordinator.example",
        coordinator_key=key_of(9).node,
        proxy=double.url,
        p2p_enabled=False,
    )
    node = Node(config, key_of(3), transport=None, engine=PacedEngine())
    with nothing_goes_around(("127.0.0.1", double.port)):
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await until(lambda: node.status()["coordinator"]["last_error"])
            said = node.status()["coordinator"]["last_error"]
            node.stop()
    assert f"through the proxy at 127.0.0.1:{double.port}" in said
    assert "nothing was sent around it" in said


# ---------------------------------------------------------------- what follows from the setting


def loaded(tmp_path: Path, **flags: object) -> tuple[Config, tuple[str, ...]]:
    given = {"proxy": "socks5://127.0.0.1:9050", **flags}
    found = load(given, {"INFERNET_HOME": str(tmp_path)})
    return found.config, found.warnings


def test_it_listens_only_for_what_forwards_to_it(tmp_path: Path) -> None:
    assert loaded(tmp_path)[0].listen_hosts == ()
    config, warnings = loaded(tmp_path, address="expyuzz4wqqyqhjn.onion", free_for="nobody")
    assert (config.listen_hosts, config.allow_private, warnings) == (("127.0.0.1",), False, ())
    assert "lets everybody in" in loaded(tmp_path, address="expyuzz4wqqyqhjn.onion")[1][0]
    config, warnings = loaded(tmp_path, listen_hosts="0.0.0.0")
    assert config.listen_hosts == ("0.0.0.0",)
    assert "sees where this machine is" in warnings[0]
    assert loaded(tmp_path, proxy="none")[0].listen_hosts == ("0.0.0.0", "::")


def test_what_a_proxy_does_not_carry_is_off_and_told(tmp_path: Path) -> None:
    config, warnings = loaded(tmp_path, mdns=True, dht=True)
    assert not uses_local_network(config)
    assert [warning.partition(" ")[0] for warning in warnings] == ["mdns", "dht"]
    assert uses_local_network(replace(config, proxy=None))


async def test_it_publishes_what_its_owner_gave_and_nothing_that_others_saw() -> None:
    class Listening:
        """As far as addresses go, a transport."""

        relays_connections = False

        def addresses(self) -> list[str]:
            return [f"/ip4/127.0.0.1/tcp/{PORT}/p2p/x"]

    node = key_of(1).node
    for address, published in ((None, []), ("xyz.onion", [f"/dns/xyz.onion/tcp/{PORT}/p2p/{peer_id(node)}"])):
        config = config_of_nobody(proxy="socks5h://127.0.0.1:9050", advertise=True, address=address)
        posted: list[object] = []
        reached = BeingReached(config, node, Listening(), post=posted.append, changed=lambda: None)  # type: ignore[arg-type]
        reached._say_where()
        assert getattr(posted[0], "addresses") == (), "nobody is asked to dial back"  # noqa: B009
        reached.observe(ReachabilityLearnt(Reachability.REACHED, f"/ip4/8.8.8.8/tcp/{PORT}", ""))
        assert reached.advertised() == published


# ---------------------------------------------------------------- no way around, in the code


@functools.cache
def calls() -> tuple[tuple[str, str, ast.Call], ...]:
    """Every call of something by its name in the package: file, name with what stands before it, the call."""
    return tuple(
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(call.func), call)
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, (ast.Name, ast.Attribute))
    )


def test_every_client_of_http_is_told_of_the_proxy() -> None:
    made = [(file, name, call) for file, name, call in calls() if name in ("httpx.AsyncClient", "httpx.Client")]
    assert len(made) >= 4
    for file, name, call in made:
        has_proxy = any(keyword.arg == "proxy" for keyword in call.keywords)
        assert has_proxy or file == "coordinator_client.py", f"{file}: {name} without proxy="
    assert not [
        file
        for file, name, _ in calls()
        if name.startswith("httpx.")
        and name.split(".")[1] in ("get", "post", "put", "head", "request", "stream", "delete", "patch", "options")
    ]


def test_sockets_are_opened_where_it_is_known() -> None:
    opening = ("open_tcp_stream", "open_ssl_over_tcp_stream", "getaddrinfo", "create_connection", "gethostbyname")
    found = {(file, name.rpartition(".")[2]) for file, name, _ in calls() if name.rpartition(".")[2] in opening}
    assert found == {
        ("cluster/worker.py", "open_tcp_stream"),  # of this machine
        ("doctor/network.py", "getaddrinfo"),  # not with a proxy
        ("doctor/ports.py", "open_tcp_stream"),  # of this machine
        ("carriers/link.py", "open_ssl_over_tcp_stream"),  # not with a proxy
        ("carriers/link.py", "open_tcp_stream"),  # not with a proxy
        ("proxy.py", "open_tcp_stream"),
        ("transport/dial_guard.py", "getaddrinfo"),  # not with a proxy
    }
