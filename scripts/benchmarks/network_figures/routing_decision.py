"""The time of one routing decision among 2,000 and 20,000 providers, beside a look at all of them."""

from __future__ import annotations

from typing import Final

import routing
import trio
from _figures import Figure, Options

NEEDS_ROOT: Final = False


async def measure(options: Options) -> list[Figure]:
    """As `scripts/bench routing`."""
    figures = []
    for size in routing.SIZES[:1] if options.quick else routing.SIZES:
        decisions = 200 if options.quick else routing.DECISIONS
        result = await trio.to_thread.run_sync(routing.measure, size, decisions, routing.SCANS, 1)
        scan = f"a look at all {size:,}"
        figures += [
            Figure(f"decision among {size:,}, median", result.cpu_p50_us, "µs CPU", scan, result.scan_cpu_p50_us),
            Figure(f"decision among {size:,}, p99", result.cpu_p99_us, "µs CPU", scan, result.scan_cpu_p50_us),
            Figure(
                f"decision among {size:,}, p99, on the wall", result.wall_p99_us, "µs", scan, result.scan_cpu_p50_us
            ),
        ]
    return figures
