"""`infernet start`: run the node, in this terminal or detached from it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, explain, innermost, warn
from infernet.cli.detached import Reports, detach
from infernet.cli.output import print_fields, print_json
from infernet.cli.running_node import not_serving, parts_in, refuse_second
from infernet.cli.settings_flags import (
    add_settings,
    as_flags,
    keep_choices,
    load_node,
    settings_given,
    warn_if_undialled,
)
from infernet.config import Config, why_nobody_pays
from infernet.host.lock import hold_lock
from protocol.envelope import SigningKey

FOREGROUND_VARIABLE: Final = "INFERNET_DAEMON_FOREGROUND"
# What scripts for the earlier Infernet may still give, and why it does nothing here.
_WITHOUT_EFFECT: Final = {
    "--heartbeat-interval": "a coordinator hears of a node every 30 s, and takes it for gone after 60",
    "--poll-interval": "nothing is polled, for jobs come the moment they are there",
}

USAGE: Final = "[--foreground [--log-to-file]] [--once] [SETTINGS] [--json]"
DESCRIPTION: Final = """\
Run the node. Without --foreground it goes on after this command, which returns once the node is up and has loaded its
model, or says why it is not. A model may take as long as it needs, and only an engine process that neither computes nor
reads for ten minutes is started again: what is loaded is shown meanwhile, here and by `infernet status`, and Ctrl-C
leaves the node to go on by itself. Only one process runs a node. Settings given here hold for this run, and the file
stays as it is; but whether this node advertises itself, and whether it is found by mDNS, is kept there until the
opposite is said."""
EXAMPLES: Final = """\
examples:
  infernet start
  infernet start --foreground              for containers, and looking at the log; `infernet service` is for systemd
  infernet start --p2p-port 46400 --model ~/models/qwen.gguf --free-for all
  infernet start --models smollm2-135m-instruct,qwen2.5-7b --engine llama,openai     several at once
  infernet start --no-advertise            open no port: peers are dialled, and the coordinator's link carries jobs
  infernet start --once                    see whether it comes up and reaches its coordinator, and end it
  infernet start --p2p-port 6000 --bind-port 46337     where a router leads its port 6000 to this machine's 46337
  infernet start --no-mdns                 neither look for nodes on the local network nor be found there"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to run, and the settings."""
    parser.add_argument("--foreground", action="store_true", help="stay in this terminal; the log goes to stderr")
    parser.add_argument("--log-to-file", action="store_true", help="with --foreground: the log goes to its file")
    parser.add_argument(
        "--once",
        action="store_true",
        help="end it as soon as it is up, and linked to its coordinator if it has one, "
        "and say how it was; its log goes to its file, unless --foreground is given",
    )
    for flag, why in _WITHOUT_EFFECT.items():
        parser.add_argument(flag, metavar="MS", type=_milliseconds, help=f"has no effect: {why}")
    # How the detached process is told where to report; nothing that people give.
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    add_settings(parser, "settings for this run")


def _milliseconds(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 10:
        raise argparse.ArgumentTypeError("an interval is a whole number of milliseconds")
    return int(word)


def run(arguments: argparse.Namespace) -> int:
    """Start it."""
    if arguments.ready_fd is not None:
        return _run_detached(arguments)
    if arguments.log_to_file and not arguments.foreground:
        raise Misuse("--log-to-file goes with --foreground: a node that is detached logs to its file anyhow")
    for flag, why in _WITHOUT_EFFECT.items():
        if getattr(arguments, flag.removeprefix("--").replace("-", "_")) is not None:
            warn(f"{flag} has no effect: {why}")
    config, key = load_node(arguments)
    keep_choices(config, arguments)
    warn_if_undialled(config)
    refuse_second(config)
    if (unpaid := why_nobody_pays(config)) is not None:
        warn(unpaid)
    stays = arguments.foreground or _wants_foreground()
    if stays or arguments.once:
        # Whoever does not ask for the foreground wants to read how it went, and no log.
        log_to_file = arguments.log_to_file or not stays
        log_file = config.log_file if log_to_file else None
        tell = partial(_tell, config, log_file=log_file, as_json=arguments.json, has_ended=arguments.once)
        reports: list[dict[str, Any]] = []
        ready = reports.append if arguments.once else tell
        _run_here(config, key, ready, log_to_file=log_to_file, once=arguments.once)
        if arguments.once and not reports:
            raise Failure("the node was stopped before it was up")
        for status in reports:
            tell(status)
    else:
        words = as_flags(settings_given(arguments))
        _tell(config, detach(config, words, quiet=arguments.json), config.log_file, as_json=arguments.json)
    return 0


def _wants_foreground() -> bool:
    """Whether the environment says so, as containers of the earlier Infernet do. Raises Misuse."""
    word = os.environ.get(FOREGROUND_VARIABLE, "")
    if word.lower() not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
        raise Misuse(f"{FOREGROUND_VARIABLE} must be 1 or 0")
    return word.lower() in ("1", "true", "yes", "on")


def _run_here(
    config: Config,
    key: SigningKey,
    ready: Callable[[dict[str, Any]], None],
    *,
    log_to_file: bool,
    once: bool = False,
    loading: Callable[[], None] = lambda: None,
) -> None:
    import trio

    from infernet import log
    from infernet.daemon import run_daemon

    with hold_lock(config.pid_file):
        log.configure(config.log_level, file=config.log_file if log_to_file else None, form=config.log_format)
        trio.run(partial(run_daemon, config, key, ready, once=once, loading=loading))


def _tell(
    config: Config, status: dict[str, Any], log_file: Path | None, *, as_json: bool, has_ended: bool = False
) -> None:
    """How it is, or was, when it is up."""
    if as_json:
        print_json({"running": True, "log_file": str(log_file) if log_file is not None else None, **status})
    else:
        how = "came up, and was ended" if has_ended else "is up"
        print(f"{status['name']} {how} ({status['role']}, process {status['pid']}).")
        print_fields(
            [
                ("listened on" if has_ended else "listening on", status.get("addresses")),
                ("served" if has_ended else "serving", status.get("models")),
                ("not served" if has_ended else "not serving", not_serving(parts_in(status))),
                ("hours", (status.get("hours") or {}).get("words")),
                ("coordinator", config.coordinator_url),
                ("log", log_file),
            ]
        )
    if nobodys := set_for_nobody(config, status):
        # A misspelt name must not let a model go for another price without a word.
        warn(f"model_settings name what is not served here: {', '.join(nobodys)}")
    sys.stdout.flush()


def set_for_nobody(config: Config, status: dict[str, Any]) -> list[str]:
    """The models with settings of their own that this node neither serves nor is going to."""
    models = [
        *(status.get("models") or ()),
        *(model for part in parts_in(status) for model in part.get("models") or ()),
    ]
    # A cluster serves only once its workers are there.
    head = (status.get("cluster") or {}).get("head") or {}
    names = {str(model).lower() for model in (*models, head.get("model"))}
    return [own.name for own in config.model_settings if own.name.lower() not in names]


# ---------------------------------------------------------------- detached


def _run_detached(arguments: argparse.Namespace) -> int:
    """The other side of `detach`: run the node and report how that went."""
    reports = Reports(arguments.ready_fd)
    try:
        config, key = load_node(arguments)
        _run_here(
            config,
            key,
            lambda status: reports.send({"status": status}),
            log_to_file=True,
            loading=lambda: reports.send({"loading": True}, is_last=False),
        )
    except BaseException as error:
        text = explain(innermost(error))
        if text is not None:
            reports.send({"error": text})
        raise
    # Nobody hears this of a node that was up.
    reports.send({"error": "the node was stopped before its engine had loaded"})
    return 0
