"""Jobs from order to receipt, with an engine that answers at once: what the protocol, the node and libp2p cost.

Beside it stands the cryptography alone that specs/02 and specs/05 demand of both sides for such a job. Processor time
is what counts; jobs per second are what all processes together made of this machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import trio
from _figures import Figure, Options, cpu_of

from _dev_network_nodes import Plan
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.jobs import order_hash
from protocol.records import (
    ChatMessage,
    ChunkBody,
    JobAcceptRecord,
    JobOpenRecord,
    JobRequest,
    ReceiptRecord,
    SealedPrompt,
)
from protocol.sealing import ChunkCipher, HpkeSealer, open_prompt, seal_context, seal_prompt
from tests.helpers_cluster import loopback_cluster
from tests.helpers_records import acceptance, order, receipt

NEEDS_ROOT: Final = False
ASKERS: Final = 4
AT_ONCE: Final = 8
INSTANT: Final = ("--tokens-per-s", "1e9", "--answer-tokens", "1", "--engine-slots", "64")


async def measure(options: Options) -> list[Figure]:
    """Ask as fast as answers come."""
    jobs = 100 if options.quick else 1500
    crypto_s = cpu_of(_cryptography(), 0.3 if options.quick else 2.0)
    plans = [Plan("n1", "provider", ("instant",)), *(Plan(f"n{2 + index}") for index in range(ASKERS))]
    async with loopback_cluster(plans, INSTANT) as cluster:
        await cluster.start_all()
        await cluster.until_full("start", 30)
        askers = [cluster[plan.name] for plan in plans[1:]]
        for asker in askers:
            assert (await asker.ask("instant")).is_whole
        provider = cluster["n1"]
        left = jobs

        async def keep_asking(number: int) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                answer = await askers[number % ASKERS].ask("instant", max_tokens=1)
                assert answer.is_whole, answer.reason

        before = (provider.cpu_s(), sum(asker.cpu_s() for asker in askers))
        started_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(ASKERS * AT_ONCE):
                nursery.start_soon(keep_asking, number)
        took_s = trio.current_time() - started_s
        providing_s = (provider.cpu_s() - before[0]) / jobs
        asking_s = (sum(asker.cpu_s() for asker in askers) - before[1]) / jobs
    alone = "the cryptography of one job, both sides"
    return [
        Figure("jobs handed over, one provider", jobs / took_s, "jobs/s", alone, 1 / crypto_s),
        Figure("CPU per job, provider", providing_s * 1000, "ms", alone, crypto_s * 1000),
        Figure("CPU per job, asker and its socket", asking_s * 1000, "ms", alone, crypto_s * 1000),
    ]


def _cryptography() -> Callable[[], None]:
    """Everything that is signed, verified, sealed and opened for a job of one chunk, as a function of nothing."""
    rng = random.Random(1)
    asker, provider = (SigningKey(rng.randbytes(32), rng.randbytes) for _ in range(2))
    sealer = HpkeSealer()
    ordered = order(asker=asker.node, provider=provider.node)
    accepted, received = acceptance(provider=provider.node), receipt(provider=provider.node, asker=asker.node)
    prompt = SealedPrompt(rng.randbytes(32), JobRequest(messages=(ChatMessage("user", "why"),)))
    context = seal_context(ordered.job, 1, asker.node, provider.node, None)
    sealing_key = sealer.public_key(0)

    def job() -> None:
        sealed = seal_prompt(prompt, sealer, sealing_key, context)
        signed = sign_record(ordered, asker)
        open_record(signed, JobOpenRecord)
        response_key = open_prompt(sealed, sealer, context).response_key
        open_record(sign_record(accepted, provider), JobAcceptRecord)
        cipher = ChunkCipher(response_key, order_hash(signed.body))
        cipher.open(1, 1, 0, cipher.seal(1, 1, 0, ChunkBody("word ")))
        open_record(sign_record(received, provider), ReceiptRecord)

    return job
