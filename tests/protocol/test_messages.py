"""protocol/messages.py against specs/01: types, fields and their order are one list in two places."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import messages as wire
from protocol import records as m
from protocol.messages import MESSAGES_OF_PROTOCOL, Message
from protocol.money_records import ComplaintKind
from protocol.records import Record, WireEnum
from tests.helpers_messages import MESSAGES, PARTS_OF_RECORDS, RECORDS, SEALED, field_names, type_names

WIRE = Path(__file__).parents[2] / "specs" / "01-wire.md"
ENUMERATIONS = [
    *(m.Role, m.Availability, m.Kind, m.FreePolicy, m.GpuVendor, m.VramTier, m.EngineKind, m.Outcome, m.Reachability),
    ComplaintKind,
]


def section(title: str) -> str:
    """The text below a heading of specs/01 up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", WIRE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"specs/01 has no section {title!r}"
    return found[1]


def fields_in(title: str) -> list[tuple[str, str]]:
    """Name and type of each field in the table of a section."""
    return re.findall(r"^\| \d+ \| `(\w+)` \| ([^|]+?) \|", section(title), re.MULTILINE)


def title_of(cls: type[msgspec.Struct]) -> str:
    tag = cls.__struct_config__.tag
    return f"{cls.__name__} ({tag})" if isinstance(tag, int) else cls.__name__


@pytest.mark.parametrize("cls", [m.Signed, *MESSAGES, *RECORDS, *PARTS_OF_RECORDS, *SEALED, m.ChatMessage])
def test_the_specification_lists_the_fields_of_every_struct_in_order(cls: type[msgspec.Struct]) -> None:
    assert fields_in(title_of(cls)) == list(zip(field_names(cls), type_names(cls), strict=True))


def test_the_registry_of_messages_is_complete() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \| (odd|even) \|", section("Message registry"), re.MULTILINE)
    expected: dict[int, tuple[str, set[str]]] = {}
    for protocol, classes in MESSAGES_OF_PROTOCOL.items():
        for cls in classes:
            name, where = expected.setdefault(_tag(cls), (cls.__name__, set()))
            assert name == cls.__name__
            where.add("any" if cls is wire.Fault else protocol.split("/")[2])
    assert {int(tag): (name, {where}) for tag, name, where, _ in rows} == expected
    assert all((int(tag) % 2 == 1) == (parity == "odd") for tag, _, _, parity in rows)


def test_no_type_is_used_twice_and_reserved_ones_are_free() -> None:
    tags = [_tag(cls) for cls in MESSAGES]
    assert len(tags) == len(set(tags))
    reserved = {int(tag) for tag in re.findall(r"^\| (\d+) \| \*", section("Message registry"), re.MULTILINE)}
    assert reserved
    assert not reserved & set(tags)


def _tag(cls: type[Message]) -> int:
    tag = cls.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


@pytest.mark.parametrize("enumeration", ENUMERATIONS)
def test_the_specification_lists_the_values_of_every_enumeration(enumeration: type[IntEnum]) -> None:
    rows = re.findall(r"^\| (\d+) \| `([A-Z0-9_]+)` \|", section(enumeration.__name__), re.MULTILINE)
    assert {name: int(value) for value, name in rows} == {each.name: each.value for each in enumeration}


@pytest.mark.parametrize("enumeration", ENUMERATIONS)
def test_enumerations_can_grow(enumeration: type[IntEnum]) -> None:
    assert issubclass(enumeration, WireEnum)
    assert enumeration(255).value == 0
    assert enumeration(0).name == "UNKNOWN"
    for wrong in (-1, 256):
        with pytest.raises(ValueError):
            enumeration(wrong)


def test_every_enumeration_is_tested_here() -> None:
    assert set(ENUMERATIONS) == set(WireEnum.__subclasses__())


@pytest.mark.parametrize("cls", RECORDS)
def test_every_record_has_a_tag_a_signer_and_room_to_grow(cls: type[Record]) -> None:
    assert re.fullmatch(r"infernet/[a-z-]+/1", cls.TAG)
    names = field_names(cls)
    assert cls.SIGNER in names
    assert names[0] == "version"
    assert names[-1] == "extensions"
    assert f"`{cls.TAG}`" in section(cls.__name__)


def test_tags_are_distinct() -> None:
    def below(cls: type[Record]) -> list[type[Record]]:
        return [each for child in cls.__subclasses__() for each in (child, *below(child))]

    tags = [cls.TAG for cls in below(Record)]
    assert len(tags) == len(set(tags))


def test_orders_of_all_versions_name_job_and_attempt_in_the_same_place() -> None:
    assert field_names(m.JobOpenRecord)[:3] == ("version", "job", "attempt")


def test_what_is_free_costs_nothing_at_all() -> None:
    def offer(**prices: Any) -> m.ModelOffer:
        return m.ModelOffer(
            "m", bytes(32), (m.Kind.CHAT,), 1, 1, **{f"price_{n}_uusd": 0 for n in ("in", "out", "job")} | prices
        )

    assert offer().is_free
    assert not any(offer(**{f"price_{name}_uusd": 1}).is_free for name in ("in", "out", "job"))
