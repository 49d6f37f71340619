"""A relay ends every circuit after a while. Those who dialled one have another in good time, so that nothing is cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from infernet.transport.addresses import CircuitAddress
from infernet.transport.connections import Circuit, Connection
from infernet.transport.dialer import ADDRESS_TIMEOUT_S, AttemptFailed
from protocol.ids import NodeId, short

log = structlog.get_logger(__name__)


async def renew(
    connection: Connection,
    circuit: Circuit,
    attempt: Callable[[NodeId, CircuitAddress], Awaitable[Connection]],
    add: Callable[[Connection], None],
) -> None:
    """Have another circuit half way, and let the old one end with the streams that it has; returns with the connection.

    Nothing when nobody uses it then, or when there is no other.
    """
    # SPEC 08: A node that uses a circuit SHOULD have another one to the same peer while half of its time is left, open
    #   new streams there, and let the first one end with the streams that it has.
    with trio.move_on_after(circuit.renew_after_s) as waiting:
        await connection.muxer.wait_ended()
    if not waiting.cancelled_caught or connection.muxer.idle_s > 0:
        return
    try:
        with trio.fail_after(ADDRESS_TIMEOUT_S):
            successor = await attempt(connection.info.peer, circuit.address)
    except (AttemptFailed, trio.TooSlowError) as error:
        log.debug("relay.not_renewed", peer=short(connection.info.peer), error=str(error))
        return
    add(successor)
    connection.muxer.retire()
