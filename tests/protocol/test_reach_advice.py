"""protocol/reach_advice.py: the sentence names the port, the machine and what to do."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from protocol.reach_advice import Situation, advice
from protocol.records import Reachability


def told(
    found: Reachability,
    *,
    port: int | None = 46337,
    own: str = "192.168.1.7 127.0.0.1",
    seen: str = "203.0.113.7",
    relays: int = 0,
) -> str:
    seen_at = ip_address(seen) if seen else None
    return advice(Situation(found, port, [ip_address(each) for each in own.split()], seen_at, relays))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (told(Reachability.REACHED), ["nothing to do"]),
        (told(Reachability.UNKNOWN), ["no peer has tried yet"]),
        (
            told(Reachability.NOT_REACHED),
            ["203.0.113.7 port 46337", "forward TCP port 46337 of your router to 192.168.1.7"],
        ),
        (
            told(Reachability.WRONG_NODE),
            ["another node answers", "203.0.113.7 port 46337", "to 192.168.1.7", "--p2p-port"],
        ),
        (told(Reachability.NO_NODE), ["another program answers", "to 192.168.1.7", "--p2p-port"]),
        (told(Reachability.NOT_REACHED, own="203.0.113.7 127.0.0.1"), ["firewall", "ufw allow 46337/tcp"]),
        (told(Reachability.NOT_REACHED, own="127.0.0.1 ::1"), ["listens on 127.0.0.1 only", "--listen-hosts"]),
        (told(Reachability.NOT_REACHED, own="100.64.3.4 127.0.0.1"), ["carrier-grade NAT", "IPv6"]),
        (told(Reachability.NOT_REACHED, seen="100.100.1.1"), ["carrier-grade NAT"]),
        (told(Reachability.UNKNOWN, port=None, own=""), ["listens on no port", "--listen-hosts"]),
        (told(Reachability.NOT_REACHED, seen=""), ["port 46337", "192.168.1.7"]),
        (told(Reachability.NOT_REACHED, own="fd00::7 192.168.1.7"), ["192.168.1.7"]),
        (told(Reachability.NOT_REACHED, own=""), ["to this machine"]),
    ],
)
def test_each_situation_has_its_sentence(text: str, words: list[str]) -> None:
    for word in words:
        assert word in text
    assert "\n" not in text


def test_a_private_network_beside_the_home_network_is_no_carrier() -> None:
    text = told(Reachability.NOT_REACHED, own="100.90.1.2 192.168.1.7 127.0.0.1")
    assert "carrier" not in text
    assert "192.168.1.7" in text


def test_relays_are_the_other_way() -> None:
    assert told(Reachability.NOT_REACHED, relays=2).endswith("or go on: you are reached through 2 relays")
    assert told(Reachability.NOT_REACHED, relays=1).endswith("through 1 relay")
    assert "until then only nodes that this one has dialled" in told(Reachability.NOT_REACHED)
