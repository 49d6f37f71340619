"""Messages of a cluster on a stream."""

from __future__ import annotations

from infernet.transport.channel import ByteReader, ChannelBroken
from infernet.transport.contract import StreamBroken
from protocol import clusters
from protocol import constants as c
from protocol.errors import BadFrame


async def read_message(reader: ByteReader) -> clusters.AnyClusterMessage:
    """The next message. Raises StreamBroken, also for what is none: then the stream is of no more use.

    The caller owns the deadline.
    """
    try:
        header = await reader.read(c.FRAME_HEADER_BYTES)
        return clusters.decode(await reader.read(clusters.body_length(header)))
    except (ChannelBroken, BadFrame) as error:
        raise StreamBroken(str(error)) from None
