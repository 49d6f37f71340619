"""The firewalls that people have, and what lets a TCP port in through each. Nothing here runs or changes anything.

The lines for pf and netsh are written to their documentation and were not tried on macOS and Windows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Whoever is not root often has no folder of system programs in PATH.
_SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_UFW_CONFIG: Final = Path("/etc/ufw/ufw.conf")
_CONFIG_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True)
class Firewall:
    """One kind. `lines` are commands for root, or what else `how` says of them."""

    name: str
    #: As Python names the systems.
    platform: str
    program: str
    lines: tuple[str, ...]
    how: str = "as root"
    remark: str = ""

    def lines_for(self, port: int) -> list[str]:
        """What lets this port in."""
        return [line.format(port=port) for line in self.lines]


_UNTIL_BOOT: Final = "such a rule is gone after the next boot, unless your system saves it"
#: In the order in which they are looked for: those in front manage those behind.
FIREWALLS: Final = (
    Firewall("ufw", "linux", "ufw", ("ufw allow {port}/tcp", "ufw reload")),
    Firewall(
        "firewalld",
        "linux",
        "firewall-cmd",
        ("firewall-cmd --permanent --add-port={port}/tcp", "firewall-cmd --reload"),
    ),
    Firewall(
        "nftables",
        "linux",
        "nft",
        ("nft add rule inet filter input tcp dport {port} accept",),
        remark=f"your table and chain may have other names (`nft list ruleset`); {_UNTIL_BOOT}",
    ),
    Firewall(
        "iptables",
        "linux",
        "iptables",
        (
            "iptables -I INPUT -p tcp --dport {port} -j ACCEPT",
            "ip6tables -I INPUT -p tcp --dport {port} -j ACCEPT",
        ),
        remark=_UNTIL_BOOT,
    ),
    Firewall(
        "pf",
        "darwin",
        "pfctl",
        ("pass in proto tcp from any to any port {port}",),
        how="as a line of /etc/pf.conf, then `pfctl -f /etc/pf.conf` as root",
    ),
    Firewall(
        "netsh",
        "win32",
        "netsh",
        (
            (
                'netsh advfirewall firewall add rule name="Infernet P2P {port}" dir=in action=allow protocol=TCP '
                "localport={port}"
            ),
        ),
        how="in a terminal of the administrator",
    ),
)
BY_NAME: Final = {firewall.name: firewall for firewall in FIREWALLS}


def find_program(name: str) -> str | None:
    """Where a program of the system is; None when it is not there."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    return shutil.which(name, path=path)


def detect(
    platform: str, find: Callable[[str], str | None] = find_program, ufw_config: Path = _UFW_CONFIG
) -> list[Firewall]:
    """The firewalls of this system that are installed, the one to use first.

    Which of them are at work only root can see; of ufw everybody can read that it is switched off.
    """
    found = [each for each in FIREWALLS if each.platform == platform and find(each.program) is not None]
    return sorted(found, key=lambda each: each.name == "ufw" and _is_ufw_off(ufw_config))


def _is_ufw_off(config: Path) -> bool:
    try:
        with config.open("rb") as file:
            text = file.read(_CONFIG_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return False
    return any(line.split("#")[0].strip().lower() == "enabled=no" for line in text.splitlines())
