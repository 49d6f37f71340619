"""scripts/_dev_network_namespaces.py: who can connect to whom, and that nothing is left when it ends, however."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from _dev_network_namespaces import Internet, Place, run_in
from _environment import ROOT, Failure
from tests.helpers_processes import is_running, wait_until

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

PORT = 4000
TIMEOUT_S = 0.5


@pytest.fixture
def internet() -> Iterator[Internet]:
    """An Internet that is gone after the test."""
    with Internet() as internet:
        yield internet


class Listener:
    """Somebody who listens at a place."""

    def __init__(self, place: Place) -> None:
        self._socket = run_in(place.holder, lambda: socket.create_server(("", PORT)))
        self._socket.settimeout(TIMEOUT_S)

    def accept(self) -> str:
        """The address that a connection seems to come from."""
        connection, (host, _) = self._socket.accept()
        connection.close()
        return str(host)

    def close(self) -> None:
        self._socket.close()


def connect(place: Place, host: str) -> socket.socket:
    """A connection from a place. Raises OSError when there is no way."""
    return run_in(place.holder, lambda: socket.create_connection((host, PORT), TIMEOUT_S))


def reaches(place: Place, host: str) -> bool:
    """Whether a connection comes about."""
    try:
        connect(place, host).close()
    except OSError:
        return False
    return True


def test_public_hosts_reach_each_other_under_their_own_addresses(internet: Internet) -> None:
    one, other = internet.public("one"), internet.public("other")
    listener = Listener(other)
    with connect(one, other.host):
        assert listener.accept() == one.host
    assert one.host.split(".")[:2] != other.host.split(".")[:2], "networks of their own"
    listener.close()


def test_behind_a_router_one_gets_out_and_nobody_gets_in(internet: Internet) -> None:
    public, router = internet.public("public"), internet.nat("router")
    inside, neighbour = internet.behind("router", "inside"), internet.behind("router", "neighbour")
    outside, within = Listener(public), Listener(neighbour)
    with connect(inside, public.host) as connection:
        assert outside.accept() == router.host, "it looks like its router"
        connection.settimeout(TIMEOUT_S)
        assert connection.recv(1) == b"", "and hears the answer"
    with connect(inside, neighbour.host):
        assert within.accept() == inside.host, "its neighbours see it as it is"
    assert not reaches(public, inside.host)
    assert not reaches(public, neighbour.host)
    assert not reaches(public, router.host)
    outside.close()
    within.close()


def test_two_networks_behind_routers_have_the_same_addresses_and_do_not_meet(internet: Internet) -> None:
    public = internet.public("public")
    places = []
    for name in ("left", "right"):
        internet.nat(name)
        places.append(internet.behind(name, f"in {name}"))
    left, right = places
    assert left.host == right.host
    listeners = [Listener(public), Listener(right)]
    assert reaches(left, public.host)
    with pytest.raises(OSError, match=r".*"):
        connect(left, right.host)
    with pytest.raises(TimeoutError):
        listeners[1].accept()
    for listener in listeners:
        listener.close()


def test_what_is_blocked_vanishes_and_what_is_not_goes_on(internet: Internet) -> None:
    one, other, third = (internet.public(name) for name in ("one", "other", "third"))
    listener = Listener(other)
    internet.block(one.host, other.host)
    with pytest.raises(TimeoutError):
        connect(one, other.host)
    assert reaches(third, other.host)
    internet.unblock(one.host, other.host)
    assert reaches(one, other.host)
    listener.close()


def test_a_network_that_is_full_says_so(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internet, "_hosts", iter(()))
    with pytest.raises(Failure, match="no more public addresses"):
        internet.public("one too many")


def test_all_namespaces_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from _dev_network_namespaces import Internet\n"
        "with Internet() as internet:\n"
        "    print(internet.public('one').holder, internet.nat('two').holder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    with process.stdout:
        holders = [int(word) for word in process.stdout.readline().split()]
        assert len(holders) == 2
        assert all(is_running(holder) for holder in holders)

        process.send_signal(signal.SIGKILL)
        process.wait()

        wait_until(lambda: not any(is_running(holder) for holder in holders), "the namespaces go with it")
