"""A whole peer that learns how it is reached: the questions on the wire, the relays, the sentence for its owner."""

from __future__ import annotations

from msgspec.structs import replace

from protocol import constants as c
from protocol.effects import DialBack, FinishStream, OwnAddresses, ReachabilityLearnt, ReleaseRelay, ReserveRelay
from protocol.events import BytesReceived, DialedBack, Listening, PeerDisconnected, RelayLost, RelayReserved
from protocol.ids import NodeId, StreamId
from protocol.messages import Fault, Hello, Reached, ReachMe
from protocol.reaching import FEATURE_DIALS_BACK, SETTLE_S
from protocol.records import Reachability
from protocol.relays import FEATURE_RELAYS
from tests.helpers_machines import Bench, hello_of
from tests.helpers_records import signing_key

LISTENING = Listening(("/ip4/192.168.1.7/tcp/46337", "/ip4/127.0.0.1/tcp/46337"), is_advertised=True)
FEATURES = (1, FEATURE_RELAYS, FEATURE_DIALS_BACK)


def node(number: int) -> NodeId:
    return signing_key(f"public {number}").node


def public_peers(bench: Bench, *numbers: int) -> None:
    """Peers that we dialled, each in a network of its own, that relay and dial back."""
    for number in numbers:
        bench.connect(node(number), address=f"/ip4/{number}.2.3.4/tcp/46337", greets=False)
        stream = bench.stream_to(node(number), c.HELLO_PROTOCOL)
        hello = replace(hello_of(), features=FEATURES, observed_address="/ip4/198.51.7.9/tcp/51000")
        bench.hear(stream, hello)
        bench.hear_end(stream)


def behind_a_router(*numbers: int) -> Bench:
    """A provider that has asked these peers, and they have found nothing."""
    bench = Bench()
    bench.provide()
    bench.feed(LISTENING)
    public_peers(bench, *numbers)
    bench.wait(SETTLE_S)
    for number in numbers:
        bench.hear(bench.stream_to(node(number), c.REACH_PROTOCOL), Reached(Reachability.NOT_REACHED, None, ""))
    return bench


def test_the_question_names_the_port_and_the_answer_counts() -> None:
    bench = Bench()
    bench.provide()
    bench.feed(LISTENING)
    assert bench.one(ReachabilityLearnt).reachability is Reachability.UNKNOWN
    public_peers(bench, 1, 2)
    bench.wait(SETTLE_S)
    address = "/ip4/198.51.7.9/tcp/46337"
    for number in (1, 2):
        stream = bench.stream_to(node(number), c.REACH_PROTOCOL)
        assert bench.said[stream] == [ReachMe(46337)]
        bench.hear(stream, Reached(Reachability.REACHED, address, "the node answers there"))
    learnt = bench.one(ReachabilityLearnt)
    assert (learnt.reachability, learnt.address) == (Reachability.REACHED, address)
    assert bench.none_of(ReserveRelay)


def test_who_is_not_reached_takes_relays_and_tells_its_owner_both_ways_out() -> None:
    bench = behind_a_router(1, 2)
    assert {effect.relay for effect in bench.all(ReserveRelay)} == {node(1), node(2)}
    learnt = bench.one(ReachabilityLearnt)
    assert learnt.reachability is Reachability.NOT_REACHED
    assert "forward TCP port 46337 of your router to 192.168.1.7" in learnt.advice
    assert "only nodes that this one has dialled" in learnt.advice

    bench.feed(RelayReserved(node(1), ("circuit 1",)), RelayReserved(node(2), ("circuit 2",)))
    assert bench.all(OwnAddresses)[-1] == OwnAddresses(("circuit 1", "circuit 2"))
    assert bench.all(ReachabilityLearnt)[-1].advice.endswith("or go on: you are reached through 2 relays")

    bench.feed(RelayLost(node(2), "gone"))
    assert bench.one(OwnAddresses) == OwnAddresses(("circuit 1",))
    assert "through 1 relay" in bench.one(ReachabilityLearnt).advice


def test_relays_are_let_go_once_the_port_is_forwarded() -> None:
    bench = behind_a_router(1, 2)
    bench.feed(RelayReserved(node(1), ("circuit 1",)), RelayReserved(node(2), ("circuit 2",)))
    before = bench.stream_to(node(1), c.REACH_PROTOCOL)
    while bench.stream_to(node(1), c.REACH_PROTOCOL) == before:
        bench.wait(1)
        assert bench.at_s < 300, "it asks again soon"
    for number in (1, 2):
        stream = bench.stream_to(node(number), c.REACH_PROTOCOL)
        bench.hear(stream, Reached(Reachability.REACHED, "/ip4/198.51.7.9/tcp/46337", ""))
    assert {effect.relay for effect in bench.all(ReleaseRelay)} == {node(1), node(2)}
    assert bench.one(OwnAddresses) == OwnAddresses(())


def test_a_node_that_does_no_jobs_or_hides_takes_no_relays() -> None:
    for listening, provides in ((LISTENING, False), (replace(LISTENING, is_advertised=False), True)):
        bench = Bench()
        if provides:
            bench.provide()
        bench.feed(listening)
        public_peers(bench, 1, 2)
        bench.wait(SETTLE_S)
        for number in (1, 2):
            bench.hear(bench.stream_to(node(number), c.REACH_PROTOCOL), Reached(Reachability.NOT_REACHED, None, ""))
            assert bench.none_of(ReserveRelay)


def test_a_node_that_only_dials_takes_relays_at_once() -> None:
    bench = Bench()
    bench.provide()
    bench.feed(Listening((), is_advertised=True))
    public_peers(bench, 1)
    assert bench.all(ReserveRelay) == []
    bench.wait(5)
    effects = [effect for effect in bench.opened.values() if effect.protocol == c.REACH_PROTOCOL]
    assert effects == [], "it need not ask whether it is reached"


def test_a_peer_that_hangs_up_instead_of_answering_has_no_vote() -> None:
    bench = Bench()
    bench.provide()
    bench.feed(LISTENING)
    public_peers(bench, 1, 2, 3)
    bench.wait(SETTLE_S)
    bench.feed(PeerDisconnected(node(1)))
    bench.hear_end(bench.stream_to(node(2), c.REACH_PROTOCOL))
    bench.hear(bench.stream_to(node(3), c.REACH_PROTOCOL), Reached(Reachability.NOT_REACHED, None, ""))
    assert bench.one(ReachabilityLearnt).reachability is Reachability.NOT_REACHED


# ---------------------------------------------------------------- the other side


def asked(bench: Bench, address: str = "/ip4/203.0.113.7/tcp/50123", port: int = 46337) -> StreamId:
    bench.connect(node(9), inbound=True, address=address)
    stream = bench.accept_stream(node(9), c.REACH_PROTOCOL)
    bench.hear(stream, ReachMe(port))
    return stream


def test_we_dial_back_and_answer_on_the_same_stream() -> None:
    bench = Bench()
    stream = asked(bench)
    dial = bench.one(DialBack)
    assert (dial.peer, dial.address) == (node(9), "/ip4/203.0.113.7/tcp/46337")
    bench.hear_end(stream)
    assert bench.none_of(FinishStream), "the answer is still to come"
    bench.feed(DialedBack(dial.probe, Reachability.WRONG_NODE, "another node answers there"))
    assert bench.heard(stream, Reached) == Reached(
        Reachability.WRONG_NODE, "/ip4/203.0.113.7/tcp/46337", "another node answers there"
    )
    assert bench.one(FinishStream).stream == stream
    assert bench.peer.statistics().streams == 0


def test_a_port_that_nobody_should_knock_at_is_a_bad_frame() -> None:
    bench = Bench()
    bench.connect(node(9), inbound=True)
    stream = bench.accept_stream(node(9), c.REACH_PROTOCOL)
    data = bytes.fromhex("00000003" + "92" + "30" + "16")  # ReachMe, port 22
    bench.feed(BytesReceived(stream, data))
    assert bench.none_of(DialBack)
    assert bench.heard(stream, Fault)


def test_the_hello_says_that_we_dial_back() -> None:
    bench = Bench()
    bench.connect(node(1), greets=False)
    assert FEATURE_DIALS_BACK in bench.heard(bench.stream_to(node(1), c.HELLO_PROTOCOL), Hello).features


def test_whoever_relays_says_so_in_hello_and_heartbeat() -> None:
    bench = Bench()
    bench.provide(relays=True)
    bench.connect(node(1), greets=False)
    assert FEATURE_RELAYS in bench.heard(bench.stream_to(node(1), c.HELLO_PROTOCOL), Hello).features
    entry = bench.peer.directory.get(bench.key.node)
    assert entry is not None
    assert FEATURE_RELAYS in entry.heartbeat.features
    bench.provide(relays=False)
    entry = bench.peer.directory.get(bench.key.node)
    assert entry is not None
    assert FEATURE_RELAYS not in entry.heartbeat.features
