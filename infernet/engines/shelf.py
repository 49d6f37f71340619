"""The models that lie in the model store: their names, what their files say, and whether they are what they should be.

Beside a file that was fetched lies a note of where it came from and which SHA-256 it must have, and who said so. A
file without one was put there by the owner, and is taken as it is.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from infernet.engines import models
from infernet.engines.gguf import BadGguf, Header, read_header
from infernet.host.files import reason_of
from protocol.constants import MODEL_NAME_CHARACTERS_MAX

_NOTE_BYTES_MAX: Final = 16 * 1024
MODELS_MAX: Final = 1000
_ENDING: Final = ".gguf"


class Voucher(StrEnum):
    """Who said which hash a file must have."""

    PROGRAM = "this program"
    OWNER = "--sha256"
    SERVER = "the server it came from"
    NOBODY = "nobody"


class Origin(Struct, frozen=True):
    """Where a file came from. `sha256` is in hex digits."""

    url: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    vouched_by: Voucher


class Check(StrEnum):
    """What is known of a file's hash."""

    VERIFIED = "verified"
    LEARNED = "as fetched"  # it is what once came, and nobody said what should have come
    UNKNOWN = "unknown"  # nobody says what it should be
    NOT_YET = "not yet"
    DAMAGED = "damaged"


class Model(Struct, frozen=True):
    """One file. `problem` says why its header cannot be read."""

    name: str
    path: Path
    file_bytes: int
    header: Header | None
    problem: str
    check: Check
    origin: Origin | None


def name_of(path: Path) -> str:
    """What the model in a file is called."""
    if path.name == models.STARTER.file_name:
        return models.STARTER.name
    return path.stem[:MODEL_NAME_CHARACTERS_MAX].lower()


def look(path: Path) -> Model:
    """What there is to know of one file without reading all of it. Raises ModelMissing."""
    try:
        if not path.is_file():
            raise models.ModelMissing(f"there is no model file {path}: `infernet model list` shows what there is")
        file_bytes = path.stat().st_size
    except OSError as error:
        raise models.ModelMissing(f"the model file {path} cannot be read: {error.strerror}") from None
    header, problem = None, ""
    try:
        header = read_header(path)
    except BadGguf as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({reason_of(error)})"
    origin = origin_of(path)
    return Model(name_of(path), path, file_bytes, header, problem, _check(path, origin), origin)


def models_in(store: Path) -> list[Model]:
    """All models of a store, by name."""
    found = []
    for path in _files(store)[:MODELS_MAX]:
        try:
            found.append(look(path))
        except models.ModelMissing:
            continue  # it went away, or is a folder
    return sorted(found, key=lambda model: model.name)


def find(store: Path, name: str) -> Path | None:
    """The file of the model of this name, or of this whole name where a model's is cut."""
    name, files = name.lower(), _files(store)
    whole = (path for path in files if path.stem.lower() == name)
    return next(whole, None) or next((path for path in files if name_of(path) == name), None)


def path_of(store: Path, model: str) -> Path:
    """The file that a name in the store, or a path, means; it need not exist. Raises ModelMissing for a name."""
    if model.lower() == models.STARTER.name:
        return models.starter_path(store)
    if "/" in model or model.lower().endswith(_ENDING):
        return Path(model).expanduser()
    path = find(store, model)
    if path is None:
        raise models.ModelMissing(
            f"there is no model {model} here: see `infernet model list`, or get it with `infernet model pull`"
        )
    return path


def _files(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("*") if path.name.lower().endswith(_ENDING))


def origin_of(path: Path) -> Origin | None:
    """Where a file came from, by the note beside it."""
    if path.name == models.STARTER.file_name:
        return Origin(models.STARTER.package, models.STARTER.sha256, Voucher.PROGRAM)
    try:
        with _note(path).open("rb") as file:
            return msgspec.json.decode(file.read(_NOTE_BYTES_MAX), type=Origin)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def write_origin(path: Path, origin: Origin) -> None:
    """Leave a note beside a file. Raises OSError."""
    draft = _note(path).with_suffix(f".{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(origin))
    draft.replace(_note(path))


def remove(path: Path) -> None:
    """Remove a model with all that lies beside it. Raises OSError."""
    path.unlink()
    for beside in (_note(path), models.marker_path(path)):
        beside.unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".origin")


def _check(path: Path, origin: Origin | None) -> Check:
    digest = models.marked(path)
    if origin is None:
        return Check.UNKNOWN
    if digest is None:
        return Check.NOT_YET
    if digest.hex() != origin.sha256:
        return Check.DAMAGED
    return Check.LEARNED if origin.vouched_by is Voucher.NOBODY else Check.VERIFIED
