"""The providers of the settlement benchmark, in a process of their own: their links, or their requests over HTTP.

Reads a file with each provider's key and claims, connects, prints `ready`, sends everything once a line arrives on
standard input, and prints after how many seconds the last acknowledgement had come.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import trio
import trio_websocket

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from infernet.coordinator_client import CoordinatorClient, RequestSigner
from infernet.money.client import MoneyClient
from protocol import link as wire
from protocol.codec import CONTROL_LIMITS, decode_struct
from protocol.constants import CLAIMS_MAX
from protocol.envelope import AUTH_HEADER, SigningKey
from protocol.ids import NodeId, StreamId
from protocol.records import Signed


@dataclass
class Provider:
    """One of them: who signs its requests, and what it claims."""

    signer: RequestSigner
    claims: list[Signed]


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def read(path: Path, coordinator: NodeId) -> list[Provider]:
    """What the benchmark has written for us."""
    providers: list[Provider] = []
    for row in json.loads(path.read_text("utf-8")):
        key = SigningKey(bytes.fromhex(row["secret"]), os.urandom)
        claims = [decode_struct(bytes.fromhex(claim), Signed, CONTROL_LIMITS) for claim in row["claims"]]
        providers.append(Provider(RequestSigner(key, coordinator, wall_ms), claims))
    return providers


class Start:
    """Lets everybody connect first, and then begin together."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._go = trio.Event()

    async def wait(self) -> None:
        """Connected; returns when all are, and the benchmark has said so."""
        self._missing -= 1
        if not self._missing:
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
            self._go.set()
        await self._go.wait()


async def over_link(url: str, provider: Provider, start: Start) -> None:
    """Claim over one link, with as many under way as a link may have."""
    auth = provider.signer.sign("GET", wire.LINK_PATH)
    address = url.replace("http://", "ws://", 1) + wire.LINK_PATH
    headers = [(AUTH_HEADER.encode(), auth.encode())]
    async with trio_websocket.open_websocket_url(address, extra_headers=headers) as socket:
        hello = await socket.get_message()
        assert isinstance(hello, bytes)
        wire.decode_hello(hello, provider.signer.coordinator, provider.signer.node, auth)
        link = wire.Link(provider.signer.coordinator, opens_odd=False, next_stream=lambda: StreamId(0))
        await start.wait()
        parts = enumerate(wire.split_claims(provider.claims))
        under_way: dict[int, int] = {}
        is_over = False
        while under_way or not is_over:
            while sum(under_way.values()) <= wire.LINK_CLAIMS_MAX - CLAIMS_MAX and not is_over:
                number, part = next(parts, (0, ()))
                if part:
                    link.claim(number, part)
                    under_way[number] = len(part)
                is_over = not part
            while (message := link.take()) is not None:
                await socket.send_message(message)
            if not under_way:
                break
            told = await socket.get_message()
            assert isinstance(told, bytes)
            for event in link.receive(told):
                if isinstance(event, wire.ClaimAnswer):
                    if event.refusals:
                        raise SystemExit(f"a claim was refused: {event.refusals}")
                    del under_way[event.number]


async def over_http(url: str, provider: Provider, start: Start) -> None:
    """Claim over one connection, one request after the other."""
    client = MoneyClient(url, provider.signer, dict)
    await start.wait()
    for claim in provider.claims:
        await client.claim(claim)
    await client.aclose()


async def run(url: str, providers: list[Provider], *, http: bool) -> float:
    """Register, connect, claim; returns the seconds that claiming took."""
    for provider in providers:
        await CoordinatorClient(url, provider.signer).register(
            {"role": "provider", "node_id": provider.signer.node.hex(), "name": "bench"}
        )
    start, started_s = Start(len(providers) + 1), 0.0
    async with trio.open_nursery() as nursery:
        for provider in providers:
            nursery.start_soon(over_http if http else over_link, url, provider, start)
        await start.wait()
        started_s = time.perf_counter()
    return time.perf_counter() - started_s


def main() -> None:
    """Do it, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("coordinator", help="its key, in hexadecimal")
    parser.add_argument("claims", type=Path)
    parser.add_argument("--http", action="store_true")
    words = parser.parse_args()
    coordinator = NodeId(bytes.fromhex(words.coordinator))
    print(trio.run(lambda: run(words.url, read(words.claims, coordinator), http=words.http)), flush=True)


if __name__ == "__main__":
    main()
