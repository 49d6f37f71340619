"""Is a peer reached at an address? A fresh socket, the handshake and nothing else tell (specs/03)."""

from __future__ import annotations

import errno
from typing import Final

import trio

from infernet.transport.addresses import CircuitAddress, parse
from infernet.transport.channel import ChannelBroken
from infernet.transport.dial_guard import PORT_MIN, AddressRefused, DialGuard
from infernet.transport.libp2p_library import HandshakeFailed, Identity, WrongPeer
from infernet.transport.noise_channel import secure_outbound
from protocol.ids import NodeId
from protocol.records import Reachability

# SPEC 03: A dial-back MUST end after 3 seconds.
DIAL_BACK_TIMEOUT_S: Final = 3.0


async def dial_back(identity: Identity, dials: DialGuard, peer: NodeId, text: str) -> tuple[Reachability, str]:
    """Try whether `peer` answers there, and close the connection again; with a sentence for people. Never raises."""
    try:
        address = parse(text)
    except ValueError as error:
        return Reachability.NOT_TRIED, str(error)
    if isinstance(address, CircuitAddress) or address.port < PORT_MIN:
        return Reachability.NOT_TRIED, "that is no address of the kind that is dialled back"
    try:
        with trio.fail_after(DIAL_BACK_TIMEOUT_S):
            # SPEC 03: A node MUST dial back only where it would dial of its own accord, and only ports from 1024 on.
            stream = await dials.connect(address)
    except AddressRefused as error:
        return Reachability.NOT_TRIED, str(error)
    except (OSError, trio.TooSlowError) as error:
        if not dials.is_direct:
            # It may be the proxy that cannot, or will not.
            return Reachability.NOT_TRIED, "this node dials through a proxy, and that did not lead there"
        if isinstance(error, trio.TooSlowError):
            return Reachability.NOT_REACHED, f"nothing answered within {DIAL_BACK_TIMEOUT_S:g} s"

        is_refused = _is_refused(error)
        return Reachability.NOT_REACHED, "the connection was refused" if is_refused else "no way leads there"
    try:
        with trio.fail_after(DIAL_BACK_TIMEOUT_S):
            await secure_outbound(stream, identity, peer)
    except WrongPeer:
        return Reachability.WRONG_NODE, "another node answers there"
    except (HandshakeFailed, ChannelBroken, trio.TooSlowError):
        return Reachability.NO_NODE, "what answers there is no node"
    finally:
        await trio.aclose_forcefully(stream)
    return Reachability.REACHED, "the node answers there"


def _is_refused(error: OSError) -> bool:
    causes = [error, error.__cause__]
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes += error.__cause__.exceptions
    return any(isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED for cause in causes)
