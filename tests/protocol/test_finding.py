"""Who serves what, asked of peers and answered to them."""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import CONTROL_LIMITS, FrameReader
from protocol.directory import Directory
from protocol.effects import Effect, FinishStream, OpenStream, RecordLearnt, Send
from protocol.errors import BadSignature, RemoteProtocolError
from protocol.finding import QUERIES_PER_PEER_MAX, Finding
from protocol.ids import NodeId, StreamId
from protocol.messages import Find, Found, Message
from protocol.records import Availability, Kind, Signed
from protocol.routing import RouteRequest
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, OFFER, signing_key

ME = signing_key("me").node
FRIENDS = [signing_key(f"friend {number}").node for number in range(10)]
REQUEST = RouteRequest(OFFER.name, Kind.CHAT)


def finding_of(directory: Directory | None = None, connected: list[NodeId] | None = None) -> Finding:
    numbers = itertools.count(1, 2)
    return Finding(
        ME,
        Directory() if directory is None else directory,
        random.Random(1),
        connected=lambda: FRIENDS if connected is None else connected,
        next_stream=lambda: StreamId(next(numbers)),
    )


def said(effects: list[Effect]) -> list[Message]:
    reader = FrameReader(CONTROL_LIMITS)
    return [message for effect in effects if isinstance(effect, Send) for message in reader.feed(effect.data)]


def directory_of(count: int, **changes: object) -> Directory:
    directory = Directory()
    for number in range(count):
        directory.add(record_of(str(number), **changes), NOW_MS)
    return directory


def answer(directory: Directory, find: Find) -> Found:
    effects = finding_of(directory).on_query(StreamId(2), find, now())
    assert isinstance(effects[-1], FinishStream)
    (found,) = said(effects)
    assert isinstance(found, Found)
    assert found.query == find.query
    return found


# ---------------------------------------------------------------- asking


def test_a_question_goes_to_a_few_each_on_a_stream_of_its_own() -> None:
    finding = finding_of()
    effects = finding.ask(REQUEST)
    opened = [effect for effect in effects if isinstance(effect, OpenStream)]
    assert len({effect.peer for effect in opened}) == len({effect.stream for effect in opened}) == c.FIND_PEERS
    assert finding.active == c.FIND_PEERS
    assert len([effect for effect in effects if isinstance(effect, FinishStream)]) == c.FIND_PEERS


def test_a_question_can_go_to_one_and_to_nobody() -> None:
    assert {e.peer for e in finding_of().ask(REQUEST, FRIENDS[3]) if isinstance(e, OpenStream)} == {FRIENDS[3]}
    assert finding_of(connected=[]).ask(REQUEST) == []


def test_a_peer_is_asked_only_so_many_questions_at_a_time() -> None:
    finding = finding_of(connected=FRIENDS[:1])
    streams = [e.stream for _ in range(20) for e in finding.ask(REQUEST) if isinstance(e, OpenStream)]
    assert len(streams) == QUERIES_PER_PEER_MAX < c.CONTROL_STREAMS_PER_PEER_MAX
    finding.on_stream_lost(streams[0])
    assert len([e for e in finding.ask(REQUEST) if isinstance(e, OpenStream)]) == 1


def test_an_answer_teaches_and_ends_the_query() -> None:
    directory = Directory()
    finding = finding_of(directory, FRIENDS[:1])
    effects = finding.ask(REQUEST)
    (find,) = said(effects)
    assert isinstance(find, Find)
    stream = StreamId(1)
    learnt = finding.on_answer(stream, Found(find.query, (record_of("p"), record_of("q"))), now())
    assert [type(effect) for effect in learnt] == [RecordLearnt, RecordLearnt]
    assert len(directory) == 2
    assert finding.active == 0
    with pytest.raises(RemoteProtocolError):
        finding.on_answer(stream, Found(find.query, ()), now())


def test_an_answer_to_another_question_is_an_error_and_teaches_nothing() -> None:
    directory = Directory()
    finding = finding_of(directory, FRIENDS[:1])
    (find,) = said(finding.ask(REQUEST))
    assert isinstance(find, Find)
    with pytest.raises(RemoteProtocolError):
        finding.on_answer(StreamId(1), Found(find.query + 1, (record_of("p"),)), now())
    with pytest.raises(RemoteProtocolError):
        finding.on_answer(StreamId(99), Found(find.query, (record_of("p"),)), now())
    with pytest.raises(RemoteProtocolError):
        finding.on_answer(StreamId(1), find, now())
    assert len(directory) == 0


def test_a_forged_answer_is_an_error_and_teaches_nothing() -> None:
    directory = Directory()
    finding = finding_of(directory, FRIENDS[:1])
    (find,) = said(finding.ask(REQUEST))
    assert isinstance(find, Find)
    with pytest.raises(BadSignature):
        finding.on_answer(
            StreamId(1), Found(find.query, (record_of("p"), Signed(record_of("q").body, bytes(64)))), now()
        )
    assert len(directory) == 0


# ---------------------------------------------------------------- answering


def test_an_answer_holds_fitting_providers_up_to_the_limit() -> None:
    directory = directory_of(10)
    directory.add(record_of("other", models=(replace(OFFER, name="other"),)), NOW_MS)
    directory.add(record_of("gone", availability=Availability.OFFLINE), NOW_MS)
    found = answer(directory, Find(7, OFFER.name, Kind.CHAT, 0, None, None, 5))
    assert len(set(found.records)) == 5
    everyone = answer(directory, Find(7, OFFER.name, Kind.CHAT, 0, None, None, c.FIND_RESULTS_MAX))
    assert len(everyone.records) == 10


def test_a_question_without_a_model_is_answered_from_all() -> None:
    directory = directory_of(2)
    directory.add(record_of("other", models=(replace(OFFER, name="other"),)), NOW_MS)
    assert len(answer(directory, Find(7, None, Kind.CHAT, 0, None, None, 16)).records) == 3
    assert answer(directory, Find(7, None, Kind.EMBEDDING, 0, None, None, 16)).records == ()


def test_what_does_not_fit_takes_no_room_from_what_does() -> None:
    """Sixty kilobytes of providers that do not fit must not crowd out one that does."""
    directory = directory_of(30, addresses=tuple("/" + "a" * 255 for _ in range(8)), availability=Availability.OFFLINE)
    directory.add(record_of("fits"), NOW_MS)
    assert answer(directory, Find(7, OFFER.name, Kind.CHAT, 0, None, None, 16)).records == (record_of("fits"),)


def test_an_answer_of_large_records_fits_its_frame() -> None:
    models = tuple(replace(OFFER, name=f"{OFFER.name}{'x' * 100}{n}") for n in range(30))
    directory = directory_of(16, models=(OFFER, *models), addresses=tuple("/" + "a" * 255 for _ in range(8)))
    found = answer(directory, Find(7, OFFER.name, Kind.CHAT, 0, None, None, 16))
    assert 5 < len(found.records) < 16


def test_only_a_question_is_answered() -> None:
    with pytest.raises(RemoteProtocolError):
        finding_of().on_query(StreamId(2), Found(1, ()), now())


def test_one_node_can_be_asked_for() -> None:
    directory = directory_of(40)
    wanted = record_of("wanted")
    directory.add(wanted, NOW_MS)
    node = signing_key("wanted").node
    assert answer(directory, Find(7, None, Kind.CHAT, 0, None, None, 16, provider=node)).records == (wanted,)
    assert answer(directory, Find(7, "other", Kind.CHAT, 0, None, None, 16, provider=node)).records == ()
    assert answer(directory, Find(7, None, Kind.CHAT, 0, None, None, 16, provider=ME)).records == ()


def test_the_weights_that_are_asked_for_are_those_of_the_answer() -> None:
    directory = directory_of(2)
    other = record_of("other", models=(replace(OFFER, fingerprint=b"\x12" * 32),))
    directory.add(other, NOW_MS)
    found = answer(directory, Find(7, OFFER.name, Kind.CHAT, 0, None, None, 16, fingerprint=b"\x12" * 32))
    assert found.records == (other,)


def test_the_question_names_weights_and_node() -> None:
    request = replace(REQUEST, fingerprint=b"\x12" * 32, provider=FRIENDS[0])
    (question,) = said(finding_of(connected=[ME]).ask(request))
    assert isinstance(question, Find)
    assert (question.fingerprint, question.provider) == (b"\x12" * 32, FRIENDS[0])
