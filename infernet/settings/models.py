"""What is set for one model alone: a table by the model's name, which wins over what is set for all of them.

In the file it is a table of tables (`[model_settings."qwen2.5-7b"]`), in the environment and in a flag the same as
JSON. What it does not name stays as it is for all models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.constants import HEARTBEAT_MODELS_MAX, MODEL_ALIASES_MAX, MODEL_NAME_CHARACTERS_MAX

MODELS_MAX: Final = HEARTBEAT_MODELS_MAX
_JSON_CHARACTERS_MAX: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is set for the model of this name. None stands for what holds for all models."""

    name: str
    context_tokens: int | None = None
    slots: int | None = None
    threads: int | None = None
    price_in_usd: int | None = None
    price_out_usd: int | None = None
    price_job_usd: int | None = None
    #: By which other names others may ask for it.
    aliases: tuple[str, ...] | None = None


#: What may be set for one model.
FIELDS: Final = tuple(field.name for field in dataclasses.fields(ModelSettings) if field.name != "name")


def table_of(readers: Mapping[str, Callable[[object], Any]]) -> Callable[[object], tuple[ModelSettings, ...]]:
    """A reader of the whole table, out of the readers of its values. It raises ValueError."""

    def read(value: object) -> tuple[ModelSettings, ...]:
        table = _parsed(value) if isinstance(value, str) else value
        if isinstance(table, tuple | list) and all(isinstance(one, ModelSettings) for one in table):
            return tuple(table)
        if not isinstance(table, Mapping) or len(table) > MODELS_MAX:
            raise ValueError(f"must be a table by the names of models, {MODELS_MAX} at most")
        found = tuple(_one(str(name), fields) for name, fields in table.items())
        _refuse_twins([one.name for one in found])
        _refuse_shared_aliases(found)
        return found

    def _one(name: str, fields: object) -> ModelSettings:
        if not 0 < len(name) <= MODEL_NAME_CHARACTERS_MAX or not name.isprintable():
            raise ValueError("must be a table by the names of models, as `infernet model list` shows them")
        if not isinstance(fields, Mapping):
            raise ValueError(f"must hold a table for {name}, such as {{slots = 2}}")  # noqa: TRY004 - one kind of error
        values: dict[str, Any] = {}
        for key, value in fields.items():
            if key not in readers:
                raise ValueError(f"of {name} may hold {', '.join(FIELDS)}")
            try:
                values[key] = readers[key](value)
            except ValueError as error:
                raise ValueError(f"{key} of {name} {error}") from None
        return ModelSettings(name=name, **values)

    assert set(readers) == set(FIELDS), "a setting of one model without a reader, or the other way round"
    return read


def read_aliases(value: object) -> tuple[str, ...]:
    """Other names of one model. Raises ValueError."""
    names = [value] if isinstance(value, str) else value
    allowed = (
        f"must be a list of {MODEL_ALIASES_MAX} names at most, each of 1 to {MODEL_NAME_CHARACTERS_MAX} characters"
    )
    if not isinstance(names, list | tuple) or len(names) > MODEL_ALIASES_MAX:
        raise ValueError(allowed)
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MODEL_NAME_CHARACTERS_MAX:
            raise ValueError(allowed)
        if not name.isprintable() or name != name.strip():
            raise ValueError(f"{allowed}, without control characters or spaces around it")
    return tuple(dict.fromkeys(names))


def _refuse_shared_aliases(table: tuple[ModelSettings, ...]) -> None:
    """Raises ValueError where two models would answer to one name."""
    names = {one.name: one.name for one in table}
    for one in table:
        for alias in one.aliases or ():
            if names.setdefault(alias, one.name) != one.name:
                raise ValueError(f"must not have {alias} as an alias of {one.name}: it is a name of {names[alias]}")


class _Twice(ValueError):
    pass


def _refuse_twins(names: list[str]) -> None:
    """Raises ValueError where something is set twice: one of the two would count, and nobody would know which."""
    # Names of models are the same in capitals and small letters.
    lowered = [name.lower() for name in names]
    if twin := next((name for name, low in zip(names, lowered, strict=True) if lowered.count(low) > 1), None):
        raise _Twice(f"must have {twin} once")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets a name stand twice in a table, unlike TOML.
    _refuse_twins([name for name, _ in pairs][: MODELS_MAX + 1])
    return dict(pairs)


def _parsed(text: str) -> object:
    if len(text) > _JSON_CHARACTERS_MAX:
        raise ValueError("is too long")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except _Twice:
        raise
    except (ValueError, RecursionError):
        raise ValueError('must be JSON, such as {"qwen2.5-7b": {"slots": 2}}') from None


def settings_of(table: tuple[ModelSettings, ...], name: str) -> ModelSettings:
    """What is set for this model alone."""
    return next((one for one in table if one.name.lower() == name.lower()), ModelSettings(name=name))


def as_table(table: tuple[ModelSettings, ...], plain: Callable[[object], Any]) -> dict[str, dict[str, Any]]:
    """The same as TOML and JSON hold it."""
    return {
        one.name: {field: plain(value) for field in FIELDS if (value := getattr(one, field)) is not None}
        for one in table
    }
