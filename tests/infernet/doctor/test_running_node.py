"""infernet/doctor/node.py, ports.py and engine.py beside a node that runs: a double of one, and once a real one."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from infernet.doctor.contract import own_address
from infernet.host.lock import hold_lock
from protocol.ids import peer_id
from tests.helpers_cli import Home, running
from tests.helpers_doctor import (
    examine_beside,
    fake_coordinator,
    healthy_status,
    link,
    node_of,
    put,
    read,
    silent_listener,
)
from tests.helpers_ipc import FakeNode

pytestmark = pytest.mark.anyio

# A double that listens on no port is one that is not to be found.
HIDDEN = {"advertise": False}


def double(home: Home, **changes: Any) -> FakeNode:
    node = FakeNode()
    node.state = healthy_status(home) | changes
    return node


async def test_a_running_node_that_is_well(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, **HIDDEN)
    async with running(double(well), well.config):
        report = await examine_beside(capsys, "--strict")
    assert report.faults == {}
    assert report.outcome.code == 0
    for name in ("node.running", "ipc.answers", "node.version", "node.settings", "node.peers", "engine.loads"):
        assert report.checks[name]["status"] == "ok", name
    # A model is not loaded twice.
    assert report.checks["memory.free"]["status"] == "skip"


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"version": "0.0.1"}, "node.version", "warn", "infernet stop"),
        ({"version": None}, "node.version", "warn", "infernet stop"),
        ({"role": "client"}, "node.settings", "warn", "another role"),
        ({"node_id": "ab" * 32}, "node.settings", "warn", "another key"),
        ({"peers": 0}, "node.peers", "warn", "infernet join"),
        ({"peers": "many"}, "node.peers", "warn", "infernet join"),
        ({"engine": {"state": "waiting", "last_error": "it fell"}}, "engine.loads", "fail", "it fell"),
        ({"engine": None}, "engine.loads", "fail", "missing"),
        ({"paused": True}, "node.hours", "warn", "infernet schedule resume"),
        (
            {"engine": {"state": "starting", "loading_s": 75.2}, "models": []},
            "engine.loads",
            "warn",
            "the running node loads its model (loading for 1 min 15 s)",
        ),
        ({"money": {"trouble": "the disk lost a write"}}, "money.store", "fail", "the disk lost a write"),
    ],
)
async def test_what_a_running_node_says_of_itself(
    well: Home, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], name: str, status: str, words: str
) -> None:
    put(well, **HIDDEN)
    node = double(well, **changes)
    async with running(node, well.config):
        report = await examine_beside(capsys, "--skip-network" if name.startswith("engine") else "--strict")
        assert report.faults == {name: status}
        assert words in report.told(name)
        node.state = healthy_status(well)
        assert (await examine_beside(capsys, "--strict")).faults == {}


async def test_a_node_that_loads_is_not_asked(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [{"engine": "llama", "models": ["large"], "state": "starting", "loading_s": 3}]
    node = double(well, engine={"state": "starting", "loading_s": 3}, engines=parts, models=[])
    async with running(node, well.config):
        report = await examine_beside(capsys, "--skip-network")
    assert "the running node loads its model (large: loading for 3 s)" in report.told("engine.loads")
    assert report.checks["engine.answers"]["found"] == "not looked at: the running node loads its model"


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        ({"open": False, "words": "outside its hours until 22:00"}, "outside its hours until 22:00, and takes no new"),
        ({"open": True, "words": "within its hours"}, "is within its hours"),
        ({"open": "\x1b[2J", "words": 7}, "takes no new jobs"),
        ([], "at any hour"),
    ],
)
async def test_hours_are_as_the_owner_wants_them_and_no_fault(
    well: Home, capsys: pytest.CaptureFixture[str], hours: object, words: str
) -> None:
    put(well, **HIDDEN)
    async with running(double(well, hours=hours), well.config):
        report = await examine_beside(capsys, "--strict")
    assert report.faults == {}
    assert words in report.checks["node.hours"]["found"]


async def test_one_that_others_do_not_reach(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    reached = {"reachability": "not_reached", "advice": "have your router forward port 46337 to 192.0.2.7"}
    put(well, p2p_enabled=True, listen_hosts=[])
    node = double(well, reached=reached)
    async with running(node, well.config):
        report = await examine_beside(capsys, "--skip-engine")
        assert report.faults == {"port.reached": "warn"}
        assert "forward port 46337" in report.told("port.reached")
        node.state["reached"] = {"reachability": "reached"}
        assert (await examine_beside(capsys, "--skip-engine")).faults == {}


async def test_one_at_a_port_that_nobody_dials(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, p2p_port=807)
    async with running(double(well), well.config):
        report = await examine_beside(capsys, "--skip-engine", "--skip-network")
        assert report.checks["port.hosts"]["status"] == "skip"
        assert report.faults["port.privileged"] == "warn"
        assert "--p2p-port 46337" in report.told("port.privileged")


async def test_one_whose_port_somebody_else_answers(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with silent_listener() as port:
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id(node_of(well))}"
        async with running(double(well, addresses=[address]), well.config):
            report = await examine_beside(capsys, "--skip-network")
    assert report.faults == {"port.listen": "fail"}
    assert report.checks["engine.answers"]["status"] == "skip"


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/tcp/http", "nonsense", "/ip4/127.0.0.1/tcp/99999/p2p/x"])
async def test_one_whose_addresses_are_none(well: Home, capsys: pytest.CaptureFixture[str], address: str) -> None:
    async with running(double(well, addresses=[address]), well.config):
        report = await examine_beside(capsys)
    assert report.faults == {"port.listen": "fail"}


async def test_one_without_its_link(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, **HIDDEN)
    with fake_coordinator() as coordinator:
        link(well, coordinator)
        down = {"url": coordinator.url, "state": "waiting", "last_error": "the coordinator does not answer"}
        node = double(well, coordinator=down, coordinator_url=coordinator.url)
        async with running(node, well.config):
            report = await examine_beside(capsys, "--skip-engine")
            assert report.faults == {"node.heartbeat": "fail"}
            assert "does not answer" in report.told("node.heartbeat")
            node.state["coordinator"] = down | {"state": "connected", "last_error": ""}
            assert (await examine_beside(capsys, "--skip-engine")).faults == {}


async def test_one_whose_coordinator_is_gone(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """That the link is down follows from it, and so does that nobody is there."""
    put(well, **HIDDEN, coordinator_url="http://127.0.0.1:9", coordinator_key="ab" * 32)
    down = {"url": "http://127.0.0.1:9", "state": "waiting", "last_error": "it is gone"}
    async with running(double(well, coordinator=down, coordinator_url="http://127.0.0.1:9", peers=0), well.config):
        report = await examine_beside(capsys, "--skip-engine")
    assert report.faults == {"coordinator.reachable": "fail"}


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        (["/ip4/192.0.2.1/tcp/1", "/ip4/127.0.0.1/tcp/2"], "/ip4/127.0.0.1/tcp/2"),
        (["/ip6/fe80::1/tcp/1", "/ip6/::1/tcp/2"], "/ip6/::1/tcp/2"),
        ([7, "/ip4/192.0.2.1/tcp/1"], "/ip4/192.0.2.1/tcp/1"),
        ([], None),
        ("/ip4/127.0.0.1/tcp/1", None),
        (None, None),
    ],
)
async def test_it_is_asked_where_programs_of_this_machine_are_known(addresses: object, chosen: str | None) -> None:
    assert own_address({"addresses": addresses}) == chosen


async def test_one_that_the_coordinator_does_not_list(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, listen_hosts=[])
    with fake_coordinator() as coordinator:
        link(well, coordinator)
        connected = {"url": coordinator.url, "state": "connected", "last_error": ""}
        node = double(
            well, coordinator=connected, coordinator_url=coordinator.url, advertised_addresses=["/ip4/1.1.1.1"]
        )
        async with running(node, well.config):
            report = await examine_beside(capsys, "--skip-engine")
            assert report.faults == {"coordinator.listed": "fail"}
            coordinator.listed = [{"pubkey": node_of(well).hex()}]
            assert (await examine_beside(capsys, "--skip-engine")).faults == {}
            coordinator.errors["/api/peers"] = 500
            assert (await examine_beside(capsys, "--skip-engine")).faults == {"coordinator.listed": "warn"}
            coordinator.errors.clear()
            # Nobody can tell from the beginning of a long list.
            coordinator.listed = [{"pubkey": "ab" * 32}] * 100
            assert (await examine_beside(capsys, "--skip-engine")).checks["coordinator.listed"]["status"] == "skip"


@pytest.mark.slow
async def test_one_that_hangs(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds the lock, and its socket is there; nobody reads what is sent."""
    path = well.config.socket_path
    with hold_lock(well.config.pid_file), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        report = await examine_beside(capsys)
    assert report.faults == {"ipc.answers": "fail"}
    assert "infernet stop --force" in report.told("ipc.answers")


async def test_one_that_has_no_socket_yet(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with hold_lock(well.config.pid_file):
        report = await examine_beside(capsys)
    assert report.faults == {"ipc.answers": "fail"}
    assert "wait if it was just started" in report.told("ipc.answers")


@pytest.mark.parametrize("status", [[], "x", None, 7, {"reached": 7, "engine": [], "money": "x", "addresses": {}}])
async def test_one_that_answers_nonsense(well: Home, capsys: pytest.CaptureFixture[str], status: Any) -> None:
    put(well, **HIDDEN)
    node = double(well)
    node.state = status
    async with running(node, well.config):
        report = await examine_beside(capsys)
    assert not any("itself broke" in check["found"] for check in report.checks.values())


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.nightly
async def test_a_real_node_is_asked_over_its_port(
    well: Home, starter_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    well.config.models_dir.mkdir(parents=True)
    (well.config.models_dir / starter_model_path.name).symlink_to(starter_model_path)
    shutil.copy(starter_model_path.with_name(starter_model_path.name + ".verified"), well.config.models_dir)
    put(well, model="smollm2-135m-instruct", listen_hosts=["127.0.0.1"], slots=1)
    with well.started():
        report = read(well.run("doctor", "--json", "--skip-network"))
        assert report.faults == {}
        assert "tokens" in report.told("engine.answers")
        assert report.checks["port.listen"]["status"] == "ok"
    # A node that answers nobody for nothing is not ill.
    with well.started("--free-for", "nobody"):
        report = read(well.run("doctor", "--json", "--skip-network"))
        assert report.faults == {}
        assert report.checks["engine.answers"]["status"] == "skip"
