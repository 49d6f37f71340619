"""An Internet in network namespaces: hosts with public addresses, each in a network of its own, and NATs before others.

In the middle is a namespace that only routes. A public host hangs on it directly. A router with address translation
(`nat`) hangs on it too, and behind that are hosts with private addresses: they can open connections, and nobody can
open one to them. The addresses are of the public kind, because nodes look at that; no packet leaves the machine.

Each namespace belongs to a process that does nothing, and goes with it. That process ends with the one that made it,
even when that is killed, so nothing is ever left over.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self, TypeVar

from _dev_network_detour import DEVICE, open_device
from _dev_network_netfilter import NetfilterError, masquerade
from _environment import Failure

CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
STARTING_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 10.0
LAN: Final = "192.168.1"
DETOUR_TABLE: Final = 100

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """A host: the process that holds its namespace, its address there, and the one that others see it under."""

    name: str
    holder: int
    host: str
    seen_as: str


@dataclass(frozen=True)
class _Router:
    """A namespace with a public address and, when others are to be behind it, a bridge for them."""

    place: Place
    holder: subprocess.Popen[bytes]


def require_namespaces() -> None:
    """Raise `Failure`, saying why, where no network namespaces can be made."""
    missing = [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]
    if not sys.platform.startswith("linux"):
        raise Failure("network namespaces exist on Linux only")
    if missing:
        raise Failure(f"network namespaces need {', '.join(missing)}: apt-get install iproute2 util-linux")
    if os.geteuid() != 0:
        raise Failure("network namespaces need root: run this with sudo, or leave out what asks for them")


class Internet:
    """The namespaces; use it as a context manager. Every method raises `Failure` when the kernel does not play."""

    def __init__(self) -> None:
        require_namespaces()
        self._holders: list[subprocess.Popen[bytes]] = []
        self._hosts = iter(_public_hosts())
        self._routers: dict[str, _Router] = {}
        self._behind: dict[str, int] = {}
        # Where the middle is connected to each public address.
        self._ports: dict[str, str] = {}
        self._middle = self._namespace()
        run_in(self._middle.pid, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all namespaces, and with them whatever is in them of the network."""
        for holder in self._holders:
            holder.kill()
        for holder in self._holders:
            holder.wait()
        self._holders.clear()

    # ------------------------------------------------------------ hosts

    def public(self, name: str) -> Place:
        """A host that everybody reaches, in a /16 of its own."""
        return self._attach(name)[0]

    def nat(self, name: str) -> Place:
        """A router that hosts can be behind; its own address is what they look like to others."""
        place, holder = self._attach(name)
        _ip(
            holder.pid,
            "link add lan type bridge",
            f"addr add {LAN}.1/24 dev lan",
            "link set lan up",
        )
        run_in(holder.pid, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        run_in(holder.pid, _masquerade)
        self._routers[name] = _Router(place, holder)
        self._behind[name] = 0
        return place

    def behind(self, router: str, name: str) -> Place:
        """A host in the private network of a router."""
        holder = self._namespace()
        inside = self._routers[router].holder.pid
        self._behind[router] += 1
        host = f"{LAN}.{1 + self._behind[router]}"
        port = f"p{self._behind[router]}"
        _ip(inside, f"link add {port} type veth peer name eth0 netns {holder.pid}", f"link set {port} master lan up")
        _ip(holder.pid, f"addr add {host}/24 dev eth0", "link set eth0 up", f"route add default via {LAN}.1 dev eth0")
        return Place(name, holder.pid, host, self._routers[router].place.host)

    # ------------------------------------------------------------ trouble

    def block(self, source: str, target: str) -> None:
        """Let what one public address sends to another vanish in the middle, without a word to anybody."""
        _ip(self._middle.pid, f"rule add from {source} to {target} blackhole")

    def unblock(self, source: str, target: str) -> None:
        """Undo `block`."""
        _ip(self._middle.pid, f"rule del from {source} to {target} blackhole")

    def detour_device(self) -> int:
        """A device to which `send_by_detour` sends packets, for `Detour`. Whoever gets it closes it."""
        device = run_in(self._middle.pid, open_device)
        off = "/proc/sys/net/ipv4/conf/{}/rp_filter"
        # What comes back from there has the addresses of others.
        for name in ("all", DEVICE):
            run_in(self._middle.pid, lambda name=name: Path(off.format(name)).write_text("0"))  # type: ignore[misc]
        _ip(self._middle.pid, f"link set {DEVICE} up", f"route add default dev {DEVICE} table {DETOUR_TABLE}")
        return device

    def send_by_detour(self, source: str, target: str) -> None:
        """Let what one public address sends to another go to that device first, and from there on its way."""
        port = self._ports[source]
        _ip(self._middle.pid, f"rule add from {source} to {target} iif {port} lookup {DETOUR_TABLE}")

    def send_directly(self, source: str, target: str) -> None:
        """Undo `send_by_detour`."""
        port = self._ports[source]
        _ip(self._middle.pid, f"rule del from {source} to {target} iif {port} lookup {DETOUR_TABLE}")

    # ------------------------------------------------------------ making them

    def _attach(self, name: str) -> tuple[Place, subprocess.Popen[bytes]]:
        """A namespace with a public address, and a way to all others through the middle."""
        host = next(self._hosts, None)
        if host is None:
            raise Failure("this Internet has no more public addresses")
        holder = self._namespace()
        port = self._ports[host] = f"host{holder.pid}"
        _ip(self._middle.pid, f"link add {port} type veth peer name eth0 netns {holder.pid}", f"link set {port} up")
        _ip(
            holder.pid,
            f"addr add {host}/32 dev eth0",
            "link set eth0 up",
            # The router at the other end answers for every address, so that hosts need not know each other.
            "route add 169.254.0.1 dev eth0",
            "route add default via 169.254.0.1 dev eth0",
        )
        _ip(self._middle.pid, f"addr add 169.254.0.1/32 dev {port}", f"route add {host} dev {port}")
        return Place(name, holder.pid, host, host), holder

    def _namespace(self) -> subprocess.Popen[bytes]:
        """A process that does nothing, in a new network namespace."""
        ours = os.stat("/proc/self/ns/net").st_ino
        holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._holders.append(holder)
        deadline = time.monotonic() + STARTING_S
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == ours:
            if holder.poll() is not None or time.monotonic() > deadline:
                raise Failure("the kernel gives no network namespace: run `unshare --net true` to see why")
            time.sleep(0.002)
        _ip(holder.pid, "link set lo up")
        return holder


def _public_hosts() -> Iterator[str]:
    """Addresses that look public, each in another /8."""
    for number in range(20, 224):
        host = f"{number}.{number}.0.10"
        if ip_address(host).is_global:
            yield host


def end_with_parent() -> None:
    """For a new process: be killed when its parent ends, however that ends.

    To the kernel the parent is the thread that started it, so that must be one that lives on, not one of a pool.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(holder: int) -> None:
    """Move this thread into the network namespace of another process. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{holder}/ns/net").open("rb") as namespace:
        if library.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def run_in(holder: int, do: Callable[[], Value]) -> Value:
    """Do something in a namespace: in a thread of its own, which ends there."""
    results: list[Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(holder)
            results.append(do())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _masquerade() -> None:
    try:
        masquerade("eth0")
    except (NetfilterError, OSError) as error:
        raise Failure(f"no router with address translation can be made here: {error}") from None


def _ip(holder: int, *lines: str) -> None:
    """Configure the namespace of a process with `ip`."""
    done = subprocess.run(
        ["nsenter", "--target", str(holder), "--net", "ip", "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise Failure(f"`ip` could not do this ({done.stderr.strip().splitlines()[0]}): {'; '.join(lines)}")
