"""protocol/sim/reader.py: what one peer has read and verified the others need not read and verify again."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol.errors import BadSignature
from protocol.sim.reader import SharedReader
from tests.helpers_machines import record_of


def test_a_record_is_decoded_once() -> None:
    reader = SharedReader()
    assert reader.read(record_of("a")) is reader.read(record_of("a"))
    assert reader.read(record_of("a")) is not reader.read(record_of("b"))


def test_a_forgery_is_refused_each_time_also_after_the_original() -> None:
    reader = SharedReader()
    reader.verify(reader.read(record_of("a")))
    forged = reader.read(replace(record_of("a"), signature=bytes(64)))
    for _ in range(2):
        with pytest.raises(BadSignature):
            reader.verify(forged)
