"""`infernet benchmark`: how fast the models of this node read and write."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Final

from infernet.cli.command import Failure, Misuse, complain, warn
from infernet.cli.engine import quiet_log
from infernet.cli.output import duration, print_json, print_table
from infernet.cli.settings_flags import add_settings, load_config
from infernet.config import Config
from infernet.host.lock import running_pid

if TYPE_CHECKING:
    from infernet.engines.benchmark import Benchmark
    from protocol.records import JobRequest, ModelOffer

USAGE: Final = "[--last] [--rounds N] [SETTINGS] [--json]"
DESCRIPTION: Final = """\
Start the engine that is set, have each of its models read a prompt of a few hundred tokens and write an answer, several
times, and show the medians. The last measurement is kept in this node's state folder; --last shows it again. For 30
days a node says in its heartbeat how fast the models with these weights are, in coarse steps. Stop the node first: with
it, two engines share this machine, and the figures are those of half of it."""
EXAMPLES: Final = """\
examples:
  infernet benchmark
  infernet benchmark --rounds 5 --threads 4 --json
  infernet benchmark --engine openai --engine-url http://127.0.0.1:8000
  infernet benchmark --last --json | jq '.models[].tokens_per_s'"""

_ROUNDS_MAX: Final = 100
_TIMEOUT_S: Final = 600.0
_TOO_SLOW: Final = "that is too slow to measure; `infernet engine test --timeout SECONDS` shows whether it works"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to measure, and the settings."""
    parser.add_argument("--last", action="store_true", help="show the last measurement, and measure nothing")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="how often, 1 to 100 (default: 3)")
    add_settings(parser, "settings")


def run(arguments: argparse.Namespace) -> int:
    """Measure, keep and show."""
    import msgspec

    from infernet.engines.benchmark import kept

    if not 1 <= arguments.rounds <= _ROUNDS_MAX:
        raise Misuse(f"--rounds must be a whole number from 1 to {_ROUNDS_MAX}")
    quiet_log()
    config = load_config(arguments).config
    benchmark = kept(config.state_dir) if arguments.last else _measured(config, arguments.rounds)
    if benchmark is None:
        raise Failure("nothing was measured here yet: run `infernet benchmark`")
    if arguments.json:
        print_json(msgspec.to_builtins(benchmark))
        return 0
    if arguments.last:
        print(f"Measured {duration(time.time() - benchmark.at_ms / 1000)} ago, with --engine {benchmark.engine}:")
    _show(benchmark)
    return 0


def _measured(config: Config, rounds: int) -> Benchmark:
    import trio

    from infernet.engines.benchmark import OUTPUT_TOKENS, Benchmark, keep, prompts, speeds_of
    from infernet.engines.models import ModelMissing, without_asking_only
    from infernet.engines.selection import open_engine
    from infernet.engines.several import Waits
    from infernet.engines.trial import Patience, TrialFailed, try_engine

    if running_pid(config.pid_file) is not None:
        warn("the node is running and shares this machine with what is measured: the figures are too low")

    async def measure() -> Benchmark:
        engine = await open_engine(config, Waits(others_s=_TIMEOUT_S))
        if engine is None:
            raise Misuse("this node has no engine to measure: give one with --engine, and --role provider")
        offers: dict[str, ModelOffer] = {}

        def requests(offer: ModelOffer) -> list[JobRequest]:
            offers[offer.name] = offer
            return prompts(rounds, offer)

        patience = Patience(_TIMEOUT_S, _TIMEOUT_S, _TOO_SLOW)
        trials = await try_engine(engine, requests, OUTPUT_TOKENS, patience, complain)
        return Benchmark(time.time_ns() // 1_000_000, config.engine, speeds_of(trials, offers))

    try:
        benchmark = trio.run(measure)
    except ModelMissing as error:
        raise Failure(without_asking_only(error), engine=config.engine) from None
    except TrialFailed as error:
        raise Failure(f"the engine {config.engine} cannot be measured: {error}", engine=config.engine) from None
    keep(config.state_dir, benchmark)
    return benchmark


def _show(benchmark: Benchmark) -> None:
    print_table(
        ("model", "prompt", "read at", "first after", "answer", "written at"),
        [
            (
                speed.model,
                f"{speed.prompt_tokens} tokens",
                _rate(speed.prompt_tokens_per_s),
                f"{speed.prompt_s:.2f} s",
                f"{speed.output_tokens} tokens",
                _rate(speed.tokens_per_s),
            )
            for speed in benchmark.models
        ],
    )


def _rate(tokens_per_s: float | None) -> str | None:
    return f"{tokens_per_s:.1f} tokens/s" if tokens_per_s is not None else None
