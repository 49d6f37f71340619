"""Hypothesis strategies for every message and record, read off the struct types themselves.

A field that is added to a struct is generated here without anybody remembering to; its limits come from its `Meta`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

from protocol.messages import AnyMessage, Message
from protocol.money_records import (
    ClaimAckRecord,
    ClaimRecord,
    CloseRecord,
    ComplaintRecord,
    LeaseRecord,
    LeaseRequestRecord,
    LedgerHeadRecord,
    VoucherRecord,
)
from protocol.records import (
    ChunkBody,
    Gpu,
    Heartbeat,
    JobAcceptRecord,
    JobOpenRecord,
    JobRequest,
    ModelAliases,
    ModelDetails,
    ModelOffer,
    ReceiptRecord,
    Record,
    ReportEntry,
    ReportRecord,
    ReservationRecord,
    Sampling,
    SealedPrompt,
)

MESSAGES: tuple[type[Message], ...] = get_args(AnyMessage)
RECORDS: tuple[type[Record], ...] = (
    Heartbeat,
    JobOpenRecord,
    JobAcceptRecord,
    ReceiptRecord,
    ReservationRecord,
    ReportRecord,
    LeaseRequestRecord,
    LeaseRecord,
    VoucherRecord,
    ClaimRecord,
    ClaimAckRecord,
    CloseRecord,
    ComplaintRecord,
    LedgerHeadRecord,
)
PARTS_OF_RECORDS = (Gpu, ModelOffer, ModelDetails, ModelAliases, Sampling, ReportEntry)
SEALED = (JobRequest, SealedPrompt, ChunkBody)

# Long fields are rare in examples: Hypothesis spends its time on shapes, not on filling 48 KiB.
_LENGTH_MAX = 40


def of_type(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Valid values of a struct class."""
    return _of(mi.type_info(cls))


@cache
def messages() -> st.SearchStrategy[Any]:
    """Valid messages of every type."""
    return st.one_of([of_type(cls) for cls in MESSAGES])


def _of(info: mi.Type) -> st.SearchStrategy[Any]:
    match info:
        case mi.Metadata():
            return _of(info.type)
        case mi.IntType(ge=low, le=high):
            assert low is not None, "every integer of the wire is bounded"
            assert high is not None, "every integer of the wire is bounded"
            # The edges of MessagePack's encodings are where mistakes live.
            edges = [n for n in (0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, high) if low <= n <= high]
            return st.integers(low, high) | st.sampled_from(edges)
        case mi.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(high or _LENGTH_MAX, max(_LENGTH_MAX, low or 0)))
        case mi.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=min(high or _LENGTH_MAX, max(_LENGTH_MAX, low or 0)))
        case mi.NoneType():
            return st.none()
        case mi.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case mi.UnionType(types=types):
            return st.one_of([_of(each) for each in types])
        case mi.VarTupleType(item_type=item, min_length=low, max_length=high):
            return st.lists(_of(item), min_size=low or 0, max_size=min(high or 4, 4)).map(tuple)
        case mi.TupleType(item_types=items):
            return st.tuples(*[_of(item) for item in items])
        case mi.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _of(field.type) for field in fields})
        case _:
            raise AssertionError(f"no strategy for {info}: the wire has a new kind of type")


def field_names(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of a struct in the order of the wire."""
    return cls.__struct_fields__


_NAMED_RANGES: dict[tuple[int | None, int | None], str] = {
    (0, 2**63 - 1): "uint",
    (0, 2**32 - 1): "count",
    (0, 10**12): "price",
    (0, 255): "u8",
    (0, 10_000): "bps",
}


def type_names(cls: type[msgspec.Struct]) -> list[str]:
    """The types of a struct's fields as the tables of specs/01 write them."""
    info = mi.type_info(cls)
    assert isinstance(info, mi.StructType)
    return [_name(field.type) for field in info.fields]


def _name(info: mi.Type) -> str:
    match info:
        case mi.Metadata():
            return _name(info.type)
        case mi.IntType(ge=low, le=high):
            return _NAMED_RANGES.get((low, high), f"{low}..{high}")
        case mi.StrType(min_length=low, max_length=high):
            return "text" if high is None else f"text({low or 0}..{high})"
        case mi.BytesType(min_length=low, max_length=high):
            if high is None:
                return "bytes"
            return f"bytes({high})" if low == high else f"bytes({low or 0}..{high})"
        case mi.EnumType(cls=cls):
            return cls.__name__
        case mi.UnionType(types=types):
            (present,) = [each for each in types if not isinstance(each, mi.NoneType)]
            return f"{_name(present)}?"
        case mi.VarTupleType(item_type=item, min_length=low, max_length=high):
            return f"[{_name(item)}]" if high is None else f"[{_name(item)}; {low or 0}..{high}]"
        case mi.TupleType(item_types=items):
            return f"({', '.join(map(_name, items))})"
        case mi.StructType(cls=cls):
            return cls.__name__
        case _:
            raise AssertionError(f"no name for {info}")
