"""What all generators of vectors share: fixed keys, plain JSON, and the shape of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from protocol.envelope import SigningKey
from protocol.ids import JobId

Vector = dict[str, Any]
Generator = Callable[[], Vector]

NOW_MS = 1_795_000_000_000
JOB = JobId(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))


def signing_key(name: str) -> SigningKey:
    """The key of one of the people in these vectors. Auxiliary randomness is 32 zero bytes throughout."""
    return SigningKey(hashlib.sha256(f"infernet vector: {name}".encode()).digest(), bytes)


ASKER = signing_key("asker")
PROVIDER = signing_key("provider")
COORDINATOR = signing_key("coordinator")


def plain(value: Any) -> Any:
    """A value as JSON shows it: structs as objects, bytes in hexadecimal, enumerations as their number."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return int(value) if isinstance(value, int) else value


def valid(comment: str, **fields: Any) -> Vector:
    """A vector that must be produced or accepted."""
    return {"comment": comment, "valid": True, **plain(fields)}


def invalid(comment: str, **fields: Any) -> Vector:
    """A vector that must be refused."""
    return {"comment": comment, "valid": False, **plain(fields)}


def file(comment: str, vectors: Iterable[Vector]) -> Vector:
    """The contents of one file."""
    return {"comment": comment, "vectors": list(vectors)}
