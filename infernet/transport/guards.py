"""What stands between the port and whoever knocks at it: one place for all that strangers may not do.

Each guard has a file of its own; this one holds them together and weighs what they find. Before a handshake nobody has
a name, so the address answers for what comes from it.
"""

from __future__ import annotations

from typing import Final

import trio

from infernet.transport.bans import Bans
from infernet.transport.budget import Budget
from infernet.transport.channel import ChannelBroken
from infernet.transport.crowd import Origin
from infernet.transport.dial_guard import DialGuard
from infernet.transport.handshakes import HandshakeLimits, Handshakes
from infernet.transport.libp2p_library import HandshakeFailed
from infernet.transport.unproven import TooMuchSaid
from protocol.networks import Prefix
from protocol.rates import Rates

# A handshake costs us milliseconds of work. A host that restarts all its nodes makes a few dozen at once.
KNOCKS_PER_S: Final = 1.0
KNOCKS_BURST: Final = 32

# Weights of offences; that of a bad frame is one. Some happen to the honest, on bad lines or in a race of dials.
BAD_HANDSHAKE: Final = 1.0
SLOW_HANDSHAKE: Final = 0.3
BROKEN_HANDSHAKE: Final = 0.1
TURNED_AWAY: Final = 0.1
BAD_CONNECTION: Final = 2.0


class Guards:
    """The guards of one transport."""

    def __init__(
        self, *, bans: Bans, handshakes: HandshakeLimits, budget: Budget, dials: DialGuard, exempt_loopback: bool
    ) -> None:
        self.bans = bans
        self.budget = budget
        self.dials = dials
        self.handshakes = Handshakes(handshakes, exempt_loopback=exempt_loopback)
        self.exempt_loopback = exempt_loopback
        self._knocks: Rates[Prefix | str] = Rates(KNOCKS_PER_S, KNOCKS_BURST)

    def may_knock(self, origin: Origin) -> bool:
        """Whether somebody from there is heard at all."""
        # SPEC 01: A node MUST refuse whoever is banned before that costs more than the look at where it comes from.
        if self.bans.of_origin(origin) is not None:
            return False
        if origin.is_loopback and self.exempt_loopback:
            return True
        return self._knocks.take(origin.host, trio.current_time()) or self.turned_away(origin)

    def turned_away(self, origin: Origin) -> bool:
        """There was no place for somebody: held against those who come a hundred times. Gives False."""
        self.bans.blame(None, origin, TURNED_AWAY, "too many connections at once")
        return False

    def handshake_failed(self, origin: Origin, error: HandshakeFailed | ChannelBroken) -> None:
        """Somebody did not prove who they are."""
        if isinstance(error, (HandshakeFailed, TooMuchSaid)):
            self.bans.blame(None, origin, BAD_HANDSHAKE, "no handshake of ours")
        else:
            self.bans.blame(None, origin, BROKEN_HANDSHAKE, "handshakes broken off")

    def handshake_timed_out(self, origin: Origin) -> None:
        """Somebody did not prove who they are in time."""
        self.bans.blame(None, origin, SLOW_HANDSHAKE, "handshakes that do not end")
