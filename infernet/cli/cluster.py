"""`infernet cluster`: a model on several machines of one owner."""

from __future__ import annotations

import argparse
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.output import duration, print_fields, print_json, print_table, size
from infernet.cli.settings_flags import warn_if_running
from infernet.config import Config, LoadedConfig, changing, load
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from infernet.settings.readers import read_node, read_worker
from infernet.settings.table import BY_NAME
from protocol.ids import NodeId, npub
from protocol.records import Role

_ACTIONS: Final = ("status", "join", "leave", "serve", "add", "remove")
_STATUS_TIMEOUT_S: Final = 5.0

USAGE: Final = "[status | join KEY | leave | serve MODEL --workers KEYS | add KEY | remove KEY] [MORE] [--json]"
DESCRIPTION: Final = """\
A model that is too large for one machine, on several of yours. One of them is the head: it has the model's file, runs
llama-server, and offers the model as any node does. The others are workers: they lend their GPUs and memory to that one
head. llama.cpp's own RPC goes between them through encrypted connections of nodes, and is reached from loopback only.

status        what part this node has in a cluster, from now or from the next start on, which llama.cpp is here, and who
              is missing (the default)
join KEY      on a worker: let the node with this public key use this machine. It can do here what it likes: only
              machines of your own, and not one on which others have accounts
leave         on a worker: lend this machine to nobody; what ends `serve` on a head, it says
serve MODEL   on the head: serve this model on the workers from the next start on; refused where that cannot be, because
              llama.cpp is not here with RPC, unless --force is given
add KEY       on the head: one worker more; a multiaddr that ends in /p2p/... says where it is, too
remove KEY    on the head: one worker less

Every machine needs the same build of llama.cpp with RPC: llama-server, and ggml-rpc-server beside it. The one that this
node embeds has none (docs/engines.md says how to get it)."""
EXAMPLES: Final = """\
examples:
  infernet cluster join npub1...                             on each worker, with the head's key (`infernet status`)
  infernet cluster serve qwen2.5-72b --workers npub1...,npub1... --split 3,1
  infernet cluster serve ~/models/big.gguf --workers /ip4/192.168.1.20/tcp/46337/p2p/16Uiu2HA...
  infernet cluster join npub1... --llama-server ~/llama.cpp/build/bin/llama-server
  infernet cluster --json | jq '.head.workers[] | select(.attached | not)'

It needs a local network: each token takes two round trips for each worker. A node that is running goes on as it is
until it is started anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with whom."""
    parser.add_argument("action", nargs="?", choices=_ACTIONS, default="status", help="default: status")
    parser.add_argument("what", metavar="KEY|MODEL", nargs="?", help="a public key, or of serve: the model")
    parser.add_argument("--workers", metavar="KEYS", help=f"of serve: {BY_NAME['cluster_workers'].help}")
    parser.add_argument("--split", metavar="SHARES", help=f"of serve: {BY_NAME['cluster_split'].help}")
    parser.add_argument("--force", action="store_true", help="of serve: although no llama-server with RPC is here yet")
    parser.add_argument("--llama-server", metavar="PATH", help=BY_NAME["llama_server"].help)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    _check(arguments)
    loaded = load()
    for warning in loaded.warnings:
        warn(warning)
    if arguments.action == "status":
        return _status(loaded.config, as_json=arguments.json)
    config, is_changed = _change(arguments, loaded.config)
    _tell(config, arguments.action, as_json=arguments.json)
    if config.engine == "cluster" and not config.cluster_workers:
        warn(
            "--engine cluster is set without workers, so no node starts: `infernet cluster add KEY`, or `infernet "
            "model use MODEL` for one that this machine serves alone"
        )
    if is_changed:
        warn_if_running(config)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises Misuse for words that do not go together."""
    action, what = arguments.action, arguments.what
    if action in ("status", "leave") and what is not None:
        raise Misuse(f"{action} takes nothing: `infernet cluster {action}`")
    if action in ("join", "add", "remove") and what is None:
        whose = "the head's" if action == "join" else "the worker's"
        raise Misuse(f"which one? `infernet cluster {action} KEY`, with {whose} public key")
    if action == "serve" and what is None:
        raise Misuse("which model? `infernet cluster serve MODEL --workers KEY,KEY` (`infernet model list` shows them)")
    if action != "serve" and (arguments.workers is not None or arguments.split is not None):
        raise Misuse("--workers and --split go with `infernet cluster serve MODEL`")
    if action != "serve" and arguments.force:
        raise Misuse("--force goes with `infernet cluster serve MODEL`")
    if action in ("status", "leave") and arguments.llama_server is not None:
        raise Misuse("--llama-server goes with join, serve, add or remove")


def _read(name: str, word: str) -> Any:
    try:
        return BY_NAME[name].read(word)
    except ValueError as error:
        flag = {"cluster_workers": "--workers", "cluster_split": "--split"}.get(name, BY_NAME[name].flag)
        raise Misuse(f"{flag} {error}") from None


# ---------------------------------------------------------------- changes


def _change(arguments: argparse.Namespace, config: Config) -> tuple[Config, bool]:
    """Write what follows from the words and from what is set, in one turn; gives what is set then, and whether anything
    was written.
    """
    if not config.config_file.exists():
        raise Failure("this node has no configuration yet: run `infernet init` first")
    llama_server = _read("llama_server", arguments.llama_server) if arguments.llama_server is not None else None
    trouble = None
    if arguments.action == "serve":
        # Before the turn: programs are asked, which takes its time.
        trouble = _why_not_served(llama_server or config.llama_server)
    # Two commands at once may each add a worker.
    with changing(config.config_file) as write:
        changes = _CHANGES[arguments.action](arguments, load())
        if trouble is not None and not arguments.force:
            raise Failure(f"no cluster is served here yet: {trouble}; --force writes it down all the same")
        if llama_server is not None:
            changes["llama_server"] = llama_server
        if changes:
            write(changes, keep=True)
    after = load()
    for name in changes:
        if after.origins[name] == "environment":
            warn(f"{BY_NAME[name].variable} is set, and holds where it is, whatever the file says")
    if trouble is not None:
        warn(f"no node starts with this yet: {trouble}")
    return after.config, bool(changes)


def _why_not_served(llama_server: str | None) -> str | None:
    """What a head lacks of llama.cpp; None where nothing."""
    from infernet.cluster import binaries

    try:
        server = binaries.find(llama_server).server
        binaries.read_build(server)
        binaries.check_rpc(server)
    except binaries.BinaryMissing as error:
        return str(error)
    return None


def _join(arguments: argparse.Namespace, loaded: LoadedConfig) -> dict[str, Any]:
    try:
        head = read_node(arguments.what)
    except ValueError as error:
        raise Misuse(f"KEY {error}") from None
    if head == _own_key(loaded.config):
        raise Misuse("that is this node's own key: give the key of the head, which `infernet status` shows there")
    return {"cluster_head": head}


def _leave(_arguments: argparse.Namespace, loaded: LoadedConfig) -> dict[str, Any]:
    return {"cluster_head": None} if loaded.config.cluster_head is not None else {}


def _serve(arguments: argparse.Namespace, loaded: LoadedConfig) -> dict[str, Any]:
    from infernet.engines import shelf
    from infernet.engines.models import ModelMissing

    config = loaded.config
    workers = _read("cluster_workers", arguments.workers) if arguments.workers is not None else config.cluster_workers
    if not workers:
        raise Misuse("on which machines? --workers KEY,KEY, with the public keys that `infernet status` shows there")
    shares = _read("cluster_split", arguments.split) if arguments.split is not None else None
    _check_workers(workers, shares if shares is not None else config.cluster_split, config)
    if config.role is not Role.PROVIDER:
        role = config.role.name.lower()
        raise Failure(f"this node is no provider (its role is {role}): `infernet config set --role provider`")
    if not config.p2p_enabled:
        raise Failure("workers are reached as peers, and peers are off: `infernet config set --p2p`")
    try:
        path = shelf.path_of(config.models_dir, arguments.what).absolute()
    except ModelMissing as error:
        raise Failure(str(error)) from None
    if not path.is_file():
        raise Failure(f"there is no model file {path}: get it with `infernet model pull`, or give the path of one")
    is_path = "/" in arguments.what or arguments.what.endswith(".gguf")
    changes = {
        "engine": "cluster",
        "model": str(path) if is_path else arguments.what,
        "cluster_workers": workers,
    }
    return changes | ({"cluster_split": shares or None} if shares is not None else {})


def _add(arguments: argparse.Namespace, loaded: LoadedConfig) -> dict[str, Any]:
    new = _worker(arguments.what)
    others = [worker for worker in loaded.config.cluster_workers if _key_of(worker) != _key_of(new)]
    workers = (*others, new)
    if _key_of(new) == _own_key(loaded.config):
        raise Misuse("that is this node's own key: the head computes with its own GPUs in any case")
    if loaded.config.cluster_split and len(loaded.config.cluster_split) < len(workers):
        raise Failure("--split has no share for one more: `infernet cluster serve MODEL --workers ... --split ...`")
    return {"cluster_workers": workers}


def _remove(arguments: argparse.Namespace, loaded: LoadedConfig) -> dict[str, Any]:
    gone = _key_of(_worker(arguments.what))
    workers = tuple(worker for worker in loaded.config.cluster_workers if _key_of(worker) != gone)
    if len(workers) == len(loaded.config.cluster_workers):
        raise Failure("that is no worker of this node: `infernet cluster` shows those that are")
    if loaded.config.cluster_split:
        warn("--split is forgotten with it: memory decides, until `infernet cluster serve ... --split` says otherwise")
    return {"cluster_workers": workers or None, "cluster_split": None}


_CHANGES: Final = {"join": _join, "leave": _leave, "serve": _serve, "add": _add, "remove": _remove}


def _worker(word: str) -> str:
    try:
        return read_worker(word)
    except ValueError as error:
        raise Misuse(f"KEY {error}") from None


def _key_of(worker: str) -> NodeId:
    from infernet.cluster.workers import worker_of

    return worker_of(worker)


def _check_workers(workers: tuple[str, ...], shares: tuple[int, ...], config: Config) -> None:
    keys = list(map(_key_of, workers))
    if len(set(keys)) < len(keys):
        raise Misuse("--workers names one of them twice")
    if _own_key(config) in keys:
        raise Misuse("--workers names this node itself: the head computes with its own GPUs in any case")
    if shares and len(shares) < len(keys):
        raise Misuse(f"--split has {len(shares)} shares for {len(keys)} workers: give one for each")


def _own_key(config: Config) -> NodeId | None:
    from infernet import identity

    return identity.load(config.key_file).node if config.key_file.exists() else None


# ---------------------------------------------------------------- showing it


def _tell(config: Config, action: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_settings(config))
        return
    if action == "join":
        print(f"This machine is lent to {npub(config.cluster_head)} and to nobody else." if config.cluster_head else "")
        print("On the head: `infernet cluster serve MODEL --workers` and the key that `infernet status` shows here.")
    elif action == "leave":
        print("This machine is lent to nobody.")
        if config.engine == "cluster" and config.cluster_workers:
            print(
                f"It serves {config.model} on {_workers(config)} still: `infernet model use MODEL` has it serve one "
                "alone, `infernet config set --engine none` none."
            )
    elif not config.cluster_workers:
        print("This cluster has no workers left.")
    elif config.engine == "cluster":
        print(f"{config.model} is spread over {_workers(config)}:")
        print_fields([("worker", config.cluster_workers), ("split", ",".join(map(str, config.cluster_split)))])
    else:
        print(f"There {'is' if len(config.cluster_workers) == 1 else 'are'} {_workers(config)}:")
        print_fields([("worker", config.cluster_workers)])
        print("Nothing is served on them yet: `infernet cluster serve MODEL`.")


def _workers(config: Config) -> str:
    count = len(config.cluster_workers)
    return f"{count} {'worker' if count == 1 else 'workers'}"


def _settings(config: Config) -> dict[str, Any]:
    return {
        "engine": config.engine,
        "model": config.model if config.engine == "cluster" else None,
        "workers": list(config.cluster_workers),
        "split": list(config.cluster_split),
        "lent_to": npub(config.cluster_head) if config.cluster_head is not None else None,
    }


def _binaries(config: Config) -> dict[str, Any]:
    """What of llama.cpp is here, or why it is of no use."""
    from infernet.cluster import binaries

    found: dict[str, Any] = {"llama_server": None, "rpc_server": None, "build": None, "problem": ""}
    try:
        programs = binaries.find(config.llama_server)
        found["llama_server"] = str(programs.server)
        found["build"] = str(binaries.read_build(programs.server))
        found["rpc_server"] = str(programs.rpc_server) if programs.rpc_server is not None else None
        if config.cluster_head is not None:
            programs.rpc  # noqa: B018 - says what to do when it is missing
    except binaries.BinaryMissing as error:
        found["problem"] = str(error)
    return found


def _status(config: Config, *, as_json: bool) -> int:
    programs, running = _binaries(config), _of_the_node(config)
    later = _from_next_start(config, running) if running is not None else []
    if as_json:
        told = {"programs": programs, "running": running is not None, "from_next_start": later, **(running or {})}
        print_json({**_settings(config), **told})
        return 0
    print_fields(
        [
            ("llama.cpp", programs["build"]),
            ("llama-server", programs["llama_server"]),
            ("ggml-rpc-server", programs["rpc_server"]),
            ("problem", programs["problem"]),
        ]
    )
    has_part = config.cluster_head is not None or config.engine == "cluster"
    if not has_part and not later:
        print("This node has no part in a cluster: `infernet cluster --help` says how to begin.")
        return 0
    if running is None:
        print("No node is running here: `infernet start`. It will have what is set:")
        print_fields(_set(config, []))
        return 0
    if running.get("worker"):
        _show_worker(running["worker"])
    if running.get("head"):
        _show_head(running["head"])
    if later:
        print("Set, and not so in the running node yet (`infernet stop`, then `infernet start`):")
        print_fields(_set(config, later))
    return 0


def _set(config: Config, later: list[str]) -> list[tuple[str, object]]:
    """What the settings say of a cluster, and of each whether it holds from the next start on."""
    is_head = config.engine == "cluster"
    values: dict[str, list[str]] = {
        "model": [config.model] if is_head else ["none on a cluster"],
        "workers": list(config.cluster_workers) if is_head else [],
        "split": [",".join(map(str, config.cluster_split)) or "by memory"] if is_head else [],
        "lent_to": [npub(config.cluster_head) if config.cluster_head is not None else "nobody"],
    }
    shown = later or [name for name in values if is_head or name == "lent_to"]
    marks = {name: ", from the next start on" if name in later else "" for name in shown}
    return [(name.replace("_", " "), [f"{value}{marks[name]}" for value in values[name]]) for name in shown]


def _from_next_start(config: Config, running: dict[str, Any]) -> list[str]:
    """Which of the settings of a cluster the running node does not have."""
    is_head, head, worker = config.engine == "cluster", running.get("head"), running.get("worker")
    later = []
    if _model_name(config) != (head or {}).get("model"):
        later.append("model")
    if is_head:
        keys = sorted(_key_of(each).hex() for each in config.cluster_workers)
        if keys != sorted(str(each.get("node_id")) for each in (head or {}).get("workers", ())):
            later.append("workers")
        if list(config.cluster_split) != (head or {}).get("split", []):
            later.append("split")
    if (worker or {}).get("head") != _settings(config)["lent_to"]:
        later.append("lent_to")
    return later


def _model_name(config: Config) -> str | None:
    """How a node calls the model that it is to serve on a cluster; None where there is none."""
    from infernet.engines import shelf
    from infernet.engines.models import ModelMissing

    if config.engine != "cluster":
        return None
    try:
        return shelf.name_of(shelf.path_of(config.models_dir, config.model))
    except ModelMissing:
        return config.model


def _of_the_node(config: Config) -> dict[str, Any] | None:
    """What the running node says of its cluster; None without a running node. Raises IpcError."""
    if running_pid(config.pid_file) is None:
        return None
    try:
        status = ipc.call(config.socket_path, "status", timeout_s=_STATUS_TIMEOUT_S)
    except ipc.NotRunning:
        return None
    cluster = status.get("cluster")
    return cluster if isinstance(cluster, dict) else {"worker": None, "head": None}


def _show_worker(worker: dict[str, Any]) -> None:
    state = f"it has been here for {duration(worker['since_s'])}" if worker["attached"] else "it is not here"
    print(f"This machine is lent to {worker['head']}; {state}.")
    print_fields(
        [
            ("offers", [_device(device) for device in worker["devices"]]),
            ("carried", size(worker["carried_bytes"])),
            ("strangers", f"{worker['strangers_refused']} refused" if worker["strangers_refused"] else ""),
            ("problem", worker["problem"]),
        ]
    )


def _show_head(head: dict[str, Any]) -> None:
    state = "is served" if head["serving"] else "is not served"
    count = len(head["workers"])
    print(f"{head['model']} {state} on {count} {'machine' if count == 1 else 'machines'} beside this one.")
    print_fields([("last stop", head["last_error"]), ("restarts", head["restarts"] or "")])
    rows = [
        (
            worker["npub"],
            "there" if worker["attached"] else "missing",
            size(sum(device["free_bytes"] for device in worker["devices"])) if worker["attached"] else "-",
            size(worker["carried_bytes"]),
            worker["problem"] or "-",
        )
        for worker in head["workers"]
    ]
    print_table(("worker", "is", "free", "carried", "problem"), rows)


def _device(device: dict[str, Any]) -> str:
    return f"{device['name']}: {size(device['free_bytes'])} of {size(device['total_bytes'])} free"
