"""protocol/dialing_back.py: nobody is dialled but the one who asks, and not too often."""

from __future__ import annotations

import pytest

from protocol.codec import CONTROL_LIMITS, FrameReader
from protocol.dialing_back import AT_ONCE_MAX, PEER_BURST, DialingBack
from protocol.effects import DialBack, Effect, FinishStream, Send
from protocol.errors import RemoteProtocolError
from protocol.events import DialedBack
from protocol.ids import NodeId, StreamId
from protocol.messages import Reached, ReachMe
from protocol.records import Reachability
from tests.helpers_machines import now

SEEN_AT = "/ip4/203.0.113.7/tcp/50123"


def peer(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def answer(effects: list[Effect]) -> Reached:
    """What is said on the stream before it is finished."""
    send, finish = effects
    assert isinstance(send, Send)
    assert isinstance(finish, FinishStream)
    [message] = FrameReader(CONTROL_LIMITS).feed(send.data)
    assert isinstance(message, Reached)
    return message


def ask(machine: DialingBack, number: int = 1, seen_at: str | None = SEEN_AT, at_s: float = 0.0) -> list[Effect]:
    return machine.on_message(StreamId(2 * number), peer(number), seen_at, ReachMe(46337), now(at_s))


def test_the_port_asked_for_is_dialled_at_the_address_that_the_asker_comes_from() -> None:
    machine = DialingBack(is_enabled=True)
    assert ask(machine) == [DialBack(1, peer(1), "/ip4/203.0.113.7/tcp/46337")]
    assert machine.owns(StreamId(2))

    told = answer(machine.on_dialed_back(DialedBack(1, Reachability.REACHED, "the node answers there")))
    assert told == Reached(Reachability.REACHED, "/ip4/203.0.113.7/tcp/46337", "the node answers there")
    assert (machine.active, machine.owns(StreamId(2))) == (0, False)


def test_an_ipv4_address_that_is_mapped_into_ipv6_is_dialled_as_such() -> None:
    [effect] = ask(DialingBack(is_enabled=True), seen_at="/ip6/::ffff:203.0.113.7/tcp/50123")
    assert isinstance(effect, DialBack)
    assert effect.address == "/ip4/203.0.113.7/tcp/46337"


@pytest.mark.parametrize(
    "seen_at",
    [None, "", "/dns/victim.example/tcp/1", "/ip4/203.0.113.7/tcp/46337/p2p/16Uiu2/p2p-circuit", "/memory/1"],
)
def test_who_comes_from_nowhere_or_through_a_relay_is_not_dialled(seen_at: str | None) -> None:
    machine = DialingBack(is_enabled=True)
    assert answer(ask(machine, seen_at=seen_at)).reachability is Reachability.NOT_TRIED
    assert machine.active == 0


def test_who_never_dials_does_not_dial_back() -> None:
    machine = DialingBack(is_enabled=False)
    assert answer(ask(machine)).reachability is Reachability.NOT_TRIED
    assert machine.active == 0


def test_one_peer_has_its_share_and_no_more_until_time_has_passed() -> None:
    machine = DialingBack(is_enabled=True)
    for number in range(PEER_BURST):
        [effect] = ask(machine)
        assert isinstance(effect, DialBack)
        machine.on_dialed_back(DialedBack(number + 1, Reachability.REACHED, ""))
    refused = answer(ask(machine))
    assert refused.reachability is Reachability.NOT_TRIED
    assert refused.address is None
    assert isinstance(ask(machine, at_s=61.0)[0], DialBack)


def test_one_network_with_many_keys_has_its_share_and_no_more() -> None:
    machine = DialingBack(is_enabled=True)
    dialled = 0
    for number in range(1, 101):
        effects = ask(machine, number, f"/ip4/203.0.{number}.7/tcp/5000")
        if isinstance(effects[0], DialBack):
            dialled += 1
            machine.on_dialed_back(DialedBack(effects[0].probe, Reachability.NOT_REACHED, ""))
    assert dialled == 12


def test_so_many_at_once_and_no_more() -> None:
    machine = DialingBack(is_enabled=True)
    effects = [ask(machine, number, f"/ip4/{number}.0.113.7/tcp/5000")[0] for number in range(1, AT_ONCE_MAX + 6)]
    assert sum(isinstance(effect, DialBack) for effect in effects) == AT_ONCE_MAX
    assert machine.active == AT_ONCE_MAX


def test_nobody_is_told_what_came_of_it_when_the_asker_has_gone() -> None:
    machine = DialingBack(is_enabled=True)
    ask(machine)
    machine.on_stream_lost(StreamId(2))
    assert machine.on_dialed_back(DialedBack(1, Reachability.REACHED, "")) == []
    assert machine.active == 0


def test_who_asks_and_goes_away_has_no_more_dialled_at_once_than_others() -> None:
    machine = DialingBack(is_enabled=True)
    for number in range(AT_ONCE_MAX):
        [effect] = ask(machine, number, f"/ip4/203.{number}.113.7/tcp/1")
        assert isinstance(effect, DialBack)
        machine.on_stream_lost(StreamId(2 * number))
    assert machine.active == AT_ONCE_MAX
    assert answer(ask(machine, 99, "/ip4/198.51.100.7/tcp/1")).reachability is Reachability.NOT_TRIED
    machine.on_dialed_back(DialedBack(1, Reachability.REACHED, ""))
    [effect] = ask(machine, 99, "/ip4/198.51.100.7/tcp/1")
    assert isinstance(effect, DialBack)


def test_an_answer_is_no_question() -> None:
    with pytest.raises(RemoteProtocolError):
        DialingBack(is_enabled=True).on_message(
            StreamId(2), peer(1), SEEN_AT, Reached(Reachability.REACHED, None, ""), now()
        )
