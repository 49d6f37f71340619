"""The simulated network keeps the contract of the network events, and does to connections what it is told to."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protocol import constants as c
from protocol.effects import Dial, FinishStream, HangUp, OpenStream, ResetStream, Send
from protocol.events import (
    BytesReceived,
    DialFailed,
    Event,
    OutboxFull,
    PeerConnected,
    PeerDisconnected,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import NodeId, StreamId
from protocol.sim.network import Network
from protocol.sim.scenario import Faults
from protocol.sim.schedule import Schedule

S1 = StreamId(1)
CALM = {"split": 0.0, "jitter_s": 0.0, "latency_s_min": 0.1, "latency_s_mean": 0.1}


class Recorder:
    """A machine that writes down what it receives."""

    def __init__(self, name: str, schedule: Schedule, address: str | None) -> None:
        self.node = NodeId(name.encode().ljust(32))
        self.address = address
        self.observed_address = f"/observed/{name}"
        self.seen: list[tuple[float, Event]] = []
        self._schedule = schedule
        self._inbound = 0

    def receive(self, event: Event) -> None:
        self.seen.append((self._schedule.now_s, event))

    def next_inbound_stream(self) -> StreamId:
        self._inbound += 2
        return StreamId(self._inbound)

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.seen]

    def data(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, BytesReceived) and e.stream == stream)

    def of(self, cls: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, cls)]


class Net:
    """A network of recorders a, b, c."""

    def __init__(self, seed: int = 1, **faults: Any) -> None:
        self.schedule = Schedule()
        self.network = Network(Faults(**{**CALM, **faults}), self.schedule, random.Random(seed))
        self.a, self.b, self.c = (Recorder(name, self.schedule, f"/{name}") for name in "abc")
        for machine in (self.a, self.b, self.c):
            self.network.start(self.network.attach(machine))

    def run(self, seconds: float = 1.0) -> None:
        self.schedule.run_until(self.schedule.now_s + seconds)

    def connect(self, source: int = 0, target: int = 1) -> None:
        machines = (self.a, self.b, self.c)
        peer = machines[target]
        assert peer.address is not None
        self.network.perform(source, Dial(peer.node, (peer.address,)))
        # Long enough for a handshake that loses segments.
        self.run(30.0 if self.network.faults.loss else 1.0)

    def open(self, protocol: str = c.FIND_PROTOCOL, stream: StreamId = S1) -> None:
        self.network.perform(0, OpenStream(stream, self.b.node, protocol))

    def send(self, data: bytes, stream: StreamId = S1, source: int = 0) -> None:
        self.network.perform(source, Send(stream, data))


# ---------------------------------------------------------------- dialling


@pytest.mark.parametrize("seed", range(8))
def test_a_dial_connects_both_ends_and_bytes_sent_at_once_arrive(seed: int) -> None:
    net = Net(seed)
    original = net.a.receive

    def receive(event: Event) -> None:
        original(event)
        if isinstance(event, PeerConnected):
            net.open()
            net.send(b"at once")

    net.a.receive = receive  # type: ignore[method-assign]
    net.connect()
    assert net.a.events[0] == PeerConnected(net.b.node, "/b", False)
    assert net.b.events[0] == PeerConnected(net.a.node, "/observed/a", True)
    assert net.b.events[1] == StreamOpened(StreamId(2), net.a.node, c.FIND_PROTOCOL)
    assert net.b.data(2) == b"at once"


def test_dials_fail_for_the_reason_there_is() -> None:
    net = Net()
    net.network.perform(0, Dial(net.b.node, ("/elsewhere",)))
    net.network.perform(0, Dial(net.a.node, ("/a",)))
    net.network.perform(0, Dial(NodeId(bytes(32)), ("/b",)))
    net.run(30.0)
    assert [type(event) for event in net.a.events] == [DialFailed] * 3
    net = Net()
    net.network.crash(1, silent=False)
    net.connect()
    ((at_s, event),) = net.a.seen
    assert isinstance(event, DialFailed)
    assert at_s == pytest.approx(0.2)
    net = Net()
    net.network.crash(1, silent=True)
    net.network.perform(0, Dial(net.b.node, ("/b",)))
    net.run(30.0)
    assert net.a.seen[0][0] == pytest.approx(c.REACH_DEADLINE_S)


def test_a_dial_while_one_is_under_way_or_connected_does_nothing() -> None:
    net = Net()
    for _ in range(3):
        net.network.perform(0, Dial(net.b.node, ("/b",)))
    net.run()
    net.connect()
    assert len(net.a.events) == len(net.b.events) == 1


@pytest.mark.parametrize("seed", range(8))
def test_both_dialling_at_once_connects_once_for_each(seed: int) -> None:
    net = Net(seed)
    net.network.perform(0, Dial(net.b.node, ("/b",)))
    net.network.perform(1, Dial(net.a.node, ("/a",)))
    net.run(5.0)
    assert [type(event) for event in net.a.events] == [type(event) for event in net.b.events] == [PeerConnected]


# ---------------------------------------------------------------- streams


def test_latency_is_one_way_and_the_same_both_ways() -> None:
    net = Net()
    net.connect()
    start_s = net.schedule.now_s
    net.open()
    net.send(b"x")
    net.run()
    net.network.perform(1, Send(StreamId(2), b"y"))
    sent_s = net.schedule.now_s
    net.run()
    assert net.b.seen[-1] == (pytest.approx(start_s + 0.1), BytesReceived(StreamId(2), b"x"))
    assert net.a.seen[-1] == (pytest.approx(sent_s + 0.1), BytesReceived(S1, b"y"))


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_cut_and_merged_and_never_lost_or_reordered(seed: int) -> None:
    net = Net(seed, split=0.7, loss=0.3, jitter_s=0.2)
    net.connect()
    rng = random.Random(seed)
    net.open()
    expected = b""
    for _ in range(50):
        data = rng.randbytes(rng.randint(1, 50))
        expected += data
        net.send(data)
        net.run(rng.random() * 0.1)
    net.network.perform(0, FinishStream(S1))
    net.run(300.0)
    assert net.b.data(2) == expected
    assert net.b.events[-1] == StreamFinished(StreamId(2))
    assert len(net.b.of(BytesReceived)) != 50


def test_loss_delays_everything_behind_it_on_the_connection() -> None:
    net = Net(seed=3, loss=0.5)
    net.connect()
    net.run(60.0)
    net.open()
    net.open(stream=StreamId(3))
    for number in range(20):
        net.send(bytes([number]), StreamId(1 + 2 * (number % 2)))
    start_s = net.schedule.now_s
    net.run(60.0)
    arrivals = [(at_s - start_s, event) for at_s, event in net.b.seen if isinstance(event, BytesReceived)]
    assert net.b.data(2) == bytes(range(0, 20, 2))
    assert net.b.data(4) == bytes(range(1, 20, 2))
    assert max(at_s for at_s, _ in arrivals) >= 0.1 + 0.2


def test_half_close_leaves_the_other_half_open() -> None:
    net = Net()
    net.connect()
    net.open()
    net.send(b"question")
    net.network.perform(0, FinishStream(S1))
    net.run()
    assert net.b.of(StreamFinished)
    net.network.perform(1, Send(StreamId(2), b"answer"))
    net.network.perform(1, FinishStream(StreamId(2)))
    net.run()
    assert net.a.data(1) == b"answer"
    assert net.a.events[-1] == StreamFinished(S1)
    assert net.network.open_streams == 0


def test_a_reset_breaks_the_other_end_after_what_was_sent() -> None:
    net = Net()
    net.connect()
    net.open()
    net.send(b"last words")
    net.network.perform(0, ResetStream(S1, "enough"))
    net.run()
    assert net.b.data(2) == b"last words"
    assert isinstance(net.b.events[-1], StreamBroken)
    assert net.network.open_streams == 0
    net.send(b"into the void")
    net.network.perform(1, Send(StreamId(2), b"into the void"))
    before = len(net.a.events), len(net.b.events)
    net.run()
    assert (len(net.a.events), len(net.b.events)) == before


def test_what_a_machine_must_not_do_with_a_stream_is_caught() -> None:
    net = Net()
    net.connect()
    net.open()
    net.network.perform(0, FinishStream(S1))
    with pytest.raises(AssertionError, match="finished"):
        net.send(b"more")
    with pytest.raises(AssertionError, match="twice"):
        net.network.perform(0, FinishStream(S1))


def test_a_stream_to_nobody_breaks() -> None:
    net = Net()
    net.open()
    assert net.a.events == []
    net.run()
    assert net.a.events == [StreamBroken(S1, "not connected")]


def test_a_slow_line_takes_its_time_and_a_full_outbox_says_so() -> None:
    net = Net(bandwidth_bytes_per_s=1000.0, outbox_bytes_max=5000)
    net.connect()
    net.open()
    start_s = net.schedule.now_s
    net.send(b"x" * 1000)
    net.send(b"x" * 1000)
    net.run(10.0)
    assert net.b.seen[-1][0] == pytest.approx(start_s + 2.1)
    for _ in range(6):
        net.send(b"x" * 1000)
    net.run(20.0)
    assert net.a.of(OutboxFull) == [OutboxFull(S1)]
    assert len(net.b.data(2)) == 7000


# ---------------------------------------------------------------- ends of connections


def test_hanging_up_ends_streams_first_on_both_ends() -> None:
    net = Net()
    net.connect()
    net.open()
    net.run()
    net.network.perform(0, HangUp(net.b.node, "enough"))
    net.run()
    for machine in (net.a, net.b):
        assert [type(event) for event in machine.events[-2:]] == [StreamBroken, PeerDisconnected]
    assert net.network.open_streams == 0


def test_a_crash_is_heard_of_at_once_and_after_what_was_sent() -> None:
    net = Net()
    net.connect()
    net.open()
    net.send(b"last words")
    net.network.crash(0, silent=False)
    net.run()
    assert net.b.data(2) == b"last words"
    assert [type(event) for event in net.b.events[-2:]] == [StreamBroken, PeerDisconnected]
    assert len(net.a.events) == 1


def test_a_silent_crash_is_noticed_by_silence() -> None:
    net = Net(silence_s=20.0)
    net.connect()
    net.network.crash(0, silent=True)
    at_s = net.schedule.now_s
    net.run(60.0)
    assert net.b.seen[-1] == (pytest.approx(at_s + 20.0), PeerDisconnected(net.a.node))


def test_a_silent_crash_is_noticed_sooner_when_the_machine_is_back() -> None:
    net = Net(silence_s=20.0)
    net.connect()
    net.network.crash(0, silent=True)
    net.run(5.0)
    net.network.start(0)
    net.run(5.0)
    assert net.b.events[-1] == PeerDisconnected(net.a.node)
    net.connect()
    assert net.b.events[-1] == PeerConnected(net.a.node, "/observed/a", True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("delay_s", [0.1, 0.35, 0.45, 0.55])
@pytest.mark.parametrize("crashing", [0, 1])
def test_a_crash_in_the_middle_of_a_dial_leaves_no_half_open_connection(
    seed: int, delay_s: float, crashing: int
) -> None:
    net = Net(seed)
    net.network.perform(0, Dial(net.b.node, ("/b",)))
    net.run(delay_s)
    net.network.crash(crashing, silent=False)
    net.network.start(crashing)
    survivor = (net.b, net.a)[crashing]
    net.run(60.0)
    connects = len(survivor.of(PeerConnected))
    assert len(survivor.of(PeerDisconnected)) == connects
    if crashing == 1:
        assert len(net.a.of(DialFailed)) == 1 - connects


def test_a_short_partition_only_delays() -> None:
    net = Net(silence_s=20.0)
    net.connect()
    net.open()
    inside = net.network.partition([0])
    net.send(b"x")
    net.run(10.0)
    assert net.b.data(2) == b""
    net.network.heal(inside)
    net.run(1.0)
    assert net.b.data(2) == b"x"
    net.run(60.0)
    assert not net.b.of(PeerDisconnected)


def test_a_long_partition_breaks_what_crosses_it_and_nothing_else() -> None:
    net = Net(silence_s=20.0)
    net.connect(0, 1)
    net.connect(1, 2)
    inside = net.network.partition([0])
    net.run(19.9)
    assert not net.b.of(PeerDisconnected)
    net.run(0.2)
    assert net.a.of(PeerDisconnected) == [PeerDisconnected(net.b.node)]
    assert net.b.of(PeerDisconnected) == [PeerDisconnected(net.a.node)]
    net.network.perform(0, Dial(net.b.node, ("/b",)))
    net.run(30.0)
    assert net.a.of(DialFailed)
    net.network.heal(inside)
    net.connect(0, 1)
    assert len(net.a.of(PeerConnected)) == 2


def test_a_partition_begun_again_counts_its_silence_anew() -> None:
    net = Net(silence_s=20.0)
    net.connect()
    inside = net.network.partition([0])
    net.run(15.0)
    net.network.heal(inside)
    net.run(1.0)
    net.network.partition([0])
    net.run(15.0)
    assert not net.a.of(PeerDisconnected)
    net.run(6.0)
    assert net.a.of(PeerDisconnected)


def test_a_clogged_machine_hears_nothing_and_then_everything() -> None:
    net = Net(outbox_bytes_max=25)
    net.connect()
    net.open()
    net.network.clog(1)
    for _ in range(3):
        net.send(b"0123456789")
    net.connect(2, 1)
    net.run(30.0)
    assert net.b.data(2) == b""
    assert net.a.of(OutboxFull) == [OutboxFull(S1)]
    net.network.unclog(1)
    net.run(1.0)
    assert net.b.data(2) == b"01234567890123456789"
    assert PeerConnected(net.c.node, "/observed/c", True) in net.b.events


def test_what_waits_for_a_clogged_machine_reaches_it_though_the_sender_has_died() -> None:
    for seed in range(8):
        net = Net(seed)
        net.network.clog(0)
        net.connect()
        net.network.crash(1, silent=False)
        net.run(5.0)
        net.network.unclog(0)
        net.run(1.0)
        assert len(net.a.of(PeerConnected)) == len(net.a.of(PeerDisconnected)) == 1


def test_a_replayed_job_stream_brings_what_the_opener_sent_once_more() -> None:
    net = Net(replay=1.0)
    net.connect()
    net.open(c.JOB_PROTOCOL)
    net.send(b"order")
    net.run(0.15)
    net.network.perform(1, Send(StreamId(2), b"answer"))
    net.run(30.0)
    assert net.b.data(2) == b"order"
    assert net.b.data(4) == b"order"
    assert net.b.events[-1] == StreamBroken(StreamId(4), "the replayed stream was left")
    assert net.a.data(1) == b"answer"
