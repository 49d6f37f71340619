"""Checks of the port on which peers reach this node."""

from __future__ import annotations

import contextlib
import errno
import socket
from ipaddress import ip_address
from typing import Final

import psutil
import trio

from infernet.doctor.contract import (
    Check,
    Finding,
    Part,
    Situation,
    fail,
    in_thread,
    ok,
    own_address,
    part_of,
    skip,
    text_of,
    warn,
)
from infernet.own_addresses import undialled
from protocol.constants import P2P_PORT
from protocol.formats.text import clean_line

# What every libp2p listener says first: its length, the name, a newline.
_GREETING: Final = b"\x13/multistream/1.0.0\n"
_UNAVAILABLE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _reason_to_skip(situation: Situation) -> str | None:
    config = situation.config
    if not config.p2p_enabled or not config.listen_hosts:
        return "this node listens on no port"
    if situation.pid is not None:
        return "a running node holds the port"
    return None


def _hosts(situation: Situation) -> Finding:
    reason = _reason_to_skip(situation)
    if reason is not None:
        return skip(reason)
    config = situation.config
    binding = {host: _try_to_bind(host, config.listen_port) for host in config.listen_hosts}
    situation.binding = binding
    missing = [host for host, error in binding.items() if error in _UNAVAILABLE]
    if len(missing) == len(binding):
        return fail(
            f"this machine has none of the addresses to listen on ({', '.join(missing)})",
            "run `infernet config set --listen-hosts 0.0.0.0,::`",
        )
    return ok(f"this machine has {len(binding) - len(missing)} of {len(binding)} addresses to listen on")


def _try_to_bind(host: str, port: int) -> int:
    """The errno of listening there, as the node would; 0 when that works. Nothing stays behind."""
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
            listener.listen(1)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _privileged(situation: Situation) -> Finding:
    config = situation.config
    if not config.p2p_enabled or not config.listen_hosts:
        return skip("this node listens on no port")
    choose = f"choose a higher one: `infernet config set --p2p-port {P2P_PORT}`"
    # While a node runs nothing is bound, and it has its port.
    if errno.EACCES in (situation.binding or {}).values():
        return fail(f"only the system may listen on port {config.listen_port}", choose)
    if why := undialled(config):
        return warn(why, choose)
    return ok("the port is one that others dial")


def _taken(situation: Situation) -> Finding:
    assert situation.binding is not None
    port = situation.config.listen_port
    other = port + 1 if port < 65_535 else 0
    if errno.EADDRINUSE not in situation.binding.values():
        return ok(f"port {port} is free" if port else "any free port will do")
    return fail(
        f"TCP port {port} is taken by {_holder(port)}",
        f"stop that program, or choose another port: `infernet config set --p2p-port {other}`",
    )


def _holder(port: int) -> str:
    """Who listens there, where this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if is_it and connection.pid:
                return f"process {connection.pid} ({clean_line(psutil.Process(connection.pid).name(), 40)})"
    return "another program"


async def _listens(situation: Situation) -> Finding:
    if situation.status is None:
        return skip("no node is running")
    address = own_address(situation.status)
    if address is None:
        if situation.config.p2p_enabled and situation.config.listen_hosts:
            return fail("the running node listens on no port", "restart it: `infernet stop`, then `infernet start`")
        return skip("this node listens on no port")
    try:
        _, _, host, _, port, *_ = address.split("/")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            await stream.send_all(_GREETING)
            data = b""
            while len(data) < len(_GREETING) and (piece := await stream.receive_some(len(_GREETING))):
                data += bytes(piece)
    except (OSError, ValueError, trio.BrokenResourceError):
        data = b""
    if not data.startswith(_GREETING):
        return fail(
            "the running node does not answer on its own port",
            "look for a firewall on this machine, and restart the node: `infernet stop`, then `infernet start`",
        )
    situation.listens = True
    return ok("the running node answers on its own port")


async def _reached(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    if situation.status is None:
        return skip("no node is running")
    if not situation.config.advertise or not situation.config.p2p_enabled:
        return skip("this node is not to be found")
    reached = part_of(situation.status, "reached")
    state, advice = text_of(reached, "reachability"), text_of(reached, "advice")
    if state == "reached":
        return ok("others have reached this node")
    if state in ("", "unknown"):
        return skip("nobody has tried yet whether this node is reached")
    return warn(f"others do not reach this node ({state.replace('_', ' ')})", advice or "forward the port to it")


CHECKS: Final = (
    Check(
        id="port.hosts",
        title="Addresses to listen on exist",
        looks="Whether this machine has the addresses in `listen_hosts`.",
        remedy="`infernet config set --listen-hosts 0.0.0.0,::` listens on all there are.",
        examine=in_thread(_hosts),
        needs=("config.readable", "node.running"),
    ),
    Check(
        id="port.privileged",
        title="Port may be used",
        looks="Whether this user may listen on `p2p_port`, and whether others dial it: no node dials a port below "
        "1024 that it was told of.",
        remedy="`infernet config set --p2p-port 46337`.",
        examine=in_thread(_privileged),
        needs=("config.readable", "node.running"),
        after=("port.hosts",),
    ),
    Check(
        id="port.taken",
        title="Port is free",
        looks="Whether another program listens on `p2p_port` while no node of this home runs.",
        remedy="Stop that program, or give this node another port with `infernet config set --p2p-port`.",
        examine=in_thread(_taken),
        needs=("port.hosts",),
    ),
    Check(
        id="port.listen",
        title="Running node answers on its port",
        looks="Connects to the running node's own port and waits for libp2p's greeting.",
        remedy="A firewall on the machine itself may be in the way; if not, restart the node.",
        examine=_listens,
        needs=("config.readable", "ipc.answers"),
    ),
    Check(
        id="port.reached",
        title="Others reach this node",
        looks="What others found when they dialled this node back on a fresh connection.",
        remedy="The line says what to forward or to open, and where. Until then jobs come through relays and the "
        "coordinator's link.",
        examine=_reached,
        needs=("config.readable", "ipc.answers"),
        part=Part.NETWORK,
    ),
)
