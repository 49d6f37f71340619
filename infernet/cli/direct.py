"""Asking over libp2p with a short-lived node of our own: `infernet chat --peer` or `--via`, when no node runs here."""

from __future__ import annotations

import dataclasses
import signal

import trio

from infernet.answers import AskOptions
from infernet.assembly import client_node
from infernet.cli.conversation import Conversation, NoAnswer, Question
from infernet.config import Config, default_name
from infernet.ipc.server import reply_for
from infernet.own_addresses import peer_of
from protocol.envelope import SigningKey
from protocol.records import ChatMessage, Role


@dataclasses.dataclass(frozen=True)
class Whom:
    """Whom to ask, as multiaddrs: this provider, or any that the aggregator knows, or this provider through it."""

    peer: str | None
    via: str | None = None

    @property
    def first(self) -> str:
        """Whom to connect to: with an aggregator, nobody else."""
        address = self.via or self.peer
        assert address is not None
        return address


async def ask(config: Config, key: SigningKey, whom: Whom, question: Question, conversation: Conversation) -> None:
    """Ask somebody over libp2p. Raises NoAnswer, KeyboardInterrupt, TransportError or LocalProtocolError."""
    options = AskOptions(
        messages=tuple(ChatMessage(message["role"], message["content"]) for message in question.messages),
        model=question.model,
        provider=peer_of(whom.peer) if whom.peer is not None else None,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        seed=question.seed,
        timeout_s=question.timeout_s,
        via=peer_of(whom.via) if whom.via is not None else None,
    )
    # What others see of it says what it is, and not what the node of this home is configured to be.
    config = dataclasses.replace(config, name=default_name(Role.CLIENT, key.node))
    interrupted = False
    async with client_node(config, key, peers=[whom.first]) as node:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(_cancel_on_interrupt, scope)
                async with node.ask(options) as events:
                    async for event in events:
                        reply = reply_for(event)
                        if reply is None:
                            continue
                        if not reply["ok"]:
                            raise NoAnswer(reply["error"], reply["cause"], reply["data"]["retry_after_ms"])
                        # In a thread: a terminal that was paused must not stop the node, which has pings to answer.
                        await trio.to_thread.run_sync(
                            conversation.take, reply["event"], reply["data"], abandon_on_cancel=True
                        )
                nursery.cancel_scope.cancel()
        # Leaving `ask` has cancelled the job; leaving `client_node` now sends that before it hangs up.
        interrupted = scope.cancelled_caught
    if interrupted:
        raise KeyboardInterrupt


async def _cancel_on_interrupt(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        await anext(received)
        scope.cancel()
