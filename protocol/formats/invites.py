"""The invite: one line that a person gives another, so that their nodes find each other (specs/03).

    infernet:q9yq...        a list of nodes with their addresses, and perhaps a coordinator with its key

It is nobody's word: whoever uses it proves the keys by the handshake, and has the coordinator confirmed.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol import bech32, codec
from protocol import constants as c
from protocol.errors import BadFrame, LocalProtocolError
from protocol.records import Address, NodeKey

PREFIX: Final = "infernet"
SEPARATOR: Final = ":"
VERSION: Final = 1
CHARACTERS_MAX: Final = 2048
NODES_MAX: Final = 8
URL_CHARACTERS_MAX: Final = 256

# Five bits to a character; six characters are the checksum.
_BYTES_MAX: Final = (CHARACTERS_MAX - len(PREFIX) - 7) * 5 // 8
_LIMITS: Final = codec.Limits(_BYTES_MAX, c.ADDRESS_CHARACTERS_MAX, NODES_MAX, depth=5, values=128)


class InvitedNode(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node and where it may be reached; the addresses do not repeat its own `/p2p/` part at their end."""

    node: NodeKey
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=c.HEARTBEAT_ADDRESSES_MAX)]


class Invite(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an invite says. Coordinator URL and key go together, or are both absent."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    nodes: Annotated[tuple[InvitedNode, ...], Meta(max_length=NODES_MAX)]
    coordinator_url: Annotated[str, Meta(min_length=1, max_length=URL_CHARACTERS_MAX)] | None
    coordinator_key: NodeKey | None


def encode_invite(invite: Invite) -> str:
    """The line. Raises LocalProtocolError for what `decode_invite` would refuse, or what is too long for one."""
    data = codec.encode_value(invite)
    if len(data) > _BYTES_MAX:
        raise LocalProtocolError(f"this invite is too long: at most {CHARACTERS_MAX} characters")
    _read(data)
    return f"{PREFIX}{SEPARATOR}{bech32.encode(PREFIX, data, bech32.BECH32M)}"


def decode_invite(text: str) -> Invite:
    """Read an invite, however a message program has wrapped it. Raises LocalProtocolError, one line for people."""
    # SPEC 03: The receiver MUST take out white space first:
    # Longer ones cannot be valid, however they are wrapped; nobody needs to look at all of them.
    line = "".join(text[: 2 * CHARACTERS_MAX].split())
    # SPEC 03: The receiver MUST refuse an invite that mixes upper and lower case
    if line.lower() != line and line.upper() != line:
        raise LocalProtocolError("this invite mixes upper and lower case: copy the whole line again")
    prefix, separator, payload = line.lower().partition(SEPARATOR)
    if not separator or prefix != PREFIX or not payload:
        raise LocalProtocolError(f"this is no invite: one is a line that begins with {PREFIX}{SEPARATOR}")
    if len(line) > CHARACTERS_MAX:
        raise LocalProtocolError(f"this is no invite: one has at most {CHARACTERS_MAX} characters")
    try:
        data = bech32.decode(PREFIX, payload, bech32.BECH32M, "invite")
    except LocalProtocolError as error:
        raise LocalProtocolError(f"{error}: copy the whole line again") from None
    return _read(data)


def _read(data: bytes) -> Invite:
    try:
        value = codec.decode_value(data, _LIMITS)
        # SPEC 03: The receiver MUST refuse an invite of a version that it does not know, and SHOULD say that it was
        #   made by a newer program.
        if type(value) is list and value and type(value[0]) is int and value[0] > VERSION:
            raise LocalProtocolError("this invite was made by a newer infernet: upgrade this one")
        invite = codec.decode_struct(data, Invite, _LIMITS)
    except BadFrame as error:
        raise LocalProtocolError(f"this invite holds what none may hold ({error}): ask for another one") from None
    reason = _flaw(invite, data)
    if reason is not None:
        raise LocalProtocolError(f"this invite {reason}: ask for another one")
    return invite


def _flaw(invite: Invite, data: bytes) -> str | None:
    """What is wrong with an invite whose fields are each in order, or None."""
    # SPEC 03: The sender MUST write the payload in canonical form ([01](01-wire.md)), with 2,048 characters in the
    #   whole line at most,
    if codec.encode_value(invite) != data:
        return "is not in canonical form"
    # SPEC 03: The sender MUST name at least one node or a coordinator, each node once, and URL and key of the
    #   coordinator together.
    if not invite.nodes and invite.coordinator_url is None:
        return "is empty"
    if (invite.coordinator_url is None) != (invite.coordinator_key is None):
        return "names a coordinator without its key, or a key without its coordinator"
    if len({node.node for node in invite.nodes}) != len(invite.nodes):
        return "names a node twice"
    texts = [address for node in invite.nodes for address in node.addresses]
    if not all(text.isascii() and text.isprintable() and text.startswith("/") for text in texts):
        return "holds an address that is none"
    url = invite.coordinator_url
    if url is not None and not (url.isascii() and url.isprintable()):
        return "holds a coordinator's address that is none"
    return None
