"""A stock py-libp2p host in a process of its own, to show that it really has the faults that ours must not have.

Run as a program it takes one JSON command a line and answers each with one line. Several of the faults kill it,
which is the point.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import psutil
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.custom_types import TProtocol
from libp2p.host.autonat import AutoNATService
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service.context import background_trio_service
from libp2p.utils.varint import read_length_prefixed_protobuf
from multiaddr import Multiaddr

from tests.helpers_transport import FAIL, HOLD, ROOT, eventually, secret

GOSSIPSUB: Final = "/meshsub/1.1.0"
# Importing the library alone takes a second or two.
ANSWER_TIMEOUT_S: Final = 60.0


class StockHost:
    """The process, as tests use it."""

    def __init__(self) -> None:
        # Open as long as the process runs.
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.helpers_stock_libp2p"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )

    async def ask(self, **command: object) -> Any:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        with trio.fail_after(ANSWER_TIMEOUT_S):
            line = await trio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        return json.loads(line) if line else pytest.fail(f"the stock host died: {self._last_complaint()}")

    def _last_complaint(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read()[-2000:]

    async def died_of(self) -> str:
        """Wait for the process to end by itself, with an error; what it complained of."""
        with trio.fail_after(ANSWER_TIMEOUT_S):
            assert await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True) != 0
        self._complaints.seek(0)
        return self._complaints.read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._complaints.close()


class _Hosts:
    """The commands."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._hosts: list[Any] = []
        self._stream: Any = None

    async def start(self, seed: int, port: int = 0, ip: str = "/ip4/127.0.0.1", **limits: int) -> object:
        """Start a host with every default, but for limits that make a fault cheaper to show."""

        config = ConnectionConfig(**limits) if limits else None
        host = new_host(key_pair=create_new_key_pair(secret(seed)), connection_config=config)
        host.set_stream_handler(FAIL, self._fail)
        host.set_stream_handler(HOLD, self._hold)
        await self._stack.enter_async_context(host.run([Multiaddr(f"{ip}/tcp/{port}")]))
        self._hosts.append(host)
        return {
            "host": len(self._hosts) - 1,
            "addresses": [str(address) for address in host.get_transport_addrs()],
        }

    async def memory(self) -> object:
        """Resident bytes of the process."""
        return psutil.Process().memory_info().rss

    async def peers(self, host: int, *, wait: bool = False) -> object:
        """Who is connected; with `wait`, as soon as anybody is."""
        if wait:
            await eventually(self._hosts[host].get_connected_peers)
        return [str(peer) for peer in self._hosts[host].get_connected_peers()]

    async def dial(self, host: int, peer: str, addresses: list[str]) -> object:

        start_s = trio.current_time()
        try:
            info = PeerInfo(ID.from_string(peer), [Multiaddr(address) for address in addresses])
            await self._hosts[host].connect(info)
        except SwarmException as error:
            return {"error": repr(error)}
        return {"seconds": trio.current_time() - start_s}

    async def open_stream(self, host: int, peer: str) -> object:
        """Whether the connection takes a stream within three seconds."""
        with trio.move_on_after(3), suppress(StreamFailure):
            self._stream = await self._hosts[host].new_stream(ID.from_string(peer), [HOLD])
            return True
        return False

    async def block_and_cancel(self) -> object:
        """Write into the last stream until that blocks, and cancel it."""
        with trio.move_on_after(0.5) as scope:
            while True:
                await self._stream.write(bytes(2**20))
        return scope.cancelled_caught

    async def gossip(self, host: int) -> object:
        """Speak gossipsub, too."""
        router = GossipSub([TProtocol(GOSSIPSUB)], degree=3, degree_low=2, degree_high=4)
        pubsub = Pubsub(self._hosts[host], router)
        await self._stack.enter_async_context(background_trio_service(pubsub))
        await self._stack.enter_async_context(background_trio_service(router))
        await pubsub.wait_until_ready()
        return True

    async def write(self, size: int) -> object:
        """Write so much into the last stream; how long that took, and what came of it."""
        start_s = trio.current_time()
        outcome = "written"
        with trio.move_on_after(ANSWER_TIMEOUT_S / 2) as scope:
            try:
                await self._stream.write(bytes(size))
            except Exception as error:  # noqa: BLE001 - it is what this asks for
                outcome = type(error).__name__
        return {"outcome": "waiting" if scope.cancelled_caught else outcome, "seconds": trio.current_time() - start_s}

    async def remote_addresses(self, host: int) -> object:
        """Where the connections come from, as the host itself sees it."""
        network = self._hosts[host].get_network()
        await eventually(self._hosts[host].get_connected_peers)
        connections = [each for of_peer in network.connections.values() for each in of_peer]
        return [connection.muxed_conn.get_remote_address() for connection in connections]

    async def remember(self, host: int, peer: str, address: str) -> object:
        """Learn an address of somebody, and do nothing about it."""
        self._hosts[host].get_peerstore().add_addrs(ID.from_string(peer), [Multiaddr(address)], 3600)
        return True

    async def dial_back(self, server: int, client: int, address: str) -> object:
        """What the server of AutoNAT says of this address of a client that is connected to it; 0: reached."""
        AutoNATService(self._hosts[server])
        asking = AutoNATService(self._hosts[client], serve=False)
        status, _ = await asking.query_server(self._hosts[server].get_id(), [Multiaddr(address).to_bytes()])
        return status

    async def close(self, host: int) -> object:
        """Close the host; the seconds that this takes."""
        start_s = trio.current_time()
        await self._hosts[host].close()
        return trio.current_time() - start_s

    async def ping(self, host: int, peer: str) -> object:
        """The round trip in milliseconds."""
        stream = await self._hosts[host].new_stream(ID.from_string(peer), [PING])
        return await perform_ping_roundtrip(stream)

    async def identify(self, host: int, peer: str) -> object:
        """What the peer says of itself."""
        stream = await self._hosts[host].new_stream(ID.from_string(peer), [IDENTIFY])
        said = parse_identify_response(await read_length_prefixed_protobuf(stream, True))
        return {
            "agent": said.agent_version,
            "protocols": list(said.protocols),
            "peer": str(ID.from_pubkey(deserialize_public_key(said.public_key))),
            "observed": str(Multiaddr(said.observed_addr)),
            "listening": [str(Multiaddr(address)) for address in said.listen_addrs],
        }

    async def _fail(self, _: object) -> None:
        raise RuntimeError("the handler's own mistake")

    async def _hold(self, _: object) -> None:
        await trio.sleep_forever()


async def _main() -> None:
    async with AsyncExitStack() as stack:
        hosts = _Hosts(stack)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command = json.loads(line)
            answer = await getattr(hosts, command.pop("op"))(**command)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_main)
