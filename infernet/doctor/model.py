"""Checks of the model's file. It is read whole: the marker beside it only remembers that it was right once."""

from __future__ import annotations

import hashlib
import shlex
import time
from pathlib import Path
from typing import Final

from infernet.config import Config
from infernet.doctor.contract import Check, Finding, Situation, Status, fail, in_thread, ok, skip, warn
from infernet.engines import folders, models, shelf
from infernet.host.files import reason_of
from infernet.settings.readers import EXLLAMA
from protocol.records import Role

HASH_DEADLINE_S: Final = 60.0
_PIECE_BYTES: Final = 4 * 1024 * 1024
_MAGIC: Final = b"GGUF"


def _present(situation: Situation) -> Finding:
    config = situation.config
    if config.engine in EXLLAMA and config.role is Role.PROVIDER:
        return _folder(config)
    if not config.llama_models or config.role is not Role.PROVIDER:
        return skip("this node serves no model of its own")
    paths = []
    for model in config.llama_models:
        is_starter = model.lower() == models.STARTER.name
        path = _path_of(config, model)
        how = "run `infernet model pull`" if is_starter else "correct the path (`infernet config set --model FILE`)"
        try:
            if not path.is_file():
                return fail(f"there is no model at {path}", how)
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            return fail(f"the model {path} cannot be read ({reason_of(error)})", how)
        paths.append(path)
    # The first is what other checks try out.
    situation.model_file = paths[0]
    if len(paths) > 1:
        return ok(f"all {len(paths)} models are there, the first at {paths[0]}")
    return ok(f"the model is at {paths[0]}")


def _path_of(config: Config, model: str) -> Path:
    try:
        return shelf.path_of(config.models_dir, model)
    except models.ModelMissing:
        return Path(model).expanduser()


def _folder(config: Config) -> Finding:
    """The folder that ExLlama would load; its weights are hashed when it does."""
    try:
        path = folders.folder_of(config.models_dir, config.model)
        folders.read_folder(path)
    except models.ModelError as error:
        return fail(str(error), "correct the path (`infernet config set --model FOLDER`), or fetch the model again")
    return skip(f"{path} has all its parts; whether {config.engine} loads it is for `infernet engine test` to say")


def _verified(situation: Situation) -> Finding:
    config = situation.config
    # One deadline for all of them.
    deadline_s = time.monotonic() + HASH_DEADLINE_S
    found = [_verified_one(_path_of(config, model), deadline_s) for model in config.llama_models]
    for status in (Status.FAIL, Status.WARN):
        wrong = [finding for finding in found if finding.status is status]
        if wrong:
            return wrong[0]
    if len(found) == 1:
        return found[0]
    return ok(f"all {len(found)} models are what they should be, as far as that was said")


def _verified_one(path: Path, deadline_s: float) -> Finding:
    is_starter = path.name == models.STARTER.file_name
    expected = bytes.fromhex(models.STARTER.sha256) if is_starter else models.marked(path)
    quoted = shlex.quote(str(path))
    again = f"run `rm {quoted}`, then `infernet model pull`" if is_starter else "fetch the file again"
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return fail(f"{path} is no GGUF model", again)
    if expected is None:
        return ok("nobody has said what the file must be; it looks like a model")
    digest = _digest(path, deadline_s)
    if digest is None:
        return warn(
            f"{path} is too large to be read within {HASH_DEADLINE_S:.0f} s",
            f"compare it with its source yourself: `sha256sum {quoted}`",
        )
    if digest != expected:
        return fail(f"{path} is corrupt (its sha256 differs)", again)
    return ok(f"{path} is what it should be (sha256 {digest.hex()[:16]}...)")


def _digest(path: Path, deadline_s: float) -> bytes | None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            if time.monotonic() > deadline_s:
                return None
    return digest.digest()


CHECKS: Final = (
    Check(
        id="model.present",
        title="Model is there",
        looks="Whether the file of the model that this node is to serve can be read.",
        remedy="`infernet model pull` fetches the starter model; another one is named with `infernet config set "
        "--model FILE`.",
        examine=in_thread(_present),
        needs=("config.readable",),
    ),
    Check(
        id="model.verified",
        title="Model is whole",
        looks="Reads the whole file and compares its hash: with the known one of the starter model, or with what it "
        "was when it was first served. A damaged model often loads, and answers nonsense.",
        remedy="Delete the file and fetch it again.",
        examine=in_thread(_verified),
        needs=("model.present",),
        deadline_s=HASH_DEADLINE_S + 5.0,
    ),
)
