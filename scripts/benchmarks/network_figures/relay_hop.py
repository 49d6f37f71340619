"""What a relay between asker and provider costs: the same questions to a provider behind a router, reached through a
relay, beside one that is dialled, in turns.
"""

from __future__ import annotations

from typing import Final

import trio
from _figures import Figure, Options, quantile

from _dev_network_nodes import NodeProcess, Plan
from tests.helpers_cluster import namespace_cluster

NEEDS_ROOT: Final = True
TOKENS: Final = 1500
# As fast as they go: the line is what is measured.
FAST: Final = ("--tokens-per-s", "1e9", "--answer-tokens", "100000")


async def measure(options: Options) -> list[Figure]:
    """Ask both by turns."""
    rounds = 3 if options.quick else 25
    plans = [
        Plan("n1", "aggregator"),
        Plan("n2", "aggregator"),
        Plan("n3", "provider", ("direct",)),
        Plan("n4", "provider", ("relayed",)),
        Plan("n5"),
    ]
    first: dict[str, list[float]] = {"direct": [], "relayed": []}
    rate: dict[str, list[float]] = {"direct": [], "relayed": []}
    async with namespace_cluster(plans, [["n4"]], FAST) as (cluster, _):
        await cluster.start_all()
        await cluster.until_full("start", 120)
        await cluster.until_everything_is_answered("start", 60)
        asker = cluster["n5"]
        await _require_a_circuit(asker, cluster["n4"])
        for turn in range(rounds):
            for model in ("direct", "relayed") if turn % 2 else ("relayed", "direct"):
                answer = await asker.ask(model, max_tokens=TOKENS)
                assert answer.is_whole, answer.reason
                first[model].append(answer.first_text_s * 1000)
                rate[model].append(answer.output_tokens / (answer.duration_s - answer.first_text_s))
    median = {model: quantile(times, 0.5) for model, times in first.items()}
    p95 = {model: quantile(times, 0.95) for model, times in first.items()}
    tokens = {model: quantile(rates, 0.5) for model, rates in rate.items()}
    direct = "a provider that is dialled"
    return [
        Figure("first token through a relay, median", median["relayed"], "ms", direct, median["direct"]),
        Figure("first token through a relay, p95", p95["relayed"], "ms", direct, p95["direct"]),
        Figure("tokens/s through a relay", tokens["relayed"], "tokens/s", direct, tokens["direct"]),
    ]


async def _require_a_circuit(asker: NodeProcess, provider: NodeProcess) -> None:
    """The asker has no other way to this provider than through somebody."""
    with trio.fail_after(60):
        while True:
            for peer in await asker.known():
                if peer["node_id"] == provider.node.hex():
                    assert all("/p2p-circuit/" in address for address in peer["addresses"]), peer["addresses"]
                    if peer["addresses"]:
                        return
            await trio.sleep(0.5)
