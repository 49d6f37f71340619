"""Every error of the protocol, as a tree.

    ProtocolError
    ├── LocalProtocolError       we used the protocol wrongly: a bug in our own code, or a value we must not send
    └── RemoteProtocolError      the other side broke a rule: bad bytes, bad signature, wrong state
        ├── BadFrame             the bytes are no message: length, MessagePack, limits, canonical form, schema
        ├── BadSignature         the record's signature does not verify, or its signer is not who it must be
        ├── UnknownVersion       a signed record of a version that this program does not read: nobody's fault
        └── Stale                well formed, but too old, replayed, or from a clock too far off

    SealError                    a sealed prompt or chunk does not open with this key and context

`RemoteProtocolError` is the only exception that foreign bytes can cause: `codec` and `envelope` convert
everything else, and a test feeds them garbage to show it.

Refusals are not exceptions: a provider that cannot take a job answers with a `Refusal` code on the wire.
"""

from __future__ import annotations

from enum import IntEnum


class ProtocolError(Exception):
    """Base of all protocol errors; the message is one plain sentence for people."""


class LocalProtocolError(ProtocolError):
    """We used the protocol wrongly."""


class RemoteProtocolError(ProtocolError):
    """The other side broke a rule of the protocol."""


class BadFrame(RemoteProtocolError):
    """The bytes received are not a message of this protocol."""


class BadSignature(RemoteProtocolError):
    """A signature does not verify over the bytes received, or names the wrong key."""


class UnknownVersion(RemoteProtocolError):
    """A record of another version; whoever passed it on is not to blame."""


class Stale(RemoteProtocolError):
    """A record is too old, too far in the future, or was seen before."""


class SealError(ProtocolError):
    """A sealed prompt or chunk does not open: wrong key, wrong context, or altered."""


class Refusal(IntEnum):
    """Why a job did not happen or did not finish (specs/05, registry in specs/01).

    Codes below 64 are answers of a provider before it accepted; from 64 on they end a running job.
    Unknown codes are treated as `INTERNAL`.
    """

    BUSY = 1
    DRAINING = 2
    NO_MODEL = 3
    NOT_FREE = 4
    CONTEXT_EXCEEDED = 5
    UNSUPPORTED = 6
    BAD_REQUEST = 7
    STALE = 8
    DUPLICATE = 9
    CANNOT_OPEN_SEAL = 10
    BAD_SIGNATURE = 11
    PRICE = 12
    LEASE = 13
    TOO_LARGE = 14
    RATE_LIMITED = 15
    NOT_ALLOWED = 16
    ENGINE_UNAVAILABLE = 17
    WRONG_PROVIDER = 18
    CLOCK_SKEW = 19
    NO_ROUTE = 20
    ENGINE_FAILED = 64
    CANCELLED = 65
    PEER_LOST = 66
    DEADLINE = 67
    PROTOCOL = 68
    NO_PROVIDER = 69
    SLOW_READER = 70
    SHUTDOWN = 71
    UNPAID = 72
    INTERNAL = 127


def refusal_from_code(code: int) -> Refusal:
    """The refusal with this code, or `Refusal.INTERNAL` for one from a newer version."""
    try:
        return Refusal(code)
    except ValueError:
        return Refusal.INTERNAL
