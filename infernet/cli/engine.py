"""`infernet engine`: what could run models here, and whether it does."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Final

from infernet.cli.command import Failure, Misuse, complain, warn
from infernet.cli.output import print_fields, print_json, print_table
from infernet.cli.running_node import running_parts
from infernet.cli.settings_flags import add_settings, load_config
from infernet.config import Config
from infernet.host.files import reason_of
from infernet.host.packaged import NOT_INSIDE, is_packaged

if TYPE_CHECKING:
    from infernet.confinement.contract import Protection
    from infernet.engines.openai_servers import Found
    from infernet.engines.trial import Trial

USAGE: Final = "list | test [NAME] [SETTINGS] [--json]"
DESCRIPTION: Final = """\
list: the engines of this machine: the embedded llama.cpp, ExLlamaV2 and ExLlamaV3, and OpenAI-compatible servers
(Ollama, vLLM, NIM, llama-server, SGLang, LM Studio) on their usual ports and at --engine-url; what they have, or why
they are of no use; and which model of the running node runs on what.
test: start the engine that is set, or the one that is named (llama, exllamav2, exllamav3, openai, or the address of a
server), have each of its models answer a question, and show the answer and its speed. A running node goes on meanwhile,
and is slower."""
EXAMPLES: Final = """\
examples:
  infernet engine list
  infernet engine test                            what `infernet start` would use
  infernet engine test http://127.0.0.1:11434 --engine-models qwen2.5:7b
  infernet engine test exllamav3 --model ~/models/Qwen3-8B-exl3 --cache q8
  infernet config set --engine openai --engine-models qwen2.5:7b      serve it from then on
  infernet config set --engine llama,openai                            serve the embedded engine's models beside it
  INFERNET_ENGINE_KEY=... infernet engine test https://gpu.example/v1 --json"""

_ACTIONS: Final = ("list", "test")
_OUTPUT_TOKENS: Final = 48
_TIMEOUT_S: Final = 300.0
_NAMES: Final = "llama, exllamav2, exllamav3, openai"
# Whoever has the compiler has the library compiled at its first use, which takes longer: `engine test` waits for that.
_PROBE_TIMEOUT_S: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which engine."""
    parser.add_argument("action", choices=_ACTIONS, help="show what there is, or try one out")
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"of test: {_NAMES}, or the address of a server")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=_TIMEOUT_S,
        help=f"of test: how long loading, after a new file was checked, and each answer may take (default: "
        f"{_TIMEOUT_S:.0f})",
    )
    add_settings(parser, "settings")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    quiet_log()
    config = load_config(arguments).config
    if arguments.action == "test":
        return _test(config, arguments)
    if arguments.name is not None:
        raise Misuse("list takes no name: it shows all engines")
    return _list(config, as_json=arguments.json)


def quiet_log() -> None:
    """Let engines that run within a command say nothing but what they say to people."""
    from infernet import log

    log.configure("debug" if os.environ.get("INFERNET_DEBUG") else "error")


# ---------------------------------------------------------------- list


def _list(config: Config, *, as_json: bool) -> int:
    import trio

    engines = [_embedded(), *trio.run(_exllamas), *trio.run(_servers, config)]
    for engine in engines:
        is_named = engine["engine"] == "llama" or config.engine_url in (None, engine["where"])
        engine["is_set"] = engine["engine"] in config.engines and is_named
    running = running_parts(config)
    if as_json:
        print_json({"engine": config.engine, "engines": engines, "running": running})
        return 0
    from infernet.confinement.contract import describe
    from infernet.confinement.profiles import available

    rows = [
        (engine["engine"], engine["kind"], engine["where"], engine["models"] or "-", engine["why_not"] or "usable")
        for engine in engines
    ]
    print_table(("engine", "is", "where", "models", "state"), rows)
    print(f"\nHere llama's process {describe(available())}.")
    if running:
        print("\nThe running node has:")
        columns = ("engine", "models", "state", "where", "runs_active", "trouble")
        shown = [
            [part.get(column) or (0 if column == "runs_active" else None) for column in columns] for part in running
        ]
        print_table(("engine", "models", "state", "runs on", "runs now", "trouble"), shown)
    print(f"\nSet is --engine {config.engine}. `infernet engine test NAME` tries one out.")
    return 0


def _row(engine: str, kind: str, where: str, models: list[str], why_not: str) -> dict[str, Any]:
    return {"engine": engine, "kind": kind, "where": where, "models": models, "why_not": why_not}


def _embedded() -> dict[str, Any]:
    from importlib import metadata

    from msgspec import to_builtins

    from infernet.confinement.profiles import available
    from infernet.engines.contract import EngineUnavailable
    from infernet.engines.llama_library import import_xllamacpp

    try:
        import_xllamacpp()
    except EngineUnavailable as error:
        return _row("llama", "embedded llama.cpp", "", [], str(error))
    row = _row("llama", "embedded llama.cpp", f"xllamacpp {metadata.version('xllamacpp')}", [], "")
    return row | {"protections": to_builtins(available())}


async def _exllamas() -> list[dict[str, Any]]:
    from infernet.settings.readers import EXLLAMA

    return [await _exllama(name) for name in EXLLAMA]


async def _exllama(name: str) -> dict[str, Any]:
    """Whether ExLlama can be loaded; a process of its own finds out, as a library that does not fit may end it."""
    import importlib.util

    import trio

    from infernet.engines.frames import Probe, Probed
    from infernet.engines.process import open_worker, worker_command

    kind = f"{name} on NVIDIA cards"
    if importlib.util.find_spec(name) is None:
        why = NOT_INSIDE if is_packaged() else "is not installed: docs/engines.md says how to install it"
        return _row(name, kind, "", [], f"{name} {why}")
    try:
        async with open_worker(worker_command()) as worker:
            worker.post(Probe(name))
            with trio.move_on_after(_PROBE_TIMEOUT_S) as looking:
                answer = await worker.receive()
            if looking.cancelled_caught:
                return _row(name, kind, "", [], f"it did not load within {_PROBE_TIMEOUT_S:.0f} s: try `engine test`")
            if not isinstance(answer, Probed):
                return _row(name, kind, "", [], await worker.why_gone())
    except OSError as error:
        return _row(name, kind, "", [], f"no process can be started to look ({reason_of(error)})")
    return _row(name, kind, f"{name} {answer.version}" if answer.version else "", [], answer.problem)


async def _servers(config: Config) -> list[dict[str, Any]]:
    from infernet.engines.openai_servers import USUAL_PORTS, look_around, ollama_elsewhere, usual_urls
    from infernet.engines.selection import openai_config

    named = config.engine_url
    elsewhere = ollama_elsewhere()
    if elsewhere is not None and named is None:
        warn(f"OLLAMA_HOST names another machine, which is not asked unbidden: give --engine-url {elsewhere} to use it")
    usual = dict(zip(usual_urls(), (name for _, name in USUAL_PORTS), strict=True))
    # The key is the named server's, and nobody else's to see.
    server = openai_config(config)
    answers = await look_around([named], server.key, server.proxy) if named is not None else []
    answers += await look_around([url for url in usual if url != named])
    return [_server_row(answer, usual) for answer in answers]


def _server_row(answer: Found | tuple[str, Exception], usual: dict[str, str]) -> dict[str, Any]:
    from infernet.engines.openai_http import ServerGone
    from infernet.engines.openai_servers import public_name

    if isinstance(answer, tuple):
        url, error = answer
        kind = f"{usual[url]} would be" if url in usual else "the server of --engine-url"
        return _row("openai", kind, url, [], "nobody answers" if isinstance(error, ServerGone) else str(error))
    models = [public_name(model.id) for model in answer.models]
    return _row("openai", answer.dialect.value, answer.url, models, "" if models else "it lists no model")


# ---------------------------------------------------------------- test


def _test(config: Config, arguments: argparse.Namespace) -> int:
    import msgspec
    import trio

    from infernet.confinement.contract import describe
    from infernet.engines.models import ModelMissing, without_asking_only
    from infernet.engines.trial import TrialFailed

    config = _named(config, arguments.name)
    if not 0 < arguments.timeout <= 86_400:
        raise Misuse("--timeout must be seconds, from 1 to 86400")
    try:
        trials, protections = trio.run(_try, config, arguments.timeout)
    except ModelMissing as error:
        raise Failure(without_asking_only(error), engine=config.engine) from None
    except TrialFailed as error:
        raise Failure(f"the engine {config.engine} does not work: {error}", engine=config.engine) from None
    if arguments.json:
        print_json(
            {
                "engine": config.engine,
                "answers": msgspec.to_builtins(trials),
                "protections": msgspec.to_builtins(protections),
            }
        )
        return 0
    for trial in trials:
        print(f"{trial.model} answers.")
        print_fields(
            [
                ("said", trial.text),
                ("context", f"{trial.context_tokens} tokens"),
                ("prompt", f"{trial.prompt_tokens} tokens, {trial.prompt_s:.2f} s to the first of the answer"),
                ("answer", f"{trial.output_tokens} tokens"),
                ("speed", f"{trial.tokens_per_s:.1f} tokens/s" if trial.tokens_per_s else "too short to tell"),
            ]
        )
    if protections:
        print(f"Its process {describe(protections)}.")
    return 0


async def _try(config: Config, timeout_s: float) -> tuple[list[Trial], tuple[Protection, ...]]:
    from infernet.engines.selection import open_engine
    from infernet.engines.several import Waits
    from infernet.engines.trial import Patience, question, try_engine

    engine = await open_engine(config, Waits(others_s=timeout_s))
    assert engine is not None, "a provider with an engine has one"
    patience = Patience(timeout_s, timeout_s, "give it more with --timeout")
    trials = await try_engine(engine, lambda _offer: [question()], _OUTPUT_TOKENS, patience, complain)
    return trials, engine.statistics().protections


def _named(config: Config, name: str | None) -> Config:
    """The configuration of a provider with this engine. Raises Misuse."""
    from infernet.settings.readers import read_engine_url
    from protocol.records import Role

    if name is None:
        if config.engine == "none":
            raise Misuse("this node has no engine: name one to test (`infernet engine list` shows what there is)")
        return dataclasses.replace(config, role=Role.PROVIDER)
    if name in _NAMES.split(", "):
        return dataclasses.replace(config, role=Role.PROVIDER, engine=name)
    try:
        url = read_engine_url(name)
    except ValueError:
        raise Misuse(f"NAME is {_NAMES}, or the address of a server, such as http://127.0.0.1:11434") from None
    return dataclasses.replace(config, role=Role.PROVIDER, engine="openai", engine_url=url)
