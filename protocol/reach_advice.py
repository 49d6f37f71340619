"""What a node's owner is told about how others reach it: one sentence with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from protocol.records import Reachability

IpAddress = IPv4Address | IPv6Address

# Shared by the customers of one provider (RFC 6598).
_CARRIER_GRADE: Final = IPv4Network("100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the advice depends on. `seen_at` is where others see this node; `own` are its interfaces' addresses."""

    reachability: Reachability
    port: int | None
    own: Sequence[IpAddress]
    seen_at: IpAddress | None
    relays: int


def advice(situation: Situation) -> str:
    """What to do, or that there is nothing to do."""
    if situation.reachability is Reachability.REACHED:
        return "there is nothing to do"
    if situation.reachability is Reachability.UNKNOWN and situation.port is not None:
        return "no peer has tried yet whether this node is reached"
    return f"{_what_to_do(situation)}, {_meanwhile(situation.relays)}"


def _what_to_do(s: Situation) -> str:
    if s.port is None:
        return "this node listens on no port: let it listen (--listen-hosts 0.0.0.0,::) to be dialled"
    if s.own and all(ip.is_loopback for ip in s.own):
        return (
            f"this node listens on {s.own[0]} only, where no other machine reaches it: "
            "let it listen on all addresses (--listen-hosts 0.0.0.0,::)"
        )
    target, where = _own_address(s), f"{s.seen_at} port {s.port}" if s.seen_at is not None else f"port {s.port}"
    if s.reachability is Reachability.WRONG_NODE:
        return (
            f"at {where} another node answers: have your router forward that port to {target}, "
            "or give this node a port of its own (--p2p-port) and forward that"
        )
    if s.reachability is Reachability.NO_NODE:
        return (
            f"at {where} another program answers: have your router forward that port to {target}, "
            "or give this node a port of its own (--p2p-port) and forward that"
        )
    if s.seen_at in s.own:
        return (
            f"a firewall lets nobody in at {where}: allow TCP port {s.port} on this machine "
            f"(ufw allow {s.port}/tcp) and at its provider"
        )
    if _is_behind_carrier(s):
        return (
            "your provider shares one address among its customers (carrier-grade NAT), so no port can be forwarded: "
            "ask it for an IPv4 address of your own, or for IPv6"
        )
    return f"nothing answers at {where}: forward TCP port {s.port} of your router to {target}"


def _is_behind_carrier(s: Situation) -> bool:
    # An interface of that kind beside others is a virtual private network, which uses the same block.
    own = [ip for ip in s.own if isinstance(ip, IPv4Address) and not ip.is_loopback]
    seen_at = [s.seen_at] if isinstance(s.seen_at, IPv4Address) else []
    return any(ips and all(ip in _CARRIER_GRADE for ip in ips) for ips in (own, seen_at))


def _own_address(s: Situation) -> str:
    """This machine, as its router knows it."""
    candidates = [ip for ip in s.own if not ip.is_loopback]
    same_family = [ip for ip in candidates if s.seen_at is not None and ip.version == s.seen_at.version]
    private = [ip for ip in same_family or candidates if ip.is_private]
    found = private or same_family or candidates
    return str(found[0]) if found else "this machine"


def _meanwhile(relays: int) -> str:
    if relays == 0:
        return "until then only nodes that this one has dialled can send it jobs"
    return f"or go on: you are reached through {relays} relay{'s' if relays > 1 else ''}"
