"""How this node is reached by others, as its owner sees it: what was learnt, and what follows for its addresses.

The protocol finds out (protocol/reachable.py), the transport dials back and keeps relays. Here the results become the
addresses of the heartbeat, the switch that lets others be reached through this node, and lines of `infernet status`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from infernet.config import Config
from infernet.own_addresses import advertised
from infernet.transport.addresses import with_peer
from infernet.transport.contract import Transport
from protocol import constants as c
from protocol import events as e
from protocol.effects import OwnAddresses, ReachabilityLearnt
from protocol.ids import NodeId
from protocol.locality import ip_of
from protocol.networks import is_globally_routable
from protocol.records import Reachability, Role

log = structlog.get_logger(__name__)

# How soon it shows that this machine has got another address.
ADDRESSES_LOOK_S: Final = 30.0
# Direct addresses in a heartbeat; the rest of its places is for circuits.
DIRECT_ADDRESSES_MAX: Final = c.HEARTBEAT_ADDRESSES_MAX // 2


_BEHIND_PROXY: Final = (
    "everything goes through a proxy, so others reach this node through relays and the coordinator's link; an onion "
    "service that forwards to it can be given with --address"
)


class BeingReached:
    """The state. `post` takes events for the peer; `changed` is called when the offer has to be made anew."""

    def __init__(
        self,
        config: Config,
        node: NodeId,
        transport: Transport | None,
        *,
        post: Callable[[e.Event], None],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._node = node
        self._transport = transport
        self._post = post
        self._changed = changed
        self._learnt = ReachabilityLearnt(Reachability.UNKNOWN, None, "")
        self._circuits: tuple[str, ...] = ()
        self._listening: tuple[str, ...] | None = None
        self._wake = trio.Event()
        self._set_relaying()

    async def run(self) -> None:
        """Tell the peer where this node listens, now and when that changes, until cancelled."""
        self._say_where()
        while True:
            with trio.move_on_after(ADDRESSES_LOOK_S) as waiting:
                await self._wake.wait()
            self._wake = trio.Event()
            if self._say_where() or not waiting.cancelled_caught:
                self._changed()

    def _say_where(self) -> bool:
        """Tell the peer when this node's addresses are others than they were."""
        # Behind a proxy nobody is asked to dial back: what came of it would be about the proxy.
        transport = self._transport if self._config.proxy is None else None
        listening = tuple(transport.addresses()) if transport is not None else ()
        if listening == self._listening:
            return False
        self._listening = listening
        self._post(e.Listening(listening, self._is_to_be_found()))
        return True

    def _is_to_be_found(self) -> bool:
        return self._config.advertise and self._config.role is not Role.CLIENT

    # ------------------------------------------------------------ what was learnt

    def observe(self, effect: ReachabilityLearnt | OwnAddresses) -> None:
        """Take what the peer has learnt; the offer follows in its own time."""
        if isinstance(effect, OwnAddresses):
            self._circuits = effect.addresses
        else:
            if effect.reachability is not self._learnt.reachability:
                log.info("node.reachability", reachability=effect.reachability.name.lower(), advice=effect.advice)
            self._learnt = effect
            self._set_relaying()
        self._wake.set()

    # ------------------------------------------------------------ what follows from it

    @property
    def relays(self) -> bool:
        """Whether others may be reached through this node."""
        return self._transport is not None and self._transport.relays_connections

    def _set_relaying(self) -> None:
        if self._transport is None:
            return
        # SPEC 08: A node whose owner asked for it has it, and one that has been proven reachable
        #   ([03](03-discovery.md)) unless its owner forbade it; an aggregator has it by default.
        is_proven = self._learnt.reachability is Reachability.REACHED and self._is_to_be_found()
        wanted = self._config.relay
        is_on = wanted == "yes" or (wanted == "auto" and (is_proven or self._config.role is Role.AGGREGATOR))
        if is_on != self._transport.relays_connections:
            self._transport.relays_connections = is_on

    def advertised(self) -> list[str]:
        """The multiaddrs for the heartbeat: direct ones, then those through relays. None when the owner hides."""
        # SPEC 03: A node whose owner wants it to publish no address MUST NOT listen, and MUST NOT name an address of
        #   its own in a heartbeat, in an invite, on the local network, to a coordinator or in the DHT.
        if not self._config.advertise:
            return []
        listening = self._transport.addresses() if self._transport is not None else []
        direct = advertised(self._config, listening, self._node)
        if self._config.address is None and (reached := self._reached_address()) is not None:
            direct = [reached, *direct]
        addresses = [*dict.fromkeys(direct[:DIRECT_ADDRESSES_MAX]), *self._circuits]
        return [each for each in addresses if len(each) <= c.ADDRESS_CHARACTERS_MAX][: c.HEARTBEAT_ADDRESSES_MAX]

    def _reached_address(self) -> str | None:
        """Where others have reached this node, if that means anything to everybody."""
        address, ip = self._learnt.address, ip_of(self._learnt.address)
        if (
            self._config.proxy is not None
            or address is None
            or ip is None
            or not (is_globally_routable(ip) or self._config.allow_private)
        ):
            return None
        return with_peer(address, self._node)

    @property
    def advice(self) -> str:
        """One sentence for the owner; empty while nothing is known."""
        if not self._config.p2p_enabled:
            return "libp2p is off here, so only a coordinator's link carries jobs: --p2p turns it on"
        if self._config.proxy is not None:
            return _BEHIND_PROXY if self._config.address is None else ""
        return self._learnt.advice

    def status(self) -> dict[str, Any]:
        """For `infernet status --json`."""
        return {
            "reachability": self._learnt.reachability.name.lower(),
            "reached_at": self._learnt.address,
            "advice": self.advice,
            "circuits": list(self._circuits),
            "relays_for_others": self.relays,
        }
