"""The yamux header and its numbers. Source: the yamux specification, version 0 (hashicorp/yamux, spec.md).

    version u8 | type u8 | flags u16 | stream id u32 | length u32

Length is the payload's size for DATA, the credit granted for WINDOW_UPDATE, an opaque value for PING and a code
for GO_AWAY. Only DATA has a payload.
"""

from __future__ import annotations

import struct
from typing import Final

# ---------------------------------------------------------------- fixed by the specification

PROTOCOL: Final = "/yamux/1.0.0"
VERSION: Final = 0

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RESET: Final = 8

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1
GO_AWAY_INTERNAL_ERROR: Final = 2

HEADER: Final = struct.Struct("!BBHII")
HEADER_BYTES: Final = HEADER.size
# The session as a whole: PING and GO_AWAY carry it.
SESSION_ID: Final = 0
STREAM_ID_MAX: Final = 2**32 - 1
# What either side may send on a new stream before it has heard of any credit.
INITIAL_WINDOW_BYTES: Final = 256 * 1024

# ---------------------------------------------------------------- our own choices

# Small enough that a bulk transfer does not hold up the tokens of other streams.
FRAME_BYTES_MAX: Final = 16 * 1024
# Nobody grants so much honestly; beyond it the sum is an attack on our arithmetic.
SEND_WINDOW_BYTES_MAX: Final = 2**30


class YamuxError(Exception):
    """The peer broke a rule of yamux: the only exception that its bytes can cause."""


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """The twelve bytes before a payload."""
    return HEADER.pack(VERSION, kind, flags, stream_id, length)
