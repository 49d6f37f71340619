"""`infernet firewall`: what to type so that this machine's firewall lets peers in. It changes nothing itself."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from infernet.cli.output import print_fields, print_json
from infernet.cli.running_node import STATUS_TIMEOUT_S
from infernet.config import Config, load
from infernet.host.firewalls import BY_NAME, FIREWALLS, Firewall, detect
from infernet.ipc import client as ipc
from infernet.settings.readers import PORT_MAX
from protocol.constants import P2P_PORT

USAGE: Final = "[--port P] [--for NAME] [--json]"
DESCRIPTION: Final = f"""\
The commands that let peers in through the firewall of this machine: ufw, firewalld, nftables, iptables, pf (macOS) or
netsh (Windows). It looks which of them are installed, needs no rights, and changes nothing: you run the commands. It
says so when no rule is needed, because this node does not listen, is reached already, or is reached through relays.
The port is the one that the running node listens on, else the one that is set (default: {P2P_PORT})."""
EXAMPLES: Final = """\
examples:
  infernet firewall
  infernet firewall --port 46400 --for iptables
  infernet firewall --json | jq -r '.commands[]'"""

_LISTENER_OFF: Final = "this node opens no port, and dials others itself"
_THIS_MACHINE: Final = "this node listens for programs of this machine only"


@dataclass(frozen=True)
class Need:
    """Whether a rule is needed, in one sentence; `ports` are those that would have one."""

    ports: tuple[int, ...]
    is_needed: bool
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which port, and which firewall."""
    parser.add_argument("--port", type=_port, metavar="P", help="the TCP port, whatever this node listens on")
    parser.add_argument(
        "--for",
        dest="name",
        choices=list(BY_NAME),
        metavar="NAME",
        help=f"the firewall: {', '.join(BY_NAME)} (default: the one that is found)",
    )


def _port(word: str) -> int:
    port = int(word) if word.isascii() and word.isdigit() and len(word) <= 5 else 0
    if not 1 <= port <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to {PORT_MAX}")
    return port


def run(arguments: argparse.Namespace) -> int:
    """Look, and print."""
    need = Need((arguments.port,), True, "") if arguments.port is not None else _need(load().config)
    found = [BY_NAME[arguments.name]] if arguments.name is not None else detect(sys.platform)
    shown = found[:1] or [each for each in FIREWALLS if each.platform == sys.platform] or list(FIREWALLS)
    if arguments.json:
        print_json(
            {
                "needed": need.is_needed,
                "reason": need.reason or None,
                "ports": list(need.ports),
                "installed": [each.name for each in found] if arguments.name is None else None,
                "firewall": shown[0].name if found else None,
                "commands": [line for port in need.ports for line in shown[0].lines_for(port)] if found else [],
                "all": {
                    each.name: [line for port in need.ports for line in each.lines_for(port)] for each in FIREWALLS
                },
            }
        )
        return 0
    if need.reason:
        print(f"{'' if need.is_needed else 'No rule is needed: '}{need.reason}.")
    if not need.ports:
        return 0
    if not found:
        print("None of the firewalls known here is installed; that of your provider may be like one of these.")
    elif len(found) > 1:
        print(f"Also installed: {', '.join(each.name for each in found[1:])} (--for shows the commands).")
    for firewall in shown:
        _show(firewall, need.ports)
    return 0


def _show(firewall: Firewall, ports: tuple[int, ...]) -> None:
    words = ", ".join(map(str, ports))
    print(f"{firewall.name}, to let in TCP port {words}, {firewall.how}:")
    for port in ports:
        for line in firewall.lines_for(port):
            print(f"  {line}")
    if firewall.remark:
        print_fields([("note", firewall.remark)])


# ---------------------------------------------------------------- whether one is needed


def _need(config: Config) -> Need:
    try:
        status = ipc.call(config.socket_path, "status", timeout_s=STATUS_TIMEOUT_S)
    except ipc.IpcError:
        return need_by_settings(config)
    return need_of_running(status if isinstance(status, dict) else {})


def need_by_settings(config: Config) -> Need:
    """What a node with these settings needs."""
    if not config.p2p_enabled or not config.listen_hosts:
        return Need((), False, _LISTENER_OFF)
    if all(ip_address(host).is_loopback for host in config.listen_hosts):
        return Need((), False, _THIS_MACHINE)
    if config.listen_port == 0:
        return Need((), True, "this node takes another port at each start: give it one of its own with --p2p-port")
    ports = [config.listen_port]
    if config.dht:
        ports.append(config.dht_port if config.dht_port is not None else config.p2p_port + 1)
    return Need(tuple(port for port in ports if port), True, "")


def need_of_running(status: dict[str, Any]) -> Need:
    """What the running node needs, by what it says of itself."""
    dht = status.get("dht")
    listening = [*_strings(status.get("addresses")), *_strings(dht.get("addresses") if isinstance(dht, dict) else None)]
    places = [place for address in listening if (place := _place(address)) is not None]
    ports = tuple(dict.fromkeys(port for is_loopback, port in places if not is_loopback))
    if not ports:
        return Need((), False, _THIS_MACHINE if places else _LISTENER_OFF)
    reached = status.get("reached")
    reached = reached if isinstance(reached, dict) else {}
    if reached.get("reachability") == "reached":
        return Need((), False, "others have reached this node, so nothing is in their way")
    relays = len(_strings(reached.get("circuits")))
    if relays:
        through = f"{relays} relay{'s' if relays != 1 else ''}"
        return Need(ports, False, f"others reach this node through {through}; with one they connect directly")
    return Need(ports, True, "")


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _place(address: str) -> tuple[bool, int] | None:
    """Whether a multiaddr is of this machine alone, and its TCP port; None for what has none."""
    parts = address.split("/")
    if len(parts) < 5 or parts[3] != "tcp" or not (parts[4].isascii() and parts[4].isdigit() and len(parts[4]) <= 5):
        return None
    try:
        return ip_address(parts[2]).is_loopback, int(parts[4])
    except ValueError:
        return None
