"""`infernet start`: run the node, in this terminal or detached from it."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, explain, innermost, self_command, self_environment, warn
from infernet.cli.output import print_fields, print_json
from infernet.cli.running_node import not_serving, parts_in, refuse_second
from infernet.cli.settings_flags import add_settings, as_flags, keep_choices, load_node, settings_given
from infernet.config import Config, why_nobody_pays
from infernet.host.files import make_private_directory
from infernet.host.lock import hold_lock
from protocol.envelope import SigningKey

# A large model from a slow disk; the node itself is up in a second.
START_TIMEOUT_S: Final = 120.0
_END_TIMEOUT_S: Final = 5.0
_MESSAGE_BYTES_MAX: Final = 1024 * 1024

FOREGROUND_VARIABLE: Final = "INFERNET_DAEMON_FOREGROUND"
# What scripts for the earlier Infernet may still give, and why it does nothing here.
_WITHOUT_EFFECT: Final = {
    "--heartbeat-interval": "a coordinator hears of a node every 30 s, and takes it for gone after 60",
    "--poll-interval": "nothing is polled, for jobs come the moment they are there",
}

USAGE: Final = "[--foreground [--log-to-file]] [--once] [SETTINGS] [--json]"
DESCRIPTION: Final = """\
Run the node. Without --foreground it goes on after this command, which returns once the node is up, or says why it is
not. Only one process runs a node. Settings given here hold for this run, and the file stays as it is; but whether
this node advertises itself, and whether it is found by mDNS, is kept there until the opposite is said."""
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
        "--once", action="store_true", help="end it as soon as it is up, and linked to its coordinator if it has one"
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
    refuse_second(config)
    if (unpaid := why_nobody_pays(config)) is not None:
        warn(unpaid)
    if arguments.foreground or arguments.once or _wants_foreground():
        log_file = config.log_file if arguments.log_to_file else None
        _run_here(
            config,
            key,
            lambda status: _tell(config, status, log_file, as_json=arguments.json),
            log_to_file=arguments.log_to_file,
            once=arguments.once,
        )
    else:
        _tell(config, _detach(config, arguments), config.log_file, as_json=arguments.json)
    return 0


def _wants_foreground() -> bool:
    """Whether the environment says so, as containers of the earlier Infernet do. Raises Misuse."""
    word = os.environ.get(FOREGROUND_VARIABLE, "")
    if word.lower() not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
        raise Misuse(f"{FOREGROUND_VARIABLE} must be 1 or 0")
    return word.lower() in ("1", "true", "yes", "on")


def _run_here(config: Config, key: SigningKey, ready: Any, *, log_to_file: bool, once: bool = False) -> None:
    import trio

    from infernet import log
    from infernet.daemon import run_daemon

    with hold_lock(config.pid_file):
        log.configure(config.log_level, file=config.log_file if log_to_file else None)
        trio.run(partial(run_daemon, config, key, ready, once=once))


def _interrupt(_number: int, _frame: object) -> None:
    # Whoever ends this command before the node is up wants no node.
    raise KeyboardInterrupt


def _tell(config: Config, status: dict[str, Any], log_file: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"running": True, "log_file": str(log_file) if log_file is not None else None, **status})
    else:
        print(f"{status['name']} is up ({status['role']}, process {status['pid']}).")
        print_fields(
            [
                ("listening on", status.get("addresses")),
                ("serving", status.get("models")),
                ("not serving", not_serving(parts_in(status))),
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


def _detach(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the node in a process of its own, wait until it is up, and give its status."""
    make_private_directory(config.log_file.parent)
    words = ["start", "--ready-fd", "{}", *as_flags(settings_given(arguments))]
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reports:
        # What is not logged, such as the last words of native code, ends up in the log file too.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        log = os.open(config.log_file, flags, 0o600)
        try:
            words[2] = str(writing)
            process = subprocess.Popen(
                [*self_command(), *words],
                env=self_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
            os.close(log)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            report = _await_report(reports.fileno(), process)
        except KeyboardInterrupt:
            _end(process)
            raise
    if report is None:
        raise Failure(f"the node ended before it was up: see {config.log_file}", log_file=str(config.log_file))
    if "error" in report:
        raise Failure(str(report["error"]), log_file=str(config.log_file))
    # It is not ours to wait for any more.
    process.returncode = 0
    status: dict[str, Any] = report["status"]
    return status


def _await_report(descriptor: int, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """What the detached process reports: its status or its error; None when it ended without a word."""
    deadline = time.monotonic() + START_TIMEOUT_S
    data = b""
    while not data.endswith(b"\n") and len(data) < _MESSAGE_BYTES_MAX:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            _end(process)
            raise Failure(f"the node was not up within {START_TIMEOUT_S:.0f} s and was ended: is the model too large?")
        piece = os.read(descriptor, 65536)
        if not piece:
            return None
        data += piece
    report: dict[str, Any] = json.loads(data)
    return report


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run_detached(arguments: argparse.Namespace) -> int:
    """The other side: run the node and report, once, how that went."""
    reported = False

    def report(message: dict[str, Any]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with os.fdopen(arguments.ready_fd, "wb") as reports:
                reports.write(json.dumps(message).encode() + b"\n")

    try:
        os.set_inheritable(arguments.ready_fd, False)
        config, key = load_node(arguments)
        _run_here(config, key, lambda status: report({"status": status}), log_to_file=True)
    except BaseException as error:
        text = explain(innermost(error))
        if text is not None:
            report({"error": text})
        raise
    return 0
