"""Connects to nodes because their owner asked for it, and says how that went: for `infernet join`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import trio

from infernet.driver import Contact, Driver
from protocol.events import DialFailed, LearnAddresses
from protocol.ids import NodeId

# Longer than one dial may take (infernet/carriers/transport.py), so that its own reason is told; shorter than whoever
# asked waits (infernet/ipc/client.py).
JOIN_TIMEOUT_S: Final = 25.0


class Joining:
    """Those who wait, by the node that they wait for."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[NodeId, list[trio.MemorySendChannel[str]]] = {}

    def observe(self, contact: Contact) -> None:
        """A connection is up, or a dial has failed."""
        for waiting in self._waiting.pop(contact.peer, ()):
            waiting.send_nowait(contact.reason if isinstance(contact, DialFailed) else "")
            waiting.close()

    async def join(self, peers: Mapping[NodeId, Sequence[str]]) -> dict[NodeId, str]:
        """Keep connections to these nodes from now on. For each: "" once it is connected, or why it is not (yet)."""
        results: dict[NodeId, str] = {}

        async def join_one(node: NodeId, addresses: Sequence[str]) -> None:
            results[node] = await self._join_one(node, tuple(addresses))

        async with trio.open_nursery() as nursery:
            for node, addresses in peers.items():
                nursery.start_soon(join_one, node, addresses)
        return results

    async def _join_one(self, node: NodeId, addresses: tuple[str, ...]) -> str:
        if node == self._driver.peer.node:
            return "this is the node itself"
        is_connected = node in self._driver.connected_peers()
        send, receive = trio.open_memory_channel[str](1)
        self._waiting.setdefault(node, []).append(send)
        try:
            # Known from now on, connected or not.
            self._driver.command(LearnAddresses(node, addresses, connect=True, at_once=True))
            if is_connected:
                return ""
            with trio.move_on_after(JOIN_TIMEOUT_S):
                return await receive.receive()
            return f"no answer within {JOIN_TIMEOUT_S:g} s"
        finally:
            send.close()
            waiting = self._waiting.get(node, [])
            if send in waiting:
                waiting.remove(send)
            if not waiting:
                self._waiting.pop(node, None)
