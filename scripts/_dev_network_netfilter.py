"""A router's address translation, asked of the kernel itself: `nft` and `iptables` are not on every machine.

What is sent is what `nft` would send for

    table ip infernet {
        chain out { type nat hook postrouting priority srcnat; oifname OUTSIDE masquerade }
        chain in  { type filter hook input priority filter; policy drop }
    }

So those behind the router can open connections, which carry its address, and nobody can open one to them or to it.
Messages as in linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
NLMSG_ERROR: Final = 2
NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_CREATE: Final = 0x400
NLA_F_NESTED: Final = 0x8000

NFNL_SUBSYS_NFTABLES: Final = 10
NFNL_MSG_BATCH_BEGIN: Final = 0x10
NFNL_MSG_BATCH_END: Final = 0x11
NFT_MSG_NEWTABLE: Final = 0
NFT_MSG_NEWCHAIN: Final = 3
NFT_MSG_NEWRULE: Final = 6

NFT_REG_1: Final = 1
NFT_META_OIFNAME: Final = 7
NFT_CMP_EQ: Final = 0
IFNAMSIZ: Final = 16

NF_INET_LOCAL_IN: Final = 1
NF_INET_POST_ROUTING: Final = 4
NF_DROP: Final = 0
NF_ACCEPT: Final = 1
PRIORITY_FILTER: Final = 0
PRIORITY_SOURCE_NAT: Final = 100

TABLE: Final = "infernet"
REPLY_TIMEOUT_S: Final = 5.0


class NetfilterError(Exception):
    """The kernel refused; one line for people."""


def masquerade(outside: str) -> None:
    """Make a router with address translation of the network namespace that this thread is in.

    `outside` is the interface behind which the others are. Raises NetfilterError when the kernel has no nftables,
    OSError without the right to ask.
    """
    name = outside.encode().ljust(IFNAMSIZ, b"\0")
    rule = _expression("meta", _attribute(1, _number(NFT_REG_1)) + _attribute(2, _number(NFT_META_OIFNAME)))
    rule += _expression(
        "cmp", _attribute(1, _number(NFT_REG_1)) + _attribute(2, _number(NFT_CMP_EQ)) + _nested(3, _attribute(1, name))
    )
    rule += _expression("masq", b"")
    rule = _attribute(1, TABLE) + _attribute(2, "out") + _nested(4, rule)
    messages = [
        _message(NFT_MSG_NEWTABLE, _attribute(1, TABLE)),
        _message(NFT_MSG_NEWCHAIN, _chain("out", "nat", NF_INET_POST_ROUTING, PRIORITY_SOURCE_NAT, NF_ACCEPT)),
        _message(NFT_MSG_NEWCHAIN, _chain("in", "filter", NF_INET_LOCAL_IN, PRIORITY_FILTER, NF_DROP)),
        _message(NFT_MSG_NEWRULE, rule),
    ]
    batch = [_batch(NFNL_MSG_BATCH_BEGIN), *messages, _batch(NFNL_MSG_BATCH_END)]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(REPLY_TIMEOUT_S)
        kernel.bind((0, 0))
        kernel.send(b"".join(batch))
        answered = 0
        while answered < len(messages):
            for code in _answers(kernel.recv(65536)):
                answered += 1
                if code:
                    raise NetfilterError(f"the kernel makes no router here ({os.strerror(code).lower()})")


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, _attribute(1, name) + _nested(2, data))


def _number(value: int) -> bytes:
    return struct.pack("!i", value)


def _chain(name: str, kind: str, hook: int, priority: int, policy: int) -> bytes:
    place = _nested(4, _attribute(1, _number(hook)) + _attribute(2, _number(priority)))
    return _attribute(1, TABLE) + _attribute(3, name) + place + _attribute(5, _number(policy)) + _attribute(7, kind)


def _message(kind: int, attributes: bytes) -> bytes:
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    header = struct.pack("!BBH", socket.AF_INET, 0, 0)
    return _netlink(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, header + attributes)


def _batch(kind: int) -> bytes:
    return _netlink(kind, NLM_F_REQUEST, struct.pack("!BBH", socket.AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES))


def _netlink(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes | str) -> bytes:
    data = value.encode() + b"\0" if isinstance(value, str) else value
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, data)


def _answers(data: bytes) -> Iterator[int]:
    """The error number of each answer; 0 for what was done."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind == NLMSG_ERROR:
            yield -struct.unpack_from("=i", data, 16)[0]
        if length < 16:
            raise NetfilterError(os.strerror(errno.EBADMSG).lower())
        data = data[-(-length // 4) * 4 :]
