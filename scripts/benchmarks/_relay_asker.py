"""The asker's process of the relay benchmark: nodes that ask over libp2p, or a client of the coordinator's chat."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from _relay_worker import Stream, ask_all, question, run, say, serve

from infernet.answers import AskOptions
from infernet.assembly import client_node
from infernet.config import Config
from infernet.node import Node
from infernet.own_addresses import peer_of
from protocol.constants import JOB_STREAMS_PER_PEER_MAX
from protocol.effects import JobDone, JobFailed, JobText
from protocol.envelope import SigningKey
from protocol.records import ChatMessage, Role


@asynccontextmanager
async def asking_node(home: Path, address: str) -> AsyncIterator[Node]:
    """A node that only asks, connected to one provider."""
    config = Config(config_dir=home, state_dir=home, data_dir=home, role=Role.CLIENT, name="asker")
    key = SigningKey(random.SystemRandom().randbytes(32), os.urandom)
    async with client_node(config, key, peers=[address]) as node:
        yield node


async def ask_peer(node: Node, address: str, text: str, max_tokens: int) -> Stream:
    """Put a question to the provider over libp2p."""
    stream = Stream()
    options = AskOptions(
        messages=(ChatMessage("user", text),),
        provider=peer_of(address),
        max_tokens=max_tokens,
        temperature=0.0,
        seed=1,
    )
    async with node.ask(options) as events:
        async for event in events:
            if isinstance(event, JobText):
                stream.piece()
            elif isinstance(event, JobDone):
                stream.done(event.receipt.output_tokens)
            else:
                assert not isinstance(event, JobFailed), event.text
    return stream


async def ask_coordinator(http: httpx.AsyncClient, url: str, text: str, max_tokens: int) -> Stream:
    """Put a question to the coordinator's chat and read its event stream."""
    stream = Stream()
    body = {"messages": [{"role": "user", "content": text}], "maxTokens": max_tokens, "temperature": 0}
    job = (await http.post(f"{url}/api/chat", json=body)).raise_for_status().json()
    async with http.stream("GET", url + job["streamUrl"]) as answer:
        kind = ""
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "token":
                stream.piece()
            elif name == "data" and kind == "done":
                stream.done(json.loads(value)["usage"]["completion_tokens"])
            else:
                assert (name, kind) != ("data", "error"), value
    return stream


async def work(arguments: argparse.Namespace) -> None:
    """Answer requests until standard input closes."""
    async with AsyncExitStack() as stack:
        if arguments.url is not None:
            limits = httpx.Limits(max_connections=None)
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=60.0, limits=limits))

            async def ask(request: dict[str, Any], index: int) -> Stream:
                return await ask_coordinator(http, arguments.url, question(request, index), request["max_tokens"])
        else:
            # One peer may hold so many job streams and no more; beyond that there is more than one asker.
            count = -(-arguments.streams // JOB_STREAMS_PER_PEER_MAX)
            nodes = [
                await stack.enter_async_context(asking_node(arguments.home, arguments.address)) for _ in range(count)
            ]

            async def ask(request: dict[str, Any], index: int) -> Stream:
                text, node = question(request, index), nodes[index % count]
                return await ask_peer(node, arguments.address, text, request["max_tokens"])

        say({"ready": True})
        await serve(lambda request: ask_all(request, partial(ask, request)))


def main() -> None:
    """Read the command line and ask what is requested until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--streams", type=int, required=True)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--address", help="multiaddr of the provider")
    target.add_argument("--url", help="URL of the coordinator")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    run(partial(work, arguments), arguments.profile)


if __name__ == "__main__":
    main()
