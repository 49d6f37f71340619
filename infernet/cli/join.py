"""`infernet join`: take somebody's invite, keep what it says, and connect at once if the node runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, Final

from infernet import identity
from infernet.cli import init
from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.output import print_fields, print_json
from infernet.cli.questions import confirm
from infernet.config import Config, load, places, save, values_in
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from infernet.settings.readers import read_peer, read_url
from protocol.formats.invites import Invite, decode_invite
from protocol.ids import NodeId, npub, peer_id

# Whom an invite named years ago is found through others, or not at all.
PEERS_MAX: Final = 64
_INPUT_CHARACTERS_MAX: Final = 8192

USAGE: Final = "INVITE [--yes] [--replace-coordinator] [--json]"
DESCRIPTION: Final = """\
Take an invite that somebody's `infernet invite` printed: keep the nodes that it names among the peers to connect to,
and its coordinator if this node has none and you agree. A node that is running connects at once, and this command
says whether that worked; otherwise `infernet start` does. On a new machine it makes key and configuration first.
INVITE may be '-' to read it from standard input."""
EXAMPLES: Final = """\
examples:
  infernet join infernet:q9yq...
  pbpaste | infernet join - --yes

Exits with 1 when the node is running and none of the nodes answered; what the invite says is kept all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The invite, and what to agree to in advance."""
    parser.add_argument("invite", nargs="+", metavar="INVITE", help="the line; it may have been wrapped on its way")
    parser.add_argument(
        "--yes", action="store_true", help="make a node if there is none, and take the coordinator if there is none"
    )
    parser.add_argument(
        "--replace-coordinator", action="store_true", help="take its coordinator instead of the one that is pinned"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check it, keep it, connect."""
    invite = decode_invite(_text(arguments.invite))
    peers = _peers_of(invite)
    here = places()
    _have_a_node(here, yes=arguments.yes)
    before = load().config
    changes: dict[str, Any] = {}
    coordinator = _coordinator(before, invite, arguments)
    if coordinator is not None:
        changes |= {"coordinator_url": coordinator[0], "coordinator_key": coordinator[1]}
    in_file = values_in(here.config_file)
    if peers:
        # The newest come first, so that what falls out is what was named longest ago.
        changes["peers"] = tuple(dict.fromkeys((*peers, *in_file.get("peers", ()))))[:PEERS_MAX]
    save(here.config_file, changes, keep=True)
    is_running = running_pid(here.pid_file) is not None
    results = _connect(here, peers) if is_running and peers else {}
    _tell(arguments, invite, coordinator, results, is_running=is_running)
    return 1 if results and not any(reason == "" for reason in results.values()) else 0


def _text(words: list[str]) -> str:
    if words != ["-"]:
        return " ".join(words)
    try:
        return sys.stdin.read(_INPUT_CHARACTERS_MAX) if sys.stdin is not None else ""
    except (OSError, UnicodeDecodeError):
        raise Misuse("the invite cannot be read from standard input") from None


def _peers_of(invite: Invite) -> tuple[str, ...]:
    """Full multiaddrs of the nodes in an invite, those that this program can dial."""
    texts = [f"{address}/p2p/{peer_id(node.node)}" for node in invite.nodes for address in node.addresses]
    usable = tuple(_usable(texts))
    if invite.nodes and not usable and invite.coordinator_url is None:
        raise Failure("this invite names no address that this version can dial: upgrade infernet")
    return usable


def _usable(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        try:
            yield read_peer(text)
        # SPEC 03: The receiver MUST skip addresses of a form that it does not speak.
        except ValueError:
            warn(f"an address in the invite is left out, because this version does not know its form: {text}")


def _have_a_node(here: Config, *, yes: bool) -> None:
    """Make key and configuration, as `infernet init` does, where there is none. Raises Failure when unwanted."""
    try:
        identity.load(here.key_file)
    except identity.NoIdentity:
        question = "There is no node on this machine yet. Make one, with the usual settings?"
        if not yes and not _agrees(question):
            raise Failure(
                "there is no node on this machine yet: run `infernet init`, then this again, or add --yes to make one "
                "with the usual settings"
            ) from None
        node = init.make_node(here)
        print(f"infernet: made the key of this node, {npub(node)}, in {here.key_file}: back it up", file=sys.stderr)


# ---------------------------------------------------------------- the coordinator


def _coordinator(config: Config, invite: Invite, arguments: argparse.Namespace) -> tuple[str, NodeId] | None:
    """The coordinator to take from the invite, or None to leave things as they are."""
    if invite.coordinator_url is None or invite.coordinator_key is None:
        return None
    try:
        url = read_url(invite.coordinator_url)
    except ValueError as error:
        raise Failure(f"the coordinator in this invite {error}: ask for another one") from None
    offered = url, invite.coordinator_key
    pinned = config.coordinator_url, config.coordinator_key
    if pinned == offered:
        return None
    shown = f"  {url}\n  {npub(offered[1])}\n  {offered[1].hex()}"
    if pinned[0] is None:
        if arguments.yes:
            warn(f"taking the coordinator of the invite, {url} with the key {npub(offered[1])}")
            return offered
        print(f"The invite names a coordinator:\n{shown}", file=sys.stderr)
        if _agrees("Link this node to it?"):
            return offered
        warn("the coordinator is not taken: --yes takes it")
        return None
    if arguments.replace_coordinator:
        warn(f"the coordinator of this node is now {url} with the key {npub(offered[1])}, no longer {pinned[0]}")
        return offered
    # SPEC 03: The receiver MUST NOT replace a coordinator's key that it pinned by the one in an invite unless its owner
    #   confirms that.
    warn(
        f"this node keeps its coordinator {pinned[0]}; the invite names {url} with the key {npub(offered[1])}: "
        "--replace-coordinator takes that one"
    )
    return None


def _agrees(question: str) -> bool:
    """Whether somebody at the keyboard says so. Where nobody is, nobody agrees."""
    try:
        return confirm(question, "--yes")
    except Misuse:
        return False


# ---------------------------------------------------------------- connecting, and telling


def _connect(here: Config, peers: tuple[str, ...]) -> dict[str, str]:
    """Have the running node connect; for each node id "" or why not."""
    try:
        results: dict[str, str] = ipc.call(
            here.socket_path, "join", {"peers": list(peers)}, timeout_s=ipc.JOIN_TIMEOUT_S
        )
    except ipc.Refused as refused:
        if refused.code.startswith("unknown-cmd"):
            raise Failure(
                "the node that runs here is of an older version: `infernet stop`, then `infernet start`; "
                "what the invite says is kept"
            ) from None
        raise
    return results


def _tell(
    arguments: argparse.Namespace,
    invite: Invite,
    coordinator: tuple[str, NodeId] | None,
    results: dict[str, str],
    *,
    is_running: bool,
) -> None:
    if coordinator is not None and is_running:
        warn("the node links to the new coordinator after `infernet stop` and `infernet start`")
    if arguments.json:
        print_json(
            {
                "running": is_running,
                "nodes": [_node_as_json(node.node, node.addresses, results) for node in invite.nodes],
                "coordinator_url": coordinator[0] if coordinator is not None else None,
                "coordinator_key": coordinator[1].hex() if coordinator is not None else None,
            }
        )
        return
    print_fields([(peer_id(node.node), _result(node.node, results)) for node in invite.nodes])
    if coordinator is not None:
        print_fields([("coordinator", f"{coordinator[0]}, {npub(coordinator[1])}")])
    if results and not any(reason == "" for reason in results.values()):
        warn("nobody in this invite answered; the node goes on trying, and so will every start")
    elif not is_running:
        print("Next: `infernet start`, which connects to them.")


def _result(node: NodeId, results: dict[str, str]) -> str:
    reason = results.get(node.hex())
    if reason is None:
        return "kept"
    return f"not connected: {reason}" if reason else "connected"


def _node_as_json(node: NodeId, addresses: Iterable[str], results: dict[str, str]) -> dict[str, Any]:
    reason = results.get(node.hex())
    return {
        "node_id": node.hex(),
        "peer_id": peer_id(node),
        "addresses": list(addresses),
        "connected": None if reason is None else reason == "",
        "reason": reason or None,
    }
