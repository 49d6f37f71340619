"""Who is asking, and how often they may: token buckets per address prefix.

The prefix is /24 of IPv4 and /56 of IPv6: what one household or small network usually holds. Requests straight from
this machine are free of limits; one that came through a proxy never counts as such.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quart import Request, Websocket

from coordinator.config import Config
from coordinator.core.http import ApiError

PREFIXES_MAX: Final = 10_000
_FORWARDING_HEADERS: Final = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a limit counts. `is_local`: straight from this machine, by no proxy."""

    prefix: str
    is_local: bool


def client_of(request: Request | Websocket, config: Config) -> Client:
    """Who sent this request, believing only the proxies that the configuration names."""
    # From the socket, not from the framework's header of that name, which a client could send too.
    peer = _address((request.scope.get("client") or ("",))[0])
    if peer is None:
        return Client("unknown", False)
    trusted = [ipaddress.ip_network(proxy) for proxy in config.trusted_proxies]
    address = peer
    if any(address in network for network in trusted):
        # The rightmost entry was written by our proxy, the one before it by the proxy's own client, and so on:
        # the first that no trusted proxy wrote is the client. Everything left of it is the client's own claim.
        for entry in reversed(",".join(request.headers.getlist("X-Forwarded-For")).split(",")):
            forwarded = _address(entry.strip())
            if forwarded is None:
                break
            address = forwarded
            if not any(address in network for network in trusted):
                break
    is_forwarded = any(name in request.headers for name in _FORWARDING_HEADERS)
    return Client(_prefix(address), address.is_loopback and not is_forwarded and not config.limit_loopback)


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _prefix(address: _Address) -> str:
    length = 24 if address.version == 4 else 56
    return str(ipaddress.ip_network((address, length), strict=False))


class RateLimiter:
    """A bucket per prefix that holds one hour's worth and refills evenly; 0 per hour means no limit."""

    def __init__(self, per_hour: int, what: str, monotonic_s: Callable[[], float]) -> None:
        self._interval_s = 3600 / per_hour if per_hour else 0.0
        self._burst_s = 3600.0
        self._what = what
        self._monotonic_s = monotonic_s
        # prefix -> when its bucket would be full again (the generic cell rate algorithm keeps one number)
        self._full_at_s: OrderedDict[str, float] = OrderedDict()

    def take(self, client: Client) -> None:
        """Take one from the client's bucket. Raises ApiError 429 with Retry-After when it is empty."""
        if client.is_local or not self._interval_s:
            return
        now_s = self._monotonic_s()
        full_at_s = max(self._full_at_s.get(client.prefix, now_s), now_s) + self._interval_s
        wait_s = full_at_s - now_s - self._burst_s
        if wait_s > 1e-6:
            raise too_many(f"too many {self._what} from your network; try again in {math.ceil(wait_s)} s", wait_s)
        self._full_at_s[client.prefix] = full_at_s
        self._full_at_s.move_to_end(client.prefix)
        if len(self._full_at_s) > PREFIXES_MAX:
            self._full_at_s.popitem(last=False)


def too_many(message: str, retry_after_s: float) -> ApiError:
    """A 429 that says when to come back."""
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return ApiError(429, message, headers=headers, code="too_many_requests")
