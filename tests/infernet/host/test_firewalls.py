"""infernet/host/firewalls.py: the right commands, for what is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infernet.host.firewalls import BY_NAME, detect, find_program

NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("ufw", ["ufw allow 46337/tcp", "ufw reload"]),
        ("firewalld", ["firewall-cmd --permanent --add-port=46337/tcp", "firewall-cmd --reload"]),
        ("nftables", ["nft add rule inet filter input tcp dport 46337 accept"]),
        (
            "iptables",
            [
                "iptables -I INPUT -p tcp --dport 46337 -j ACCEPT",
                "ip6tables -I INPUT -p tcp --dport 46337 -j ACCEPT",
            ],
        ),
        ("pf", ["pass in proto tcp from any to any port 46337"]),
        (
            "netsh",
            [
                (
                    'netsh advfirewall firewall add rule name="Infernet P2P 46337" dir=in action=allow protocol=TCP '
                    "localport=46337"
                )
            ],
        ),
    ],
)
def test_the_lines_of_each(name: str, lines: list[str]) -> None:
    assert BY_NAME[name].lines_for(46337) == lines


def names(platform: str, *installed: str, ufw: Path = NOWHERE) -> list[str]:
    return [each.name for each in detect(platform, lambda name: name if name in installed else None, ufw)]


def test_what_manages_the_others_comes_first() -> None:
    assert names("linux", "iptables", "nft", "firewall-cmd", "ufw") == ["ufw", "firewalld", "nftables", "iptables"]
    assert names("linux", "iptables", "nft", "pfctl") == ["nftables", "iptables"]
    assert names("darwin", "pfctl", "iptables") == ["pf"]
    assert names("win32", "netsh") == ["netsh"]
    assert names("linux") == names("sunos5", "iptables") == []


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("ENABLED=yes\n", "ufw"),
        ("# x\nENABLED=no  # by hand\n", "iptables"),
        ("#ENABLED=no\n", "ufw"),
        ("LOGLEVEL=low\n", "ufw"),
    ],
)
def test_ufw_that_is_switched_off_comes_last(tmp_path: Path, text: str, first: str) -> None:
    config = tmp_path / "ufw.conf"
    config.write_text(text)
    assert names("linux", "iptables", "ufw", ufw=config)[0] == first


def test_programs_of_the_system_are_found_without_its_folders_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    system = [name for folder in ("/usr/sbin", "/sbin") if os.path.isdir(folder) for name in os.listdir(folder)]
    programs = [name for name in system if os.access(f"/usr/sbin/{name}", os.X_OK)]
    assert programs, "every Linux has some"
    assert find_program(programs[0]) is not None
    assert find_program("no-such-program") is None
