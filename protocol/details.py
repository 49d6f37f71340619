"""What a provider says of its models beside what it offers: the form of the weights, engine, speed, other names.

It travels in two extensions of the heartbeat (specs/01), which a node that does not know them ignores. Nobody vouches
for any of it. What is not as it must be is nothing said, and nobody's fault: who passed the record on may not have
known these extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeVar

import msgpack
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import Limits, decode_value, encode_value
from protocol.errors import BadFrame, LocalProtocolError
from protocol.records import EngineKind, Heartbeat, ModelAliases, ModelDetails, ModelOffer

EXTENSION_DETAILS: Final = 3
EXTENSION_ALIASES: Final = 5
# As many binary digits of a speed are said: steps of a fifth on average.
_STEP_BITS: Final = 3
# Records come again and again with the same extensions; a directory holds so many of them.
_READ_MAX: Final = c.DIRECTORY_RECORDS_MAX

_LIMITS: Final = Limits(c.EXTENSION_BYTES_MAX, c.EXTENSION_BYTES_MAX, array_items=32, depth=4, values=256)


EntryType = TypeVar("EntryType", ModelDetails, ModelAliases)


class Said(Struct, frozen=True):
    """What is said of one model. Speeds are tokens per second of one stream; 0 and "" where nothing is said."""

    quantisation: str = ""
    engine: EngineKind = EngineKind.UNKNOWN
    prompt_tokens_per_s: int = 0
    tokens_per_s: int = 0
    aliases: tuple[str, ...] = ()


NOTHING_SAID: Final = Said()


def in_steps(tokens_per_s: float) -> int:
    """A measured speed as it is said: coarse, so that it tells no two machines apart."""
    # SPEC 01: and round it down to a step; one below 1 it states as 1.
    whole = max(1, int(min(tokens_per_s, c.STATED_TOKENS_PER_S_MAX)))
    shift = max(0, whole.bit_length() - _STEP_BITS)
    return whole >> shift << shift


# ---------------------------------------------------------------- saying


def extensions_of(models: Sequence[ModelOffer], said: Mapping[str, Said]) -> tuple[tuple[int, bytes], ...]:
    """The extensions of a heartbeat that offers these models. Aliases that do not fit, or are names, are left out.

    Raises LocalProtocolError for what others would ignore.
    """
    # SPEC 01: The sender MUST write the values of extensions 3 and 5 in canonical form, their entries in strictly
    #   ascending order of `model`, and no entry for a model that it does not offer.
    known = [(index, said[offer.name]) for index, offer in enumerate(models) if offer.name in said]
    details = [
        ModelDetails(index, one.quantisation, one.engine, one.prompt_tokens_per_s, one.tokens_per_s)
        for index, one in known
        if (one.quantisation, one.engine, one.prompt_tokens_per_s, one.tokens_per_s) != _NO_DETAILS
    ]
    aliases: list[ModelAliases] = []
    # SPEC 01: The sender MUST NOT write an alias twice, or one that is the name of one of its models, or more than 32
    #   aliases in all.
    taken = {offer.name for offer in models}
    left = c.HEARTBEAT_ALIASES_MAX
    for index, one in known:
        names = tuple(name for name in dict.fromkeys(one.aliases) if name not in taken)
        names = names[: min(left, c.MODEL_ALIASES_MAX)]
        entry = ModelAliases(index, names)
        if not names or len(encode_value((*aliases, entry))) > c.EXTENSION_BYTES_MAX:
            continue
        aliases.append(entry)
        taken.update(names)
        left -= len(names)
    found: list[tuple[int, bytes]] = []
    if details:
        found.append((EXTENSION_DETAILS, encode_value(tuple(details))))
    if aliases:
        found.append((EXTENSION_ALIASES, encode_value(tuple(aliases))))
    if len(aliases) != len(_entries_of(found, EXTENSION_ALIASES, _read_aliases)):
        raise LocalProtocolError("names of models that no other node would read")
    if len(details) != len(_entries_of(found, EXTENSION_DETAILS, _read_details)):
        raise LocalProtocolError("details of models that no other node would read")
    return tuple(found)


_NO_DETAILS: Final = ("", EngineKind.UNKNOWN, 0, 0)


# ---------------------------------------------------------------- hearing


def said_of(heartbeat: Heartbeat, model: str) -> Said:
    """What the node says of its model of this name."""
    return all_said(heartbeat).get(model, NOTHING_SAID)


def all_said(heartbeat: Heartbeat) -> dict[str, Said]:
    """What the node says, by the names of those models of which it says something."""
    found: dict[str, Said] = {}
    for one in _details_in(heartbeat):
        figures = one.prompt_tokens_per_s, one.tokens_per_s
        found[heartbeat.models[one.model].name] = Said(one.quantisation, one.engine, *figures)
    for alias, name in aliases_of(heartbeat).items():
        one_said = found.get(name, NOTHING_SAID)
        found[name] = replace(one_said, aliases=(*one_said.aliases, alias))
    return found


def speeds_of(heartbeat: Heartbeat, offer: ModelOffer) -> tuple[int, int]:
    """How fast the node says that it reads and writes with this model of its own; 0 where it does not say."""
    models = heartbeat.models
    for one in _details_in(heartbeat):
        if models[one.model] is offer:
            return one.prompt_tokens_per_s, one.tokens_per_s
    return 0, 0


def _details_in(heartbeat: Heartbeat) -> tuple[ModelDetails, ...]:
    found = _entries_of(heartbeat.extensions, EXTENSION_DETAILS, _read_details)
    return found if found and found[-1].model < len(heartbeat.models) else ()


def _entries_of(
    extensions: Sequence[tuple[int, bytes]], wanted: int, read: Callable[[bytes], tuple[EntryType, ...]]
) -> tuple[EntryType, ...]:
    """The entries of one extension; nothing where it is missing, or not as it must be."""
    for kind, value in extensions:
        if kind == wanted:
            return read(value)
    return ()


def aliases_of(heartbeat: Heartbeat) -> Mapping[str, str]:
    """The name of the model behind each alias."""
    # Most say nothing; this is asked of every record that comes.
    entries = _entries_of(heartbeat.extensions, EXTENSION_ALIASES, _read_aliases) if heartbeat.extensions else ()
    return _names_behind(heartbeat.models, entries) if entries else _NO_ALIASES


_NO_ALIASES: Final[Mapping[str, str]] = {}


def _names_behind(models: Sequence[ModelOffer], entries: Sequence[ModelAliases]) -> Mapping[str, str]:
    if entries[-1].model >= len(models):
        return _NO_ALIASES
    found = {alias: models[entry.model].name for entry in entries for alias in entry.aliases}
    # SPEC 01: The receiver MUST take a name for the model that has it, and look for an alias only where the node has no
    #   model of that name.
    return _NO_ALIASES if any(offer.name in found for offer in models) else found


@lru_cache(maxsize=_READ_MAX)
def _read_details(value: bytes) -> tuple[ModelDetails, ...]:
    # SPEC 01: The receiver MUST ignore an extension 3 or 5 whose value is not as a sender must write it, all of it, and
    #   MUST NOT refuse the record or blame anybody for that.
    try:
        found = msgspec.convert(_plain(value), type=tuple[ModelDetails, ...])
    except (BadFrame, msgspec.ValidationError):
        return ()
    return found if _ascends([one.model for one in found]) and all(map(_is_sayable, found)) else ()


def _is_sayable(one: ModelDetails) -> bool:
    speeds = (one.prompt_tokens_per_s, one.tokens_per_s)
    is_text = one.quantisation.isascii() and one.quantisation.isprintable()
    return is_text and all(speed == 0 or in_steps(speed) == speed for speed in speeds)


@lru_cache(maxsize=_READ_MAX)
def _read_aliases(value: bytes) -> tuple[ModelAliases, ...]:
    try:
        found = msgspec.convert(_plain(value), type=tuple[ModelAliases, ...])
    except (BadFrame, msgspec.ValidationError):
        return ()
    names = [alias for one in found for alias in one.aliases]
    is_bounded = len(names) == len(set(names)) <= c.HEARTBEAT_ALIASES_MAX
    return found if is_bounded and _ascends([one.model for one in found]) else ()


def _plain(value: bytes) -> Any:
    """The array in an extension. Raises BadFrame where it is none, or not in its one form."""
    plain = decode_value(value, _LIMITS)
    if msgpack.packb(plain, use_bin_type=True) != value:
        raise BadFrame("an extension that is not in canonical form")
    return plain


def _ascends(places: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(places))
