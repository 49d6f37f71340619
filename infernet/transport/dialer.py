"""Reaching a peer that has several addresses, some of them dead.

Addresses are tried in the order given, each a moment after the one before or as soon as that has failed; the first
connection wins. Those that lead through a relay come last, and only after the others had their chance. An address that
fails is left alone for a time that doubles with every failure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import trio

from infernet.transport import addresses
from infernet.transport.addresses import CircuitAddress, TcpAddress
from infernet.transport.contract import DialFailed
from protocol.ids import NodeId

# The delay between connection attempts that RFC 8305 recommends.
STAGGER_S: Final = 0.25
# From the first SYN to the end of the handshake: three round trips to anywhere, with packets lost in each.
ADDRESS_TIMEOUT_S: Final = 10.0
# A heartbeat names at most half as many; further ones are not tried.
ADDRESSES_MAX: Final = 16
# Attempts at one time, over all peers: a flood of hand-offs must not use up our sockets.
ATTEMPTS_MAX: Final = 16
# ... and those through relays, apart from the others: each of them waits for a dial of its relay.
CIRCUIT_ATTEMPTS_MAX: Final = 16
# A direct connection is worth waiting for: TCP and handshake with the far side of the world.
CIRCUIT_DELAY_S: Final = 1.5

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 600.0
# Each wait is drawn from this share around its length: nodes cut off together do not come back together.
BACKOFF_JITTER: Final = 0.25
# Failed addresses that we remember; the oldest is forgotten first.
BACKOFF_ENTRIES_MAX: Final = 1024

_NO_PLACE: Final = "too many other dials are under way"


class AttemptFailed(Exception):
    """One address did not lead to the peer; the message says why."""


class Closable(Protocol):
    """What an attempt yields: closed when another one was faster."""

    async def aclose(self) -> None: ...


Connected = TypeVar("Connected", bound=Closable)
Address = TcpAddress | CircuitAddress


@dataclass(slots=True)
class _Backoff:
    failures: int = 0
    failed_s: float = 0.0
    until_s: float = 0.0


_NO_BACKOFF: Final = _Backoff(until_s=-math.inf)


class Dialer(Generic[Connected]):
    """`attempt` connects to one address; it raises AttemptFailed, and cleans up after itself when cancelled."""

    def __init__(self, attempt: Callable[[NodeId, Address], Awaitable[Connected]], randomness: random.Random) -> None:
        self._attempt = attempt
        self._random = randomness
        self._places = trio.CapacityLimiter(ATTEMPTS_MAX)
        self._circuit_places = trio.CapacityLimiter(CIRCUIT_ATTEMPTS_MAX)
        self._backoffs: dict[tuple[NodeId, str], _Backoff] = {}

    async def dial(self, peer: NodeId, texts: Sequence[str], *, at_once: bool = False) -> Connected:
        """Connect to the peer at one of these multiaddrs. Raises DialFailed with a reason for each.

        `at_once`: addresses that failed before are not left alone for longer than the first time.
        """
        race = _Race[Connected]()
        texts = list(dict.fromkeys(texts))[:ADDRESSES_MAX]
        if at_once:
            await trio.sleep_until(self._shorten_backoffs(peer, texts))
        admitted = self._admit_all(race, peer, texts)
        try:
            await self._run_race(race, peer, admitted)
        except BaseException:
            # Nobody takes what was won in the moment of being cancelled.
            if race.winner is not None:
                with trio.CancelScope(shield=True):
                    await race.winner.aclose()
            raise
        if race.winner is None:
            reasons = {text: race.reasons[text] for text in texts if text in race.reasons}
            raise DialFailed(peer, reasons, left_out=race.left_out)
        return race.winner

    async def _run_race(self, race: _Race[Connected], peer: NodeId, admitted: Sequence[tuple[str, Address]]) -> None:
        async with trio.open_nursery() as nursery:
            race.scope = nursery.cancel_scope
            direct = [(text, address) for text, address in admitted if isinstance(address, TcpAddress)]
            failures = await self._start(race, nursery, peer, direct)
            # SPEC 08: A node that knows direct addresses of a peer MUST try them before it asks a relay.
            with trio.move_on_after(CIRCUIT_DELAY_S):
                for failed in failures:
                    await failed.wait()
            await self._start(race, nursery, peer, [pair for pair in admitted if pair not in direct])

    async def _start(
        self, race: _Race[Connected], nursery: trio.Nursery, peer: NodeId, admitted: Sequence[tuple[str, Address]]
    ) -> list[trio.Event]:
        """Begin the attempts one after the other; gives what is set when each has failed."""
        failures = []
        for text, address in admitted:
            failed = trio.Event()
            failures.append(failed)
            nursery.start_soon(self._run, race, peer, text, address, failed)
            with trio.move_on_after(STAGGER_S):
                await failed.wait()
        return failures

    def _admit_all(self, race: _Race[Connected], peer: NodeId, texts: Sequence[str]) -> list[tuple[str, Address]]:
        """Those that may be tried now; why not the others is told to the race."""
        admitted = []
        for text in texts:
            backoff = self._backoffs.get((peer, text), _NO_BACKOFF)
            wait_s = backoff.until_s - trio.current_time()
            if wait_s > 0:
                race.reasons[text] = f"failed before; the next attempt is in {math.ceil(wait_s)} s"
                race.left_out = True
                continue
            try:
                admitted.append((text, _parse(peer, text)))
            except ValueError as error:
                race.reasons[text] = str(error)
        return admitted

    def _shorten_backoffs(self, peer: NodeId, texts: Sequence[str]) -> float:
        """Leave addresses, and the relays that they lead through, alone for no longer than after a first failure.

        Gives when all of them may be tried.
        """
        keys = [(peer, text) for text in texts]
        for text in texts:
            with suppress(ValueError):
                if isinstance(address := addresses.parse(text), CircuitAddress):
                    keys.append((address.relay, address.relay_address))
        backoffs = [self._backoffs[key] for key in keys if key in self._backoffs]
        for backoff in backoffs:
            backoff.until_s = min(backoff.until_s, backoff.failed_s + BACKOFF_FIRST_S)
        return max((backoff.until_s for backoff in backoffs), default=trio.current_time())

    async def _run(self, race: _Race[Connected], peer: NodeId, text: str, address: Address, failed: trio.Event) -> None:
        reason = await self._run_in_place(race, peer, address)
        if reason is not None:
            race.reasons[text] = reason
            # An address that was not tried has not failed, whoever took the places.
            if reason != _NO_PLACE:
                self._note_failure(peer, text)
            failed.set()
        else:
            self._backoffs.pop((peer, text), None)

    async def _run_in_place(self, race: _Race[Connected], peer: NodeId, address: Address) -> str | None:
        """Make one attempt as soon as there is a place for it; returns why it failed."""
        places = self._places if isinstance(address, TcpAddress) else self._circuit_places
        with trio.move_on_after(ADDRESS_TIMEOUT_S) as waiting:
            await places.acquire()
        if waiting.cancelled_caught:
            return _NO_PLACE
        try:
            with trio.fail_after(ADDRESS_TIMEOUT_S):
                connected = await self._attempt(peer, address)
        except trio.TooSlowError:
            return f"no answer within {ADDRESS_TIMEOUT_S:.0f} s"
        except AttemptFailed as error:
            return str(error)
        finally:
            places.release()
        await race.finish(connected)
        return None

    def _note_failure(self, peer: NodeId, text: str) -> None:
        backoff = self._backoffs.pop((peer, text), None) or _Backoff()
        backoff.failures += 1
        # The exponent is bounded too: 2.0 ** 1024 overflows.
        wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(backoff.failures - 1, 30))
        wait_s *= self._random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
        backoff.failed_s = trio.current_time()
        backoff.until_s = backoff.failed_s + wait_s
        self._backoffs[peer, text] = backoff
        if len(self._backoffs) > BACKOFF_ENTRIES_MAX:
            del self._backoffs[next(iter(self._backoffs))]


def _parse(peer: NodeId, text: str) -> Address:
    """Read an address of this peer. Raises ValueError."""
    address = addresses.parse(text)
    if address.peer not in (None, peer):
        raise ValueError("the address names another peer")
    return address


class _Race(Generic[Connected]):
    """The attempts of one dial: the first connection is the winner, a second one is closed."""

    def __init__(self) -> None:
        self.winner: Connected | None = None
        self.reasons: dict[str, str] = {}
        self.left_out = False
        self.scope = trio.CancelScope()

    async def finish(self, connected: Connected) -> None:
        if self.winner is not None:
            await connected.aclose()
            return
        self.winner = connected
        self.scope.cancel()
