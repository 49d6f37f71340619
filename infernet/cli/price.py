"""`infernet price`: what this node asks for its work, and how to change it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Final, NamedTuple

from infernet.cli.command import Misuse, warn
from infernet.cli.output import print_fields, print_json
from infernet.cli.settings_flags import warn_if_running
from infernet.config import Config, changing, load, places, why_nobody_pays
from infernet.settings.models import ModelSettings
from infernet.settings.readers import NO_MONEY, Dollars, as_plain
from infernet.settings.table import BY_NAME
from protocol.formats.amounts import format_usd

# An answer of some length to a question of some length, so that prices for a million tokens mean something.
_SAMPLE_TOKENS: Final = 500
_FLAGS: Final = {"price_in_usd": "in_usd", "price_out_usd": "out_usd", "price_job_usd": "job_usd"}

USAGE: Final = "[show | set [--in USD] [--out USD] [--job USD] | free] [--json]"
DESCRIPTION: Final = """\
What this node asks of others for the model that it serves, in dollars: for a million tokens of a prompt (--in), for a
million tokens of an answer (--out), and for each job beside that (--job). Whoever pays must have money at the same
coordinator.

Of one model alone something else may be asked: `infernet config set --model-settings '{"NAME": {"price_out_usd":
"0.40"}}'`. What is set here holds for the others, and is shown first.

show   the prices (this is the default)
set    write those that are given into the file; the others stay
free   ask nothing: jobs run without payment, for those whom --free-for lets in"""
EXAMPLES: Final = """\
examples:
  infernet price
  infernet price set --in 0.10 --out 0.40
  infernet price free
  infernet price --json | jq -r .out_usd

A node that is running goes on with its prices until it is started anew; jobs that have begun keep theirs."""


class Prices(NamedTuple):
    """As an order has them, in micro-USD."""

    price_in_uusd: int
    price_out_uusd: int
    price_job_uusd: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the prices."""
    parser.add_argument("action", nargs="?", choices=("show", "set", "free"), default="show", help="default: show")
    for name, dest in _FLAGS.items():
        flag = f"--{dest.removesuffix('_usd')}"
        parser.add_argument(flag, dest=dest, metavar="USD", help=BY_NAME[name].help.replace(" (default: 0)", ""))


def run(arguments: argparse.Namespace) -> int:
    """Show or set them."""
    given = {name: word for name, dest in _FLAGS.items() if (word := getattr(arguments, dest)) is not None}
    if given and arguments.action != "set":
        raise Misuse("prices are written with `infernet price set`")
    if arguments.action == "set" and not given:
        raise Misuse("nothing to set: give --in, --out or --job, or `infernet price free`")
    changes: dict[str, object] = dict(_read(given))
    if arguments.action == "show":
        config = load().config
    else:
        with changing(places().config_file) as write:
            if arguments.action == "free":
                changes = dict.fromkeys(_FLAGS, NO_MONEY) | _without_prices(load().config)
            # Read and checked together with what is set elsewhere.
            config = load(changes).config
            write(changes, keep=True)
    _tell(config, as_json=arguments.json)
    if changes:
        origins = load().origins
        for name in changes:
            if origins[name] == "environment":
                warn(f"{BY_NAME[name].variable} is set, and holds where it is, whatever the file says")
        if (unpaid := why_nobody_pays(config)) is not None:
            warn(unpaid)
        warn_if_running(config)
    return 0


def _without_prices(config: Config) -> dict[str, object]:
    """The settings of single models without what they cost; nothing where none has a price of its own."""
    if not _apart(config):
        return {}
    free = [
        dataclasses.replace(own, price_in_usd=None, price_out_usd=None, price_job_usd=None)
        for own in config.model_settings
    ]
    return {"model_settings": tuple(own for own in free if own != ModelSettings(name=own.name))}


def _read(given: dict[str, str]) -> dict[str, Dollars]:
    prices: dict[str, Dollars] = {}
    for name, word in given.items():
        try:
            prices[name] = BY_NAME[name].read(word)
        except ValueError as error:
            raise Misuse(f"--{_FLAGS[name].removesuffix('_usd')} {error}") from None
    return prices


def _tell(config: Config, *, as_json: bool) -> None:
    dollars = config.price_in_usd, config.price_out_usd, config.price_job_usd
    prices = Prices(*map(int, dollars))
    sample_uusd = sample(prices)
    apart = _apart(config)
    all_free = not any(prices) and not any(map(any, apart.values()))
    if as_json:
        plain = [as_plain(price) for price in dollars]
        print_json(
            {
                "model": _models(config),
                **dict(zip(_FLAGS.values(), plain, strict=True)),
                "models": {
                    name: dict(zip(_FLAGS.values(), map(as_plain, own), strict=True)) for name, own in apart.items()
                },
                "free": all_free,
                "free_for": config.free_for,
                "coordinator_url": config.coordinator_url,
                "sample_tokens": _SAMPLE_TOKENS,
                "sample_uusd": sample_uusd,
            }
        )
        return
    if all_free:
        print(f"This node asks nothing. Its jobs are for: {config.free_for} (--free-for).")
        return
    print_fields(
        [
            ("model", _models(config)),
            ("prompts", f"{format_usd(prices[0])} for a million tokens"),
            ("answers", f"{format_usd(prices[1])} for a million tokens"),
            ("each job", format_usd(prices[2])),
            *((name, _in_words(own)) for name, own in apart.items()),
            ("for example", f"{format_usd(sample_uusd)} for {_SAMPLE_TOKENS} tokens in and {_SAMPLE_TOKENS} out"),
            ("paid at", config.coordinator_url),
        ]
    )


def _models(config: Config) -> str | None:
    """Those whose names are known before they run: of a server it may be any that it has."""
    models = [*config.llama_models, *(config.engine_models if "openai" in config.engines else ())]
    if config.engines and not {"llama", "openai"} & set(config.engines):
        models = [config.model]
    return ", ".join(models) or None


def _apart(config: Config) -> dict[str, tuple[Dollars, Dollars, Dollars]]:
    """What is asked for models that have a price of their own."""
    found: dict[str, tuple[Dollars, Dollars, Dollars]] = {}
    for own in config.model_settings:
        if not (own.price_in_usd is own.price_out_usd is own.price_job_usd is None):
            found[own.name] = (
                Dollars(config.price_in_usd if own.price_in_usd is None else own.price_in_usd),
                Dollars(config.price_out_usd if own.price_out_usd is None else own.price_out_usd),
                Dollars(config.price_job_usd if own.price_job_usd is None else own.price_job_usd),
            )
    return found


def _in_words(prices: tuple[Dollars, Dollars, Dollars]) -> str:
    into, out, job = map(format_usd, map(int, prices))
    return f"{into} in, {out} out, {job} each job"


def sample(prices: Prices) -> int:
    """What a job of some length costs at these prices, in micro-USD."""
    from protocol.jobs import cost_uusd

    return cost_uusd(prices, _SAMPLE_TOKENS, _SAMPLE_TOKENS)
