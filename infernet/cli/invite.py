"""`infernet invite`: one line with which somebody else's node finds this one and those that it knows."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any, Final

from infernet import identity
from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.output import print_json
from infernet.cli.picture import draw
from infernet.config import Config, load
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from infernet.own_addresses import is_loopback_url, multiaddr
from infernet.store import Store
from protocol.formats.invites import Invite, InvitedNode, encode_invite
from protocol.ids import NodeId, peer_id
from protocol.networks import is_globally_routable, read_ip

# Short enough for a picture on a small terminal; one of them is enough to find all the others.
ADDRESSES_PER_NODE: Final = 3
OTHERS_MAX: Final = 2

USAGE: Final = "[--qr] [--json]"
DESCRIPTION: Final = """\
Print one line that lets somebody else's node find this one: `infernet join LINE` there. It names this node, a few nodes
that it is connected to, and the coordinator with its key. It holds no secret; whoever has it can connect, no more."""
EXAMPLES: Final = """\
examples:
  infernet invite
  infernet invite --qr              a picture of it, to be taken with a phone
  infernet invite --json | jq -r .invite

A node started with --no-advertise is not named in its own invites; those that it is connected to are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to show it."""
    parser.add_argument("--qr", action="store_true", help="show it as a QR code, too; needs a terminal")


@dataclass(frozen=True)
class _Known:
    """A node that an invite could name."""

    node: NodeId
    addresses: list[str]


def run(arguments: argparse.Namespace) -> int:
    """Find out whom to name, and print the line."""
    if arguments.qr and (arguments.json or not sys.stdout.isatty()):
        raise Misuse("--qr draws on a terminal: leave it out here")
    config = load().config
    ourselves, others = _known(config)
    nodes = ([ourselves] if ourselves is not None else []) + others[:OTHERS_MAX]
    url, key = _coordinator(config, nodes)
    if not nodes and url is None:
        raise Failure(_why_nobody(config))
    if ourselves is not None:
        _say_how_far(ourselves)
    invite = Invite(1, tuple(_invited(known) for known in nodes), url, key)
    line = encode_invite(invite)
    if arguments.json:
        print_json(_as_json(line, invite))
        return 0
    print(line)
    if arguments.qr:
        shorter = encode_invite(Invite(1, invite.nodes[:1], None, None)) if invite.nodes else line
        # Capitals, so that the code can use its denser alphabet.
        draw([line.upper(), shorter.upper()])
    return 0


# ---------------------------------------------------------------- whom to name


def _known(config: Config) -> tuple[_Known | None, list[_Known]]:
    """This node, if it may be named, and others by how well they are known."""
    if running_pid(config.pid_file) is None:
        return _from_files(config)
    status = ipc.call(config.socket_path, "status")
    peers = ipc.call(config.socket_path, "peers")
    addresses = _own_addresses(config, status)
    ourselves = _Known(NodeId(bytes.fromhex(status["node_id"])), addresses) if addresses else None
    found = [
        _Known(NodeId(bytes.fromhex(peer["node_id"])), _best(peer["addresses"]))
        for peer in peers
        if peer.get("connected") and not peer.get("ourselves") and peer.get("addresses")
    ]
    return ourselves, found


def _own_addresses(config: Config, status: dict[str, Any]) -> list[str]:
    """Where the running node is reached: what it publishes, else where it listens in this network."""
    # SPEC 03: The sender MUST NOT name an address of its own when its owner said that it publishes none.
    if not config.advertise:
        return []
    published, listening = status.get("advertised_addresses") or [], status.get("addresses") or []
    # Beside a coordinator on loopback only that is published, because its market is on this machine.
    if config.address is None and all(_reach(str(address)) == 0 for address in published):
        return _best([*published, *listening])
    return _best(published)


def _from_files(config: Config) -> tuple[_Known | None, list[_Known]]:
    """Without a running node: the address that its owner gave, and the peers that it was connected to."""
    ourselves = None
    if config.advertise and config.address is not None and config.p2p_enabled and config.p2p_port:
        node = identity.load(config.key_file).node
        ourselves = _Known(node, [multiaddr(config.address, config.p2p_port, node)])
    if not config.store_file.exists():
        return ourselves, []
    store = Store(config.store_file)
    try:
        saved = store.peers(limit=16)
    finally:
        store.close()
    reached = [peer for peer in saved if peer.reached_at_ms and peer.addresses]
    return ourselves, [_Known(peer.node, _best(peer.addresses)) for peer in reached]


def _best(addresses: Any) -> list[str]:
    """The most useful few: of the Internet first, of this machine alone only when there is nothing else."""
    texts = sorted((str(address) for address in addresses), key=_reach, reverse=True)
    best = [text for text in texts if _reach(text) == _reach(texts[0])] if texts else []
    return best[:ADDRESSES_PER_NODE]


def _reach(address: str) -> int:
    """From how far an address can be reached: 2 the Internet, 1 the local network, 0 this machine."""
    ip = read_ip(address.split("/")[2]) if address.count("/") > 2 else None
    if ip is None:
        return 2  # a name
    return 2 if is_globally_routable(ip) else 0 if ip.is_loopback else 1


def _coordinator(config: Config, nodes: list[_Known]) -> tuple[str | None, NodeId | None]:
    url = config.coordinator_url
    if url is None:
        return None, None
    is_local = all(_reach(address) == 0 for known in nodes for address in known.addresses)
    if is_loopback_url(url) and not is_local:
        warn(f"the coordinator is left out: {url} means another machine to somebody else")
        return None, None
    return url, config.coordinator_key


def _why_nobody(config: Config) -> str:
    text = "there is nobody to invite to"
    if running_pid(config.pid_file) is None:
        return f"{text}: run `infernet start` first, or set this node's --address"
    if not config.advertise:
        return f"{text}: this node publishes no address (--advertise undoes that), and none of its peers does"
    return f"{text}: this node listens nowhere, and none of its peers publishes an address; see `infernet status`"


def _say_how_far(ourselves: _Known) -> None:
    reach = max(map(_reach, ourselves.addresses))
    if reach == 1:
        warn("this node has no public address: the invite works in your own network, unless it names others, too")
    elif reach == 0:
        warn("this node listens on loopback alone: the invite works on this machine only")


# ---------------------------------------------------------------- showing it


def _invited(known: _Known) -> InvitedNode:
    end = f"/p2p/{peer_id(known.node)}"
    return InvitedNode(known.node, tuple(address.removesuffix(end) for address in known.addresses))


def _as_json(line: str, invite: Invite) -> dict[str, Any]:
    return {
        "invite": line,
        "nodes": [
            {"node_id": invited.node.hex(), "peer_id": peer_id(invited.node), "addresses": list(invited.addresses)}
            for invited in invite.nodes
        ],
        "coordinator_url": invite.coordinator_url,
        "coordinator_key": invite.coordinator_key.hex() if invite.coordinator_key is not None else None,
    }
