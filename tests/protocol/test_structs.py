"""What threads decode is known to msgspec before they can meet in it."""

from __future__ import annotations

import msgspec

from protocol import money_records, records
from protocol.codec import decode_record
from protocol.link import Frame
from protocol.messages import Message
from protocol.records import Record
from protocol.structs import PREPARED, prepare


class Later(msgspec.Struct):
    """A struct of a module that has not been prepared."""

    number: int


def below(cls: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    return {cls}.union(*(below(each) for each in cls.__subclasses__()))


def test_every_record_message_and_frame_is_prepared() -> None:
    ours = {cls for base in (Record, Message, Frame) for cls in below(base) if cls.__module__.startswith("protocol.")}
    assert len(ours) > 60
    assert sorted(cls.__name__ for cls in ours - PREPARED) == []
    parts = {records.Gpu, records.ModelOffer, records.ReportEntry, money_records.Credited}
    assert parts <= PREPARED


def test_a_module_is_prepared_with_its_own_structs_only() -> None:
    before = set(PREPARED)
    prepare({"__name__": __name__, "Later": Later, "Record": Record, "decode_record": decode_record})
    assert before ^ PREPARED == {Later}
    PREPARED.discard(Later)
