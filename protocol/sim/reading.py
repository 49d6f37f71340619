"""What is sent, read off its bytes: for those in a simulation who look and take no part."""

from __future__ import annotations

from typing import TypeVar

from protocol import constants as c
from protocol.codec import JOB_LIMITS, decode_message
from protocol.errors import BadFrame
from protocol.messages import Message

MessageType = TypeVar("MessageType", bound=Message)


def sent(data: bytes, cls: type[MessageType]) -> MessageType | None:
    """The message of this type in what is sent, or None. Looks at the type's byte before it decodes anything.

    What an aggregator passes on may begin and end anywhere.
    """
    tag = cls.__struct_config__.tag
    assert isinstance(tag, int)
    if len(data) < c.FRAME_HEADER_BYTES + 2 or data[c.FRAME_HEADER_BYTES] & 0xF0 != 0x90 or data[5] != tag:
        return None
    length = int.from_bytes(data[: c.FRAME_HEADER_BYTES], "big")
    try:
        message = decode_message(data[c.FRAME_HEADER_BYTES : c.FRAME_HEADER_BYTES + length], JOB_LIMITS)
    except BadFrame:
        return None
    return message if isinstance(message, cls) else None
